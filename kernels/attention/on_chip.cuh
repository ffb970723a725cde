// A key head of a sequence by one cluster of CTAs, whose scores never leave the chip.
//
// The keys are dealt out to the CTAs. But each row of scores lies in the shared memory of one CTA, its home:
// row i at CTA i % splits. So a row has the barriers of one CTA, and the cluster waits only until all scores
// are at home, and all probabilities are there. Each CTA then reads the probabilities of its own chunks.
#pragma once
#include "../verbs.cuh"
#include "decode.cuh"
#include "scores.cuh"

#if SIMT_CLUSTERS
// In front of the units are the records of a row's search, and then the masses of keys.
constexpr u32 HOME_BYTES = BLOCK_CONTROL_BYTES, HOME_MASSES = 4096;
static_assert(VALUE_BYTES <= HOME_MASSES && HOME_MASSES + MassBins::BYTES <= HOME_BYTES, "they lie apart");

// Where the rows of a key head are. There are a power of two of CTAs. All of it stays in the arguments, where
// it takes no registers.
struct Homes {
    const OnChipParams& params;

    DEVICE u32 others() const { return params.attention.splits - 1; }
    DEVICE u32 stride() const { return static_cast<u32>(params.attention.score_stride); }
    DEVICE u32 place(u32 i, u32 column) const { return (i >> params.shift) * stride() + column; }
    DEVICE Shared<float> own() const {
        const AttentionParams& p = params.attention;
        const u32 rows = (p.query_len * p.group + others()) >> params.shift;
        return simt::arena<float>(params.rows_at, rows * stride());
    }
    DEVICE float load(u32 i, u32 column) const { return own().remote(i & others()).load(place(i, column)); }
    DEVICE void store(u32 i, u32 column, float score) const {
        own().remote(i & others()).store(place(i, column), score);
    }
};

// The row of a CTA that was made in its shared memory, and stays there.
struct HomeScope : BlockScope<VALUE_THREADS> {
    static constexpr bool ASYNC = false, ON_CHIP = true;
    // The same for all threads, whatever the device memory says: they decide how many barriers come.
    u32 len, position;
    DEVICE explicit HomeScope(const RowParams& p) : BlockScope<VALUE_THREADS>(p), len(0), position(0) {}
    DEVICE void take(const Homes& homes, u64 of, u32 i, const Keys& seen) {
        row = static_cast<u32>(of);
        len = seen.end - seen.begin;
        position = seen.end > 0 ? seen.end - 1 : 0;
        tile = homes.own().cast<Vec16>(homes.place(i, 0) / 4, homes.stride() / 4);
    }
};

// The rows of a key head whose probabilities are at home.
struct HomeRows : GroupRows {
    static constexpr u32 UNITS = HOME_BYTES;
    Homes homes;
    Shared<u32> begins;  // the first key that each of them sees

    DEVICE HomeRows(const AttentionParams& p, const Sequence& seq, u32 head, const Homes& homes)
        : GroupRows(p, seq, head), homes(homes) {
        begins = simt::arena<u32>(0, VALUE_ROWS);
    }
    DEVICE void take(u32 from) {
        choose(from, p.value_rows);
        if (simt::thread() < count) begins.store(simt::thread(), seen(simt::thread()).begin);
    }
    DEVICE float probability(u32 i, u32 key) const { return homes.load(first + i, key - begins.load(i)); }
    DEVICE u32 mass(u32 key) const {
        return mass_of_key(p, seq, key, [&](u32 t, u32 g, u32 column) {
            return homes.load((t - seq.begin) * p.group + g, column);
        });
    }
    DEVICE void weigh(const Unit& unit, u32 begin, u32 end, u32 first, const bool (&wanted)[2],
                      const u32 (&slots)[2]) const {
        const u32 key = first + simt::lane();
#pragma unroll 2
        for (u32 i = begin; i < end; ++i) {
            if (wanted[0]) unit.weights.store(i * Unit::APART + slots[0], probability(i, key));
            if (wanted[1]) unit.weights.store(i * Unit::APART + slots[1], probability(i, key + 32));
            unit.fill(i);
        }
        simt::warp_sync();
    }
};

// The masses of all CTAs of a cluster.
struct ClusterMasses {
    const MassBins& bins;
    u32 ctas;

    DEVICE u64 sum(u32 bin) const {
        u64 sum = 0;
        for (u32 rank = 0; rank < ctas; ++rank) {
            const u64 high = bins.high.remote(rank).load(bin);
            sum += (high << 16) + bins.low.remote(rank).load(bin);
        }
        return sum;
    }
    DEVICE u64 count(u32 bin) const {
        u64 count = 0;
        for (u32 rank = 0; rank < ctas; ++rank) count += bins.counts.remote(rank).load(bin);
        return count;
    }
};

// Brings the scores of this CTA's keys home: each warp takes 16 keys at a time.
template <class T>
DEVICE void bring_scores(const AttentionParams& p, const Sequence& seq, u32 head, const Homes& homes) {
    constexpr u32 MOST = T::PER_VECTOR == 4 ? WIDE_QUERY_ROWS : VALUE_ROWS, KEYS = 16;
    const u32 part = simt::cluster_cta();
    const Keys all = seq.seen_by_any(p);
    const PagedVectors<T, false> keys{p, seq.seq, head};
    const Finish finish{p.scale, p.softcap};
    QueryRows<T, MOST> rows(p, seq, head);
    rows.load(0, MOST);
    // All CTAs of the cluster run from here on, and their shared memory can be written.
    simt::cluster_sync();
    const u32 warps = p.splits * VALUE_WARPS;
    for (u32 block = all.begin / KEYS + part * VALUE_WARPS + simt::warp(); block * KEYS < all.end;
         block += warps) {
        multiply(
            rows, [&](u32 k) { return keys.address(block * KEYS + k); },
            [&](u32 i, u32 k, bool exists, float product) {
                const u32 key = block * KEYS + k;
                if (!rows.sees(i, key)) return;
                homes.store(i, key - rows.begins.load(i), finish.score(product, exists));
            });
    }
}

template <class T, bool VALUES>
DEVICE void on_chip_part(const OnChipParams& params) {
    const AttentionParams& p = params.attention;
    const u32 part = simt::cluster_cta(), of = simt::cta() / p.splits, head = of % p.kv_heads;
    const Sequence seq(p, p.seq_first + of / p.kv_heads);
    const Homes homes{params};
    HomeRows rows(p, seq, head, homes);
    bring_scores<T>(p, seq, head, homes);
    simt::cluster_sync();
    HomeScope scope(params.rows);
    // First its own rows, then some of those of tokens that no sequence has, which are empty.
    u32 i = part;
    u64 empty = p.padding ? padding_begin(p) + simt::cta() : rows_end(p);
#pragma unroll 1
    for (;;) {
        const bool own = i < rows.all();
        if (!own && empty >= rows_end(p)) break;
        scope.take(homes, own ? rows.row(i) : empty, own ? i : part, own ? rows.seen(i) : Keys{0, 0});
        measure_row<VALUES, f32>(params.rows, scope);
        scope.sync();
        if (own) {
            i += p.splits;
            continue;
        }
        if (VALUES && simt::warp() == 0) put_zeros<T>(p, empty);
        empty += simt::ctas();
    }
    if constexpr (VALUES) {
        const Keys all = seq.seen_by_any(p);
        const Chunks chunks(all);
        const MassBins bins(HOME_MASSES);
        bins.clear();
        simt::cluster_sync();
        if (p.budget > 0) {
            const u32 apart = p.splits * VALUE_THREADS;
            for (u32 key = all.begin + part * VALUE_THREADS + simt::thread(); key < all.end; key += apart) {
                bins.add(rows.mass(key));
            }
            simt::cluster_sync();
        }
        const Cut cut(p.budget, ClusterMasses{bins, p.splits});
        if (p.skips && part == 0) put_skips(p, seq, head, cut, all.end - all.begin);
        if (p.budget > 0) simt::block_sync();
        const PagedVectors<T, true> values{p, seq.seq, head};
        Unit unit(p, HOME_BYTES);
        ValuePart<T, HomeRows> own{p, seq, values, cut.bin, all, rows, unit};
        for (u32 number = part; number < chunks.count; number += p.splits) own.chunk(chunks, number);
        simt::cluster_sync();
        // Not `part`: to keep it until here spills 64 bytes on sm_90.
        own.finish(chunks, simt::cluster_cta(), p.splits);
        // No CTA may leave while another reads its shared memory.
        simt::cluster_sync();
    }
}
#endif
