// Z = sum of exp(-beta gap), where the maximum is known; and where it is not yet.
#pragma once
#include "math.cuh"
#include "row.cuh"

// Sums what a thread does not keep on chip in the pass that finds the maximum, so that the pass for Z need not read it again. Terms
// are 2^(beta' s), beta' = beta log2 e, relative to a power of two that follows the largest of them: a change of it is exact. They know
// scores and not their rounded gaps: where these round alike, Z differs by up to mean(z) 2^-24, z = beta gap. So the pass that writes
// sums the gaps too, and a row whose Z was not right is written again.
struct EarlySum {
    static constexpr float MAGIC = 0x1.8p23f, LOWEST = MAGIC - 0x1p21f;
    double beta;
    Exponent b;
    bool on;
    Sum sum{0, 0};
    float at = LOWEST;  // MAGIC + the exponent that the sum is relative to

    // Off where beta is such that terms need more care than this.
    DEVICE EarlySum(double beta, bool wanted) : beta(beta), b(beta), on(wanted && !b.special) {}

    template <u32 V>
    DEVICE void take(const float (&s)[V]) {
        using namespace simt;
        float shifted[V], w[V], top = at;
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            shifted[j] = fused(s[j], b.high, MAGIC);
            top = max_num(top, shifted[j]);
        }
        if (top > at + 32) {  // terms to 2^(25 + 32) are far from overflow
            const float factor = at - top > -126 ? float_of((127u << 23) + ((bits_of(at) - bits_of(top)) << 23)) : 0.0f;
            sum = Sum{mul_rn(sum.high, factor), mul_rn(sum.low, factor)};
            at = top;
        }
#pragma unroll
        for (u32 j = 0; j < V; ++j) {
            const float n = sub_rn(shifted[j], MAGIC), f = fused(s[j], b.low, fused(s[j], b.high, -n));
            const u32 raised = bits_of(weight_of(f)) + ((bits_of(shifted[j]) - bits_of(at)) << 23);
            w[j] = float_of(shifted[j] >= at - 150 ? raised : 0u);
        }
        sum.add(tree_sum(w));
    }
    // Whether total() is right for this beta under this maximum, the same for all threads: exponents lie where MAGIC keeps integers;
    // threads whose scores all lie below LOWEST then add nothing.
    DEVICE bool counts(double beta_now, float max) const {
        return on && beta_now == beta && simt::mul_rn(max < 0 ? -max : max, b.high) < 0x1p16f;
    }
    // How far apart the sums may be, relative: other errors leave twice as much of the bound of a probability, (4 + z) 2^-23.
    static constexpr double APART = 0x1p-26;

    DEVICE double total(float max) const {
        using namespace simt;
        const double exponent = static_cast<double>(sub_rn(at, MAGIC));
        const double scale = exponential(fused(-beta, static_cast<double>(max), mul_rn(exponent, LN2_HIGH + LN2_LOW)));
        return mul_rn(mul_rn(sum.total(), 1.0 / WEIGHT_ONE), scale);
    }
};

// A thread's share of Z at beta among its first `end` vectors, and with `gaps` of the gap-weighted sum. Sums of 16 bytes of scores in
// f32, of those with their rounding errors kept, of threads in f64: relative error at most 3.1 * 2^-24 beside that of the weights.
template <bool KEEP, bool SPECIAL, class T, class Scope>
DEVICE Partition own_partition(const Scope& scope, const RowTile<T, Scope::STREAMS>& row, u32 end, float max, const Exponent& b, bool gaps) {
    Sum sum{0, 0}, gap_sum{0, 0};
    row.for_vectors(scope, 0, end, [&](const float(&s)[T::PER_VECTOR], u32 v) {
        float w[T::PER_VECTOR];
#pragma unroll
        for (u32 j = 0; j < T::PER_VECTOR; ++j) w[j] = weigh<SPECIAL>(s[j], max, b);
        if (KEEP) row.replace(v, w);
        if (gaps) {
#pragma unroll
            for (u32 j = 0; j < T::PER_VECTOR; ++j) {
                float gap = simt::sub_rn(max, s[j]);
                if (SPECIAL) gap = simt::mul_rn(gap, b.scale);  // so that no product leaves the range of floats
                gap_sum.add(w[j] > 0 && gap < INFINITE ? simt::mul_rn(gap, simt::mul_rn(w[j], 1 / WEIGHT_ONE)) : 0.0f);
            }
        }
        sum.add(tree_sum(w));
    });
    const double scale = SPECIAL && b.scale != 0.0f ? static_cast<double>(b.scale) : 1.0;
    return Partition{simt::mul_rn(sum.total(), 1.0 / WEIGHT_ONE), simt::div_rn(gap_sum.total(), scale)};
}

// Z at beta. With KEEP the weights replace the scores on chip. early: what has been summed before.
template <bool KEEP, class T, class Scope>
DEVICE Partition partition(Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max, double beta, const Exponent& b, bool gaps,
                           const EarlySum& early) {
    const bool summed = Scope::STREAMS && early.counts(beta, max);
    const u32 end = summed ? row.resident : row.count;
    Partition own = b.special ? own_partition<KEEP, true>(scope, row, end, max, b, gaps)
                              : own_partition<KEEP, false>(scope, row, end, max, b, gaps);
    if (summed) own.sum = simt::add_rn(own.sum, early.total(max));
    return scope.reduce(own, Partition::empty(), [](const Partition& a, const Partition& c) { return Partition::merge(a, c); });
}
template <bool KEEP, class T, class Scope>
DEVICE Partition partition(Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max, double beta, bool gaps) {
    return partition<KEEP>(scope, row, max, beta, Exponent(beta), gaps, EarlySum(0, false));
}
