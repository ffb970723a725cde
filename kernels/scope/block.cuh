// One row per CTA. The scopes of several CTAs are built on this one. scope/warp.cuh describes the verbs.
#pragma once
#include "record.cuh"

// CONTROL: bytes in front of the row. A scope of several CTAs takes its own behind the first USED of them.
template <u32 T, bool STREAM = false, u32 BINS_ = BINS, u32 CANDIDATES_ = CANDIDATES,
          u32 CONTROL = BLOCK_CONTROL_BYTES>
struct BlockScope {
    static constexpr u32 THREADS = T, BINS = BINS_, CANDIDATES = CANDIDATES_, WARPS = T / 32;
    // At most so many gaps are ranked pair by pair before they are counted.
    static constexpr u32 FEW = CANDIDATES / 4;
    // ESTIMATES: it is cheaper to count the threads' own tops first than to count more gaps of the row.
    // SHARES: parts rank candidates together. A barrier of all CTAs of a split row costs more than it saves.
    // ON_CHIP: rows were made in shared memory, and their probabilities stay there.
    static constexpr bool ASYNC = true, STREAMS = STREAM, ESTIMATES = !STREAM, SHARES = false,
                          ON_CHIP = false;
    // The arena: folds of the warps, for two turns; the best ratio; counts; the list.
    static constexpr u32 FOLD_WORDS = 2 * WARPS * RECORD_WORDS;
    static constexpr u32 USED = 4 * (FOLD_WORDS + RECORD_WORDS + BINS + CANDIDATES + 2 * SPARE);
    static_assert(USED <= CONTROL, "arena of a CTA");
    Shared<u32> folds, peak, counts, list;
    Shared<Vec16> tile;
    u32 row;
    u32 turns;  // bit 0: of folds; bit 1: of the records that parts exchange; above them: of rows

    DEVICE explicit BlockScope(const RowParams& p) {
        folds = simt::arena<u32>(0, FOLD_WORDS);
        peak = simt::arena<u32>(4 * FOLD_WORDS, RECORD_WORDS);
        counts = simt::arena<u32>(4 * (FOLD_WORDS + RECORD_WORDS), BINS + SPARE);
        list = simt::arena<u32>(USED - 4 * (CANDIDATES + SPARE), CANDIDATES + SPARE);
        tile = simt::arena<Vec16>(CONTROL, p.resident);
        row = simt::cta();
        turns = 0;
    }
    DEVICE u32 fold_turn() const { return turns & 1; }
    DEVICE u32 record_turn() const { return turns >> 1 & 1; }
    DEVICE u32 load_turn() const { return turns >> 2; }
    // A CTA that takes several rows, and is not of a split row, keeps two: one is loaded while the other is
    // worked on.
    DEVICE bool has_next(const RowParams& p) const { return p.rows - row > p.groups; }
    DEVICE void advance(const RowParams& p) {
        row += p.groups;
        turns += 4;
        tile = simt::arena<Vec16>(CONTROL + 16 * p.resident * (load_turn() & 1), p.resident);
    }
    DEVICE u32 thread() const { return simt::thread(); }
    DEVICE u32 part() const { return 0; }
    DEVICE u32 parts() const { return 1; }
    DEVICE bool leads() const { return simt::thread() == 0; }
    DEVICE void sync(simt::Where at = HERE) const { simt::block_sync(at); }

    // One barrier per fold: the slots have two turns, because no thread is more than one barrier ahead of
    // another.
    template <class R, class Merge>
    DEVICE R fold(R value, R none, Merge merge, simt::Where at = HERE) {
        value = warp_fold(value, merge, at);
        turns ^= 1;
        if (simt::lane() == 0) store_record(folds, fold_turn() * WARPS + simt::warp(), value);
        sync(at);
        value = simt::lane() < WARPS ? load_record<R>(folds, fold_turn() * WARPS + simt::lane()) : none;
        return warp_fold(value, merge, at);
    }
    template <class R, class Merge>
    DEVICE R reduce(R value, R none, Merge merge, simt::Where at = HERE) {
        return fold(value, none, merge, at);
    }
    // Sum over lower threads of this CTA, and over all of them.
    DEVICE u32 offset_in_part(u32 mine, u32& all, simt::Where at = HERE) {
        const u32 below = simt::warp_exclusive_sum(mine, at);
        turns ^= 1;
        const u32 first = fold_turn() * WARPS;
        if (simt::lane() == 31) folds.store((first + simt::warp()) * RECORD_WORDS, below + mine);
        sync(at);
        const u32 of_warp =
            simt::lane() < WARPS ? folds.load((first + simt::lane()) * RECORD_WORDS) : 0;
        all = warp_fold(of_warp, AddCounts{}, at);
        return below + warp_fold(simt::lane() < simt::warp() ? of_warp : 0u, AddCounts{}, at);
    }
    DEVICE void clear_counts(simt::Where at = HERE) {
        sync(at);
        for (u32 b = thread(); b < BINS + 1; b += THREADS) counts.store(b, 0);
        sync(at);
    }
    DEVICE void merge_counts(simt::Where at = HERE) { sync(at); }
    DEVICE void list_begin(simt::Where at = HERE) { ListOf<CANDIDATES>::begin(*this, at); }
    DEVICE u32 list_claim(u32 n) const { return ListOf<CANDIDATES>::claim(list, n); }
    DEVICE u32 list_end(simt::Where at = HERE) { return ListOf<CANDIDATES>::end(*this, at); }
    DEVICE void finish(simt::Where = HERE) {}
};
