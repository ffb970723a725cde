// The arithmetic of simt.cuh on a GPU. rounded.hpp has that of the host.
#pragma once

namespace simt {

// Arithmetic with one rounding each, to nearest even, never contracted.
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Rounded down; and that, limited to 0 .. 1. NaN becomes 0 there.
DEVICE float fused_down(float a, float b, float c) { return __fmaf_rd(a, b, c); }
DEVICE float fused_down_unit(float a, float b, float c) {
    float f;
    asm("fma.rm.sat.f32 %0, %1, %2, %3;" : "=f"(f) : "f"(a), "f"(b), "f"(c));
    return f;
}
// 2^a within 2^-22 of it, and not the same bits on every device; 0 below 2^-126.
DEVICE float exp2_rough(float a) {
    float f;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(f) : "f"(a));
    return f;
}
DEVICE double add_rn(double a, double b) { return __dadd_rn(a, b); }
DEVICE double sub_rn(double a, double b) { return __dadd_rn(a, -b); }
DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DEVICE double div_rn(double a, double b) { return __ddiv_rn(a, b); }
DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE double sqrt_rn(double a) { return __dsqrt_rn(a); }
// The larger; NaN if one of them is NaN.
DEVICE float max_nan(float a, float b) {
    float m;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
    return m;
}
// The larger; if one is NaN, the other.
DEVICE float max_num(float a, float b) { return fmaxf(a, b); }
DEVICE float min_num(float a, float b) { return fminf(a, b); }
DEVICE u32 bits_of(float a) { return __float_as_uint(a); }
DEVICE float float_of(u32 a) { return __uint_as_float(a); }
DEVICE u64 bits_of(double a) { return static_cast<u64>(__double_as_longlong(a)); }
DEVICE double double_of(u64 a) { return __longlong_as_double(static_cast<i64>(a)); }
DEVICE u32 leading_zeros(u32 a) { return static_cast<u32>(__clz(static_cast<int>(a))); }
DEVICE u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEVICE u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }
DEVICE u32 count_ones(u32 a) { return static_cast<u32>(__popc(a)); }
DEVICE float half_to_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
// Two floats rounded to 16 bits, the first in the low half; NaN becomes 0x7fff.
DEVICE u32 halves_of(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE u32 bfloats_of(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#define OF_TWO(name, instruction) \
    DEVICE u32 name(u32 a, u32 b) { \
        u32 pair; \
        asm(instruction " %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b)); \
        return pair; \
    }
// Of each of two the larger, 0x7fff if one of them is NaN; and the smaller, or the other if one is NaN.
OF_TWO(larger_halves, "max.NaN.f16x2")
OF_TWO(larger_bfloats, "max.NaN.bf16x2")
OF_TWO(smaller_halves, "min.f16x2")
OF_TWO(smaller_bfloats, "min.bf16x2")
#undef OF_TWO

}  // namespace simt
