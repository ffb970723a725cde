// One CTA's part of the output of a key head: the chunks that are its own, and at last the sum of all.
#pragma once
#include "masses.cuh"
#include "values.cuh"

// The rows of a key head whose probabilities lie in memory.
struct ValueRows : GroupRows {
    static constexpr u32 UNITS = VALUE_BYTES;  // where the units begin in the arena
    Shared<u64> places;  // of the probabilities of each, as if they began at position 0
    u32 of, begin;  // the key head of the launch, and the key of its first mass

    DEVICE ValueRows(const AttentionParams& p, const Sequence& seq, u32 head, u32 of, u32 begin)
        : GroupRows(p, seq, head), of(of), begin(begin) {
        places = simt::arena<u64>(0, VALUE_ROWS);
    }
    DEVICE u32 mass(u32 key) const {
        return Global<u32>(p.masses + 4 * of * p.mass_stride).load(key - begin);
    }
    DEVICE void take(u32 from) {
        choose(from, p.value_rows);
        if (simt::thread() < count) places.store(simt::thread(), scores_at_0(simt::thread()));
    }
    DEVICE float probability(u32 i, u32 key) const { return Global<float>(places.load(i)).load(key); }
    // The weights of a unit's keys for rows `begin` to `end`.
    DEVICE void weigh(const Unit& unit, u32 begin, u32 end, u32 first, const bool (&wanted)[2],
                      const u32 (&slots)[2]) const {
        const u32 key = first + simt::lane(), next = key + 32;
        // Four at a time spill on sm_90 (f16).
#pragma unroll 2
        for (u32 i = begin; i < end; ++i) {
            const Global<float> probabilities(places.load(i));
            if (wanted[0]) unit.weights.store(i * Unit::APART + slots[0], probabilities.load(key));
            if (wanted[1]) unit.weights.store(i * Unit::APART + slots[1], probabilities.load(next));
            unit.fill(i);
        }
        simt::warp_sync();
    }
};
static_assert(8 * VALUE_ROWS <= VALUE_BYTES && Cut::BYTES <= VALUE_BYTES, "they share its begin");

template <class T, class Rows>
struct ValuePart {
    const AttentionParams& p;
    const Sequence& seq;
    const PagedVectors<T, true>& values;
    u32 bin;  // of the masses whose values are read
    Keys all;
    Rows& rows;
    Unit& unit;

    DEVICE u64 partial(u32 i, u32 chunk, u32 element) const {
        return (rows.row(i) * p.chunks + chunk) * p.value_dim + element;
    }
    // The sums of this warp for `rows`, over its units of a chunk. Where some of the rows do not see a key,
    // each token's rows add their own keys alone: the others' weights of 0 would make NaN of a NaN.
    DEVICE void add_chunk(u32 begin, u32 end) {
        const Keys together = rows.common();
        const auto kept = [&](u32 key) { return bin == 0 || mass_bin(rows.mass(key)) >= bin; };
        unit.clear(rows.count);
        for (u32 key = begin + simt::warp() * UNIT; key < end; key += VALUE_WARPS * UNIT) {
            if (key >= all.end || key + UNIT <= all.begin) continue;
            const bool whole = together.begin <= key && key + UNIT <= together.end;
            for (u32 row = 0, next; row < rows.count; row = next) {
                next = whole ? rows.count : rows.end_of_token(row);
                const Keys seen = whole ? together : rows.seen(row);
                const u32 own = key + simt::lane();
                const bool wanted[2] = {seen.holds(own) && kept(own), seen.holds(own + 32) && kept(own + 32)};
                u32 slots[2];
                simt::warp_sync();  // all lanes are done with the last unit
                unit.list(values, key, wanted, slots);
                if (unit.count == 0) continue;
                rows.weigh(unit, row, next, key, wanted, slots);
#pragma unroll 1
                for (u32 from = 0; from < p.value_dim; from += VALUE_BLOCK) {
                    add_values<T>(unit, rows, from, row, next);
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
            for_elements(rows.count, p.value_dim, [&](u32 row, u32 element) {
                const u32 at = row * Unit::sums_apart(p.value_dim) + element;
                float sum = 0;
#pragma unroll
                for (u32 w = 0; w < VALUE_WARPS; ++w) {
                    sum = simt::add_rn(sum, Unit::sums_of(p, Rows::UNITS, w).load(at));
                }
                Global<float>(p.partials).store(partial(row, number, element), sum);
            });
            simt::block_sync();
        }
    }
    // The output of every row, by CTA `part` of `parts`. A row whose probabilities are NaN gives NaN,
    // whatever was read.
    DEVICE void finish(const Chunks& chunks, u32 part, u32 parts) {
        for (u32 first = 0; first < rows.all(); first += p.value_rows) {
            rows.take(first);
            simt::block_sync();
            spread_elements(rows.count, p.value_dim, part, parts, [&](u32 row, u32 element) {
                const Keys seen = rows.seen(row);
                const Global<float> of_chunks(p.partials + 4 * partial(row, 0, element));
                double sum = 0;
                for_chunks(
                    chunks.count, [&](u32 c) { return of_chunks.load(c * p.value_dim); },
                    [&](u32, float part) { sum = simt::add_rn(sum, static_cast<double>(part)); });
                const float one = seen.begin < seen.end ? rows.probability(row, seen.begin) : 0.0f;
                if (one != one) sum = static_cast<double>(one);
                put_value<T>(p, seq.first + rows.token(row), rows.query_head(row), element, sum);
            });
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
    const Cut cut(p.budget, MassHistogram(p, of));
    if (p.skips && part == 0) put_skips(p, seq, head, cut, all.end - all.begin);
    if (p.budget > 0) simt::block_sync();
    const PagedVectors<T, true> values{p, seq.seq, head};
    ValueRows rows(p, seq, head, of, all.begin);
    Unit unit(p, ValueRows::UNITS);
    ValuePart<T, ValueRows> own{p, seq, values, cut.bin, all, rows, unit};
    for (u32 number = part; number < chunks.count; number += p.splits) own.chunk(chunks, number);
    if (p.padding && simt::cta() == 0) put_padding<T>(p);
    const u32 most = chunks.count > 1 ? chunks.count : 1, ctas = most < p.splits ? most : p.splits;
    if (part >= ctas || !simt::last_of(Global<u32>(p.arrivals + 4 * of), ctas)) return;
    own.finish(chunks, 0, 1);
}
