// The scores of query tokens over their keys, in rows that the other kernels read.
#include "scores.cuh"

#define ATTENTION_SCORES(T, SCOPE, THREADS, CTAS) \
    static_assert(THREADS == SCORE_THREADS, "a warp for every 16 keys of a unit"); \
    KERNEL(AttentionParams, attention_scores_##T##_##SCOPE##THREADS##x##CTAS, THREADS, 4) { \
        score_part<T>(params); \
    }
#include "../variants.def"
