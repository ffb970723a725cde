// The top of a row: its maximum, and where somebody asks for them the runner-up, the length and the columns.
#pragma once
#include "partition.cuh"

// The top of the row. own: the top of this thread's share. early: the sum of the scores that are not on chip.
template <class T, class Scope>
DEVICE RowMax row_max(Scope& scope, const RowTile<T, Scope::STREAMS>& row, RowMax& own, EarlySum& early) {
    own = RowMax::empty();
    row.for_each_vector(scope, PASS_TOP, [&](const float(&s)[T::PER_VECTOR], u32, bool on_chip) {
#pragma unroll
        for (u32 j = 0; j < T::PER_VECTOR; ++j) own.take(s[j], T::LOW);
        if (!on_chip && early.on) early.take(s);
    });
    own.max = unless_masked(own.max, T::LOW);
    own.second = unless_masked(own.second, T::LOW);
    RowMax top = scope.reduce(own, RowMax::empty(), MergeOf<RowMax>{});
    top.max = simt::add_rn(top.max, 0.0f);  // -0 and 0 are one score
    // Two instructions a score and pass are 14% of a bf16 row. So only rows with masks pay, in one pass.
    if (top.len < row.len) row.mask(scope);
    return top;
}

// Only the maximum, where nobody asks for more: a third of the work. It is right if every masked score has no
// weight at b, whatever it is. If not, this returns false, and row_max() must look again.
template <class T, class Scope>
DEVICE bool max_alone(Scope& scope, const RowTile<T, Scope::STREAMS>& row, const Exponent& b, EarlySum& early,
                      RowMax& top) {
    u32 most[4];
#pragma unroll
    for (u32 w = 0; w < 4; ++w) most[w] = T::LOWEST;
    row.for_raw(scope, PASS_MAX, 0, row.count, [&](const Vec16& raw, u32, bool on_chip) {
#pragma unroll
        for (u32 w = 0; w < 4; ++w) most[w] = T::larger(most[w], raw.word[w]);
        if (!on_chip && early.on) {
            float s[T::PER_VECTOR];
#pragma unroll
            for (u32 j = 0; j < T::PER_VECTOR; ++j) s[j] = T::get(raw, j);
            early.take(s);
        }
    });
    const Vec16 last{{T::larger(T::larger(most[0], most[1]), T::larger(most[2], most[3])), 0, 0, 0}};
    float own = T::get(last, 0);
    if (T::PER_VECTOR > 4) own = simt::max_nan(own, T::get(last, 1));
    const float max = scope.reduce(own, -INFINITE, [](float a, float c) { return simt::max_nan(a, c); });
    top = RowMax{simt::add_rn(max, 0.0f), -INFINITE, row.len};
    return top.poisoned() || simt::mul_rn(b.high, simt::sub_rn(max, T::LOW)) > 151;
}

// The columns of the maximum. Only threads that hold one read their scores again.
template <class T, class Scope>
DEVICE Maxima maxima(Scope& scope, const RowTile<T, Scope::STREAMS>& row, const RowMax& top,
                     const RowMax& own) {
    Maxima found = Maxima::none();
    const bool poisoned = top.poisoned();
    if (poisoned ? own.poisoned() : own.max == top.max && top.len > 0) {
        row.for_each_vector(scope, PASS_MAXIMA, [&](const float(&s)[T::PER_VECTOR], u32 v, bool) {
#pragma unroll
            for (u32 j = 0; j < T::PER_VECTOR; ++j) {
                const u32 column = row.column(v, j);
                found.take(column < row.len && (poisoned ? !(s[j] < INFINITE) : s[j] == top.max), column);
            }
        });
    }
    return scope.reduce(found, Maxima::none(), MergeOf<Maxima>{});
}
