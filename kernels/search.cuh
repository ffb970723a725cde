// The search for the contact of a row: count the gaps in bins, bound every bin, look closer at the bins that
// can still win. src/cpu/ searches by the same idea. Only integers decide, keys and counts, merged over the
// parts of the row: so every part and every thread comes to the same answer, in any order.
#pragma once
#include "counts.cuh"

template <class T, class Scope>
struct GapSearch : Bounds, GapCounts<T, Scope> {
    using Counts = GapCounts<T, Scope>;
    using typename Counts::Window;
    using Counts::scope, Counts::row, Counts::max, Counts::count, Counts::count_row;
    using Counts::below, Counts::own_bins;

    DEVICE GapSearch(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max,
                     u32 n, bool plain)
        : Bounds(p, n, plain), Counts(scope, row, max) {}

    // About the root of the row's length. The pairs of so many gaps cost less than one more count.
    DEVICE u32 few() const {
        const u32 root = 1u << (32 - simt::leading_zeros(n)) / 2;
        return root < Scope::CANDIDATES ? root : Scope::CANDIDATES;
    }
    DEVICE void raise_by_bins(const Window& w, simt::Where at = HERE) {
        float lower = attained;
        own_bins(w, [&](u32 b, u32 rank) { lower = attains(w.high(b), rank, lower); });
        attained = scope.fold(lower, attained, Larger{}, at);
    }
    DEVICE void offer(Peak& mine, u32 key, u32 rank) const {
        if (!can_win(key, rank)) return;
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

    // Ranks the `count` <= CANDIDATES gaps with keys lo ..= hi pair by pair. `before` scores lie below lo.
    // Where the scope SHARES, each part ranks some of them.
    DEVICE void rank_all(u32 lo, u32 hi, u32 before, u32 count, simt::Where at = HERE) {
        u32 mine = 0;
        row.for_each(scope, PASS_RANK, [&](float s) { mine += gap_key(max, s) - lo <= hi - lo; });
        u32 place = scope.offset(mine, at);
        scope.list_begin(at);
        if (mine > 0) {
            row.for_each(scope, PASS_LIST, [&](float s) {
                const u32 key = gap_key(max, s);
                if (key - lo <= hi - lo) scope.list_store(place++, key);
            });
        }
        // Filled up to whole vectors with keys above all others.
        const u32 vectors = (count + 3) / 4;
        if (scope.leads()) {
            for (u32 i = count; i < 4 * vectors; ++i) scope.list_store(i, ~0u);
        }
        scope.list_end(4 * vectors, at);
        const Shared<Vec16> keys = scope.list.template cast<Vec16>(0, Scope::CANDIDATES / 4);
        Peak peak{0, 0, 0};
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
        keep<Scope::SHARES>(peak, at);
    }

    // A lower bound from scores that the threads have at hand: `tops` are scores of this row, so each has at
    // least the rank that it has among them.
    template <u32 N>
    DEVICE void estimate(u32 lo, u32 ties, const float (&tops)[N], simt::Where at = HERE) {
        const Window w{lo, last, ties};
        count(w, [&](auto take) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) take(tops[i]);
        }, at);
        raise_by_bins(w, at);
    }

    // The supremum over the keys from lo on; `before` scores lie below lo. The search ascends: all below w.lo
    // is settled.
    DEVICE void run(u32 lo, u32 before) {
        Window w{lo, reach(), before};
        while (w.lo <= w.hi) {
            count_row(w);
            raise_by_bins(w);
            if (settle(w)) {
                const u32 to = reach();
                if (w.hi >= to) break;
                w = Window{w.hi + 1, to, w.before + scope.counts.load(Scope::BINS - 1)};
            }
        }
    }
    // Settles the window and returns true; or, if too many gaps can win, narrows it so that the next count is
    // finer: to the bins from the first to the last that can win, or to the first of them if those leave out
    // too little.
    DEVICE bool settle(Window& w) {
        for (u32 from = 0;;) {
            Span span = Span::none();
            own_bins(w, [&](u32 b, u32 rank) {
                if (b >= from && can_win(w.low(b), rank)) span = Span::merge(span, Span{b, b});
            });
            span = scope.fold(span, Span::none(), MergeOf<Span>{});
            if (span.first > span.last) return true;
            if (w.shift() == 0) {
                // A bin is one gap, and its count is exact.
                Peak peak{0, 0, 0};
                own_bins(w, [&](u32 b, u32 rank) { offer(peak, w.low(b), rank); });
                keep(peak);
                return true;
            }
            const u32 start = below(span.first);
            u32 end = span.last;
            const u32 stretch = scope.counts.load(end) - start;
            if (stretch > few() && scope.counts.load(Scope::BINS - 1) - below(from) >= stretch + few()) {
                // Nothing behind the stretch can win any more.
                if (w.hi >= reach()) last = w.high(end);
                w = Window{w.low(span.first), w.high(end), w.before + start};
                return false;
            }
            if (stretch > Scope::CANDIDATES) {
                u32 furthest = 0;
                own_bins(w, [&](u32 b, u32) {
                    const bool fit = b >= span.first && scope.counts.load(b) - start <= Scope::CANDIDATES;
                    if (fit) furthest = b + 1;
                });
                end = scope.fold(furthest, 0u, Larger{});
                if (end == 0) {
                    w = Window{w.low(span.first), w.high(span.first), w.before + start};
                    return false;
                }
                end -= 1;
            }
            rank_all(w.low(span.first), w.high(end), w.before + start, scope.counts.load(end) - start);
            from = end + 1;
        }
    }

    // The key of the k-th smallest gap; ties < k <= the number of finite gaps.
    DEVICE u32 select(u32 k, u32 ties) {
        Window w = Window{1, LARGEST_KEY, ties};
        for (;;) {
            count_row(w);
            u32 first = ~0u;
            own_bins(w, [&](u32 b, u32 rank) { first = rank >= k && b < first ? b : first; });
            first = scope.fold(first, ~0u, Smaller{});
            if (first == ~0u) return LARGEST_KEY + 1;
            if (w.shift() == 0) return w.low(first);
            w = Window{w.low(first), w.high(first), w.before + below(first)};
        }
    }
};

// Lambda(resolve) of a row, or Lambda if `plain`, with its contact. tops: scores of this row that the thread
// has at hand, for a first bound. With p.top_k only the k largest scores count, and kth_gap bounds the gaps
// of the others; it is -1 if all were counted. All threads call it, and the result is valid in all of them.
template <class T, class Scope, u32 N>
DEVICE Peak critical_beta(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row,
                          const RowMax& top, u32 ties, bool plain, float& kth_gap, const float (&tops)[N]) {
    GapSearch<T, Scope> search(p, scope, row, top.max, top.len, plain);
    const Peak at_top{search.ratio(0, ties), 0, ties};
    if (scope.thread() == 0) store_record(scope.peak, 0, at_top);
    kth_gap = -1;
    if (search.partial()) {
        search.last = p.top_k > ties ? search.select(p.top_k, ties) : 0;
        kth_gap = simt::float_of(search.last);
        if (search.last > LARGEST_KEY) search.last = LARGEST_KEY;
    }
    const u32 lo = ties == 1 && top.second > -INFINITE ? gap_key(top.max, top.second) : 1;
    if (at_top.ratio == 0 && ties < top.len && lo <= search.last) {
        if (ties == 1) search.attained = search.attains(lo, 2, 0);  // the runner-up
        if (Scope::ESTIMATES || !(search.attained > 0)) search.estimate(lo, ties, tops);
        search.run(lo, ties);
    }
    scope.sync();
    const Peak best = load_record<Peak>(scope.peak, 0);
    scope.sync();
    return best;
}
