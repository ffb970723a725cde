// One row per warp. Several rows share a CTA; they never wait for each other.
#pragma once
#include "record.cuh"

// The verbs of every scope. All threads of a part call each of them, at one line of the source.
//   thread() THREADS        my place in the part of the row that one warp or CTA holds
//   part() parts()          which part this is
//   sync()                  barrier of the part
//   fold(v, none, merge)    over the threads of the part; valid in all of them. v: at most 8 words
//   reduce(v, none, merge)  over all parts; valid in all threads. Both in a fixed order
//   offset(mine)            sum of `mine` over all threads before this one, lower parts first; valid in each
//   clear_counts() .. counts.add(..) .. merge_counts(): `counts` then holds the sums over all parts, and each
//                           part may change its copy
//   list_begin() .. list_store(i, key) .. list_end(n): `list` holds what all parts stored
//   peak                    8 words of the part, for thread 0
template <u32 WARPS>
struct WarpScope {
    static constexpr u32 THREADS = 32, BINS = WARP_BINS, CANDIDATES = WARP_CANDIDATES;
    static constexpr bool ASYNC = false, STREAMS = false, ESTIMATES = true, SHARES = false;
    Shared<u32> counts, list, peak;
    Shared<Vec16> tile;
    u32 row;

    DEVICE explicit WarpScope(const RowParams& p) {
        row = simt::cta() * WARPS + simt::warp();
        const u32 base = simt::warp() * (WARP_CONTROL_BYTES + 16 * p.resident);
        counts = simt::arena<u32>(base, BINS);
        list = simt::arena<u32>(base + 4 * BINS, CANDIDATES);
        peak = simt::arena<u32>(base + 4 * BINS + 4 * CANDIDATES, 8);
        tile = simt::arena<Vec16>(base + WARP_CONTROL_BYTES, p.resident);
    }
    DEVICE u32 thread() const { return simt::lane(); }
    DEVICE u32 part() const { return 0; }
    DEVICE u32 parts() const { return 1; }
    DEVICE bool leads() const { return simt::lane() == 0; }
    DEVICE void sync(simt::Where at = HERE) const { simt::warp_sync(at); }

    template <class R, class Merge>
    DEVICE R fold(R value, R, Merge merge, simt::Where at = HERE) {
        return simt::warp_fold(value, merge, at);
    }
    template <class R, class Merge>
    DEVICE R reduce(R value, R, Merge merge, simt::Where at = HERE) {
        return simt::warp_fold(value, merge, at);
    }
    DEVICE u32 offset(u32 mine, simt::Where at = HERE) { return simt::warp_exclusive_sum(mine, at); }
    DEVICE u32 offset_in_part(u32 mine, u32&, simt::Where at = HERE) {
        return simt::warp_exclusive_sum(mine, at);
    }
    DEVICE void clear_counts(simt::Where at = HERE) {
        sync(at);
        for (u32 b = thread(); b < BINS; b += THREADS) counts.store(b, 0);
        sync(at);
    }
    DEVICE void merge_counts(simt::Where at = HERE) { sync(at); }
    // A lane may still read the previous list: a fold orders the lanes of a warp but not their memory.
    DEVICE void list_begin(simt::Where at = HERE) { sync(at); }
    DEVICE void list_store(u32 i, u32 key) const { list.store(i, key); }
    DEVICE void list_end(u32, simt::Where at = HERE) { sync(at); }
    DEVICE void finish(simt::Where = HERE) {}
};
static_assert(WARP_CONTROL_BYTES == 4 * WARP_BINS + 4 * WARP_CANDIDATES + 32, "arena of a warp");
