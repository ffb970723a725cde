// The search for the contact of a row: count the gaps in bins, bound every bin, look closer at the bins that
// can still win. src/cpu/ searches by the same idea. Only integers decide, bins and counts, merged over the
// parts of the row: so every part and every thread comes to the same answer, in any order.
#pragma once
#include "list.cuh"
#include "report.cuh"

template <class T, class Scope>
struct GapSearch : GapList<T, Scope> {
    using List = GapList<T, Scope>;
    using typename List::Window;
    using List::scope, List::row, List::n, List::last, List::attained, List::below, List::own_bins;
    using List::can_win, List::reach, List::BINS, List::CANDIDATES;
    // Beyond so many scores a group, the groups settle no row: 2 of 4 at 8 (2026-11-30).
    static constexpr u32 MOST_EACH = 8;

    DEVICE GapSearch(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max,
                     u32 n, bool plain, const Groups<T>& groups)
        : List(p, scope, row, max, n, plain, groups) {}

    // The range of bins whose gaps can still win. A rank of groups stands for at most `each` scores a group,
    // also in a bin that has no top.
    // A bin of no more than `settled` scores holds only gaps that are settled.
    DEVICE Span winners(const Window& w, u32 each, u32 settled) {
        Span span = Span::none();
        const u32 all = n / each;
        own_bins(w, each > 1, [&](u32 b, u32 rank) {
            const bool wins = rank > settled && can_win(w.low(b), rank < all ? rank * each : n);
            if (wins && (b > 0 || w.before > 0)) span = Span::merge(span, Span{b, b});
        });
        return scope.fold(span, Span::none(), MergeOf<Span>{});
    }

    // The supremum over the gaps from `from` on; `ties` scores lie below it. The search ascends: all below
    // `from` is settled.
    DEVICE void run(float from, u32 ties) {
        Source source = Scope::ESTIMATES || !(attained > 0) ? TOPS : ROW;
        float to = reach(), resume = 0;
        if (!(attained > 0)) {
            // No rank is known yet that exceeds the resolve. The window holds all tops, if they are not all
            // ties.
            const float beyond = this->beyond_tops();
            source = beyond > from ? TOPS : ROW;
            to = beyond > from ? simt::min_num(to, beyond) : to;
        }
        // Scores below `from` while the row is counted, below the list, and on it.
        u32 settled = ties, before = ties, listed = 0;
        while (from < to) {
            Peak peak{0, 0, 0};
            bool ranks = source == LIST && listed <= Scope::FEW, offers = ranks;
            if (!ranks) {
                const Window w(from, to, source == LIST ? before : 0);
                if (source == COUNTED) {
                    source = ROW;
                } else {
                    this->count(w, source, listed);
                    this->raise_by_bins(w);
                }
                const u32 each = source == TOPS ? row.turns(scope) : 1;
                const Span span = winners(w, each, source == ROW ? settled : 0);
                const bool some = span.first <= span.last;
                u32 under = some ? below(span.first) : 0;
                float low = w.low(some ? span.first : 0), high = w.low(some ? span.last + 1 : 0);
                if (source == ROW) {
                    // The first bin may begin before `from`.
                    under = under > settled ? under : settled;
                    low = simt::max_num(low, from);
                }
                const u32 inside = some ? scope.counts.load(span.last) - under : 0;
                if (source == TOPS) {
                    // Few groups can hold a gap that wins: the row need not be counted.
                    source = ROW;
                    to = reach();
                    const bool few = some && attained > 0 && to <= w.end() && each <= MOST_EACH;
                    if (!few || under + inside > n / (8 * each)) continue;
                    low = from;
                    resume = INFINITE;
                } else if (!some || w.exact) {
                    if (source == ROW) {
                        resume = w.end();
                        settled = scope.counts.load(BINS - 1);
                    }
                    offers = some;
                    if (offers) {
                        own_bins(w, false, [&](u32 b, u32 rank) {
                            if (b > 0 || w.before > 0) this->offer(peak, simt::bits_of(w.low(b)), rank);
                        });
                    }
                    source = LIST;  // which is settled
                } else if (source == LIST) {
                    // The next window has fewer gaps or finer bins.
                    ranks = offers = 4 * inside > 3 * listed && span.last - span.first >= BINS / 4;
                    if (!ranks) {
                        this->thin(low, high, listed);
                        before += under;
                        listed = inside;
                        from = low;
                        to = high;
                        continue;
                    }
                } else {
                    before = under;
                    resume = w.end();  // no bin behind the span wins
                    u32 through = BINS - 1;
                    if (inside > CANDIDATES) {
                        u32 end = span.last;
                        if (span.last - span.first >= BINS / 4) end = last_that_fits(w, span.first, under);
                        if (end == span.last || end == 0) {
                            // The next window is finer. Behind the span nothing wins, if this one went so
                            // far.
                            if (end > 0 && w.end() >= reach()) last = simt::min_num(last, high);
                            from = low;
                            settled = under;
                            to = end > 0 ? high : w.low(span.first + 1);
                            continue;
                        }
                        // Only a piece of the span fits the list. The rest follows from the same counts.
                        source = COUNTED;
                        high = w.low(end + 1);
                        through = end;
                    }
                    settled = scope.counts.load(through);
                }
                if (source != LIST) {
                    listed = this->collect(low, high, source == COUNTED);
                    ranks = offers = source == COUNTED;
                    if (source == ROW) {
                        source = listed > CANDIDATES ? ROW : LIST;
                        from = low;
                        to = source == LIST ? high : to;
                        continue;
                    }
                }
            }
            if (ranks) this->rank_pairs(peak, before, listed);
            if (offers) this->template keep<Scope::SHARES>(peak);
            if (source == COUNTED) continue;
            source = ROW;
            from = resume;
            to = reach();
        }
    }

    // The k-th smallest gap; ties < k, and no gap but ties lies below `from`. Infinite if there are fewer.
    DEVICE float select(u32 k, float from) {
        float to = this->beyond_tops();
        for (;;) {
            const Window w(from, to, 0);
            this->count(w, ROW, 0);
            u32 first = ~0u;
            own_bins(w, false, [&](u32 b, u32 rank) { first = rank >= k && b < first ? b : first; });
            first = scope.fold(first, ~0u, Smaller{});
            if (first < ~0u && w.exact) return w.low(first);
            if (first == ~0u && !(w.end() < INFINITE)) return INFINITE;
            from = first < ~0u ? w.low(first) : w.end();
            to = first < ~0u ? w.low(first + 1) : INFINITE;
        }
    }
    // The last bin up to which the scores from bin `first` on fit the list; 0 if those of `first` do not.
    DEVICE u32 last_that_fits(const Window& w, u32 first, u32 under) {
        u32 furthest = 0;
        own_bins(w, true, [&](u32 b, u32 rank) {
            if (b >= first && rank - under <= CANDIDATES) furthest = b;
        });
        return scope.fold(furthest, 0u, Larger{});
    }
};

// Lambda(resolve) of a row, or Lambda if `plain`, with its contact. With p.top_k only the k largest scores
// count, and kth_gap of the report bounds the gaps of the others; it is -1 if all were counted. All threads
// call it, and the result is valid in all of them.
template <class T, class Scope>
DEVICE Peak critical_beta(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row,
                          const RowMax& top, u32 ties, bool plain, const Groups<T>& groups) {
    GapSearch<T, Scope> search(p, scope, row, top.max, top.len, plain, groups);
    const Peak at_top{search.ratio(0, ties), 0, ties};
    if (scope.thread() == 0) store_record(scope.peak, 0, at_top);
    const float nearest = simt::float_of(1);  // of the gaps that are no ties
    if (search.partial()) {
        const float kth_gap = p.top_k > ties ? search.select(p.top_k, nearest) : 0;
        if (p.report && scope.leads()) ReportWords(p, scope.row).put(FIELD(kth_gap), kth_gap);
        search.last = above(kth_gap);
    }
    if (at_top.ratio == 0 && ties < top.len && search.excess(top.len, LN_ERROR) > 0) {
        const float from = ties == 1 ? simt::sub_rn(top.max, top.second) : nearest;
        if (ties == 1) search.attained = search.attains(from, 2, 0);  // the runner-up
        if (from < search.last) search.run(from, ties);
    }
    scope.sync();
    const Peak best = load_record<Peak>(scope.peak, 0);
    scope.sync();
    return best;
}
