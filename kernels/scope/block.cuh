// One row per CTA, and what a CTA does in the scopes above it. The verbs are those of scope/warp.cuh.
#pragma once
#include "record.cuh"

template <u32 T, bool STREAM = false>
struct BlockScope {
    static constexpr u32 THREADS = T, BINS = ::BINS, CANDIDATES = ::CANDIDATES, WARPS = T / 32;
    // ESTIMATES: a count of the threads' own tops is cheaper than counting more gaps of the row.
    static constexpr bool ASYNC = true, STREAMS = STREAM, ESTIMATES = !STREAM;
    // The arena: folds of warps and records of parts, two turns each; counts; counts of the turn before, which other CTAs may
    // still read; sums of counts; the list, and the one that all parts of a row write.
    static constexpr u32 FOLD_WORDS = 2 * 32 * RECORD_WORDS, RECORDS = 2 * RECORD_WORDS;
    Shared<u32> folds, records, peak, counts, counts_before, after, list, shared_list;
    Shared<Vec16> tile;
    u32 row, fold_turn;

    DEVICE explicit BlockScope(const RowParams& p) {
        u32 at = 0;
        folds = take(at, FOLD_WORDS);
        records = take(at, RECORDS);
        peak = take(at, RECORD_WORDS);
        counts = take(at, BINS);
        counts_before = take(at, BINS);
        after = take(at, BINS);
        list = take(at, CANDIDATES);
        shared_list = take(at, CANDIDATES);
        static_assert(4 * (FOLD_WORDS + RECORDS + RECORD_WORDS + 3 * BINS + 2 * CANDIDATES) <= CONTROL_BYTES, "arena of a CTA");
        tile = simt::arena<Vec16>(CONTROL_BYTES, p.resident);
        row = simt::cta();
        fold_turn = 0;
    }
    static DEVICE Shared<u32> take(u32& at, u32 words) {
        const Shared<u32> slice = simt::arena<u32>(at, words);
        at += 4 * words;
        return slice;
    }
    DEVICE u32 thread() const { return simt::thread(); }
    DEVICE u32 part() const { return 0; }
    DEVICE u32 parts() const { return 1; }
    DEVICE bool leads() const { return simt::thread() == 0; }
    DEVICE void sync(simt::Where at = HERE) const { simt::block_sync(at); }

    // One barrier a fold: two turns of slots, because no thread is more than one barrier ahead of another.
    template <class R, class Merge>
    DEVICE R fold(R value, R none, Merge merge, simt::Where at = HERE) {
        value = simt::warp_fold(value, merge, at);
        fold_turn ^= 1;
        if (simt::lane() == 0) store_record(folds, fold_turn * 32 + simt::warp(), value);
        sync(at);
        value = simt::lane() < WARPS ? load_record<R>(folds, fold_turn * 32 + simt::lane()) : none;
        return simt::warp_fold(value, merge, at);
    }
    template <class R, class Merge>
    DEVICE R reduce(R value, R none, Merge merge, simt::Where at = HERE) {
        return fold(value, none, merge, at);
    }
    // Sum over lower threads of this CTA, and over all of them.
    DEVICE u32 offset_in_part(u32 mine, u32& all, simt::Where at = HERE) {
        const u32 below = simt::warp_exclusive_sum(mine, at);
        fold_turn ^= 1;
        if (simt::lane() == 31) folds.store((fold_turn * 32 + simt::warp()) * RECORD_WORDS, below + mine);
        sync(at);
        const u32 of_warp = simt::lane() < WARPS ? folds.load((fold_turn * 32 + simt::lane()) * RECORD_WORDS) : 0;
        all = simt::warp_fold(of_warp, AddCounts{}, at);
        return below + simt::warp_fold(simt::lane() < simt::warp() ? of_warp : 0u, AddCounts{}, at);
    }
    DEVICE u32 offset(u32 mine, simt::Where at = HERE) {
        u32 all;
        return offset_in_part(mine, all, at);
    }
    DEVICE void clear_counts(simt::Where at = HERE) {
        for (u32 b = thread(); b < BINS; b += THREADS) counts.store(b, 0);
        sync(at);
    }
    DEVICE Shared<u32> merge_counts(simt::Where at = HERE) {
        sync(at);
        return counts;
    }
    DEVICE void list_begin(simt::Where = HERE) {}
    DEVICE void list_store(u32 i, u32 key) const { list.store(i, key); }
    DEVICE void list_end(u32, simt::Where at = HERE) { sync(at); }
    DEVICE void finish(simt::Where = HERE) {}
};
