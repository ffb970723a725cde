// One CTA's part of the output of a key head: the chunks that are its own, and at last the sum of all.
#pragma once
#include "values.cuh"

// The chunks of a sequence's keys. A longer sequence has longer ones.
struct Chunks {
    u32 keys, first, count;  // keys of one; the number of the first, counted from position 0

    DEVICE explicit Chunks(const Keys& all) : keys(VALUE_WARPS * UNIT), first(0), count(0) {
        while (static_cast<u64>(keys) * CHUNKS < all.end - all.begin) keys *= 2;
        first = all.begin / keys;
        count = all.begin < all.end ? (all.end - 1) / keys + 1 - first : 0;
    }
};

template <class T>
struct ValuePart {
    const AttentionParams& p;
    const Sequence& seq;
    const PagedVectors<T>& values;
    u32 bin;  // of the masses whose values are read
    Keys all;
    u32 of;
    ValueRows& rows;
    Unit& unit;

    DEVICE u64 partial(u32 i, u32 chunk, u32 element) const {
        return (rows.row(i) * p.chunks + chunk) * p.value_dim + element;
    }
    // The keys that each of the rows sees.
    DEVICE Keys common() const {
        const Keys first = seq.seen(p, rows.token(0)), last = seq.seen(p, rows.token(rows.count - 1));
        return Keys{last.begin, first.end};
    }
    // The sums of this warp for `rows`, over its units of a chunk. Where some of the rows do not see a key,
    // each token's rows add their own keys alone: the others' weights of 0 would make NaN of a NaN.
    DEVICE void add_chunk(u32 begin, u32 end) {
        const Keys together = common();
        const Global<u32> masses(p.masses + 4 * of * p.mass_stride);
        const auto kept = [&](u32 key) {
            return bin == 0 || mass_bin(masses.load(key - all.begin)) >= bin;
        };
        unit.clear_sums(rows.count);
        for (u32 key = begin + simt::warp() * UNIT; key < end; key += VALUE_WARPS * UNIT) {
            if (key >= all.end || key + UNIT <= all.begin) continue;
            const bool whole = together.begin <= key && key + UNIT <= together.end;
            const u32 one = rows.token(0), last = rows.token(rows.count - 1);
            for (u32 token = one; token <= (whole || one == last ? one : last); ++token) {
                unit.find(values, key, whole ? together : seq.seen(p, token), kept);
                if (unit.count == 0) continue;
                const u32 only = whole || one == last ? ~0u : token;
                unit.weigh(rows, only);
#pragma unroll 1
                for (u32 from = 0; from < p.value_dim; from += VALUE_BLOCK) {
                    add_values<T>(unit, rows, from, only);
                }
            }
        }
    }
    DEVICE void chunk(const Chunks& chunks, u32 number) {
        const u32 begin = (chunks.first + number) * chunks.keys;
        for (u32 first = 0; first < rows.all(); first += p.value_rows) {
            rows.take(first);
            simt::block_sync();
            add_chunk(begin, begin + chunks.keys);
            simt::block_sync();
            for (u32 i = simt::thread(); i < rows.count * p.value_dim; i += VALUE_THREADS) {
                const u32 row = i / p.value_dim, element = i % p.value_dim;
                const u32 at = row * Unit::sums_apart(p.value_dim) + element;
                float sum = 0;
                for (u32 w = 0; w < VALUE_WARPS; ++w) sum = simt::add_rn(sum, Unit::sums_of(p, w).load(at));
                Global<float>(p.partials).store(partial(row, number, element), sum);
            }
            simt::block_sync();
        }
    }
    DEVICE void put(u64 token, u32 query_head, u32 element, double value) const {
        const u64 at = token * p.out_token + query_head * p.out_head + element;
        const float rounded = static_cast<float>(value);
        if (p.out_f32) {
            Global<float>(p.out).store(at, rounded);
        } else {
            Global<typename T::Bits>(p.out).store(at, T::bits(rounded));
        }
    }
    // The output of every row. A row whose probabilities are NaN gives NaN, whatever was read.
    DEVICE void finish(const Chunks& chunks) {
        for (u32 first = 0; first < rows.all(); first += p.value_rows) {
            rows.take(first);
            simt::block_sync();
            for (u32 i = simt::thread(); i < rows.count * p.value_dim; i += VALUE_THREADS) {
                const u32 row = i / p.value_dim, element = i % p.value_dim;
                const Keys seen = seq.seen(p, rows.token(row));
                double sum = 0;
                for (u32 c = 0; c < chunks.count; ++c) {
                    const float of_chunk = Global<float>(p.partials).load(partial(row, c, element));
                    sum = simt::add_rn(sum, static_cast<double>(of_chunk));
                }
                const float one = seen.begin < seen.end ? rows.probability(row, seen.begin) : 0.0f;
                if (one != one) sum = static_cast<double>(one);
                put(seq.first + rows.token(row), rows.head * p.group + (first + row) % p.group, element, sum);
            }
            simt::block_sync();
        }
    }
};

// The report of a key head, if it has tokens in this launch or none at all. A sequence whose tokens lie in
// two launches reports what holds for both.
DEVICE void put_skips(const AttentionParams& p, const Sequence& seq, u32 head, const Cut& cut, u32 keys) {
    if (simt::thread() != 0 || (seq.begin == seq.end && seq.count > 0)) return;
    const u64 at = 4 * (static_cast<u64>(seq.seq) * p.kv_heads + head);
    const Global<u32> skips(p.skips);
    const bool first = seq.begin == 0;
    skips.store(at, first || cut.dropped > skips.load(at) ? cut.dropped : skips.load(at));
    skips.store(at + 1, first || cut.unread < skips.load(at + 1) ? cut.unread : skips.load(at + 1));
    skips.store(at + 2, first || keys > skips.load(at + 2) ? keys : skips.load(at + 2));
    skips.store(at + 3, 0);
}

template <class T>
DEVICE void values_part(const AttentionParams& p) {
    const u32 part = simt::cta() % p.splits, of = simt::cta() / p.splits, head = of % p.kv_heads;
    const Sequence seq(p, p.seq_first + of / p.kv_heads);
    const Keys all = seq.seen_by_any(p);
    const Chunks chunks(all);
    const Cut cut(p, of);
    if (p.skips && part == 0) put_skips(p, seq, head, cut, all.end - all.begin);
    if (p.budget > 0) simt::block_sync();
    const PagedVectors<T> values = PagedVectors<T>::values(p, seq.seq, head);
    ValueRows rows(p, seq, head);
    Unit unit(p);
    ValuePart<T> own{p, seq, values, cut.bin, all, of, rows, unit};
    for (u32 number = part; number < chunks.count; number += p.splits) own.chunk(chunks, number);
    // Rows of tokens that no sequence has are 0.
    if (p.starts && simt::cta() == 0) {
        const i64 used = Global<i32>(p.starts).load(p.seq_first + p.seqs);
        const u32 heads = p.kv_heads * p.group;
        for (u32 i = simt::thread(); i < p.token_count * heads * p.value_dim; i += VALUE_THREADS) {
            const u32 row = i / p.value_dim;
            const i64 token = static_cast<i64>(p.token_first) + row / heads;
            if (token >= used) own.put(token, row % heads, i % p.value_dim, 0);
        }
    }
    const u32 most = chunks.count > 1 ? chunks.count : 1, ctas = most < p.splits ? most : p.splits;
    if (part >= ctas || !simt::last_of(Global<u32>(p.arrivals + 4 * of), ctas)) return;
    own.finish(chunks);
}
