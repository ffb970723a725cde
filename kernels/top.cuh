// The top of a row: its maximum, and where somebody asks for them the runner-up, the length and the columns.
#pragma once
#include "partition.cuh"
#include "scope/record.cuh"

// The largest score of each group of a thread. Group j holds element j of all its vectors, as they are in
// memory: a finite mask counts as a score here.
template <class T>
struct Groups {
    Vec16 tops;
    static constexpr u32 COUNT = T::PER_VECTOR;
    DEVICE float top(u32 j) const { return T::get(tops, j); }
};

// The pass that finds the maximum; if LEAST the smallest score too, in full vectors alone: the others end in
// -inf. early: the sum of the scores that are not on chip.
template <bool LEAST, class T, class Scope>
DEVICE void find_ends(const Scope& scope, const RowTile<T, Scope::STREAMS>& row, Vec16& most, Vec16& least,
                      EarlySum& early) {
    u32 begin = 0, end = row.count;
    if (LEAST) row.full(row.count, begin, end);
    row.for_raw(scope, PASS_MAX, begin, end, [&](const Vec16& raw, u32, bool on_chip) {
#pragma unroll
        for (u32 w = 0; w < 4; ++w) {
            most.word[w] = T::larger(most.word[w], raw.word[w]);
            if (LEAST) least.word[w] = T::smaller(least.word[w], raw.word[w]);  // path: search
        }
        if (!on_chip && early.on) {
            float s[T::PER_VECTOR];
#pragma unroll
            for (u32 j = 0; j < T::PER_VECTOR; ++j) s[j] = T::get(raw, j);
            early.take(s);
        }
    });
}
// The same for the two vectors at the ends of the row that may not be full.
template <class T, class Scope>
DEVICE void take_edges(const Scope& scope, const RowTile<T, Scope::STREAMS>& row, Vec16& most, float& least,
                       EarlySum& early) {
    u32 begin, end;
    row.full(row.count, begin, end);
#pragma unroll 1
    for (u32 i = begin > 0 ? 0 : end; i < row.count; i = i < end ? end : row.count) {
        if ((i & (Scope::THREADS - 1)) != scope.thread()) continue;
        const bool on_chip = row.is_resident(row.first + i);
        const Vec16 raw = on_chip ? row.tile.load(i) : row.read(row.first + i);
        float s[T::PER_VECTOR];
#pragma unroll
        for (u32 w = 0; w < 4; ++w) most.word[w] = T::larger(most.word[w], raw.word[w]);
#pragma unroll
        for (u32 j = 0; j < T::PER_VECTOR; ++j) {
            s[j] = T::get(raw, j);
            if (row.column(row.first + i, j) < row.len) least = simt::min_num(least, s[j]);
        }
        if (!on_chip && early.on) early.take(s);
    }
}
// The largest score, NaN if one is, and the smallest that is a number.
struct Ends {
    float max, least;
    static DEVICE Ends merge(const Ends& a, const Ends& b) {
        return Ends{simt::max_nan(a.max, b.max), simt::min_num(a.least, b.least)};
    }
};
DEVICE Ends warp_fold(const Ends& of, MergeOf<Ends>, simt::Where at) {
    return Ends{warp_largest(of.max, at), warp_smallest(of.least, at)};
}
// The maximum of the row and a score next to it, and what each thread's groups have. `least` is the smallest
// score of the row if one asks for it, else infinite.
template <class T, class Scope>
DEVICE RowMax row_max(Scope& scope, const RowTile<T, Scope::STREAMS>& row, Groups<T>& groups,
                      EarlySum& early, bool wants_least, float& least) {
    Vec16 low;
#pragma unroll
    for (u32 w = 0; w < 4; ++w) groups.tops.word[w] = T::LOWEST, low.word[w] = T::HIGHEST;
    if (wants_least) {
        find_ends<true>(scope, row, groups.tops, low, early);
    } else {
        find_ends<false>(scope, row, groups.tops, low, early);
    }
    Ends ends{-INFINITE, T::get(low, 0)};
#pragma unroll
    for (u32 j = 1; j < Groups<T>::COUNT; ++j) ends.least = simt::min_num(ends.least, T::get(low, j));
    if (wants_least) take_edges(scope, row, groups.tops, ends.least, early);
#pragma unroll
    for (u32 j = 0; j < Groups<T>::COUNT; ++j) ends.max = simt::max_nan(ends.max, groups.top(j));
    ends = scope.reduce(ends, Ends{-INFINITE, INFINITE}, MergeOf<Ends>{});
    least = ends.least;
    // -0 and 0 are one score.
    return RowMax{simt::add_rn(ends.max, 0.0f), -INFINITE, row.len};
}

// Puts -inf in place of every masked score that is on chip, and of the tops of groups; off the chip every
// pass does so itself. Returns the number of scores that are not masked, NaN included.
template <class T, class Scope>
DEVICE u32 mask(Scope& scope, const RowTile<T, Scope::STREAMS>& row, Groups<T>& groups) {
    u32 len = 0;
    row.for_vectors(scope, PASS_MASK, 0, row.count, [&](const float(&s)[T::PER_VECTOR], u32 v, bool on_chip) {
        float shown[T::PER_VECTOR];
#pragma unroll
        for (u32 j = 0; j < T::PER_VECTOR; ++j) {
            shown[j] = unless_masked(s[j], T::LOW);
            len += !(shown[j] == -INFINITE);
        }
        if (on_chip) row.replace(v, shown);
    });
    groups.tops = pack<T>([&](u32 j) { return unless_masked(groups.top(j), T::LOW); });
    return scope.reduce(len, 0u, AddCounts{});
}

// The columns of the maximum, and the runner-up: the largest score when one maximum is left out. Only threads
// that hold a maximum read their scores again, and only those of its groups.
template <class T, class Scope>
DEVICE Maxima maxima(Scope& scope, const RowTile<T, Scope::STREAMS>& row, const RowMax& top,
                     const Groups<T>& groups) {
    Maxima found = Maxima::none();
    const bool poisoned = top.poisoned();
    const auto is_top = [&](float s) { return poisoned ? !(s < INFINITE) : s == top.max; };
    u32 holding = 0;
#pragma unroll
    for (u32 j = 0; j < Groups<T>::COUNT; ++j) {
        const float most = groups.top(j);
        holding |= (is_top(most) && !(most == -INFINITE)) << j;
        if (!is_top(most)) found.second = simt::max_num(found.second, most);
    }
    simt::looks(PASS_MAXIMA, simt::count_ones(holding) * row.turns(scope));
    for (; holding; holding &= holding - 1) {
        const u32 j = 31 - simt::leading_zeros(holding & (~holding + 1));
#pragma unroll 1
        for (u32 i = scope.thread(); i < row.count; i += Scope::THREADS) {
            const u32 column = row.column(row.first + i, j);
            // On chip there is -inf behind the row.
            if (Scope::STREAMS && column >= row.len) continue;
            const float s = row.score(i, j);  // PASS_MAXIMA
            found.take(is_top(s), column);
            if (!is_top(s)) found.second = simt::max_num(found.second, s);
        }
    }
    found = scope.reduce(found, Maxima::none(), MergeOf<Maxima>{});
    if (found.ties > 1) found.second = top.max;
    return found;
}
