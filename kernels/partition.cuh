// Z = sum of exp(-beta gap), with the maximum known and before it is known.
#pragma once
#include "math.cuh"
#include "row.cuh"

// The sum of the scores that a thread does not keep on chip, made in the pass that finds the maximum: the
// pass for Z then need not read them again. The terms are 2^(beta' s), beta' = beta log2 e, relative to a
// power of two that follows the largest of them; a change of this power is exact. The terms come from scores,
// not from rounded gaps: if the gaps all round the same way, Z differs by up to mean(z) 2^-24, z = beta gap.
// So the pass that writes sums the weights of the gaps too, and it writes a row again if its Z was not right.
struct EarlySum {
    static constexpr float MAGIC = 0x1.8p23f, LOWEST = MAGIC - 0x1p21f;
    double beta;
    Exponent b;
    bool on;
    Sum sum{0, 0};
    float at = LOWEST;  // MAGIC + the exponent to which the sum is relative

    // Off if beta needs more care than this.
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
        if (top > at + 32) {  // terms up to 2^(25 + 32) are far from overflow
            const float factor =
                at - top > -126 ? float_of((127u << 23) + ((bits_of(at) - bits_of(top)) << 23)) : 0.0f;
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
    // Whether total() is right for this beta and this maximum, the same for all threads: the exponents lie
    // where MAGIC keeps integers. A thread whose scores all lie below LOWEST then adds nothing.
    DEVICE bool counts(double beta_now, float max) const {
        return on && beta_now == beta && simt::mul_rn(max < 0 ? -max : max, b.high) < 0x1p16f;
    }
    // The relative difference that the two sums may have. A probability may be off by (4 + z) 2^-23, and
    // other errors leave twice APART of that.
    static constexpr double APART = 0x1p-26;

    DEVICE double total(float max) const {
        using namespace simt;
        const double exponent = static_cast<double>(sub_rn(at, MAGIC));
        const double power = fused(-beta, static_cast<double>(max), mul_rn(exponent, LN2_HIGH + LN2_LOW));
        const double scale = exponential(power);
        return mul_rn(mul_rn(sum.total(), 1.0 / WEIGHT_ONE), scale);
    }
};

// A thread's share of Z at beta in its first `end` vectors, and with GAPS of the gap-weighted sum. The scores
// of 16 bytes are summed in f32, these sums by Kahan's method, the threads in f64: the relative error is at
// most 3.1 * 2^-24, beside that of the weights. The gap-weighted sum is made in the same way.
template <bool KEEP, Weights W, bool GAPS, class T, class Scope>
DEVICE Partition own_partition(const Scope& scope, const RowTile<T, Scope::STREAMS>& row, u32 end, float max,
                               const Exponent& b) {
    Sum sum{0, 0}, gap_sum{0, 0};
    row.for_vectors(scope, PASS_Z, 0, end, [&](const float(&s)[T::PER_VECTOR], u32 v, bool on_chip) {
        float w[T::PER_VECTOR], gap[T::PER_VECTOR];
#pragma unroll
        for (u32 j = 0; j < T::PER_VECTOR; ++j) w[j] = weigh<W>(s[j], max, b, gap[j]);
        if (KEEP && on_chip) row.replace(v, w);
        if (GAPS) {
#pragma unroll
            for (u32 j = 0; j < T::PER_VECTOR; ++j) {
                // Where the weight is 0 the gap may be infinite.
                if (W == ROUGH) gap[j] = simt::min_num(gap[j], b.limit);
                gap[j] = simt::mul_rn(gap[j], w[j]);  // path: loop sums
            }
            gap_sum.add(tree_sum(gap));
        }
        sum.add(tree_sum(w));
    });
    const double scale = W == SPECIAL && b.scale != 0.0f ? static_cast<double>(b.scale) : 1.0;
    const double one = 1.0 / one_of(W);
    return Partition{simt::mul_rn(sum.total(), one), simt::div_rn(simt::mul_rn(gap_sum.total(), one), scale)};
}

// Z at beta. With KEEP the weights replace the scores on chip. FINE_TOO, ROUGH_TOO: the weights that b may
// ask for. early: the sum that was made before.
template <bool KEEP, bool FINE_TOO, bool ROUGH_TOO, class T, class Scope>
DEVICE Partition partition(Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max, double beta,
                           const Exponent& b, bool gaps, const EarlySum& early) {
    const bool summed = Scope::STREAMS && early.counts(beta, max);
    const u32 end = summed ? row.resident : row.count;
    Partition own;
    const bool rough = ROUGH_TOO && (b.rough || !FINE_TOO);
    // A loop with the gap-weighted sum and one without: a choice inside costs 3 slots a score (2026-11-30).
    if (b.special) {
        own = own_partition<KEEP, SPECIAL, true>(scope, row, end, max, b);
    } else if (rough && gaps) {
        own = own_partition<KEEP, ROUGH, true>(scope, row, end, max, b);
    } else if (rough) {
        own = own_partition<KEEP, ROUGH, false>(scope, row, end, max, b);
    } else if (gaps) {
        own = own_partition<KEEP, FINE, true>(scope, row, end, max, b);
    } else {
        own = own_partition<KEEP, FINE, false>(scope, row, end, max, b);
    }
    if (!gaps) own.gap_sum = 0.0;
    if (summed) own.sum = simt::add_rn(own.sum, early.total(max));
    if (max == -INFINITE) own = Partition::empty();  // weigh() has no 0 for a gap that is NaN
    return scope.reduce(own, Partition::empty(), MergeOf<Partition>{});
}
