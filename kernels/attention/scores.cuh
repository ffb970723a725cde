// The scores of queries and keys: scale * q.k, softcapped. Twin of src/attention/scores.rs.
#pragma once
#include "products.cuh"

// The lengths and positions of the rows of a head, for the kernel that reads their scores.
template <class T, u32 MOST>
DEVICE void put_lengths(const QueryRows<T, MOST>& rows) {
    const AttentionParams& p = rows.p;
    for (u32 i = simt::thread(); i < rows.count; i += SCORE_THREADS) {
        const Keys seen = rows.seen(i);
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
    const PagedVectors<T, false> keys{p, seq.seq, head};
    const Finish finish{p.scale, p.softcap};
    constexpr u32 MOST = T::PER_VECTOR == 4 ? WIDE_QUERY_ROWS : QUERY_ROWS;
    QueryRows<T, MOST> rows(p, seq, head);
    if (part == 0) clear(p, of);
    for (u32 from = 0; from < rows.all(); from += MOST) {
        rows.load(from, MOST);
        simt::block_sync();
        if (part == 0) put_lengths(rows);
        for (u32 unit = all.begin / UNIT + part; unit * UNIT < all.end; unit += p.splits) {
            const u32 first = unit * UNIT + 16 * simt::warp();
            multiply(
                rows, [&](u32 k) { return keys.address(first + k); },
                [&](u32 i, u32 k, bool exists, float product) {
                    rows.store(finish, i, first + k, exists, product);
                });
        }
        simt::block_sync();
    }
    // Rows of tokens that no sequence has are empty.
    if (p.padding && simt::cta() == 0) {
        for_padding(p, [&](u64 row) {
            if (simt::lane() != 0) return;
            Global<u32>(p.row_lens).store(row, 0);
            Global<u32>(p.positions).store(row, 0);
        });
    }
}
