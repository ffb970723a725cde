// Logarithms and exponentials with the same bits on every device: rounded operations in a fixed order.
#pragma once
#include "simt.cuh"

constexpr double LN2_HIGH = 0x1.62e42fefa38p-1;  // 41 bits: times an exponent it is exact
constexpr double LN2_LOW = 0x1.ef35793c7673p-45;
constexpr double LOG2_E = 0x1.71547652b82fep+0;
constexpr float INFINITE = __builtin_bit_cast(float, 0x7f800000u);  // NVRTC has no header with INFINITY

// ln x within 0.501 ulp for the counts 1 .. 2^24, else within 1 ulp (2026-11-25). x: positive, normal,
// finite.
COLD double ln(double x) {
    using namespace simt;
    const u64 bits = bits_of(x);
    // The mantissa m lies in [sqrt(1/2), sqrt(2)): a smaller one borrows from the exponent when the bits of
    // sqrt(1/2) are subtracted.
    const i64 shifted = static_cast<i64>(bits - 0x3fe6a09e667f3bcdull);
    const i64 exponent = shifted >> 52;
    const double m = double_of(bits - (static_cast<u64>(exponent) << 52));
    // ln m = 2 artanh(t / (2 + t)), t = m - 1. Its leading term is kept in two parts, s and s_low.
    const double t = sub_rn(m, 1.0), d = add_rn(2.0, t);
    const double s = div_rn(t, d);
    const double d_error = sub_rn(t, sub_rn(d, 2.0));
    const double s_low = div_rn(fused(-s, d_error, fused(-s, d, t)), d);
    const double z = mul_rn(s, s);
    double q = 2.0 / 23;
    q = fused(q, z, 2.0 / 21);
    q = fused(q, z, 2.0 / 19);
    q = fused(q, z, 2.0 / 17);
    q = fused(q, z, 2.0 / 15);
    q = fused(q, z, 2.0 / 13);
    q = fused(q, z, 2.0 / 11);
    q = fused(q, z, 2.0 / 9);
    q = fused(q, z, 2.0 / 7);
    q = fused(q, z, 2.0 / 5);
    q = fused(q, z, 2.0 / 3);
    const double tail = fused(mul_rn(q, z), s, mul_rn(2.0, s_low));
    const double e = static_cast<double>(exponent);
    const double a = mul_rn(e, LN2_HIGH), b = mul_rn(2.0, s);
    // high + low is a + b without loss: |a| > |b| unless e = 0.
    const double high = add_rn(a, b);
    const double low = e == 0.0 ? 0.0 : sub_rn(b, sub_rn(high, a));
    return add_rn(high, add_rn(low, fused(e, LN2_LOW, tail)));
}

// ln of a count within 1.3e-6 (all counts to 2^24, 2026-11-25). Bounds use it: LN_ERROR allows for its error
// and for a resolve that is rounded to f32.
constexpr float LN_ERROR = 8e-6f;
DEVICE float ln_bound(u32 count) {
    using namespace simt;
    const u32 bits = bits_of(static_cast<float>(count));
    const i32 exponent = static_cast<i32>(bits - 0x3f3504f3u) >> 23;
    const float m = float_of(bits - (static_cast<u32>(exponent) << 23));
    const float t = sub_rn(m, 1.0f);
    float q = 0.11827416718006134f;
    q = fused(q, t, -0.18901965022087097f);
    q = fused(q, t, 0.20604684948921204f);
    q = fused(q, t, -0.24881340563297272f);
    q = fused(q, t, 0.3330329656600952f);
    q = fused(q, t, -0.5000196695327759f);
    q = fused(q, t, 1.0000032186508179f);
    return fused(static_cast<float>(exponent), 0.69314718f, mul_rn(q, t));
}

// e^x within 2 ulp; 0 or infinity if that is outside of the range of double.
COLD double exponential(double x) {
    using namespace simt;
    if (!(x > -708.0)) return x == x ? 0.0 : x;
    if (x > 709.0) return double_of(0x7ff0000000000000ull);
    constexpr double MAGIC = 0x1.8p52;
    const double n = sub_rn(fused(x, LOG2_E, MAGIC), MAGIC);
    const double r = fused(-n, LN2_LOW, fused(-n, LN2_HIGH, x));
    double q = 1.0 / 6227020800;
    q = fused(q, r, 1.0 / 479001600);
    q = fused(q, r, 1.0 / 39916800);
    q = fused(q, r, 1.0 / 3628800);
    q = fused(q, r, 1.0 / 362880);
    q = fused(q, r, 1.0 / 40320);
    q = fused(q, r, 1.0 / 5040);
    q = fused(q, r, 1.0 / 720);
    q = fused(q, r, 1.0 / 120);
    q = fused(q, r, 1.0 / 24);
    q = fused(q, r, 1.0 / 6);
    q = fused(q, r, 0.5);
    q = fused(q, r, 1.0);
    q = fused(q, r, 1.0);
    return mul_rn(q, double_of(static_cast<u64>(static_cast<i64>(n) + 1023) << 52));
}

// x^y for x >= 0. For x = 0 and for y = 0 it is what C defines.
DEVICE double power(double x, double y) {
    if (y == 0.0 || x == 1.0) return 1.0;
    if (x == 0.0) return y > 0.0 ? 0.0 : simt::double_of(0x7ff0000000000000ull);
    return exponential(simt::mul_rn(y, ln(x)));
}

// How a weight exp(-beta gap) is computed.
//   FINE     to f32's last bit, with the same bits on every device
//   SPECIAL  the same, for a beta that needs more care
//   ROUGH    by the exponential of the hardware, for results that are rounded to 16 bits, and for sums that
//            are reported: 9 slots fewer a score (2026-11-30)
enum Weights { FINE, SPECIAL, ROUGH };

// exp(-beta gap) for one row: beta log2 e in two floats. `special` marks the betas that need more care:
//   0                   every unmasked key has the same weight, also one whose gap overflows; scale is 0
//   very large or small gaps are scaled by a power of two first
//   infinite            only the maxima have a weight
struct Exponent {
    float high, low, scale, limit;  // limit: the gap whose weight is 2^-151
    bool special, rough;
    DEVICE explicit Exponent(double beta, bool may_be_rough = false) {
        using namespace simt;
        const double b = mul_rn(beta, LOG2_E);
        const bool large = b > 0x1p64, small = b < 0x1p-64;
        special = large || small;
        rough = may_be_rough && !special;
        scale = large ? 0x1p64f : b == 0.0 ? 0.0f : small ? 0x1p-64f : 1.0f;
        const double scaled = mul_rn(b, large ? 0x1p-64 : small ? 0x1p64 : 1.0);
        high = b > 0x1p190 ? INFINITE : static_cast<float>(scaled);
        low = static_cast<float>(sub_rn(scaled, static_cast<double>(high)));
        limit = div_rn(151.0f, high);
    }
    // The fields of another, which say whether it is special.
    DEVICE Exponent(float high, float low, float scale, float limit)
        : high(high), low(low), scale(scale), limit(limit), special(scale != 1.0f), rough(false) {}
};

// Weights are kept times 2^25. So exp(-beta gap) is a normal float down to 2^-150, and only a probability is
// ever rounded below the normal range. A ROUGH weight is itself: below 2^-126 it is 0.
constexpr float WEIGHT_ONE = 0x1p25f;
DEVICE constexpr float one_of(Weights w) { return w == ROUGH ? 1.0f : WEIGHT_ONE; }

// 2^25 2^f for |f| <= 1/2.
DEVICE float weight_of(float f) {
    using namespace simt;
    float q = 0.00015353360504377633f * WEIGHT_ONE;
    q = fused(q, f, 0.0013398875016719103f * WEIGHT_ONE);
    q = fused(q, f, 0.00961843691766262f * WEIGHT_ONE);
    q = fused(q, f, 0.055503323674201965f * WEIGHT_ONE);
    q = fused(q, f, 0.24022647738456726f * WEIGHT_ONE);
    q = fused(q, f, 0.6931471824645996f * WEIGHT_ONE);
    return fused(q, f, WEIGHT_ONE);
}

// one_of(W) exp(-beta gap), and the gap times b.scale. FINE: the relative error is below 0.84 * 2^-23, 0.832
// over all gaps at beta = 1 (2026-11-25). Below 2^-150 it is 2^-126 in place of 0: no probability of f32 and
// no sum shows it. So the gap takes a minimum in place of a comparison and a choice: 2.2 slots fewer a score
// (2026-11-30). ROUGH: at most (2 + beta gap) 2^-23.
template <Weights W>
DEVICE float weigh(float score, float max, const Exponent& b, float& gap) {
    using namespace simt;
    gap = sub_rn(max, score);
    if (W == ROUGH) return exp2_rough(mul_rn(gap, -b.high));
    if (W == SPECIAL) {
        const bool finite = gap < INFINITE;
        // If beta is tiny but not 0, only a gap that overflows takes the weight away.
        const bool shown = b.scale == 0.0f ? score > -INFINITE : finite;
        gap = finite && b.scale != 0.0f ? mul_rn(gap, b.scale) : 0.0f;
        if (b.high == 0.0f) return shown ? WEIGHT_ONE : 0.0f;
        if (!finite) return 0.0f;
        if (b.high == INFINITE) {
            const bool is_top = gap == 0.0f;
            gap = 0.0f;
            return is_top ? WEIGHT_ONE : 0.0f;
        }
    } else {
        // Also that of a masked score in an empty row, which is NaN.
        gap = min_num(gap, b.limit);  // path: loop f32
    }
    constexpr float MAGIC = 0x1.8p23f;
    const float shifted = fused(gap, -b.high, MAGIC);  // its low bits are the exponent
    const float n = sub_rn(shifted, MAGIC);
    const float f = fused(gap, -b.low, fused(gap, -b.high, -n));
    const u32 raised = bits_of(weight_of(f)) + (bits_of(shifted) << 23);
    if (W == FINE) return float_of(raised);
    // Far below, `shifted` no longer holds the integer, and the comparison is false.
    const bool adds = shifted >= MAGIC - 150;  // path: loop none
    gap = adds ? gap : 0.0f;
    return float_of(adds ? raised : 0u);
}
