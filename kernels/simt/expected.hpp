// What wrappers.cu must write, worked out without simt.cuh: plain C++ and the definitions. Twin of tests/wrappers.rs.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace expected {

typedef std::uint32_t u32;
typedef std::uint64_t u64;

inline float as_float(u32 bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline double as_double(u64 bits) {
    double d;
    std::memcpy(&d, &bits, 8);
    return d;
}
inline u32 bits(float f) {
    u32 b = 0x7fc00000;
    if (f == f) std::memcpy(&b, &f, 4);
    return b;
}
inline u64 bits(double d) {
    u64 b = 0x7ff8000000000000;
    if (d == d) std::memcpy(&b, &d, 8);
    return b;
}

// Special values first, then floats of like size, then anything.
inline std::vector<u32> input() {
    // The arithmetic of thread t takes words t, 7 t + 3 and 13 t + 5: so it meets both pairs of unequal zeros.
    const u32 special[] = {0,          0x80000000, 1,          0x80000000, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
                           0x7f800000, 0xff800000, 0,          0x3f800000, 0x7fc00001, 0x33800000, 0x80000001, 0x7f000000};
    std::vector<u32> words(512);
    u32 state = 1;
    for (u32 i = 0; i < 512; ++i) {
        state = 1664525 * state + 1013904223;
        const u32 w = state ^ state >> 15;
        words[i] = i < 16 ? special[i] : i < 96 ? (w & 0x807fffff) | (120 + (w >> 23 & 15)) << 23 : w;
    }
    return words;
}

inline float half_value(u32 h) {
    const int exponent = static_cast<int>(h >> 10 & 31), fraction = static_cast<int>(h & 1023);
    const float sign = h & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * std::ldexp(static_cast<float>(exponent ? 1024 + fraction : fraction), (exponent ? exponent : 1) - 25);
}
// To the nearer of the two bfloats around it, by what is left over; of equal distances to the even one.
inline u32 bfloat_bits(u32 raw) {
    if ((raw & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    const u32 below = raw >> 16, left = raw & 0xffff;
    return left > 0x8000 || (left == 0x8000 && below % 2 == 1) ? below + 1 : below;
}
inline u32 half_bits(float f) {
    if (f != f) return 0x7e00;
    const u32 sign = std::signbit(f) ? 0x8000 : 0;
    const float size = std::fabs(f);
    if (size >= 65520) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(size, &exponent);
    const int unit = exponent - 11 > -24 ? exponent - 11 : -24;
    const u32 count = static_cast<u32>(std::nearbyint(std::ldexp(static_cast<double>(size), -unit)));
    // `count` units: 1024 of them and above carry into the exponent by themselves.
    return sign | (count < 1024 ? count : (static_cast<u32>(unit + 24) << 10) + count);
}

inline float larger(float a, float b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == 0 && b == 0) return std::signbit(a) ? b : a;
    return a > b ? a : b;
}

template <class V, class Op>
V tree(const V* lanes, u32 lane, u32 mask, Op op) {
    if (mask == 32) return lanes[lane];
    return op(tree(lanes, lane, 2 * mask, op), tree(lanes, lane ^ mask, 2 * mask, op));
}

struct Steps {
    u32 threads;
    std::vector<u32> words;
    template <class F>
    void step(F f) {
        for (u32 t = 0; t < threads; ++t) words.push_back(static_cast<u32>(f(t)));
    }
    template <class F>
    void wide(F f) {
        step([&](u32 t) { return bits(f(t)); });
        step([&](u32 t) { return bits(f(t)) >> 32; });
    }
};

// One CTA of the block variant.
inline void one_cta(Steps& s, const std::vector<u32>& in, u32 cta, u32 ctas) {
    const u32 n = s.threads;
    const auto byte = [&](u64 i) { return in[i / 4] >> 8 * (i % 4) & 0xff; };
    s.step([](u32 t) { return t; });
    s.step([&](u32) { return n; });
    s.step([](u32 t) { return t % 32; });
    s.step([](u32 t) { return t / 32; });
    s.step([&](u32) { return cta; });
    s.step([&](u32) { return ctas; });

    const auto word64 = [](u32 t) { return static_cast<u32>(0x0123456789abcdefull * (t / 2 * 2 + 1) >> 32 * (t % 2)); };
    s.step([&](u32 t) { return 3 * (n - 1 - t) + 1; });
    s.step(word64);
    s.step([&](u32 t) { return word64(t) >> 16; });
    s.step([&](u32 t) { return word64((n + t) / 4) >> 8 * (t % 4) & 0xff; });
    const auto counted = [&](u32 residue, u32 modulus, u32 slope) {
        u32 sum = 0;
        for (u32 t = residue; t < n; t += modulus) sum += slope * t + 1;
        return sum;
    };
    s.step([&](u32 t) { return counted(t % 7, 7, 1); });
    s.step([](u32 t) { return (t ^ 1) * (t ^ 1); });
    s.step([&](u32 t) {
        const u32* v = &in[20 + t % 100 * 4];
        return v[0] + 3 * v[1] + 5 * v[2] + 7 * v[3];
    });

    s.step([&](u32 t) { return in[4 * (n - 1 - t)] ^ in[4 * (n - 1 - t) + 3]; });
    s.step([&](u32 t) { return byte(2 * t + 2) | byte(2 * t + 3) << 8; });
    s.step([&](u32 t) { return byte(t + 3); });
    s.step([&](u32 t) { return in[2 * t] >> 16 | in[2 * t + 1] << 16; });
    s.step([&](u32 t) {
        const u32 at = (4 * t + 7) % (4 * n);
        return at % 4 < 3 ? at / 4 + at % 4 : in[4 * (n - 1 - at / 4) + 1];
    });
    s.step([&](u32 t) { return counted(t % 5, 5, 2); });

    s.step([&](u32 t) { return tree(&in[t / 32 * 32], t % 32, 1, [](u32 a, u32 b) { return 31 * a + b; }); });
    std::vector<double> terms(n);
    for (u32 t = 0; t < n; ++t) terms[t] = std::ldexp(static_cast<double>(static_cast<std::int32_t>(in[t])), static_cast<int>(t % 32 % 21) * 3 - 40);
    s.wide([&](u32 t) { return tree(&terms[t / 32 * 32], t % 32, 1, [](double a, double b) { return a + b; }); });
    s.step([&](u32 t) {
        u32 sum = 0;
        for (u32 i = t / 32 * 32; i < t; ++i) sum += in[i];
        return sum;
    });
    s.step([&](u32 t) {
        u32 votes = 0;
        for (u32 i = 0; i < 32; ++i) votes |= (in[t / 32 * 32 + i] & 1) << i;
        return votes;
    });

    const auto a = [&](u32 t) { return as_float(in[t]); };
    const auto b = [&](u32 t) { return as_float(in[(7 * t + 3) % 128]); };
    const auto c = [&](u32 t) { return as_float(in[(13 * t + 5) % 128]); };
    s.step([&](u32 t) { return bits(a(t) + b(t)); });
    s.step([&](u32 t) { return bits(a(t) - b(t)); });
    s.step([&](u32 t) { return bits(a(t) * b(t)); });
    s.step([&](u32 t) { return bits(a(t) / b(t)); });
    s.step([&](u32 t) { return bits(std::fma(a(t), b(t), c(t))); });
    s.step([&](u32 t) { return bits(a(t) == a(t) && b(t) == b(t) ? larger(a(t), b(t)) : NAN); });
    s.step([&](u32 t) { return bits(larger(a(t), b(t))); });
    s.step([&](u32 t) { return bits(-larger(-a(t), -b(t))); });
    const auto x = [&](u32 t) { return as_double(bits(static_cast<double>(a(t))) ^ in[128 + t] >> 4); };
    const auto y = [&](u32 t) { return as_double(bits(static_cast<double>(b(t))) ^ in[256 + t] >> 4); };
    s.wide([&](u32 t) { return x(t) + y(t); });
    s.wide([&](u32 t) { return x(t) - y(t); });
    s.wide([&](u32 t) { return x(t) * y(t); });
    s.wide([&](u32 t) { return x(t) / y(t); });
    s.wide([&](u32 t) { return std::fma(x(t), y(t), static_cast<double>(c(t))); });
    s.wide([&](u32 t) { return std::sqrt(std::fabs(x(t)) > 0 ? std::fabs(x(t)) : x(t)); });
    s.step([&](u32 t) {
        u32 zeros = 0;
        for (u32 w = in[t] >> t % 33 % 32; zeros < 32 && !(w >> (31 - zeros)); ++zeros) {
        }
        return zeros;
    });
    s.step([&](u32 t) {
        u32 ones = 0;
        for (u32 i = 0; i < 32; ++i) ones += in[t] >> i & 1;
        return ones;
    });
    s.step([&](u32 t) { return bfloat_bits(in[t]) | bfloat_bits((in[t] & 0xffff0000u) + 0x8000) << 16; });
}

inline void halves(std::vector<u32>& out) {
    for (u32 h = 0; h < 65536; ++h) {
        const float f = half_value(h);
        u32 raw = 0;
        std::memcpy(&raw, &f, 4);
        const auto half = [](u32 of) { return half_bits(as_float(of)); };
        out.push_back(bits(f));
        out.push_back(f != f ? 0x7e007e00 : half(raw) | half(raw + 0xfff) << 16);
        out.push_back(f != f ? 0x7e007e00 : half(raw + 0x1000) | half(raw + 0x1001) << 16);
    }
}

}  // namespace expected
