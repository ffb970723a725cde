// The scores of queries and keys: scale * q.k, softcapped. Twin of src/attention/scores.rs.
//
// Of f32 a score has the bits of the CPU: 16 lanes have a partial sum each, in the order that scores.rs says.
// Of 16 bits the products of matrices of the device make it, whose sums are within a multiple of 2^-24 of the
// sum of |q k|.
#pragma once
#include "queries.cuh"

// Scores 16 keys from `first` on, by one warp: keys are the rows of the left matrix, queries the columns of
// the right one. A lane holds 8 neighbouring elements of two keys in each block, and the same elements of a
// query: so 16 bytes serve two products, whose order of elements is that of neither.
template <class T>
DEVICE void score_keys(const QueryRows<T>& rows, const PagedVectors<T>& keys, const Finish& finish,
                       u32 first) {
    constexpr u32 TILES = QUERY_ROWS / 8, AT_ONCE = 4;
    const u32 group = simt::lane() / 4, part = simt::lane() % 4, blocks = (rows.p.dim + BLOCK - 1) / BLOCK;
    const u64 near = keys.address(first + group), far = keys.address(first + group + 8);
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
            const u32 key = first + group + (i < 2 ? 0 : 8);
            rows.store(finish, t * 8 + part * 2 + i % 2, key, (i < 2 ? near : far) != 0, sums[t][i]);
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
template <>
DEVICE void score_keys(const QueryRows<f32>& rows, const PagedVectors<f32>& keys, const Finish& finish,
                       u32 first) {
    constexpr u32 KEYS = 4, ROWS = WIDE_QUERY_ROWS, SUMS = KEYS * ROWS;
    const u32 half = simt::lane() / 16, mine = simt::lane() % 16, dim = rows.p.dim;
    const Shared<float> queries = rows.tile.cast<float>(0, ROWS * rows.vectors * 4);
#pragma unroll 1
    for (u32 turn = 0; turn < 2; ++turn) {
        const u32 from = first + 8 * turn + KEYS * half;
        u64 address[KEYS];
        float sums[SUMS];
#pragma unroll
        for (u32 k = 0; k < KEYS; ++k) address[k] = keys.address(from + k);
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
            rows.store(finish, at / KEYS, from + k, exists, sums[i]);
        }
    }
}

// The lengths and positions of the rows of a head, for the kernel that reads their scores.
template <class T>
DEVICE void put_lengths(const QueryRows<T>& rows) {
    const AttentionParams& p = rows.p;
    for (u32 i = simt::thread(); i < rows.count; i += SCORE_THREADS) {
        const Keys seen = rows.seq.seen(p, rows.token(i));
        Global<u32>(p.row_lens).store(rows.row(i), seen.end - seen.begin);
        Global<u32>(p.positions).store(rows.row(i), seen.end > 0 ? seen.end - 1 : 0);
    }
}

// Makes zeros for the kernels that come later.
DEVICE void clear(const AttentionParams& p, u32 of) {
    if (p.arrivals && simt::thread() == 0) Global<u32>(p.arrivals).store(of, 0);
    for (u32 i = simt::thread(); p.budget > 0 && i < 2 * MASS_BINS; i += SCORE_THREADS) {
        Global<u64>(p.histogram).store(2 * MASS_BINS * static_cast<u64>(of) + i, 0);
    }
}

// Every CTA takes one of `splits` parts of the keys of one head of a sequence: each so many-th unit.
template <class T>
DEVICE void score_part(const AttentionParams& p) {
    const u32 part = simt::cta() % p.splits, of = simt::cta() / p.splits, head = of % p.kv_heads;
    const Sequence seq(p, p.seq_first + of / p.kv_heads);
    const Keys all = seq.seen_by_any(p);
    const PagedVectors<T> keys = PagedVectors<T>::keys(p, seq.seq, head);
    const Finish finish{p.scale, p.softcap};
    QueryRows<T> rows(p, seq, head);
    if (part == 0) clear(p, of);
    for (u32 from = 0; from < (seq.end - seq.begin) * p.group; from += QueryRows<T>::MOST) {
        rows.load(from);
        simt::block_sync();
        if (part == 0) put_lengths(rows);
        for (u32 unit = all.begin / UNIT + part; unit * UNIT < all.end; unit += p.splits) {
            score_keys(rows, keys, finish, unit * UNIT + 16 * simt::warp());
        }
        simt::block_sync();
    }
    // Rows of tokens that no sequence has are empty.
    if (p.starts && simt::cta() == 0) {
        const i64 used = Global<i32>(p.starts).load(p.seq_first + p.seqs);
        const u32 heads = p.kv_heads * p.group;
        for (u32 row = simt::thread(); row < p.token_count * heads; row += SCORE_THREADS) {
            if (static_cast<i64>(p.token_first) + row / heads < used) continue;
            Global<u32>(p.row_lens).store(row, 0);
            Global<u32>(p.positions).store(row, 0);
        }
    }
}
