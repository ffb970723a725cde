// Gap counts: the number of scores of a row in each bin of a window of gaps.
#pragma once
#include "critical.cuh"
#include "row.cuh"
#include "top.cuh"

// 2^k for the k with 2^k <= a < 2^(k + 1). a: positive and finite.
DEVICE float power_below(float a) {
    const u32 bits = simt::bits_of(a);
    return simt::float_of(bits >> 23 ? bits & 0x7f800000 : 1u << (31 - simt::leading_zeros(bits)));
}
// From a gap to the next: 2^-149 at least.
DEVICE float spacing(float gap) {
    return simt::max_num(simt::mul_rn(power_below(simt::max_num(gap, 0x1p-126f)), 0x1p-23f), 0x1p-149f);
}

// Bins of one width, a power of two. Bin 0 holds all gaps below `first` + 1 widths, bin b > 0 those from
// first + b widths on to the next bin. So an inclusive sum of counts is the N of a gap. Bin BINS holds the
// gaps beyond the window. `before` scores are not counted, since their gaps lie below the window.
template <u32 BINS>
struct Window {
    float width;
    i32 first;
    u32 before;
    bool exact;  // a bin holds one gap

    // The gaps from `from` on and below `to`.
    DEVICE Window(float from, float to, u32 before) : before(before) {
        using namespace simt;
        const float finest = spacing(from);
        // `to` may be infinite, and each window must be narrower than the one before.
        const float span = max_num(sub_rn(min_num(to, float_of(LARGEST_KEY)), from), finest);
        width = max_num(mul_rn(power_below(span), 2.0f / BINS), finest);
        first = static_cast<i32>(div_rn(from, width)) - 1;
        if (end() < to) {
            width = mul_rn(width, 2);
            first = static_cast<i32>(div_rn(from, width)) - 1;
        }
        exact = width == finest;
    }
    // The smallest gap of a bin, exactly if the bin holds one; the bin BINS begins where the window ends.
    DEVICE float low(u32 bin) const {
        return simt::mul_rn(static_cast<float>(first + static_cast<i32>(bin)), width);
    }
    DEVICE float end() const { return low(BINS); }
};

// A range of bins.
struct Span {
    u32 first, last;
    static DEVICE Span none() { return Span{~0u, 0}; }
    static DEVICE Span merge(const Span& a, const Span& b) {
        return Span{a.first < b.first ? a.first : b.first, a.last > b.last ? a.last : b.last};
    }
};
DEVICE Span warp_fold(const Span& span, MergeOf<Span>, simt::Where at) {
    return Span{simt::warp_min(span.first, at), simt::warp_max(span.last, at)};
}

// What is counted: the tops of groups, the row, or the list. COUNTED: the row, whose counts are there
// already.
enum Source { TOPS, ROW, COUNTED, LIST };

template <class T, class Scope>
struct GapCounts {
    using Window = ::Window<Scope::BINS>;
    static constexpr u32 BINS = Scope::BINS, OWN = (BINS + Scope::THREADS - 1) / Scope::THREADS;

    Scope& scope;
    const RowTile<T, Scope::STREAMS>& row;
    float max;
    const Groups<T>& groups;

    DEVICE GapCounts(Scope& scope, const RowTile<T, Scope::STREAMS>& row, float max, const Groups<T>& groups)
        : scope(scope), row(row), max(max), groups(groups) {}

    // Counts the gaps of the window, and leaves the inclusive sums of its bins in scope.counts: over all
    // parts, but of the list, which each part has whole, in each alone.
    DEVICE void count(const Window& w, Source source, u32 listed, simt::Where at = HERE) {
        scope.clear_counts(at);
        // The inverse of a tiny width is beyond f32.
        if (w.width < 0x1p-100f) {
            add_all(w, source, listed, 0x1p64f);
        } else {
            add_all(w, source, listed, 1.0f);
        }
        if (source == LIST) {
            scope.sync(at);
        } else {
            scope.merge_counts(at);
        }
        const Shared<u32> merged = scope.counts;
        u32 sums[OWN], total = 0;
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            total += b < BINS ? merged.load(b) : 0;
            sums[i] = total;
        }
        u32 all;
        const u32 below = scope.offset_in_part(total, all, at);
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            if (b < BINS) merged.store(b, below + sums[i]);
        }
        scope.sync(at);
    }
    // The bin of a gap is floor(gap / width) - first, within 0 ..= BINS: both roundings are downwards, and
    // whole numbers of bins are exact. 5 slots a score, where keys shifted by integers took 13 (2026-11-30).
    DEVICE void add_all(const Window& w, Source source, u32 listed, const float unit) const {
        using namespace simt;
        const float offset = mul_rn(static_cast<float>(-w.first), 1.0f / BINS);
        // 1 / width, which is a power of two. The compiler moved a division into the loop (2026-11-30).
        const float inverse = float_of(2 * bits_of(1.0f) - bits_of(mul_rn(w.width, unit)));
        const float per_window = mul_rn(inverse, 1.0f / BINS);
        const Shared<u32> counts = scope.counts;
        const auto add = [&](float gap) {
            if (unit != 1.0f) gap = mul_rn(gap, unit);  // path: none
            const float part = fused_down_unit(gap, per_window, offset);
            counts.increment(bits_of(fused_down(part, BINS, 0x1p23f)) - bits_of(0x1p23f));
        };
        if (source == ROW) {
            row.for_each_vector(scope, PASS_COUNT, [&](const float(&s)[T::PER_VECTOR], u32, bool) {
#pragma unroll
                for (u32 j = 0; j < T::PER_VECTOR; ++j) add(sub_rn(max, s[j]));
            });
        } else if (source == TOPS) {
#pragma unroll
            for (u32 j = 0; j < Groups<T>::COUNT; ++j) add(sub_rn(max, groups.top(j)));
        } else {
#pragma unroll 1
            for (u32 i = scope.thread(); i < listed; i += Scope::THREADS) add(float_of(scope.list.load(i)));
        }
    }
    DEVICE u32 below(u32 bin) const { return bin > 0 ? scope.counts.load(bin - 1) : 0; }

    // Calls f(bin, number of scores up to its end) for the bins of this thread; only if their inclusive sum
    // is above that of the bin before, or if it is `any`.
    template <class F>
    DEVICE void own_bins(const Window& w, bool any, F f) const {
#pragma unroll 1
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = scope.thread() * OWN + i;
            if (b >= BINS) break;
            const u32 through = scope.counts.load(b);
            if (any || through > below(b)) f(b, w.before + through);
        }
    }
};
