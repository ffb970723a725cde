// The products of keys and queries.
//
// Of f32 a score has the bits of the CPU: 16 lanes have a partial sum each, in the order that scores.rs says.
// Of 16 bits the products of matrices of the device make it, whose sums are within a multiple of 2^-24 of the
// sum of |q k|.
#pragma once
#include "queries.cuh"

// The products of 16 keys and of query rows, by one warp: keys are the rows of the left matrix, queries the
// columns of the right one. A lane holds 8 neighbouring elements of two keys in each block, and the same
// elements of a query: so 16 bytes serve two products, whose order of elements is that of neither.
// address(k): of the k-th key, or 0. put(i, k, exists, product): for row i, by the lane that has it.
template <class T, u32 MOST, class Address, class Put>
DEVICE void multiply_narrow(const QueryRows<T, MOST>& rows, Address address, Put put) {
    constexpr u32 TILES = MOST / 8, AT_ONCE = 4;
    const u32 group = simt::lane() / 4, part = simt::lane() % 4, blocks = (rows.p.dim + BLOCK - 1) / BLOCK;
    const u64 near = address(group), far = address(group + 8);
    float sums[TILES][4];
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0;
#pragma unroll 1
    for (u32 block = 0; block < blocks; block += AT_ONCE) {
        Vec16 key[AT_ONCE][2];
#pragma unroll
        for (u32 b = 0; b < AT_ONCE; ++b) {
            const u32 v = (block + b) * 4 + part;
            const bool within = v * T::PER_VECTOR < rows.p.dim;
            key[b][0] = near && within ? Global<Vec16>(near).load(v) : Vec16{{0, 0, 0, 0}};
            key[b][1] = far && within ? Global<Vec16>(far).load(v) : Vec16{{0, 0, 0, 0}};
        }
#pragma unroll
        for (u32 t = 0; t < TILES; ++t) {
            if (t * 8 >= rows.count) break;
#pragma unroll
            for (u32 b = 0; b < AT_ONCE; ++b) {
                if (block + b >= blocks) break;
                const Vec16 query = rows.tile.load((t * 8 + group) * rows.vectors + (block + b) * 4 + part);
#pragma unroll
                for (u32 half = 0; half < 4; half += 2) {
                    const u32 left[4] = {key[b][0].word[half], key[b][1].word[half], key[b][0].word[half + 1],
                                         key[b][1].word[half + 1]};
                    const u32 right[2] = {query.word[half], query.word[half + 1]};
                    T::multiply(sums[t], left, right);
                }
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < TILES; ++t) {
        if (t * 8 >= rows.count) break;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 k = group + (i < 2 ? 0 : 8);
            put(t * 8 + part * 2 + i % 2, k, (i < 2 ? near : far) != 0, sums[t][i]);
        }
    }
}

// Adds the partial sums of lanes that are `mask` apart. Each of the two keeps COUNT of their 2 COUNT sums.
template <u32 COUNT, u32 N>
DEVICE void halve(float (&sums)[N], bool upper, u32 mask) {
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
        const float own = upper ? sums[i + COUNT] : sums[i], other = upper ? sums[i] : sums[i + COUNT];
        sums[i] = simt::add_rn(own, simt::warp_xor(other, mask));
    }
}

// The same for f32: 16 lanes have the partial sums of four keys each.
template <u32 ROWS, class Address, class Put>
DEVICE void multiply_wide(const QueryRows<f32, ROWS>& rows, Address address_of, Put put) {
    constexpr u32 KEYS = 4, SUMS = KEYS * ROWS;
    const u32 half = simt::lane() / 16, mine = simt::lane() % 16, dim = rows.p.dim;
    const Shared<float> queries = rows.tile.template cast<float>(0, ROWS * rows.vectors * 4);
#pragma unroll 1
    for (u32 turn = 0; turn < 2; ++turn) {
        const u32 from = 8 * turn + KEYS * half;
        u64 address[KEYS];
        float sums[SUMS];
#pragma unroll
        for (u32 k = 0; k < KEYS; ++k) address[k] = address_of(from + k);
#pragma unroll
        for (u32 i = 0; i < SUMS; ++i) sums[i] = 0;
#pragma unroll 2
        for (u32 e = mine; e < (dim + BLOCK - 1) / BLOCK * BLOCK; e += 16) {
            float key[KEYS];
#pragma unroll
            for (u32 k = 0; k < KEYS; ++k) {
                key[k] = address[k] && e < dim ? Global<float>(address[k]).load(e) : 0.0f;
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                const float query = queries.load(r * rows.vectors * 4 + e);
#pragma unroll
                for (u32 k = 0; k < KEYS; ++k) {
                    sums[r * KEYS + k] = simt::fused(query, key[k], sums[r * KEYS + k]);
                }
            }
        }
        halve<SUMS / 2>(sums, mine & 8, 8);
        halve<SUMS / 4>(sums, mine & 4, 4);
        halve<SUMS / 8>(sums, mine & 2, 2);
        halve<SUMS / 16>(sums, mine & 1, 1);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 at = 2 * mine + i, k = at % KEYS;
            const bool exists = k == 0 ? address[0] : k == 1 ? address[1] : k == 2 ? address[2] : address[3];
            put(at / KEYS, from + k, exists, sums[i]);
        }
    }
}

template <class T, u32 MOST, class Address, class Put>
DEVICE void multiply(const QueryRows<T, MOST>& rows, Address address, Put put) {
    if constexpr (T::PER_VECTOR == 4) {
        multiply_wide(rows, address, put);
    } else {
        multiply_narrow(rows, address, put);
    }
}
