// What the C and the C++ test program share: checks, tensors, and slow references in double.
#ifndef CHECK_H
#define CHECK_H

#include <critbeta.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks, failures;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        checks++;                                                                                            \
        if (!(condition)) {                                                                                  \
            failures++;                                                                                      \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, critbeta_last_error());      \
        }                                                                                                    \
    } while (0)

// The call ends in this status, and its text holds these words.
#define REFUSED(call, wanted, words)                                                                         \
    do {                                                                                                     \
        int found_ = (call);                                                                                 \
        CHECK(found_ == (wanted));                                                                           \
        CHECK(strstr(critbeta_last_error(), words) != NULL);                                                 \
    } while (0)

static inline DLTensor tensor(void *data, int code, int bits, int ndim, int64_t *shape) {
    DLTensor made;
    memset(&made, 0, sizeof made);
    made.data = data;
    made.device.device_type = kDLCPU;
    made.ndim = ndim;
    made.dtype.code = (uint8_t)code;
    made.dtype.bits = (uint8_t)bits;
    made.dtype.lanes = 1;
    made.shape = shape;
    return made;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Lambda of n scores as its definition has it: the supremum over gaps t > 0 of log N(t) / t. A gap is one f32
// subtraction.
static double critical_beta(const float *scores, size_t n) {
    float *gaps = (float *)malloc((n + 1) * sizeof(float)), max = -INFINITY;
    double best = 0;
    size_t visible = 0;
    for (size_t i = 0; i < n; i++) max = scores[i] > max ? scores[i] : max;
    for (size_t i = 0; i < n; i++)
        if (scores[i] != -INFINITY) gaps[visible++] = max - scores[i];
    qsort(gaps, visible, sizeof(float), by_size);
    for (size_t i = 0; i < visible; i++) {
        size_t rank = i + 1;
        if (rank < visible && gaps[rank] == gaps[i]) continue;
        if (rank > 1) best = fmax(best, gaps[i] > 0 ? log((double)rank) / gaps[i] : (double)INFINITY);
    }
    free(gaps);
    return best;
}

// The softmax of n scores at beta; returns log-sum-exp of beta * score.
static double softmax(const float *scores, size_t n, double beta, double *weights) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, scores[i]);
    for (size_t i = 0; i < n; i++) {
        double gap = max - scores[i];
        sum += weights[i] = scores[i] == -INFINITY ? 0 : gap == 0 ? 1 : exp(-beta * gap); // beta may be inf
    }
    for (size_t i = 0; i < n; i++) weights[i] /= sum;
    return (max == 0 ? 0 : beta * max) + log(sum);
}

static int near_(double a, double b, double relative) {
    return a == b || fabs(a - b) <= relative * fabs(b);
}

// Numbers from 0 on that repeat for a seed.
static unsigned random_(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(*state >> 33);
}

static int finish(const char *name) {
    printf("%s: %d checks, %d failures\n", name, checks, failures);
    return failures != 0;
}

#endif
