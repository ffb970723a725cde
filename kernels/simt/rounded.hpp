// Arithmetic with one rounding each, to nearest even. The compiler needs -ffp-contract=off.
#pragma once
#include <cstring>

namespace simt {

inline u32 bits_of(float a) {
    u32 bits;
    std::memcpy(&bits, &a, 4);
    return bits;
}
inline float float_of(u32 bits) {
    float a;
    std::memcpy(&a, &bits, 4);
    return a;
}
inline u64 bits_of(double a) {
    u64 bits;
    std::memcpy(&bits, &a, 8);
    return bits;
}
inline double double_of(u64 bits) {
    double a;
    std::memcpy(&a, &bits, 8);
    return a;
}

inline float add_rn(float a, float b) { return a + b; }
inline float sub_rn(float a, float b) { return a - b; }
inline float mul_rn(float a, float b) { return a * b; }
inline float div_rn(float a, float b) { return a / b; }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double add_rn(double a, double b) { return a + b; }
inline double sub_rn(double a, double b) { return a - b; }
inline double mul_rn(double a, double b) { return a * b; }
inline double div_rn(double a, double b) { return a / b; }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double sqrt_rn(double a) { return __builtin_sqrt(a); }

// The next float below a: towards -inf.
inline float below(float a) { return __builtin_nextafterf(a, -__builtin_inff()); }
inline float fused_down(float a, float b, float c) {
    const float nearest = fused(a, b, c);
    // The product is exact in double. The sum is high + low without loss.
    const double product = static_cast<double>(a) * b, high = product + c, part = high - product;
    const double low = (product - (high - part)) + (c - part);
    const bool above = nearest > high || (nearest == high && low < 0);
    return above && high - high == 0 ? below(nearest) : nearest;
}
inline float fused_down_unit(float a, float b, float c) {
    const float f = fused_down(a, b, c);
    return f > 0 ? (f < 1 ? f : 1) : 0;
}
inline float exp2_rough(float a) {
    const float f = static_cast<float>(__builtin_exp2(static_cast<double>(a)));
    return f >= 0x1p-126f || f != f ? f : 0;
}

constexpr u32 CANONICAL_NAN = 0x7FFFFFFF;  // a GPU returns it for every NaN

// Of two zeros the positive one is larger, as on a GPU.
inline float max_num(float a, float b) {
    if (a != a) return b != b ? float_of(CANONICAL_NAN) : b;
    if (b != b) return a;
    if (a == b) return float_of(bits_of(a) & bits_of(b));
    return a > b ? a : b;
}
inline float min_num(float a, float b) {
    if (a != a) return b != b ? float_of(CANONICAL_NAN) : b;
    if (b != b) return a;
    if (a == b) return float_of(bits_of(a) | bits_of(b));
    return a < b ? a : b;
}
inline float max_nan(float a, float b) {
    if (a != a || b != b) return float_of(CANONICAL_NAN);
    return max_num(a, b);
}

inline u32 leading_zeros(u32 a) { return a ? static_cast<u32>(__builtin_clz(a)) : 32; }
inline u32 low_halves(u32 a, u32 b) { return (a & 0xffff) | b << 16; }
inline u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000); }
inline u32 count_ones(u32 a) { return static_cast<u32>(__builtin_popcount(a)); }

inline float half_to_float(u16 h) {
    const u32 sign = static_cast<u32>(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return float_of(fraction ? CANONICAL_NAN : sign | 0x7F800000);
    if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}
inline float bfloat_to_float(u16 h) { return float_of(static_cast<u32>(h) << 16); }
inline u16 float_to_half(float f) {
    const u32 bits = bits_of(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FFF;
    // 65520, half way to 2^16, and above.
    if (magnitude >= 0x477FF000) return static_cast<u16>(sign | 0x7C00);
    if (magnitude < 0x38800000) {
        // Below 2^-14 halves are multiples of 2^-24. The last bit of this sum is worth that: the addition
        // rounds.
        const float sum = float_of(magnitude) + 0.5f;
        return static_cast<u16>(sign | (bits_of(sum) - bits_of(0.5f)));
    }
    const u32 odd = magnitude >> 13 & 1;
    return static_cast<u16>(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

inline u16 float_to_bfloat(float f) {
    const u32 bits = bits_of(f);
    if (f != f) return 0x7FFF;
    return static_cast<u16>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline u32 halves_of(float low, float high) {
    return float_to_half(low) | static_cast<u32>(float_to_half(high)) << 16;
}
inline u32 bfloats_of(float low, float high) {
    return float_to_bfloat(low) | static_cast<u32>(float_to_bfloat(high)) << 16;
}
// f of the low and of the high floats of 16 bits in two words.
template <class F>
inline u32 of_halves(u32 a, u32 b, F f) {
    const auto one = [f](u32 x, u32 y) {
        const float taken = f(half_to_float(static_cast<u16>(x)), half_to_float(static_cast<u16>(y)));
        return static_cast<u32>(float_to_half(taken));
    };
    return one(a & 0xFFFF, b & 0xFFFF) | one(a >> 16, b >> 16) << 16;
}
template <class F>
inline u32 of_bfloats(u32 a, u32 b, F f) {
    const auto one = [f](u32 x, u32 y) { return static_cast<u32>(float_to_bfloat(f(float_of(x), float_of(y)))); };
    return one(a << 16, b << 16) | one(a & 0xFFFF0000, b & 0xFFFF0000) << 16;
}
// Of each of two the larger, 0x7fff if one of them is NaN; and the smaller, or the other if one is NaN.
inline u32 larger_halves(u32 a, u32 b) { return of_halves(a, b, max_nan); }
inline u32 larger_bfloats(u32 a, u32 b) { return of_bfloats(a, b, max_nan); }
inline u32 smaller_halves(u32 a, u32 b) { return of_halves(a, b, min_num); }
inline u32 smaller_bfloats(u32 a, u32 b) { return of_bfloats(a, b, min_num); }

}  // namespace simt
