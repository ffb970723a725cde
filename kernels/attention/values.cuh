// The output of query rows: the probabilities of each times the values of its keys.
//
// Keys fall into chunks of fixed positions, and a chunk into units of 64. A warp adds a unit in f32, the
// warps of a CTA a chunk in order, and the CTA that is done last the chunks of a row in f64: so no bit
// depends on the number of CTAs, nor on what else is in the batch.
#pragma once
#include "../dtype.cuh"
#include "unit.cuh"

// Adds the values of a unit to the sums of rows `begin` to `end`, in VALUE_BLOCK elements from `from` on.
// Values are the rows of the left matrix, element by element, and keys its columns; a lane holds 8
// neighbouring elements of four keys. A weight is the sum of two numbers of 16 bits.
template <class T, u32 TILES>
DEVICE void add_tiles(const Unit& unit, const GroupRows& rows, u32 from, u32 begin, u32 end) {
    // f16 has no weights below 2^-24.
    constexpr float SCALE = T::LOW > -1e6f ? 0x1p14f : 1.0f;
    const u32 group = simt::lane() / 4, part = simt::lane() % 4, vector = from / 8 + group;
    const bool within = vector * 8 < rows.p.value_dim;
    float sums[TILES][4][4];
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) sums[t][j][0] = sums[t][j][1] = sums[t][j][2] = sums[t][j][3] = 0;
    }
    // Two steps of loads in flight, if there are registers for them.
    [[maybe_unused]] constexpr u32 AT_ONCE = TILES == 1 ? 2 : 1;
#pragma unroll AT_ONCE
    for (u32 step = 0; step < unit.count; step += 16) {
        Vec16 value[4];
        const u32 slots = step + 4 * part, first = Unit::place_at(slots);
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            const u64 place = slots + k < unit.count ? unit.places.load(first + k) : 0;
            value[k] = place && within ? Global<Vec16>(place).load(vector) : Vec16{{0, 0, 0, 0}};
        }
#pragma unroll
        for (u32 t = 0; t < TILES; ++t) {
            if (t * 8 >= end) break;
            const Shared<Vec16> weights =
                unit.weights.template cast<Vec16>((t * 8 + group) * Unit::APART / 4, Unit::APART / 4);
            const Vec16 weight = weights.load(step / 4 + part);
            u32 high[2], low[2];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const float a = simt::mul_rn(simt::float_of(weight.word[2 * i]), SCALE);
                const float b = simt::mul_rn(simt::float_of(weight.word[2 * i + 1]), SCALE);
                high[i] = T::pair(a, b);
                low[i] = T::pair(simt::sub_rn(a, T::value(static_cast<u16>(high[i]))),
                                 simt::sub_rn(b, T::value(static_cast<u16>(high[i] >> 16))));
            }
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                // Elements j and j + 4 of keys 0, 1 and 2, 3.
                const auto pair = [&](u32 k, u32 e) {
                    const u32 a = value[k].word[e / 2], b = value[k + 1].word[e / 2];
                    return e & 1 ? simt::high_halves(a, b) : simt::low_halves(a, b);
                };
                const u32 left[4] = {pair(0, j), pair(0, j + 4), pair(2, j), pair(2, j + 4)};
                T::multiply(sums[t][j], left, high);
                T::multiply(sums[t][j], left, low);
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
        if (t * 8 >= end) break;
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 row = t * 8 + 2 * part + i;
            if (row < begin || row >= end || !within) continue;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                unit.add(row, vector * 8 + j, simt::mul_rn(sums[t][j][i], 1 / SCALE));
                unit.add(row, vector * 8 + j + 4, simt::mul_rn(sums[t][j][i + 2], 1 / SCALE));
            }
        }
    }
}
template <class T>
DEVICE void add_values(const Unit& unit, const GroupRows& rows, u32 from, u32 begin, u32 end) {
    if (rows.count <= 8) {
        add_tiles<T, 1>(unit, rows, from, begin, end);
    } else {
        add_tiles<T, VALUE_ROWS / 8>(unit, rows, from, begin, end);
    }
}
// The same for f32: each half of a warp has every second key, and a lane four elements of it.
template <>
DEVICE void add_values<f32>(const Unit& unit, const GroupRows& rows, u32 from, u32 begin, u32 end) {
    const u32 half = simt::lane() / 16, mine = simt::lane() % 16, vector = from / 4 + mine;
    const bool within = vector * 4 < rows.p.value_dim;
    for (u32 first = 0; first < end; first += 8) {
        float sums[8][4];
#pragma unroll
        for (u32 r = 0; r < 8; ++r) sums[r][0] = sums[r][1] = sums[r][2] = sums[r][3] = 0;
#pragma unroll 4
        for (u32 step = 0; step < unit.count; step += 2) {
            const u32 slot = step + half;
            const u64 place = slot < unit.count ? unit.place(slot) : 0;
            const Vec16 value = place && within ? Global<Vec16>(place).load(vector) : Vec16{{0, 0, 0, 0}};
#pragma unroll
            for (u32 r = 0; r < 8; ++r) {
                const float weight = unit.weights.load((first + r) * Unit::APART + slot);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    sums[r][e] = simt::fused(weight, simt::float_of(value.word[e]), sums[r][e]);
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < 8; ++r) {
            float both[4];
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                const float other = simt::warp_xor(sums[r][e], 16);
                both[e] = half ? simt::add_rn(other, sums[r][e]) : simt::add_rn(sums[r][e], other);
            }
            const u32 row = first + r;
            if (r % 2 != half || row < begin || row >= end || !within) continue;
#pragma unroll
            for (u32 e = 0; e < 4; ++e) unit.add(row, vector * 4 + e, both[e]);
        }
    }
}

// Calls f(row, element) for the elements of so many rows, by a warp for each row: to divide by the number of
// elements took twice as many slots as the rest (2026-11-30).
template <class F>
DEVICE void for_elements(u32 rows, u32 elements, F f) {
#pragma unroll 1
    for (u32 row = simt::warp(); row < rows; row += VALUE_WARPS) {
#pragma unroll 1
        for (u32 e = simt::lane(); e < elements; e += 32) f(row, e);
    }
}
// The same by CTA `part` of `parts`, a power of two, where the time of each f counts: a warp takes 32
// elements of a row at a time, so that all of them take part.
template <class F>
DEVICE void spread_elements(u32 rows, u32 elements, u32 part, u32 parts, F f) {
    const u32 warps = parts * VALUE_WARPS, blocks = (elements + 31) / 32;
#pragma unroll 1
    for (u32 row = 0; row < rows; ++row) {
        const u32 block = (part * VALUE_WARPS + simt::warp() - row * blocks) & (warps - 1);
#pragma unroll 1
        for (u32 e = 32 * block + simt::lane(); e < elements; e += 32 * warps) f(row, e);
    }
}
// Calls add(c, load(c)) for all chunks in order. Eight loads are in flight: one after another, each from the
// L2 cache, they would take 40 us on paper for 64 chunks of 128 elements.
template <class Load, class Add>
DEVICE void for_chunks(u32 count, Load load, Add add) {
    constexpr u32 AT_ONCE = 8;
#pragma unroll 1
    for (u32 first = 0; first < count; first += AT_ONCE) {
        float parts[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) parts[k] = first + k < count ? load(first + k) : 0.0f;
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; ++k) {
            if (first + k < count) add(first + k, parts[k]);
        }
    }
}

template <class T>
DEVICE void put_value(const AttentionParams& p, u64 token, u32 query_head, u32 element, double value) {
    const u64 at = token * p.out_token + query_head * p.out_head + element;
    const float rounded = static_cast<float>(value);
    if (p.out_f32) {
        Global<float>(p.out).store(at, rounded);
    } else {
        Global<typename T::Bits>(p.out).store(at, T::bits(rounded));
    }
}
// Zeros for a row of a token that no sequence has, by a warp.
template <class T>
DEVICE void put_zeros(const AttentionParams& p, u64 row) {
    const u64 heads = p.kv_heads * p.group;
    for (u32 e = simt::lane(); e < p.value_dim; e += 32) {
        put_value<T>(p, p.token_first + row / heads, static_cast<u32>(row % heads), e, 0);
    }
}
template <class T>
DEVICE void put_padding(const AttentionParams& p) {
    for_padding(p, [&](u64 row) { put_zeros<T>(p, row); });
}
