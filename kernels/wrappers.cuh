// The part of wrappers.cu that is arithmetic, and where a kernel puts its results.
#pragma once
#include "math.cuh"
#include "params.cuh"

namespace wrappers {

using namespace simt;

struct Results {
    Global<u32> out;
    u64 at;
    // The steps of a CTA lie together, one CTA behind the other.
    DEVICE Results(const RowParams& p, u32 steps) : out(p.out), at(u64{cta()} * steps * threads()) {}
    DEVICE void put(u32 value) {
        out.store(at + thread(), value);
        at += threads();
    }
    // One NaN is as good as another.
    DEVICE void put(float value) { put(value == value ? bits_of(value) : 0x7fc00000u); }
    DEVICE void put(double value) {
        const u64 bits = value == value ? bits_of(value) : 0x7ff8000000000000ull;
        put(static_cast<u32>(bits));
        put(static_cast<u32>(bits >> 32));
    }
};

DEVICE void arithmetic(Results& r, const Global<u32>& in) {
    const u32 t = thread();
    const auto value = [&](u32 i) { return float_of(in.load(i)); };
    const float a = value(t), b = value((7 * t + 3) % 128), c = value((13 * t + 5) % 128);
    r.put(add_rn(a, b));
    r.put(sub_rn(a, b));
    r.put(mul_rn(a, b));
    r.put(div_rn(a, b));
    r.put(fused(a, b, c));
    r.put(fused_down(a, b, c));
    r.put(fused_down_unit(a, b, c));
    r.put(max_nan(a, b));
    r.put(max_num(a, b));
    r.put(min_num(a, b));
    // The same three numbers, with all 53 bits in use.
    const double x = double_of(bits_of(static_cast<double>(a)) ^ in.load(128 + t) >> 4);
    const double y = double_of(bits_of(static_cast<double>(b)) ^ in.load(256 + t) >> 4);
    const double z = static_cast<double>(c);
    r.put(add_rn(x, y));
    r.put(sub_rn(x, y));
    r.put(mul_rn(x, y));
    r.put(div_rn(x, y));
    r.put(fused(x, y, z));
    r.put(sqrt_rn(x < 0 ? -x : x));
    r.put(leading_zeros(in.load(t) >> t % 33 % 32));
    r.put(count_ones(in.load(t)));
    r.put(low_halves(in.load(t), in.load(128 + t)));
    r.put(high_halves(in.load(t), in.load(128 + t)));
    // A float as bfloat16, and the one with its high half and 0x8000 as the low half, which is a tie.
    const auto bfloat = [](u32 rounded) { return (rounded & 0x7fff) > 0x7f80 ? 0x7fc0u : rounded; };
    const u32 raw = in.load(t), even = raw & 0xffff0000u;
    const u32 pair = bfloats_of(float_of(raw), float_of(even + 0x8000));
    r.put(bfloat(pair & 0xffff) | bfloat(pair >> 16) << 16);
    // Any bits as two floats of 16.
    const auto half = [](u32 one) { return (one & 0x7fff) > 0x7c00 ? 0x7e00u : one; };
    const u32 other = in.load((7 * t + 3) % 128);
    for (u32 smaller = 0; smaller < 2; ++smaller) {
        const u32 halves = smaller ? smaller_halves(raw, other) : larger_halves(raw, other);
        const u32 bfloats = smaller ? smaller_bfloats(raw, other) : larger_bfloats(raw, other);
        r.put(half(halves & 0xffff) | half(halves >> 16) << 16);
        r.put(bfloat(bfloats & 0xffff) | bfloat(bfloats >> 16) << 16);
    }
    // Not to its last bits, which differ between machines: how many units of 2^-22 it is off, rounded down;
    // and below 2^-126 nothing is left.
    const float power = a < 0 ? a : -a, rough = exp2_rough(power);
    const double exact = exponential(mul_rn(static_cast<double>(power), LN2_HIGH + LN2_LOW));
    const double off = div_rn(sub_rn(static_cast<double>(rough), exact), exact);
    r.put(power >= -126 ? static_cast<u32>(mul_rn(off < 0 ? -off : off, 0x1p22)) : rough == 0 ? 0u : 1u);
}

// Products of matrices of small integers, so that no sum is rounded.
DEVICE void products(Results& r) {
    const u32 g = lane() / 4, t = lane() % 4;
    const auto left = [](u32 row, u32 k) { return static_cast<float>((7 * row + 3 * k) % 13) - 6; };
    const auto right = [](u32 k, u32 column) { return static_cast<float>((5 * k + 11 * column) % 17) - 8; };
    for (u32 bfloats = 0; bfloats < 2; ++bfloats) {
        const auto pair = [&](float low, float high) {
            return bfloats ? bfloats_of(low, high) : halves_of(low, high);
        };
        u32 a[4], b[2];
        for (u32 i = 0; i < 4; ++i) {
            const u32 row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
            a[i] = pair(left(row, k), left(row, k + 1));
            if (i < 2) b[i] = pair(right(2 * t + 8 * i, g), right(2 * t + 8 * i + 1, g));
        }
        float c[4] = {static_cast<float>(thread()), 1, 2, 3};
        if (bfloats) {
            multiply_bfloats(c, a, b);
        } else {
            multiply_halves(c, a, b);
        }
        for (u32 i = 0; i < 4; ++i) r.put(c[i]);
    }
}

// For every half h: its float, and as halves this float and those whose bits are larger by 0xfff, 0x1000 and
// 0x1001: a tie and both sides of it.
DEVICE void halves(const RowParams& params, u64 at) {
    const Global<u32> out(params.out);
    for (u32 h = cta() * threads() + thread(); h < 65536; h += ctas() * threads()) {
        const float f = half_to_float(static_cast<u16>(h));
        const u32 bits = bits_of(f);
        const auto half = [](u32 rounded) { return (rounded & 0x7fff) > 0x7c00 ? 0x7e00u : rounded; };
        const auto both = [&](u32 low, u32 high) {
            const u32 pair = halves_of(f == f ? float_of(low) : f, f == f ? float_of(high) : f);
            return half(pair & 0xffff) | half(pair >> 16) << 16;
        };
        out.store(at + 3 * h, f == f ? bits : 0x7fc00000u);
        out.store(at + 3 * h + 1, both(bits, bits + 0xfff));
        out.store(at + 3 * h + 2, both(bits + 0x1000, bits + 0x1001));
    }
}

}  // namespace wrappers
