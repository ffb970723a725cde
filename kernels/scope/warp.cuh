// One row per warp. Several rows share a CTA; they never wait for each other.
#pragma once
#include "record.cuh"

// The verbs of every scope. All threads of a part call each of them, at one line of the source.
//   thread() THREADS        my place in the part of the row that one warp or CTA holds
//   part() parts()          which part this is
//   sync()                  barrier of the part
//   fold(v, none, merge)    over the threads of the part; valid in all of them. v: at most 8 words
//   reduce(v, none, merge)  over all parts; valid in all threads. Both in a fixed order
//   offset_in_part(mine, all)  sum of `mine` over the threads of this part before this one, and over all
//   clear_counts() .. counts.increment() .. merge_counts(): `counts` then holds sums over all parts, and each
//                           part may change its copy. One more bin, behind the others, is for what nobody
//                           counts
//   list_begin() .. list_claim(n) .. list.store(place, key) .. list_end(): `list` holds what all parts
//                           stored, in any order that is the same for all. list_end returns how many were
//                           claimed; if they are more than CANDIDATES, the list is of no use
//   peak                    8 words of the part, for thread 0
template <u32 WARPS>
struct WarpScope {
    static constexpr u32 THREADS = 32, BINS = WARP_BINS, CANDIDATES = WARP_CANDIDATES,
                         FEW = WARP_CANDIDATES;
    static constexpr bool ASYNC = false, STREAMS = false, ESTIMATES = true, SHARES = false,
                          ON_CHIP = false;
    Shared<u32> counts, list, peak;
    Shared<Vec16> tile;
    u32 row;

    DEVICE explicit WarpScope(const RowParams& p) {
        row = simt::cta() * WARPS + simt::warp();
        const u32 base = simt::warp() * (WARP_CONTROL_BYTES + 16 * p.resident);
        counts = simt::arena<u32>(base, BINS + SPARE);
        list = simt::arena<u32>(base + 4 * (BINS + SPARE), CANDIDATES + SPARE);
        peak = simt::arena<u32>(base + 4 * (BINS + CANDIDATES + 2 * SPARE), 8);
        tile = simt::arena<Vec16>(base + WARP_CONTROL_BYTES, p.resident);
    }
    DEVICE u32 thread() const { return simt::lane(); }
    DEVICE u32 part() const { return 0; }
    DEVICE u32 parts() const { return 1; }
    DEVICE bool leads() const { return simt::lane() == 0; }
    DEVICE void sync(simt::Where at = HERE) const { simt::warp_sync(at); }

    template <class R, class Merge>
    DEVICE R fold(R value, R, Merge merge, simt::Where at = HERE) {
        return warp_fold(value, merge, at);
    }
    template <class R, class Merge>
    DEVICE R reduce(R value, R, Merge merge, simt::Where at = HERE) {
        return warp_fold(value, merge, at);
    }
    DEVICE u32 offset_in_part(u32 mine, u32& all, simt::Where at = HERE) {
        all = warp_fold(mine, AddCounts{}, at);
        return simt::warp_exclusive_sum(mine, at);
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
static_assert(WARP_CONTROL_BYTES == 4 * (WARP_BINS + WARP_CANDIDATES + 2 * SPARE) + 32, "arena of a warp");
