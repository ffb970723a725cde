// Gap counts: the number of scores of a row in each bin of a window of gaps.
#pragma once
#include "critical.cuh"
#include "row.cuh"
#include "scope/record.cuh"

// Keys lo ..= hi in at most BINS bins of 2^shift keys. `before` scores lie below lo.
template <u32 BINS>
struct Window {
    u32 lo, hi, before;
    DEVICE u32 shift() const {
        constexpr u32 LOG_BINS = BINS == 256 ? 8 : BINS == 512 ? 9 : 10;
        static_assert(1u << LOG_BINS == BINS, "bins of a scope");
        const u32 bits = 32 - simt::leading_zeros(hi - lo);
        return bits > LOG_BINS ? bits - LOG_BINS : 0;
    }
    DEVICE u32 low(u32 bin) const { return lo + (bin << shift()); }
    DEVICE u32 high(u32 bin) const { return bin >= (hi - lo) >> shift() ? hi : low(bin + 1) - 1; }
};

// A range of bins, and what folds over threads keep.
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
struct GapCounts {
    using Window = ::Window<Scope::BINS>;
    static constexpr u32 OWN = (Scope::BINS + Scope::THREADS - 1) / Scope::THREADS;

    Scope& scope;
    const RowTile<T, Scope::STREAMS>& row;
    float max;

    DEVICE GapCounts(Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max)
        : scope(scope), row(row), max(max) {}

    // Counts the bins of the window over all parts, and leaves their inclusive sums in scope.counts.
    // visit(take) calls take with each score that is counted.
    template <class Visit>
    DEVICE void count(const Window& w, Visit visit, simt::Where at = HERE) {
        scope.clear_counts(at);
        const Shared<u32> counts = scope.counts;
        const u32 shift = w.shift();
        visit([&](float s) {
            const u32 d = gap_key(max, s) - w.lo;
            if (d <= w.hi - w.lo) {  // path: bulk
                counts.add(d >> shift, 1);
            }
        });
        scope.merge_counts(at);
        const Shared<u32> merged = scope.counts;
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
            if (b < Scope::BINS) merged.store(b, below + sums[i]);
        }
        scope.sync(at);
    }
    DEVICE void count_row(const Window& w, simt::Where at = HERE) {
        count(w, [&](auto take) { row.for_each(scope, PASS_COUNT, take); }, at);
    }
    DEVICE u32 below(u32 bin) const { return bin > 0 ? scope.counts.load(bin - 1) : 0; }

    // Calls f(bin, number of scores up to its end) for the bins of this thread that are not empty.
    template <class F>
    DEVICE void own_bins(const Window& w, F f) const {
#pragma unroll 1
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            if (b >= Scope::BINS) break;
            const u32 through = scope.counts.load(b);
            if (through > below(b)) f(b, w.before + through);
        }
    }
};
