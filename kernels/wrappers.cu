// Calls each wrapper of simt.cuh, and writes one u32 per thread and step to params.out, step after step.
// tests/wrappers.rs works out the same words by itself, and compares them with those of both bodies.
//   scores: 512 u32, any bits. workspace: 4096 bytes per CTA, zeroed.
#include "wrappers.cuh"

namespace wrappers {

using namespace simt;

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
    release_async();
    block_sync();
    // Five loads into two places, each begun before the one before it is waited for.
    const auto row = [](u32 turn) { return arena<Vec16>(64 + 1600 * (turn & 1), 100); };
    const auto begin = [&](u32 turn) {
        load_async(row(turn), Global<Vec16>(params.scores), 5 + turn, 100 - turn, turn);
    };
    constexpr u32 LOADS = 5;
    u32 sum = 0;
    begin(0);
    for (u32 turn = 0; turn < LOADS; ++turn) {
        const bool ahead = turn + 1 < LOADS;
        if (ahead) begin(turn + 1);
        wait_async(turn, ahead);
        const Vec16 v = row(turn).load(t % (100 - turn));
        sum = 31 * sum + v.word[0] + 3 * v.word[1] + 5 * v.word[2] + 7 * v.word[3];
        release_async();
        block_sync();
    }
    r.put(sum);
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
    Global<Vec16>(mine).store(t, Vec16{{5 * t, 5 * t + 1, 5 * t + 2, 5 * t + 3}}, Streamed(t & 1));
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
    r.put(warp_add(word));
    r.put(warp_max(word));
    r.put(warp_min(word));
    r.put(simt::ballot(word & 1));
    r.put(warp_xor(word, 5));
}

// The last CTA to come finds what each has left, and the counter at 0.
DEVICE void last_cta(const RowParams& params, u64 at) {
    const Global<u32> words(params.workspace + 2048);
    if (thread() == 1) words.store(1 + cta(), 10 * cta() + 3);
    if (!last_of(words, ctas())) return;
    if (thread() <= ctas()) Global<u32>(params.out).store(at + thread(), words.load(thread()));
}

constexpr u32 BLOCK_STEPS = 6 + 9 + 7 + 9 + 8 + 32, SPLIT_STEPS = 3;

DEVICE void one_cta(const RowParams& params) {
    Results r(params, BLOCK_STEPS);
    const Global<u32> in(params.scores);
    identities(r);
    shared_memory(r, params);
    device_memory(r, params);
    collectives(r, in);
    products(r);
    arithmetic(r, in);
    const u64 end = static_cast<u64>(ctas()) * BLOCK_STEPS * threads();
    halves(params, end);
    last_cta(params, end + 3 * 65536);
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
    KERNEL(RowParams, wrappers_##T##_block##THREADS##x##CTAS, THREADS, 1) { wrappers::one_cta(params); }
#define WRAPPERS_split(T, THREADS, CTAS) \
    KERNEL(RowParams, wrappers_##T##_split##THREADS##x##CTAS, THREADS, 1) { wrappers::one_group(params); }
#if SIMT_CLUSTERS
#define WRAPPERS_cluster(T, THREADS, CTAS) \
    KERNEL(RowParams, wrappers_##T##_cluster##THREADS##x##CTAS, THREADS, 1) { wrappers::one_cluster(params); }
#else
#define WRAPPERS_cluster(T, THREADS, CTAS)
#endif
#include "variants.def"
