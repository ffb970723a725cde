// Planted faults: under every thread order the checker must name each of them, and say nothing of its mended
// twin.
#include "../params.cuh"
#include "host.cuh"

namespace faults {

using namespace simt;

constexpr u32 THREADS = 128, SHARED_BYTES = 4096, WORDS = 1024, GRID = 4;

template <bool MENDED>
void increment(const RowParams&) {
    const Shared<u32> counter = arena<u32>(0, 1);
    if (thread() == 0) counter.store(0, 0);
    block_sync();
    if (MENDED) {
        counter.add(0, 1);
    } else {
        counter.store(0, counter.load(0) + 1);
    }
}

template <bool MENDED>
void cta_barrier(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    words.store(thread(), 0);
    block_sync();
    words.store(thread(), thread());
    if (MENDED) block_sync();
    const u32 word = words.load((thread() + 40) % THREADS);
    Global<u32>(params.out).store(cta() * THREADS + thread(), word);
}

// A vote makes all lanes wait, but orders no memory.
template <bool MENDED>
void warp_barrier(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    words.store(thread(), thread());
    const u32 votes = ballot(true);
    if (MENDED) warp_sync();
    const u32 word = words.load(thread() ^ 1);
    Global<u32>(params.out).store(cta() * THREADS + thread(), word + votes);
}

// One warp reads a word and another writes it, in this order by some seeds: the barrier of the writer is not
// one of the reader.
template <bool MENDED>
void late_write(const RowParams& params) {
    const Shared<u32> word = arena<u32>(0, 1);
    if (thread() == 0) word.store(0, 1);
    block_sync();
    const u32 before = warp() == 1 ? word.load(0) : 0;
    if (MENDED) {
        block_sync();
    } else {
        warp_sync();
    }
    if (thread() == 0) word.store(0, 2);
    Global<u32>(params.out).store(cta() * THREADS + thread(), before);
}

template <bool MENDED>
void bulk_copy(const RowParams& params) {
    const Shared<Vec16> row = arena<Vec16>(0, 2 * THREADS);
    load_async(row, Global<Vec16>(params.scores), 0, 2 * THREADS, 0);
    if (MENDED) {
        wait_async(0, false);
    } else {
        block_sync();
    }
    const Vec16 v = row.load(thread());
    Global<u32>(params.out).store(cta() * THREADS + thread(), v.word[0]);
}

template <bool MENDED>
void three_loads(const RowParams& params) {
    const auto begin = [&](u32 turn) {
        const Shared<Vec16> tile = arena<Vec16>(16 * THREADS * (turn & 1), THREADS);
        load_async(tile, Global<Vec16>(params.scores), 0, THREADS, turn);
    };
    begin(0);
    begin(1);
    if (MENDED) {
        wait_async(0, true);
        block_sync();
    }
    begin(2);
    wait_async(1, MENDED);
    if (MENDED) wait_async(2, false);
    const u32 word = arena<u32>(0, THREADS).load(thread());
    Global<u32>(params.out).store(cta() * THREADS + thread(), word);
}

template <bool MENDED>
void shared_index(const RowParams&) {
    const Shared<u32> words = arena<u32>(0, 2 * THREADS).cast<u32>(0, THREADS);
    for (u32 i = thread(); MENDED ? i < THREADS : i <= THREADS; i += THREADS) words.store(i, i);
}

template <bool MENDED>
void global_index(const RowParams& params) {
    const Global<u32> words(params.out);
    constexpr u32 END = MENDED ? WORDS : WORDS + 1;
    for (u32 i = thread() + cta() * THREADS; i < END; i += THREADS * ctas()) words.store(i, i);
}

template <bool MENDED>
void read_only(const RowParams& params) {
    Global<u32>(MENDED ? params.out : params.scores).store(cta() * THREADS + thread(), 1);
}

template <bool MENDED>
void divergent(const RowParams&) {
    if (MENDED || thread() < 40) {
        block_sync();
    } else {
        block_sync();
    }
}

template <bool MENDED>
void returned(const RowParams&) {
    if (!MENDED && lane() == 7) return;
    warp_fold(1u, [](u32 a, u32 b) { return a + b; });
}

template <bool MENDED>
void cluster_divergent(const RowParams&) {
    if (MENDED || cluster_cta() == 0) {
        cluster_sync();
    } else {
        block_sync();
    }
}

template <bool MENDED>
void ring(const RowParams& params) {
    constexpr u32 TURNS = MENDED ? 2 : 1;
    const Global<u32> counter(params.workspace), slots(params.workspace + 128);
    u32 sum = 0;
    for (u32 turn = 0; turn < 4; ++turn) {
        const u32 slot = turn % TURNS * ctas();
        if (thread() == 0) slots.store(slot + cta(), sum + turn);
        group_sync(counter, ctas());
        for (u32 c = 0; c < ctas(); ++c) sum += slots.load(slot + c);
    }
    Global<u32>(params.out).store(cta() * THREADS + thread(), sum);
}

template <bool MENDED>
void unwritten(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    if (MENDED || thread() != 70) words.store(thread(), 0);
    block_sync();
    Global<u32>(params.out).store(cta() * THREADS + thread(), words.load(thread() ^ 1));
}

template <bool MENDED>
void remote_read(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    words.store(thread(), 0);
    cluster_sync();
    words.store(thread(), cta());
    if (MENDED) {
        cluster_sync();
    } else {
        block_sync();
    }
    const u32 word = words.remote(cluster_cta() ^ 1).load(thread());
    cluster_sync();
    Global<u32>(params.out).store(cta() * THREADS + thread(), word);
}

// It is found whether the CTA that is read ends before the read or after it.
template <bool MENDED>
void early_exit(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    words.store(thread(), cta());
    cluster_sync();
    const u32 word = cluster_cta() == 0 && thread() == 0 ? words.remote(1).load(5) : 0;
    Global<u32>(params.out).store(cta() * THREADS + thread(), word);
    if (MENDED) cluster_sync();
}

template <bool MENDED>
void between_ctas(const RowParams& params) {
    const Global<u32> words(params.out);
    words.store(cta() * THREADS + thread(), thread());
    const u32 source = MENDED ? cta() : (cta() + 1) % ctas();
    words.store(WORDS / 2 + cta() * THREADS + thread(), words.load(source * THREADS + thread()));
}

// One CTA too few is waited for.
template <bool MENDED>
void early_sum(const RowParams& params) {
    const Global<u32> counter(params.workspace), words(params.out);
    words.store(cta() * THREADS + thread(), thread());
    if (!last_of(counter, MENDED ? ctas() : ctas() - 1)) return;
    u32 sum = 0;
    for (u32 c = 0; c < ctas(); ++c) sum += words.load(c * THREADS + thread());
    counter.store(1 + thread(), sum);
}

template <bool MENDED>
void late_store(const RowParams& params) {
    const bool last = last_of(Global<u32>(params.workspace), ctas());
    if (MENDED && !last) return;
    Global<u32>(params.out).store(cta() * THREADS + thread(), 1);
}

}  // namespace faults
