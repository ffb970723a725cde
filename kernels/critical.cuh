// The critical beta of a row: Lambda(r) = sup over t > 0, log N(t) > r, of (log N(t) - r) / t. Twin of src/critical.rs, and of
// src/cpu/refine.rs in the idea: count the gaps in bins, bound every bin, look closer at what can still win.
//
// A gap is one rounded f32 subtraction; its bits, the key, are ordered as gaps are. All that decides is integers: keys and
// counts, merged over the parts of the row, so every part and every thread comes to the same answer in any order.
#pragma once
#include "row.cuh"
#include "scope/record.cuh"

constexpr u32 LARGEST_KEY = 0x7f7fffff;  // gaps that overflow f32, and masked scores, lie above it

DEVICE u32 gap_key(float max, float score) { return simt::bits_of(simt::sub_rn(max, score)); }

// The best ratio so far with its contact; of equal ratios the larger gap.
struct Peak {
    double ratio;
    u32 key, rank;
    static DEVICE Peak merge(const Peak& a, const Peak& b) {
        return b.ratio > a.ratio || (b.ratio == a.ratio && b.key > a.key) ? b : a;
    }
};

// (log rank - r) / gap where that makes sense: infinite for a tie at the maximum that r does not forgive, 0 for no contact.
DEVICE double ratio_of(float gap, u32 rank, double resolve) {
    if (rank == 0) return 0;
    const double excess = simt::sub_rn(ln(rank), resolve);
    if (gap == 0) return excess > 0 ? simt::double_of(0x7ff0000000000000ull) : 0.0;
    return simt::div_rn(excess, static_cast<double>(gap));
}

// Keys lo ..= hi in at most BINS bins of 2^shift keys; `before` scores lie below lo.
template <u32 BINS>
struct Window {
    u32 lo, hi, before;
    DEVICE u32 shift() const {
        constexpr u32 LOG_BINS = BINS == 256 ? 8 : 10;
        static_assert(1u << LOG_BINS == BINS, "bins of a scope");
        const u32 bits = 32 - simt::leading_zeros(hi - lo);
        return bits > LOG_BINS ? bits - LOG_BINS : 0;
    }
    DEVICE u32 low(u32 bin) const { return lo + (bin << shift()); }
    DEVICE u32 high(u32 bin) const { return bin >= (hi - lo) >> shift() ? hi : low(bin + 1) - 1; }
};

struct Span {
    u32 first, last;
    static DEVICE Span none() { return Span{~0u, 0}; }
    static DEVICE Span merge(const Span& a, const Span& b) {
        return Span{a.first < b.first ? a.first : b.first, a.last > b.last ? a.last : b.last};
    }
};

struct Larger {
    DEVICE float operator()(float a, float b) const { return simt::max_num(a, b); }
    DEVICE u32 operator()(u32 a, u32 b) const { return a > b ? a : b; }
};
struct Smaller {
    DEVICE u32 operator()(u32 a, u32 b) const { return a < b ? a : b; }
};

template <class T, class Scope>
struct GapSearch {
    using Window = ::Window<Scope::BINS>;
    static constexpr u32 OWN = (Scope::BINS + Scope::THREADS - 1) / Scope::THREADS;
    // Ratios that bounds are cut off at: beyond it f32 bounds would be infinite.
    static constexpr float STEEPEST = 1e37f, UP = 1 + 0x1p-20f, DOWN = 1 - 0x1p-20f;

    const RowParams& p;
    Scope& scope;
    const RowTile<T, Scope::STREAMS>& row;
    float max;
    u32 n;           // unmasked scores
    bool plain;      // Lambda, not Lambda(resolve)
    float attained;  // a ratio that some gap attains, rounded down
    u32 last;        // no gap beyond this key is looked at

    DEVICE GapSearch(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max, u32 n, bool plain)
        : p(p), scope(scope), row(row), max(max), n(n), plain(plain), attained(0), last(LARGEST_KEY) {}

    DEVICE bool partial() const { return p.top_k > 0 && p.top_k < n; }
    DEVICE double resolve() const { return plain ? 0.0 : p.resolve; }
    // Under top_k ranks count no further than it.
    DEVICE u32 capped(u32 rank) const { return partial() && rank > p.top_k ? p.top_k : rank; }
    DEVICE float excess(u32 rank, float error) const {
        return simt::add_rn(simt::sub_rn(ln_bound(capped(rank)), static_cast<float>(resolve())), error);
    }
    // Whether a gap of this key or a larger one, with no more than `rank` scores within it, can attain the best ratio.
    DEVICE bool can_win(u32 low_key, u32 rank) const {
        const float upper = simt::mul_rn(excess(rank, LN_ERROR), UP);
        return upper > 0 && upper >= simt::mul_rn(attained, simt::float_of(low_key));
    }
    // What a gap of this key or a smaller one attains, with at least `rank` scores within it, if that is above `lower`.
    DEVICE float attains(u32 high_key, u32 rank, float lower) const {
        const float gap = simt::float_of(high_key), sure = simt::mul_rn(excess(rank, -LN_ERROR), DOWN);
        return sure > simt::mul_rn(lower, gap) ? simt::min_num(simt::mul_rn(simt::div_rn(sure, gap), DOWN), STEEPEST) : lower;
    }
    // The largest key whose gap can still attain the best ratio.
    DEVICE u32 reach() const {
        if (!(attained > 0)) return last;
        const u32 key = simt::bits_of(simt::mul_rn(simt::div_rn(simt::max_num(excess(n, LN_ERROR), 0), attained), UP));
        return key < last ? key : last;
    }

    // Counts per bin of the window, over all parts, as inclusive sums in scope.after. visit(take): what is counted.
    template <class Visit>
    DEVICE void count(const Window& w, Visit visit, simt::Where at = HERE) {
        scope.clear_counts(at);
        const Shared<u32> counts = scope.counts;
        const u32 shift = w.shift();
        visit([&](float s) {
            const u32 d = gap_key(max, s) - w.lo;
            if (d <= w.hi - w.lo) counts.add(d >> shift, 1);
        });
        const Shared<u32> merged = scope.merge_counts(at);
        u32 sums[OWN], total = 0;
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            total += b < Scope::BINS ? merged.load(b) : 0;
            sums[i] = total;
        }
        u32 all;
        const u32 below = scope.offset_in_part(total, all, at);
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            if (b < Scope::BINS) scope.after.store(b, below + sums[i]);
        }
        scope.sync(at);
    }
    DEVICE void count_row(const Window& w, simt::Where at = HERE) {
        count(w, [&](auto take) { row.for_each(scope, take); }, at);
    }
    DEVICE u32 below(u32 bin) const { return bin > 0 ? scope.after.load(bin - 1) : 0; }

    // Calls f(bin, scores through it) for the occupied bins of this thread.
    template <class F>
    DEVICE void own_bins(const Window& w, F f) const {
#pragma unroll 1
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            if (b >= Scope::BINS) break;
            const u32 through = scope.after.load(b);
            if (through > below(b)) f(b, w.before + through);
        }
    }
    DEVICE void raise(const Window& w, simt::Where at = HERE) {
        float lower = attained;
        own_bins(w, [&](u32 b, u32 rank) { lower = attains(w.high(b), rank, lower); });
        attained = scope.fold(lower, attained, Larger{}, at);
    }
    DEVICE void offer(Peak& mine, u32 key, u32 rank) const {
        if (!can_win(key, rank)) return;
        const double ratio = ratio_of(simt::float_of(key), capped(rank), resolve());
        if (ratio > 0) mine = Peak::merge(mine, Peak{ratio, key, capped(rank)});
    }
    // The best of all threads and of before joins `peak`, which thread 0 alone reads and writes until the end.
    DEVICE void keep(Peak mine, simt::Where at = HERE) {
        if (scope.thread() == 0) mine = Peak::merge(mine, load_record<Peak>(scope.peak, 0));
        const Peak best = scope.fold(mine, Peak{0, 0, 0}, [](const Peak& a, const Peak& b) { return Peak::merge(a, b); }, at);
        if (scope.thread() == 0) store_record(scope.peak, 0, best);
        const float rounded = simt::mul_rn(static_cast<float>(best.ratio), DOWN);
        attained = simt::max_num(attained, simt::min_num(rounded, STEEPEST));
    }

    // Ranks the `count` <= CANDIDATES gaps with keys lo ..= hi, `before` scores lying below, pair by pair.
    DEVICE void rank_all(u32 lo, u32 hi, u32 before, u32 count, simt::Where at = HERE) {
        u32 mine = 0;
        row.for_each(scope, [&](float s) { mine += gap_key(max, s) - lo <= hi - lo; });
        u32 place = scope.offset(mine, at);
        scope.list_begin(at);
        if (mine > 0) {
            row.for_each(scope, [&](float s) {
                const u32 key = gap_key(max, s);
                if (key - lo <= hi - lo) scope.list_store(place++, key);
            });
        }
        scope.list_end(count, at);
        Peak peak{0, 0, 0};
        for (u32 i = scope.thread(); i < count; i += Scope::THREADS) {
            const u32 key = scope.list.load(i);
            u32 rank = before;
#pragma unroll 1
            for (u32 j = 0; j < count; ++j) rank += scope.list.load(j) <= key;
            offer(peak, key, rank);
        }
        keep(peak, at);
    }

    // Lower bounds from gaps at hand: `tops` are scores of this row, so each has at least its rank among them.
    template <u32 N>
    DEVICE void estimate(u32 lo, u32 ties, const float (&tops)[N], simt::Where at = HERE) {
        const Window w{lo, last, ties};
        count(w, [&](auto take) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) take(tops[i]);
        }, at);
        raise(w, at);
    }

    // The supremum over the keys from lo on, `before` scores lying below. Ascending: everything below w.lo is settled.
    DEVICE void run(u32 lo, u32 before) {
        Window w{lo, reach(), before};
        while (w.lo <= w.hi) {
            count_row(w);
            raise(w);
            if (settle(w)) {
                const u32 to = reach();
                if (w.hi >= to) break;
                w = Window{w.hi + 1, to, w.before + scope.after.load(Scope::BINS - 1)};
            }
        }
    }
    // Settles the window, or narrows it to its first bin that can win and has too many gaps to rank.
    DEVICE bool settle(Window& w) {
        for (u32 from = 0;;) {
            Span span = Span::none();
            own_bins(w, [&](u32 b, u32 rank) {
                if (b >= from && can_win(w.low(b), rank)) span = Span::merge(span, Span{b, b});
            });
            span = scope.fold(span, Span::none(), [](const Span& a, const Span& b) { return Span::merge(a, b); });
            if (span.first > span.last) return true;
            if (w.shift() == 0) {
                // A bin is a gap: its count is exact.
                Peak peak{0, 0, 0};
                own_bins(w, [&](u32 b, u32 rank) { offer(peak, w.low(b), rank); });
                keep(peak);
                return true;
            }
            const u32 start = below(span.first);
            u32 end = span.last;
            if (scope.after.load(end) - start > Scope::CANDIDATES) {
                u32 furthest = 0;
                own_bins(w, [&](u32 b, u32) {
                    if (b >= span.first && scope.after.load(b) - start <= Scope::CANDIDATES) furthest = b + 1;
                });
                end = scope.fold(furthest, 0u, Larger{});
                if (end == 0) {
                    w = Window{w.low(span.first), w.high(span.first), w.before + start};
                    return false;
                }
                end -= 1;
            }
            rank_all(w.low(span.first), w.high(end), w.before + start, scope.after.load(end) - start);
            from = end + 1;
        }
    }

    // The key of the k-th smallest gap, `ties` < k <= the number of finite gaps.
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

// Lambda(resolve), or with `plain` Lambda, of a row with its contact. tops: scores of this row that the thread has at hand, for a
// first bound. Under p.top_k the k largest alone count, and kth_gap, which bounds the rest, is set; it is -1 where all were
// counted. Called by all threads; valid in all of them.
template <class T, class Scope, u32 N>
DEVICE Peak critical_beta(const RowParams& p, Scope& scope, const RowTile<T, Scope::STREAMS>& row, const RowMax& top, u32 ties, bool plain,
                          float& kth_gap, const float (&tops)[N]) {
    GapSearch<T, Scope> search(p, scope, row, top.max, top.len, plain);
    const Peak at_top{ratio_of(0, ties, search.resolve()), 0, ties};
    if (scope.thread() == 0) store_record(scope.peak, 0, at_top);
    kth_gap = -1;
    if (search.partial()) {
        search.last = p.top_k > ties ? search.select(p.top_k, ties) : 0;
        kth_gap = simt::float_of(search.last);
        if (search.last > LARGEST_KEY) search.last = LARGEST_KEY;
    }
    const u32 lo = ties == 1 && top.second > -INFINITE ? gap_key(top.max, top.second) : 1;
    if (at_top.ratio == 0 && ties < top.len && lo <= search.last) {
        search.estimate(lo, ties, tops);
        search.run(lo, ties);
    }
    scope.sync();
    const Peak best = load_record<Peak>(scope.peak, 0);
    scope.sync();
    return best;
}
