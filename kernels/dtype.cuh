// Element types of scores in memory, as bits. Twin of src/dtype.rs. Every value converts to f32, in which
// kernels work, exactly.
#pragma once
#include "simt.cuh"

// PER_VECTOR: elements in 16 bytes. LOW: half of the lowest number; a score below it is masked, as -inf is.
// LOWEST, HIGHEST: -inf and inf in every element of a word. larger(a, b): of every element of two words the
// larger; NaN if one is. smaller(a, b): the smaller; if one is NaN, the other. get(v, j): the j-th as f32.
// bits(f), pair(f, g): rounded to nearest even. multiply(c, a, b): c += a b of a warp, of 16 bits only.
struct f32 {
    typedef u32 Bits;
    static constexpr u32 PER_VECTOR = 4;
    static constexpr float LOW = -0x1.fffffep126f;
    static constexpr u32 LOWEST = 0xff800000, HIGHEST = 0x7f800000;
    static DEVICE u32 larger(u32 a, u32 b) {
        return simt::bits_of(simt::max_nan(simt::float_of(a), simt::float_of(b)));
    }
    static DEVICE u32 smaller(u32 a, u32 b) {
        return simt::bits_of(simt::min_num(simt::float_of(a), simt::float_of(b)));
    }
    static DEVICE float get(const Vec16& v, u32 j) { return simt::float_of(v.word[j]); }
    static DEVICE float value(u32 bits) { return simt::float_of(bits); }
    static DEVICE u32 bits(float f) { return simt::bits_of(f); }
};

struct f16 {
    typedef u16 Bits;
    static constexpr u32 PER_VECTOR = 8;
    static constexpr float LOW = -0x1.ffcp14f;
    static constexpr u32 LOWEST = 0xfc00fc00, HIGHEST = 0x7c007c00;
    static DEVICE u32 larger(u32 a, u32 b) { return simt::larger_halves(a, b); }
    static DEVICE u32 smaller(u32 a, u32 b) { return simt::smaller_halves(a, b); }
    static DEVICE void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        simt::multiply_halves(c, a, b);
    }
    static DEVICE float get(const Vec16& v, u32 j) {
        return simt::half_to_float(static_cast<u16>(v.word[j / 2] >> (16 * (j & 1))));
    }
    static DEVICE float value(u16 bits) { return simt::half_to_float(bits); }
    static DEVICE u32 pair(float f, float g) { return simt::halves_of(f, g); }
    static DEVICE u16 bits(float f) { return static_cast<u16>(pair(f, 0)); }
};

struct bf16 {
    typedef u16 Bits;
    static constexpr u32 PER_VECTOR = 8;
    static constexpr float LOW = -0x1.fep126f;
    static constexpr u32 LOWEST = 0xff80ff80, HIGHEST = 0x7f807f80;
    static DEVICE u32 larger(u32 a, u32 b) { return simt::larger_bfloats(a, b); }
    static DEVICE u32 smaller(u32 a, u32 b) { return simt::smaller_bfloats(a, b); }
    static DEVICE void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        simt::multiply_bfloats(c, a, b);
    }
    static DEVICE float get(const Vec16& v, u32 j) {
        return simt::float_of(j & 1 ? v.word[j / 2] & 0xffff0000u : v.word[j / 2] << 16);
    }
    static DEVICE float value(u16 bits) { return simt::float_of(static_cast<u32>(bits) << 16); }
    static DEVICE u32 pair(float f, float g) { return simt::bfloats_of(f, g); }
    static DEVICE u16 bits(float f) { return static_cast<u16>(pair(f, 0)); }
};

// 16 bytes of T: element j is f(j).
template <class T, class F>
DEVICE Vec16 pack(F f) {
    Vec16 v;
#pragma unroll
    for (u32 w = 0; w < 4; ++w) {
        if constexpr (T::PER_VECTOR == 4) {
            v.word[w] = T::bits(f(w));
        } else {
            v.word[w] = T::pair(f(2 * w), f(2 * w + 1));
        }
    }
    return v;
}
