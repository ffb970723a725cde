// A warp's part of a chunk in one pass: of each unit of keys the scores, their weights against the largest
// score so far, which values stay unread, and the sums.
#pragma once
#include "masses.cuh"
#include "pass_rows.cuh"
#include "values.cuh"

template <class T>
struct PassUnit {
    // Lanes that share a row where they look at its weights.
    static constexpr u32 PARTS = 32 / PassRows<T>::MOST;
    const PassRows<T>& rows;
    const PagedVectors<T, false>& keys;
    const PagedVectors<T, true>& values;
    const Keys& all;
    const Finish& finish;
    RowStates states;
    Unit unit;
    u32 allowed;  // the largest mass that stays unread
    // Of this lane's row: the largest score so far, and, against it, the sum of the seeds' weights and of the
    // weights of this lane's keys.
    float top = 0, seeds = 0;
    double sum = 0;
    // Of this lane: the masses of keys that stay unread, and their number.
    u64 dropped = 0;
    u32 unread = 0;

    DEVICE u32 row() const { return simt::lane() / PARTS; }

    DEVICE void put_state(float factor) const {
        if (simt::lane() % PARTS != 0 || row() >= rows.count) return;
        states.tops.store(row(), top);
        states.factors.store(row(), factor);
        // A key of weight 1 is among those that Z sums, or no key has been seen.
        states.units.store(row(), simt::div_rn(0x1p32f, seeds > 1.0f ? seeds : 1.0f));
    }
    DEVICE void begin_chunk() {
        sum = 0;
        top = row() < rows.count ? rows.tops.load(rows.first + row()) : -INFINITE;
        seeds = row() < rows.count ? rows.sums.load(rows.first + row()) : 0.0f;
        put_state(1.0f);
        unit.clear(rows.count);
    }
    // The vectors of a row's weights that this lane looks at.
    template <class F>
    DEVICE void look(F f) const {
        if (row() >= rows.count) return;
        const Shared<Vec16> own = unit.weights.template cast<Vec16>(row() * Unit::APART / 4, Unit::APART / 4);
#pragma unroll
        for (u32 j = 0; j < UNIT / 4; j += PARTS) f(own.load(j + simt::lane() % PARTS));
    }
    // The scores of a unit; -inf for a key that a row does not see.
    DEVICE void score(u32 first, bool whole) const {
        simt::warp_sync();  // all lanes are done with the last unit
        unit.list_all(keys, first);
#pragma unroll 1
        for (u32 from = 0; from < UNIT; from += 16) {
            multiply(
                rows, [&](u32 k) { return unit.place(from + k); },
                [&](u32 i, u32 k, bool exists, float product) {
                    if (i >= rows.count) return;
                    const bool seen = whole || rows.sees(i, first + from + k);
                    const float score = exists ? finish.score(product) : simt::float_of(0x7fc00000);
                    unit.weights.store(i * Unit::APART + from + k, seen ? score : -INFINITE);
                });
        }
        simt::warp_sync();
    }
    // The largest score of each row. Where it rises, what was summed shrinks. NaN and infinity poison a row.
    DEVICE void raise() {
        float highest = -INFINITE;
        look([&](const Vec16& v) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) highest = simt::max_nan(highest, simt::float_of(v.word[j]));
        });
#pragma unroll
        for (u32 mask = 1; mask < PARTS; mask *= 2) {
            highest = simt::max_nan(highest, simt::warp_xor(highest, mask));
        }
        if (!(highest < INFINITE)) {
            sum = static_cast<double>(simt::float_of(0x7fc00000));
            highest = -INFINITE;
        }
        const bool rises = highest > top;
        simt::warp_sync();  // weights take the place of the scores that all have looked at
        if (simt::ballot(rises) == 0) return;
        float factor = 1;
        if (rises) {
            factor = top > -INFINITE ? pass_weight<T>(top, highest, rows.exponent(row())) : 0.0f;
            top = highest;
            seeds = simt::mul_rn(seeds, factor);
            sum = simt::mul_rn(sum, static_cast<double>(factor));
        }
        put_state(factor);
        simt::warp_sync();
        const u32 apart = Unit::sums_apart(unit.elements);
        for (u32 i = 0; i < rows.count; ++i) {
            const float shrinks = states.factors.load(i);
            if (shrinks == 1.0f) continue;
            for (u32 e = simt::lane(); e < unit.elements; e += 32) {
                unit.sums.store(i * apart + e, simt::mul_rn(unit.sums.load(i * apart + e), shrinks));
            }
        }
        simt::warp_sync();
    }
    // Weights in place of scores. `most`: of lane's and lane + 32's keys the largest mass, in units.
    DEVICE void weigh(u32 first, bool whole, float (&most)[2]) {
        most[0] = most[1] = 0;
#pragma unroll 1
        for (u32 i = 0; i < rows.count; ++i) {
            const Exponent b = rows.exponent(i);
            const float highest = states.tops.load(i), units = states.units.load(i);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 slot = 32 * half + simt::lane(), at = i * Unit::APART + slot;
                const bool seen = whole || rows.sees(i, first + slot);
                const float weight = seen ? pass_weight<T>(unit.weights.load(at), highest, b) : 0.0f;
                unit.weights.store(at, weight);
                const float mass = simt::mul_rn(weight, units);
                most[half] = mass > most[half] ? mass : most[half];
            }
        }
        simt::warp_sync();
        float of[4] = {0, 0, 0, 0};
        look([&](const Vec16& v) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) of[j] = simt::add_rn(of[j], simt::float_of(v.word[j]));
        });
        const float both = simt::add_rn(simt::add_rn(of[0], of[1]), simt::add_rn(of[2], of[3]));
        sum = simt::add_rn(sum, static_cast<double>(both));
    }
    // Moves the weights of the wanted keys to their slots, for rows `begin` to `end`.
    DEVICE void move(u32 begin, u32 end, const bool (&wanted)[2], const u32 (&slots)[2]) const {
        if (unit.count == UNIT) return;
#pragma unroll 1
        for (u32 i = begin; i < end; ++i) {
            const u32 at = i * Unit::APART;
            const float own = unit.weights.load(at + simt::lane());
            const float next = unit.weights.load(at + simt::lane() + 32);
            simt::warp_sync();
            if (wanted[0]) unit.weights.store(at + slots[0], own);
            if (wanted[1]) unit.weights.store(at + slots[1], next);
            unit.fill(i);
        }
    }
    // Adds the unit from key `first` on. Where some rows do not see a key, each token's rows add their own
    // keys alone: the others' weights of 0 would make NaN of a NaN.
    DEVICE void add(u32 first, const Keys& together) {
        const bool whole = together.begin <= first && first + UNIT <= together.end;
        score(first, whole);
        raise();
        float most[2];
        weigh(first, whole, most);
        bool kept[2];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 mass = mass_of(most[half]);
            kept[half] = mass > allowed;
            if (kept[half] || !all.holds(first + 32 * half + simt::lane())) continue;
            dropped += mass;
            unread += 1;
        }
        for (u32 row = 0, next; row < rows.count; row = next) {
            next = whole ? rows.count : rows.end_of_token(row);
            const Keys seen = whole ? together : rows.seen(row);
            const u32 own = first + simt::lane();
            const bool wanted[2] = {seen.holds(own) && kept[0], seen.holds(own + 32) && kept[1]};
            u32 slots[2];
            simt::warp_sync();  // the last token's places were read
            unit.list(values, first, wanted, slots);
            if (unit.count == 0) continue;
            move(row, next, wanted, slots);
            simt::warp_sync();
#pragma unroll 1
            for (u32 from = 0; from < rows.p.value_dim; from += VALUE_BLOCK) {
                add_values<T>(unit, rows, from, row, next);
            }
        }
    }
    // What the merge of a chunk reads beside the sums: the sum of weights of each row, in place of factors.
    DEVICE void end_chunk() {
        double of_row = sum;
#pragma unroll
        for (u32 mask = 1; mask < PARTS; mask *= 2) {
            of_row = simt::add_rn(of_row, simt::warp_xor(of_row, mask));
        }
        if (simt::lane() % PARTS == 0 && row() < rows.count) {
            states.factors.store(row(), static_cast<float>(of_row));
        }
    }
};
