// Planted faults: under every thread order the checker must name each of them, and say nothing of its mended
// twin.
#pragma once
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
void unwritten(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    if (MENDED || thread() != 70) words.store(thread(), 0);
    block_sync();
    Global<u32>(params.out).store(cta() * THREADS + thread(), words.load(thread() ^ 1));
}

}  // namespace faults
