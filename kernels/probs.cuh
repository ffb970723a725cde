// The probabilities of a row. Twin of src/cpu/probs.rs.
#pragma once
#include "partition.cuh"
#include "row.cuh"

// Where the row begins in p.out.
template <class Out, class Scope>
DEVICE u64 out_row(const RowParams& p, const Scope& scope) {
    return p.out + static_cast<u64>(scope.row) * p.out_stride * sizeof(typename Out::Bits);
}

// Writes value(score, whether it is on chip) of every score of this part to the row's place in p.out.
template <class T, class Out, class Scope, class F>
DEVICE void write_row_as(const RowParams& p, const Scope& scope, const RowTile<T, Scope::STREAMS>& row,
                         F value) {
    constexpr u32 V = T::PER_VECTOR, W = Out::PER_VECTOR, SIZE = sizeof(typename Out::Bits), PIECES = V / W;
    if constexpr (Scope::ON_CHIP) {
        row.for_each_vector(scope, PASS_WRITE, [&](const float(&s)[V], u32 v, bool) {
            float probabilities[V];
#pragma unroll
            for (u32 j = 0; j < V; ++j) probabilities[j] = value(s[j], true);
            row.replace(v, probabilities);
        });
        return;
    }
    const u64 out = out_row<Out>(p, scope);
    const simt::Streamed how(p.out_streamed);
    const auto store = [&](u32 ahead, u64 i, const Vec16& v) {
        Global<Vec16>(out - ahead * SIZE).store(i, v, how);
    };
    const auto at = [&](u32 column) {
        const u32 element = column + row.phase - row.first * V;
        return value(row.score(element / V, element % V), row.is_resident(row.first + element / V));
    };
    // The columns of this part; `begin` to `stop` of them in full vectors. A part may have none.
    u32 from = row.first > 0 ? row.first * V - row.phase : 0, to = (row.first + row.count) * V - row.phase;
    if (from > row.len) from = row.len;
    if (row.count == 0 || to > row.len) to = row.len;
    u32 begin, stop;
    if ((out - row.phase * SIZE) % 16 == 0) {
        row.full(row.count, begin, stop);
        row.for_vectors(scope, PASS_WRITE, begin, stop, [&](const float(&s)[V], u32 v, bool on_chip) {
#pragma unroll
            for (u32 piece = 0; piece < PIECES; ++piece) {
                store(row.phase, static_cast<u64>(v) * PIECES + piece,
                      pack<Out>([&](u32 j) { return value(s[piece * W + j], on_chip); }));  // PASS_WRITE
            }
        });
        begin = (row.first + begin) * V - row.phase;
        stop = (row.first + stop) * V - row.phase;
    } else {
        // A vector of the output has scores of two vectors.
        const u32 ahead = static_cast<u32>(out % 16) / SIZE;
        begin = (from + ahead + W - 1) / W;
        stop = (to + ahead) / W;
        if (stop < begin) stop = begin;
#pragma unroll 1
        for (u32 i = begin + scope.thread(); i < stop; i += Scope::THREADS) {
            store(ahead, i, pack<Out>([&](u32 j) { return at(i * W + j - ahead); }));
        }
        begin = begin * W - ahead;
        stop = stop * W - ahead;
    }
    if (!(begin < stop)) begin = stop = from;
    // The columns in front of these and behind them.
    const u32 front = begin - from, others = front + (to - stop);
#pragma unroll 1
    for (u32 k = scope.thread(); k < others; k += Scope::THREADS) {
        const u32 column = k < front ? from + k : stop + (k - front);
        Global<typename Out::Bits>(out).store(column, Out::bits(at(column)));
    }
}

// Writes 0 to the columns behind the row's length, all parts together.
template <class Out, class Scope>
DEVICE void write_zeros(const RowParams& p, const Scope& scope, u32 from) {
    constexpr u32 W = Out::PER_VECTOR, SIZE = sizeof(typename Out::Bits);
    const u64 out = out_row<Out>(p, scope);
    const u32 ahead = static_cast<u32>(out % 16) / SIZE, begin = (from + ahead + W - 1) / W;
    const u32 end = (p.cols + ahead) / W > begin ? (p.cols + ahead) / W : begin;
    const u32 me = scope.part() * Scope::THREADS + scope.thread(), all = scope.parts() * Scope::THREADS;
    const Global<Vec16> vectors(out - ahead * SIZE);
#pragma unroll 1
    for (u32 i = begin + me; i < end; i += all) {
        vectors.store(i, Vec16{{0, 0, 0, 0}}, simt::Streamed(p.out_streamed));
    }
    // Fewer than a vector in front of these, and behind them.
    const Global<typename Out::Bits> elements(out);
    for (u32 column = from + me; column < p.cols && column + ahead < begin * W; column += all) {
        elements.store(column, 0);
    }
    for (u32 column = end * W - ahead + me; column < p.cols; column += all) elements.store(column, 0);
}

// With KEPT the values on chip are weights already. If `sums`, `rest` adds up the weights of the others.
template <bool KEPT, class T, class Scope>
DEVICE void write_probs(const RowParams& p, const Scope& scope, const RowTile<T, Scope::STREAMS>& row,
                        float max, const Exponent& b, double z, bool poisoned, bool sums, Sum& rest) {
    constexpr bool NARROW = sizeof(typename T::Bits) == 2;
    const double one = NARROW && b.rough ? one_of(ROUGH) : WEIGHT_ONE;
    const double inverse = z > 0.0 ? simt::div_rn(1.0 / one, z) : 0.0;
    const float factor = poisoned ? simt::float_of(0x7fc00000) : static_cast<float>(inverse);
    float gap;  // which a weight comes with
    if (Scope::THREADS == 32) scope.sync();  // weights on chip were written by other lanes
    const auto write = [&](auto weight, auto as) {
        const auto value = [&](float s, bool on_chip) {
            const float w = KEPT && on_chip ? s : weight(s);
            if (Scope::STREAMS && !on_chip && sums) rest.add(w);
            return simt::mul_rn(w, factor);
        };
        write_row_as<T, decltype(as)>(p, scope, row, value);
    };
    const auto fine = [&](float s) { return weigh<FINE>(s, max, b, gap); };
    if (b.special && (!KEPT || Scope::STREAMS)) {
        const auto special = [&](float s) { return weigh<SPECIAL>(s, max, b, gap); };
        if (NARROW && p.out_f32) {
            write(special, f32{});
        } else {
            write(special, T{});
        }
    } else if (NARROW && b.rough) {
        // In an empty row every weight is 0, not NaN.
        const float from = max == -INFINITE ? 0.0f : max;
        write([&](float s) { return weigh<ROUGH>(s, from, b, gap); }, T{});
    } else if (NARROW && p.out_f32) {
        write(fine, f32{});
    } else {
        write(fine, T{});
    }
    if (row.len == p.cols || p.out_open) return;
    if (NARROW && p.out_f32) {
        write_zeros<f32>(p, scope, row.len);
    } else {
        write_zeros<T>(p, scope, row.len);
    }
}
