// The scores of queries and keys: scale * q.k, softcapped. Twin of src/attention/scores.rs.
#pragma once
#include "products.cuh"

// The length and the position of a row that sees these keys, for what reads its scores.
DEVICE void put_length(const AttentionParams& p, u64 row, const Keys& seen) {
    Global<u32>(p.row_lens).store(row, seen.end - seen.begin);
    Global<u32>(p.positions).store(row, seen.end > 0 ? seen.end - 1 : 0);
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
        if (part == 0 && simt::thread() < rows.count) {
            put_length(p, rows.row(simt::thread()), rows.seen(simt::thread()));
        }
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
            if (simt::lane() == 0) put_length(p, row, Keys{0, 0});
        });
    }
}
