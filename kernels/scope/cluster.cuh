// One row per cluster (sm_90 and above): each CTA holds a part of the row, and reads the results of the
// others in their shared memory.
#pragma once
#include "block.cuh"

// 512 bytes more for CTAs of 256 threads would leave 65,536 bf16 no room for three CTAs of a cluster of 2.
constexpr u32 cluster_control_bytes(u32 threads) {
    return threads > 256 ? WIDE_CLUSTER_CONTROL_BYTES : CLUSTER_CONTROL_BYTES;
}

template <u32 T>
struct ClusterScope : BlockScope<T, false, BINS, CANDIDATES, cluster_control_bytes(T)> {
    using Base = BlockScope<T, false, BINS, CANDIDATES, cluster_control_bytes(T)>;
    using Base::counts, Base::list;
    // records: of the part, for two turns. others: counts that other CTAs may still read.
    static constexpr u32 USED = Base::USED + 4 * (2 * RECORD_WORDS + Base::BINS + SPARE);
    static_assert(USED <= cluster_control_bytes(T), "arena of a CTA");
    static constexpr bool SHARES = true;
    Shared<u32> records, others;
    u32 ctas;

    DEVICE explicit ClusterScope(const RowParams& p) : Base(p), ctas(p.ctas) {
        records = simt::arena<u32>(Base::USED, 2 * RECORD_WORDS);
        others = simt::arena<u32>(Base::USED + 8 * RECORD_WORDS, Base::BINS + SPARE);
        this->row = simt::cta() / ctas;
    }
    DEVICE u32 part() const { return simt::cluster_cta(); }
    DEVICE u32 parts() const { return ctas; }
    DEVICE bool leads() const { return part() == 0 && simt::thread() == 0; }

    // The values of all parts: lane p of every warp gets that of part p. Two turns, as in a fold.
    template <class R>
    DEVICE R exchange(R value, R none, simt::Where at = HERE) {
        this->turns ^= 2;
        if (this->thread() == 0) store_record(records, this->record_turn(), value);
        simt::cluster_sync(at);
        if (simt::lane() >= ctas) return none;
        const Remote<u32> there = records.remote(simt::lane());
        R theirs;
        u32* words = reinterpret_cast<u32*>(&theirs);
        for (u32 w = 0; w < sizeof(R) / 4; ++w) words[w] = there.load(this->record_turn() * RECORD_WORDS + w);
        return theirs;
    }
    template <class R, class Merge>
    DEVICE R reduce(R value, R none, Merge merge, simt::Where at = HERE) {
        value = this->fold(value, none, merge, at);
        return warp_fold(exchange(value, none, at), merge, at);
    }
    // The sums go to the other slice, which no CTA reads since the last barrier. Then the slices change
    // places.
    DEVICE void merge_counts(simt::Where at = HERE) {
        simt::cluster_sync(at);
        constexpr u32 OWN = (Base::BINS + T - 1) / T;
        u32 sums[OWN] = {};
#pragma unroll 2
        for (u32 rank = 0; rank < ctas; ++rank) {
            const Remote<u32> there = counts.remote(rank);
#pragma unroll
            for (u32 i = 0; i < OWN; ++i) {
                const u32 b = this->thread() + i * T;
                if (b < Base::BINS) sums[i] += there.load(b);
            }
        }
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) {
            const u32 b = this->thread() + i * T;
            if (b < Base::BINS) others.store(b, sums[i]);
        }
        const Shared<u32> sums_of_all = others;
        others = counts;
        counts = sums_of_all;
        this->sync(at);
    }
    // Each CTA appends to its own list, and then reads those of all, in the order of the CTAs.
    DEVICE u32 list_end(simt::Where at = HERE) {
        constexpr u32 EACH = Base::CANDIDATES / T;
        simt::cluster_sync(at);
        u32 keys[EACH] = {}, all = 0;
#pragma unroll 1
        for (u32 rank = 0; rank < ctas; ++rank) {
            const Remote<u32> there = list.remote(rank);
            const u32 n = there.load(Base::CANDIDATES);
#pragma unroll
            for (u32 k = 0; k < EACH; ++k) {
                const u32 i = this->thread() + k * T - all;
                if (i < n && i < Base::CANDIDATES) keys[k] = there.load(i);
            }
            all += n;
        }
        simt::cluster_sync(at);
#pragma unroll
        for (u32 k = 0; k < EACH; ++k) {
            if (this->thread() + k * T < all) list.store(this->thread() + k * T, keys[k]);
        }
        this->sync(at);
        return all;
    }
    // No CTA may leave while another reads its shared memory.
    DEVICE void finish(simt::Where at = HERE) { simt::cluster_sync(at); }
};
