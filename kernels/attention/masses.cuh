// Which values are read. Twin of src/attention/selection.rs, which says what a mass is, and why every row
// stays within eps.
#pragma once
#include "../dtype.cuh"
#include "rows.cuh"

constexpr u32 MASS_THREADS = 256;

// A mass of so many units of 2^-32, rounded up to an integer >= 1. That of NaN is 1.
DEVICE u32 mass_of(float units) {
    if (!(units > 1.0f)) return 1;
    if (units >= 0x1p32f) return 0xffffffff;
    const u32 whole = static_cast<u32>(units);
    return whole + (static_cast<float>(whole) < units);
}
// The quarter of an octave that a mass lies in.
DEVICE u32 mass_bin(u32 mass) {
    const u32 exponent = 31 - simt::leading_zeros(mass);
    const u32 quarter = exponent >= 2 ? mass >> (exponent - 2) & 3 : mass << (2 - exponent) & 3;
    return 4 * exponent + quarter;
}

struct MassHistogram {
    Global<u64> bins;
    DEVICE MassHistogram(const AttentionParams& p, u32 of)
        : bins(p.histogram + 16 * MASS_BINS * static_cast<u64>(of)) {}
    DEVICE u64 sum(u32 bin) const { return bins.load(2 * bin); }
    DEVICE u64 count(u32 bin) const { return bins.load(2 * bin + 1); }
};

// The bins of a CTA, from `at` on in the arena. A sum of masses lies in halves: one of 16 bits of 65,536
// masses stays below 2^32.
struct MassBins {
    static constexpr u32 BYTES = 12 * MASS_BINS;
    Shared<u32> low, high, counts;
    DEVICE explicit MassBins(u32 at) {
        low = simt::arena<u32>(at, MASS_BINS);
        high = simt::arena<u32>(at + 4 * MASS_BINS, MASS_BINS);
        counts = simt::arena<u32>(at + 8 * MASS_BINS, MASS_BINS);
    }
    DEVICE void clear() const {
        if (simt::thread() >= MASS_BINS) return;
        low.store(simt::thread(), 0);
        high.store(simt::thread(), 0);
        counts.store(simt::thread(), 0);
    }
    DEVICE void add(u32 mass) const {
        const u32 bin = mass_bin(mass);
        low.add(bin, mass & 0xffff);
        high.add(bin, mass >> 16);
        counts.increment(bin);
    }
};

// The mass of a key: the largest of its rows. of(t, g, column): the probability of query head g of token t at
// the column-th key that it sees.
template <class Probability>
DEVICE u32 mass_of_key(const AttentionParams& p, const Sequence& seq, u32 key, Probability of) {
    u32 mass = 1;
    for (u32 t = seq.begin; t < seq.end; ++t) {
        const Keys seen = seq.seen(p, t);
        if (!seen.holds(key)) continue;
        for (u32 g = 0; g < p.group; ++g) {
            const u32 found = mass_of(simt::mul_rn(of(t, g, key - seen.begin), 0x1p32f));
            mass = found > mass ? found : mass;
        }
    }
    return mass;
}

// Every CTA takes one of `splits` parts of the keys of one head of a sequence.
DEVICE void masses_part(const AttentionParams& p) {
    const u32 part = simt::cta() % p.splits, of = simt::cta() / p.splits, head = of % p.kv_heads;
    const Sequence seq(p, p.seq_first + of / p.kv_heads);
    const Keys all = seq.seen_by_any(p);
    const MassBins bins(0);
    const Global<u32> masses(p.masses + 4 * of * p.mass_stride);
    const MassHistogram histogram(p, of);
    u32 begin = all.begin + part * MASS_THREADS;
    while (begin < all.end) {
        bins.clear();
        simt::block_sync();
        for (u32 turn = 0; turn < 256 && begin < all.end; ++turn, begin += p.splits * MASS_THREADS) {
            const u32 key = begin + simt::thread();
            if (key >= all.end) continue;
            const u32 mass = mass_of_key(p, seq, key, [&](u32 t, u32 g, u32 column) {
                const u64 row = seq.row(p, t, head * p.group) + g;
                return Global<float>(p.scores).load(row * p.score_stride + column);
            });
            masses.store(key - all.begin, mass);
            bins.add(mass);
        }
        simt::block_sync();
        if (simt::thread() < MASS_BINS) {
            const u32 bin = simt::thread(), count = bins.counts.load(bin);
            if (count > 0) {
                const u64 high = bins.high.load(bin);
                histogram.bins.add(2 * bin, (high << 16) + bins.low.load(bin));
                histogram.bins.add(2 * bin + 1, count);
            }
        }
        simt::block_sync();
    }
}

// Which keys of a head have values that are read: those whose mass lies in this bin or above it. The masses
// of the others sum to no more than the budget.
struct Cut {
    u32 bin, dropped, unread;

    // All threads of a CTA of more than MASS_BINS threads call it. BYTES of the arena are its own until the
    // next barrier.
    static constexpr u32 BYTES = 16 + 16 * MASS_BINS;
    template <class Histogram>
    DEVICE Cut(u32 budget, const Histogram& histogram) : bin(0), dropped(0), unread(0) {
        if (budget == 0) return;
        const Shared<u32> found = simt::arena<u32>(0, 4);
        const Shared<u64> sums = simt::arena<u64>(16, MASS_BINS);
        const Shared<u64> counts = simt::arena<u64>(16 + 8 * MASS_BINS, MASS_BINS);
        const u32 mine = simt::thread();
        if (mine < MASS_BINS) {
            sums.store(mine, histogram.sum(mine));
            counts.store(mine, histogram.count(mine));
        }
        simt::block_sync();
        if (mine <= MASS_BINS) {
            u64 below = 0, number = 0;
            for (u32 b = 0; b < mine; ++b) {
                below += sums.load(b);
                number += counts.load(b);
            }
            // Sums rise, so one thread alone finds the last bin that begins within the budget.
            const bool within = below <= budget;
            if (within && (mine == MASS_BINS || below + sums.load(mine) > budget)) {
                found.store(0, mine);
                found.store(1, static_cast<u32>(below));
                found.store(2, static_cast<u32>(number));
            }
        }
        simt::block_sync();
        bin = found.load(0);
        dropped = found.load(1);
        unread = found.load(2);
    }
};
