// The probabilities of a row. Twin of src/cpu/probs.rs.
#pragma once
#include "partition.cuh"
#include "row.cuh"

// Writes value(score, whether it is on chip) of every column to the row's place in p.out, and 0 behind the
// row's length.
template <class T, class Out, class Scope, class F>
DEVICE void write_row_as(const RowParams& p, const Scope& scope, const RowTile<T, Scope::STREAMS>& row,
                         F value) {
    constexpr u32 V = T::PER_VECTOR, SIZE = sizeof(typename Out::Bits), PIECES = V / Out::PER_VECTOR;
    const u64 out = p.out + static_cast<u64>(scope.row) * p.out_stride * SIZE;
    const u64 base = out - row.phase * SIZE;
    u32 begin, end;
    row.full(row.count, begin, end);
    if (base % 16 != 0) begin = end = 0;
    row.for_vectors(scope, PASS_WRITE, begin, end, [&](const float(&s)[V], u32 v, bool on_chip) {
#pragma unroll
        for (u32 piece = 0; piece < PIECES; ++piece) {
            const u32 at = piece * Out::PER_VECTOR;
            Global<Vec16>(base).store(static_cast<u64>(v) * PIECES + piece,
                                      pack<Out>([&](u32 j) { return value(s[at + j], on_chip); }));
        }
    });
    // The ends of the row; all of it if the output is aligned otherwise than the scores.
    const auto elements = [&](u32 from, u32 to) {
#pragma unroll 1
        for (u32 i = row.own(scope, from); i < to; i += Scope::THREADS) {
#pragma unroll 1
            for (u32 j = 0; j < V; ++j) {
                const u32 c = row.column(row.first + i, j);
                if (c < row.cols) {
                    const bool on_chip = row.is_resident(row.first + i);
                    const auto of = [&] { return Out::bits(value(row.score(i, j), on_chip)); };
                    Global<typename Out::Bits>(out).store(c, c < row.len ? of() : 0);
                }
            }
        }
    };
#pragma unroll 1
    for (u32 from = 0, to = begin;; from = end, to = row.count) {
        elements(from, to);
        if (to == row.count) break;
    }
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
    const auto write = [&](auto weight, auto as) {
        const auto value = [&](float s, bool on_chip) {
            const float w = KEPT && on_chip ? s : weight(s);
            if (Scope::STREAMS && !on_chip && sums) rest.add(w);
            return simt::mul_rn(w, factor);
        };
        write_row_as<T, decltype(as)>(p, scope, row, value);
    };
    const auto fine = [&](float s) { return weigh<FINE>(s, max, b, gap); };  // path: loop f32
    if (b.special && (!KEPT || Scope::STREAMS)) {
        const auto special = [&](float s) { return weigh<SPECIAL>(s, max, b, gap); };  // path: loop none
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
}
