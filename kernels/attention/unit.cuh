// Chunks of keys, and a unit of keys as a warp holds it: where the values are, and the weights of each row.
#pragma once
#include "rows.cuh"

constexpr u32 VALUE_WARPS = VALUE_THREADS / 32;
// CTAs that share an SM. Two of them spill registers on sm_80 and on sm_100.
constexpr u32 VALUE_CTAS = SIMT_TUNED ? 2 : 1;

// The chunks of a sequence's keys. A longer sequence has longer ones.
struct Chunks {
    u32 keys, first, count;  // keys of one; the number of the first, counted from position 0

    DEVICE explicit Chunks(const Keys& all) : keys(VALUE_WARPS * UNIT), first(0), count(0) {
        while (static_cast<u64>(keys) * CHUNKS < all.end - all.begin) keys *= 2;
        first = all.begin / keys;
        count = all.begin < all.end ? (all.end - 1) / keys + 1 - first : 0;
    }
};

// What a warp has in shared memory: the weights of each row for the keys of a unit, and where the values of
// these are; and the sums of each row.
struct Unit {
    // Rows of weights begin in different banks for 16-byte loads, those of sums for single ones. Behind the
    // 64 weights of a row lie the places of 8 keys; a CTA has room for 8 rows at least.
    static constexpr u32 APART = UNIT + 16;
    Shared<u64> places;
    Shared<float> weights, sums;
    u32 count, elements;  // elements: of a value

    // `begin`: where the units of a CTA are in the arena.
    DEVICE Unit(const AttentionParams& p, u32 begin) : count(0), elements(p.value_dim) {
        const u32 at = begin + simt::warp() * bytes_of_weights(p);
        weights = simt::arena<float>(at, p.value_rows * APART);
        places = simt::arena<u64>(at, p.value_rows * APART / 2);
        sums = sums_of(p, begin, simt::warp());
    }
    static DEVICE u32 bytes_of_weights(const AttentionParams& p) { return 4 * p.value_rows * APART; }
    static DEVICE Shared<float> sums_of(const AttentionParams& p, u32 begin, u32 warp) {
        const u32 apart = sums_apart(p.value_dim);
        const u32 at = begin + VALUE_WARPS * bytes_of_weights(p) + warp * 4 * p.value_rows * apart;
        return simt::arena<float>(at, p.value_rows * apart);
    }
    static DEVICE u32 sums_apart(u32 elements) { return elements + 1; }
    static_assert(VALUE_WARPS * 4 * (APART + 1) == VALUE_BYTES_OF_ROW, "twin of the host");
    static_assert(VALUE_WARPS * 4 == VALUE_BYTES_OF_ELEMENT, "twin of the host");

    // The index in `places` of the slot-th key of the unit. Eight of them lie side by side.
    static DEVICE u32 place_at(u32 slot) { return slot / 8 * (APART / 2) + UNIT / 2 + slot % 8; }
    DEVICE u64 place(u32 slot) const { return places.load(place_at(slot)); }

    // Sums of 0, and weights of 0 in whole eights of rows: the matrices have rows that nobody weighs.
    DEVICE void clear(u32 rows) const {
        for (u32 i = simt::lane(); i < rows * sums_apart(elements); i += 32) sums.store(i, 0.0f);
        for (u32 i = 0; i < (rows + 7) / 8 * 8; ++i) {
            weights.store(i * APART + simt::lane(), 0.0f);
            weights.store(i * APART + simt::lane() + 32, 0.0f);
        }
        simt::warp_sync();
    }
    DEVICE void add(u32 row, u32 element, float value) const {
        const u32 at = row * sums_apart(elements) + element;
        sums.store(at, simt::add_rn(sums.load(at), value));
    }
    // The places of all keys of the unit from `first` on.
    template <class Vectors>
    DEVICE void list_all(const Vectors& vectors, u32 first) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 slot = 32 * half + simt::lane();
            places.store(place_at(slot), vectors.address(first + slot));
        }
        simt::warp_sync();
    }
    // Lists the keys of the unit that are `wanted`, of lane and lane + 32, and says in which slots they are.
    template <class Vectors>
    DEVICE void list(const Vectors& values, u32 first, const bool (&wanted)[2], u32 (&slots)[2]) {
        count = 0;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 votes = simt::ballot(wanted[half]);
            slots[half] = count + simt::count_ones(votes & ((1u << simt::lane()) - 1));
            if (wanted[half]) {
                places.store(place_at(slots[half]), values.address(first + 32 * half + simt::lane()));
            }
            count += simt::count_ones(votes);
        }
    }
    // Weights of 0 up to a whole step behind the last key of row i.
    DEVICE void fill(u32 i) const {
        const u32 slot = count + simt::lane();
        if (slot < (count + 15) / 16 * 16) weights.store(i * APART + slot, 0.0f);
    }
};
