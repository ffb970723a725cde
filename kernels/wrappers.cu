// Calls each wrapper of simt.cuh, and writes one u32 per thread and step to params.out, step after step.
// tests/wrappers.rs works out the same words by itself, and compares them with those of both bodies.
//   scores: 512 u32, any bits. workspace: 4096 bytes per CTA, zeroed.
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

DEVICE void identities(Results& r) {
    r.put(thread());
    r.put(threads());
    r.put(lane());
    r.put(warp());
    r.put(cta());
    r.put(ctas());
}

DEVICE void shared_memory(Results& r, const RowParams& params) {
    const u32 t = thread(), n = threads();
    const Shared<u32> words = arena<u32>(0, n);
    words.store(t, 3 * t + 1);
    block_sync();
    r.put(words.load(n - 1 - t));
    block_sync();
    // Both halves of a u64, and a u16 and a u8 in it.
    if (t % 2 == 0) words.cast<u64>(0, n / 2).store(t / 2, 0x0123456789abcdefull * (t + 1));
    block_sync();
    r.put(words.load(t));
    r.put(static_cast<u32>(words.cast<u16>(0, 2 * n).load(2 * t + 1)));
    r.put(static_cast<u32>(words.cast<u8>(n, 3 * n).load(t)));
    block_sync();
    if (t % 4 == 0) words.cast<Vec16>(0, n / 4).store(t / 4, Vec16{{0, 0, 0, 0}});
    block_sync();
    words.add(t % 7, t + 1);
    block_sync();
    r.put(words.load(t % 7));
    block_sync();
    words.store(t, t * t);
    warp_sync();
    r.put(words.load(t ^ 1));
    block_sync();
    // Each thread has two places of its own, whichever they are.
    const Shared<u32> taken = arena<u32>(0, 2 * threads() + 8);
    if (t < 8) taken.store(t, 0);
    block_sync();
    taken.increment(t % 7);
    const u32 place = taken.claim(7, 2);
    taken.store(8 + place, 1);
    taken.store(8 + place + 1, 2);
    block_sync();
    r.put(taken.load(t % 7));
    r.put(taken.load(8 + t) + 10 * taken.load(8 + threads() + t));
    block_sync();
    const Shared<Vec16> row = arena<Vec16>(64, 100);
    load_async(row, Global<Vec16>(params.scores), 5, 100);
    wait_async();
    const Vec16 v = row.load(t % 100);
    r.put(v.word[0] + 3 * v.word[1] + 5 * v.word[2] + 7 * v.word[3]);
}

DEVICE void device_memory(Results& r, const RowParams& params) {
    const u32 t = thread(), n = threads();
    const Vec16 v = Global<Vec16>(params.scores).load(n - 1 - t);
    r.put(v.word[0] ^ Global<Vec16>(params.scores).reload(n - 1 - t).word[3]);
    r.put(static_cast<u32>(Global<u16>(params.scores).load(t + 1)));
    r.put(static_cast<u32>(Global<u8>(params.scores).load(t + 3)));
    r.put(static_cast<u32>(Global<u64>(params.scores).load(t) >> 16));
    const u64 mine = params.workspace + 4096ull * cta();
    const Global<u32> scratch(mine);
    Global<Vec16>(mine).store(t, Vec16{{t, t + 1, t + 2, v.word[1]}});
    block_sync();
    r.put(scratch.load((4 * t + 7) % (4 * n)));
    block_sync();
    if (t < 5) scratch.store(t, 0);
    block_sync();
    scratch.add(t % 5, 2 * t + 1);
    block_sync();
    r.put(scratch.load(t % 5));
}

DEVICE void collectives(Results& r, const Global<u32>& in) {
    const u32 t = thread(), word = in.load(t);
    // The operation is not commutative: the lanes get different results, which show the tree of their fold.
    r.put(warp_fold(word, [](u32 a, u32 b) { return 31 * a + b; }));
    // Terms up to 2^51, of which the smallest end at 2^-40: every order of addition has another sum.
    const double integer = static_cast<double>(static_cast<i32>(word));
    const double term = mul_rn(integer, double_of(static_cast<u64>(983 + 3 * (lane() % 21)) << 52));
    r.put(warp_fold(term, [](double a, double b) { return add_rn(a, b); }));
    r.put(warp_exclusive_sum(word));
    r.put(simt::ballot(word & 1));
}

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

constexpr u32 BLOCK_STEPS = 6 + 9 + 6 + 5 + 30, SPLIT_STEPS = 3;

DEVICE void one_cta(const RowParams& params) {
    Results r(params, BLOCK_STEPS);
    const Global<u32> in(params.scores);
    identities(r);
    shared_memory(r, params);
    device_memory(r, params);
    collectives(r, in);
    arithmetic(r, in);
    halves(params, static_cast<u64>(ctas()) * BLOCK_STEPS * threads());
}

#if SIMT_CLUSTERS
constexpr u32 CLUSTER_STEPS = 4;
DEVICE void one_cluster(const RowParams& params) {
    Results r(params, CLUSTER_STEPS);
    const u32 t = thread(), n = threads();
    const Shared<u32> words = arena<u32>(128, n);
    r.put(cluster_cta());
    words.store(t, 100 * cta() + t);
    cluster_sync();
    r.put(words.remote(cluster_cta() ^ 1).load(n - 1 - t));
    r.put(words.remote(cluster_cta()).load(t));
    cluster_sync();
    words.remote(cluster_cta() ^ 1).store(t, 1000 * cta() + 3 * t);
    cluster_sync();
    r.put(words.load(t));
}
#endif

// Groups of params.ctas CTAs, which hand words to each other in the workspace of the first of them.
DEVICE void one_group(const RowParams& params) {
    Results r(params, SPLIT_STEPS);
    const u32 first = cta() / params.ctas * params.ctas, t = thread(), n = threads();
    const u64 workspace = params.workspace + 4096ull * first;
    const Global<u32> counter(workspace), slots(workspace + 128);
    u32 word = 10 * cta() + t;
    for (u32 turn = 0; turn < SPLIT_STEPS; ++turn) {
        const u32 from = turn % 2 * params.ctas * n;
        slots.store(from + (cta() - first) * n + t, word);
        group_sync(counter, params.ctas);
        word = 3 * word + slots.load(from + (cta() - first + 1) % params.ctas * n + (t + 1) % n);
        r.put(word);
    }
}

}  // namespace wrappers

#define WRAPPERS(T, SCOPE, THREADS, CTAS) WRAPPERS_##SCOPE(T, THREADS, CTAS)
#define WRAPPERS_block(T, THREADS, CTAS) \
    KERNEL(wrappers_##T##_block##THREADS##x##CTAS, THREADS, 1) { wrappers::one_cta(params); }
#define WRAPPERS_split(T, THREADS, CTAS) \
    KERNEL(wrappers_##T##_split##THREADS##x##CTAS, THREADS, 1) { wrappers::one_group(params); }
#if SIMT_CLUSTERS
#define WRAPPERS_cluster(T, THREADS, CTAS) \
    KERNEL(wrappers_##T##_cluster##THREADS##x##CTAS, THREADS, 1) { wrappers::one_cluster(params); }
#else
#define WRAPPERS_cluster(T, THREADS, CTAS)
#endif
#include "variants.def"
