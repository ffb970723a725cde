// A unit of keys as a warp holds it: which of them have values to be read, and the weights of each row.
#pragma once
#include "masses.cuh"

constexpr u32 VALUE_WARPS = VALUE_THREADS / 32;

// Some query rows of a key head, and where their probabilities are.
struct ValueRows {
    const AttentionParams& p;
    const Sequence& seq;
    u32 head, first, count;  // rows first .. first + count of the key head: token by token
    Shared<u64> places;  // of the probabilities of each, as if they began at position 0

    DEVICE ValueRows(const AttentionParams& p, const Sequence& seq, u32 head)
        : p(p), seq(seq), head(head), first(0), count(0) {
        places = simt::arena<u64>(0, VALUE_ROWS);
    }
    static constexpr u32 BYTES = 8 * VALUE_ROWS;

    DEVICE u32 all() const { return (seq.end - seq.begin) * p.group; }
    DEVICE u32 token(u32 i) const { return seq.begin + (first + i) / p.group; }
    DEVICE bool is_of(u32 i, u32 only) const { return only == ~0u || token(i) == only; }
    DEVICE u64 row(u32 i) const { return seq.row(p, token(i), head * p.group + (first + i) % p.group); }
    DEVICE void take(u32 from) {
        first = from;
        count = all() - from < p.value_rows ? all() - from : p.value_rows;
        const u32 i = simt::thread();
        if (i < count) {
            const u64 begin = seq.seen(p, token(i)).begin;
            places.store(i, p.scores + 4 * (row(i) * p.score_stride - begin));
        }
    }
    DEVICE float probability(u32 i, u32 key) const { return Global<float>(places.load(i)).load(key); }
};

// What a warp has in shared memory: the keys of a unit whose values it adds, the weights of each row for
// them, and the sums of each row.
struct Unit {
    // Rows of weights begin in different banks for 16-byte loads, those of sums for single ones.
    static constexpr u32 APART = UNIT + 16;
    Shared<u64> places;
    Shared<u32> keys;
    Shared<float> weights, sums;
    u32 count, elements;  // elements: of a value

    DEVICE explicit Unit(const AttentionParams& p) : count(0), elements(p.value_dim) {
        constexpr u32 OF_WARP = 12 * UNIT;
        const u32 at = ValueRows::BYTES + simt::warp() * OF_WARP;
        const u32 rows = ValueRows::BYTES + VALUE_WARPS * OF_WARP, of_rows = 4 * p.value_rows;
        places = simt::arena<u64>(at, UNIT);
        keys = simt::arena<u32>(at + 8 * UNIT, UNIT);
        weights = simt::arena<float>(rows + simt::warp() * of_rows * APART, p.value_rows * APART);
        sums = sums_of(p, simt::warp());
    }
    static DEVICE Shared<float> sums_of(const AttentionParams& p, u32 warp) {
        const u32 of_rows = 4 * p.value_rows, rows = ValueRows::BYTES + VALUE_WARPS * 12 * UNIT;
        const u32 apart = sums_apart(p.value_dim);
        const u32 at = rows + VALUE_WARPS * of_rows * APART + warp * of_rows * apart;
        return simt::arena<float>(at, p.value_rows * apart);
    }
    static DEVICE u32 sums_apart(u32 elements) { return elements + 1; }
    static_assert(ValueRows::BYTES + VALUE_WARPS * 12 * UNIT <= VALUE_BYTES, "twin of the host");
    static_assert(VALUE_WARPS * 4 * (APART + 1) == VALUE_BYTES_OF_ROW, "twin of the host");
    static_assert(VALUE_WARPS * 4 == VALUE_BYTES_OF_ELEMENT, "twin of the host");
    static_assert(Cut::BYTES <= VALUE_BYTES, "they share the begin of the arena");

    DEVICE void clear_sums(u32 rows) const {
        for (u32 i = simt::lane(); i < rows * sums_apart(elements); i += 32) sums.store(i, 0.0f);
        simt::warp_sync();
    }
    DEVICE void add(u32 row, u32 element, float value) const {
        const u32 at = row * sums_apart(elements) + element;
        sums.store(at, simt::add_rn(sums.load(at), value));
    }
    // The keys from `first` on that lie in `seen` and have a value to be read.
    template <class T, class Kept>
    DEVICE void find(const PagedVectors<T>& values, u32 first, const Keys& seen, Kept kept) {
        simt::warp_sync();  // all lanes are done with the last unit
        count = 0;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 key = first + 32 * half + simt::lane();
            const bool wanted = seen.holds(key) && kept(key);
            const u32 votes = simt::ballot(wanted);
            if (wanted) {
                const u32 place = count + simt::count_ones(votes & ((1u << simt::lane()) - 1));
                keys.store(place, key);
                places.store(place, values.address(key));
            }
            count += simt::count_ones(votes);
        }
        simt::warp_sync();
    }
    // The weights of whole eights of rows, 0 where there is no key or no row of token `only` (any: ~0).
    DEVICE void weigh(const ValueRows& rows, u32 only) const {
        const u32 slot = simt::lane(), next = slot + 32;
        const u32 key = slot < count ? keys.load(slot) : 0, next_key = next < count ? keys.load(next) : 0;
        // Four at a time, which is what the compiler takes, spill on sm_90, and one at a time too.
#pragma unroll 2
        for (u32 i = 0; i < (rows.count + 7) / 8 * 8; ++i) {
            const bool row = i < rows.count && rows.is_of(i, only);
            const Global<float> probabilities(row ? rows.places.load(i) : 0);
            weights.store(i * APART + slot, row && slot < count ? probabilities.load(key) : 0.0f);
            weights.store(i * APART + next, row && next < count ? probabilities.load(next_key) : 0.0f);
        }
        simt::warp_sync();
    }
};
