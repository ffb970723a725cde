// Statistics of parts of a row, and how they merge. Twin of src/stats.rs.
#pragma once
#include "folds.cuh"
#include "math.cuh"

// The passes over the scores of a row, by name. scripts/cuda/slots.py finds the loop of a pass by the name in
// its lines, and the simulator counts how often its warps look at a score.
enum Pass : u32 {
    PASS_MAX, PASS_MASK, PASS_COUNT, PASS_RANK, PASS_LIST, PASS_Z, PASS_WRITE,  // vectors of scores
    PASS_MAXIMA, PASS_GROUPS,                                                  // single scores
    PASS_PAIRS                                                                 // four keys
};

// -inf in place of a score that is masked: one below `low`. NaN stays.
DEVICE float unless_masked(float score, float low) { return score < low ? -INFINITE : score; }

// The top of a part of a row. second: the largest score when one maximum is left out. len: the number of
// scores that are not masked, NaN included. If the row is poisoned, max is NaN or +inf.
struct RowMax {
    float max, second;
    u32 len;
    DEVICE bool poisoned() const { return !(max < INFINITE); }
};

// How many columns attain the maximum, the first of them, and the largest score that is less. In a poisoned
// row argmax is the first NaN or +inf.
struct Maxima {
    u32 ties, argmax;
    float second;
    static DEVICE Maxima none() { return Maxima{0, ~0u, -INFINITE}; }
    DEVICE void take(bool is, u32 column) {
        ties += is;
        argmax = is && column < argmax ? column : argmax;
    }
    static DEVICE Maxima merge(const Maxima& a, const Maxima& b) {
        return Maxima{a.ties + b.ties, a.argmax < b.argmax ? a.argmax : b.argmax,
                      simt::max_num(a.second, b.second)};
    }
};
DEVICE Maxima warp_fold(const Maxima& of, MergeOf<Maxima>, simt::Where at) {
    return Maxima{simt::warp_add(of.ties, at), simt::warp_min(of.argmax, at), warp_largest(of.second, at)};
}

// A Kahan sum: `high` is the running sum, `low` is what its roundings added too much.
struct Sum {
    float high, low;
    DEVICE void add(float value) {
        const float y = simt::sub_rn(value, low);
        const float t = simt::add_rn(high, y);
        low = simt::sub_rn(simt::sub_rn(t, high), y);
        high = t;
    }
    DEVICE double total() const { return simt::sub_rn(static_cast<double>(high), static_cast<double>(low)); }
};

// Adds pairs of neighbours, then pairs of these sums.
template <u32 V>
DEVICE float tree_sum(float (&w)[V]) {
#pragma unroll
    for (u32 d = 1; d < V; d *= 2) {
#pragma unroll
        for (u32 j = 0; j < V; j += 2 * d) w[j] = simt::add_rn(w[j], w[j + d]);
    }
    return w[0];
}

// sum: Z, the sum of exp(-beta gap). gap_sum: the sum of gap * exp(-beta gap), in units of scores.
struct Partition {
    double sum, gap_sum;
    static DEVICE Partition empty() { return Partition{0.0, 0.0}; }
    static DEVICE Partition merge(const Partition& a, const Partition& b) {
        return Partition{simt::add_rn(a.sum, b.sum), simt::add_rn(a.gap_sum, b.gap_sum)};
    }
    // Entropy of the weights in nats.
    DEVICE double entropy(double beta) const {
        if (!(sum > 0.0)) return 0.0;
        const double f = ln(sum);
        return gap_sum == 0.0 || beta == 0.0
                   ? f
                   : simt::add_rn(f, simt::div_rn(simt::mul_rn(beta, gap_sum), sum));
    }
};
