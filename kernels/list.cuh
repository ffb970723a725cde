// The list of gaps that can still win, and their ranks.
#pragma once
#include "counts.cuh"

template <class T, class Scope>
struct GapList : Bounds, GapCounts<T, Scope> {
    using Counts = GapCounts<T, Scope>;
    using typename Counts::Window;
    using Counts::scope, Counts::row, Counts::own_bins, Counts::below;
    using Counts::BINS, Counts::max, Counts::groups;
    static constexpr u32 CANDIDATES = Scope::CANDIDATES;

    DEVICE GapList(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max, u32 n,
                   bool plain, const Groups<T>& groups)
        : Bounds(p, n, plain), Counts(scope, row, max, groups) {}

    DEVICE void raise_by_bins(const Window& w, simt::Where at = HERE) {
        float lower = attained;
        own_bins(w, false, [&](u32 b, u32 rank) { lower = attains(w.low(b + 1), rank, lower); });
        attained = scope.fold(lower, attained, Larger{}, at);
    }
    DEVICE void offer(Peak& mine, u32 key, u32 rank) const {
        if (!can_win(simt::float_of(key), rank)) return;
        const double ratio = this->ratio(simt::float_of(key), capped(rank));
        if (ratio > 0) mine = Peak::merge(mine, Peak{ratio, key, capped(rank)});
    }
    // Merges the best of all threads into `peak`, or with ALL those of all parts. Only thread 0 reads and
    // writes it until the end.
    template <bool ALL = false>
    DEVICE void keep(Peak mine, simt::Where at = HERE) {
        if (scope.thread() == 0) mine = Peak::merge(mine, load_record<Peak>(scope.peak, 0));
        const Peak none{0, 0, 0};
        const Peak best = ALL ? scope.reduce(mine, none, MergeOf<Peak>{}, at)
                              : scope.fold(mine, none, MergeOf<Peak>{}, at);
        if (scope.thread() == 0) store_record(scope.peak, 0, best);
        raise(best.ratio);
    }

    // Above the widest gap of a top.
    DEVICE float beyond_tops(simt::Where at = HERE) {
        float widest = 0;
#pragma unroll
        for (u32 j = 0; j < Groups<T>::COUNT; ++j) {
            const float gap = simt::sub_rn(max, groups.top(j));
            widest = gap < INFINITE ? simt::max_num(widest, gap) : widest;
        }
        return above(scope.reduce(widest, 0.0f, Larger{}, at));
    }

    // Puts the gaps from `low` on and below `high` on the list, and returns how many there are. If they are
    // more than CANDIDATES, some of them are missing. It overwrites the counts, unless it is to keep them.
    DEVICE u32 collect(float low, float high, bool keeps_counts, simt::Where at = HERE) {
        const u32 lo = simt::bits_of(low), width = simt::bits_of(high) - lo;
        u32 mine = 0;
#pragma unroll
        for (u32 j = 0; j < Groups<T>::COUNT; ++j) mine += simt::sub_rn(max, groups.top(j)) < high;
        u32 hits;
        u32 place = scope.offset_in_part(mine, hits, at);
        scope.list_begin(at);
        const u32 turns = row.turns(scope), log = turns > 1 ? 32 - simt::leading_zeros(turns - 1) : 0;
        if (!keeps_counts && hits <= Scope::BINS &&
            (static_cast<u64>(hits) << log) <= row.count * T::PER_VECTOR / 4) {
            // Only the groups whose top lies there, dealt out to all threads.
#pragma unroll
            for (u32 j = 0; j < Groups<T>::COUNT; ++j) {
                if (simt::sub_rn(max, groups.top(j)) < high) {
                    scope.counts.store(place++, scope.thread() * Groups<T>::COUNT + j);
                }
            }
            scope.sync(at);
            const u32 items = hits << log, first = scope.thread();
            const u32 looked = first < items ? (items - first + Scope::THREADS - 1) / Scope::THREADS : 0;
            simt::looks(PASS_GROUPS, looked);
#pragma unroll 1
            for (u32 item = first; item < items; item += Scope::THREADS) {
                const u32 group = scope.counts.load(item >> log), j = group % Groups<T>::COUNT;
                const u32 turn = item & ((1u << log) - 1);
                const u32 i = group / Groups<T>::COUNT + turn * Scope::THREADS;
                if (i >= row.count || row.column(row.first + i, j) >= row.len) continue;
                const u32 key = gap_key(max, row.score(i, j));  // PASS_GROUPS
                if (key - lo < width) {
                    const u32 place = scope.list_claim(1);
                    if (place < CANDIDATES) scope.list.store(place, key);
                }
            }
        } else {
            // A place for each thread, and then the gaps. One pass with a place for each gap took 25 slots a
            // score, where the two take 16 (2026-11-30).
            u32 n = 0, all;
            row.for_each_vector(scope, PASS_RANK, [&](const float(&s)[T::PER_VECTOR], u32, bool) {
#pragma unroll
                for (u32 j = 0; j < T::PER_VECTOR; ++j) {
                    n += gap_key(max, s[j]) - lo < width;  // PASS_RANK
                }
            });
            place = scope.offset_in_part(n, all, at);
            if (scope.thread() == 0) scope.list.store(CANDIDATES, all);
            if (n > 0 && all <= CANDIDATES) {
                row.for_each_vector(scope, PASS_LIST, [&](const float(&s)[T::PER_VECTOR], u32, bool) {
#pragma unroll
                    for (u32 j = 0; j < T::PER_VECTOR; ++j) {
                        const u32 key = gap_key(max, s[j]);
                        if (key - lo < width) scope.list.store(place++, key);  // PASS_LIST
                    }
                });
            }
        }
        return scope.list_end(at);
    }

    // Keeps only the gaps from `low` on and below `high`, in their order.
    DEVICE void thin(float low, float high, u32 count, simt::Where at = HERE) {
        constexpr u32 EACH = (Scope::CANDIDATES + Scope::THREADS - 1) / Scope::THREADS;
        const u32 lo = simt::bits_of(low), width = simt::bits_of(high) - lo;
        u32 keys[EACH], mine = 0, all;
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            const u32 i = scope.thread() + k * Scope::THREADS;
            keys[k] = i < count ? scope.list.load(i) : ~0u;
            mine += keys[k] - lo < width;
        }
        u32 place = scope.offset_in_part(mine, all, at);
        scope.sync(at);
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            if (keys[k] - lo < width) scope.list.store(place++, keys[k]);
        }
        scope.sync(at);
    }
    // Compares each gap on the list with all of them. Where the scope SHARES, each part ranks some.
    DEVICE void rank_pairs(Peak& peak, u32 before, u32 count, simt::Where at = HERE) {
        // Filled up to whole vectors with keys above all others.
        const u32 vectors = (count + 3) / 4;
        if (scope.thread() < 4 * vectors - count) scope.list.store(count + scope.thread(), ~0u);
        scope.sync(at);
        const Shared<Vec16> keys = scope.list.template cast<Vec16>(0, Scope::CANDIDATES / 4);
        const u32 parts = Scope::SHARES ? scope.parts() : 1, part = Scope::SHARES ? scope.part() : 0;
        for (u32 i = part + parts * scope.thread(); i < count; i += parts * Scope::THREADS) {
            const u32 key = scope.list.load(i);
            u32 rank = before;
            simt::looks(PASS_PAIRS, vectors);
#pragma unroll 1
            for (u32 v = 0; v < vectors; ++v) {
                const Vec16 others = keys.load(v);  // PASS_PAIRS
#pragma unroll
                for (u32 j = 0; j < 4; ++j) rank += others.word[j] <= key;  // PASS_PAIRS
            }
            offer(peak, key, rank);
        }
    }
};
