// Planted faults of the attention kernels: lists of keys, sums of parts, scores that go home.
#pragma once
#include "grid_faults.cu"

namespace faults {

constexpr u32 UNITS = 3;

// Lists of `kept` keys, unit after unit, and the sum of what the listed slots hold.
template <bool STALE, bool EARLY>
void listed(const RowParams& params) {
    const Shared<u32> slots = arena<u32>(0, THREADS), keys = slots.cast<u32>(32 * warp(), 32);
    slots.store(thread(), 0);
    block_sync();
    u32 sum = 0;
    for (u32 unit = 0; unit < UNITS; ++unit) {
        // All lanes are done with the last unit.
        if (!STALE) warp_sync();
        const bool kept = (lane() + unit) % 3 != 0;
        const u32 votes = ballot(kept);
        if (kept) keys.store(count_ones(votes & ((1u << lane()) - 1)), 32 * unit + lane());
        if (!EARLY) warp_sync();
        for (u32 i = lane() % 2; i < count_ones(votes); i += 2) sum += keys.load(i);
    }
    Global<u32>(params.out).store(cta() * THREADS + thread(), sum);
}

template <bool MENDED>
void stale_slot(const RowParams& params) {
    listed<!MENDED, false>(params);
}

template <bool MENDED>
void early_values(const RowParams& params) {
    listed<false, !MENDED>(params);
}

// Two CTAs have the same part of the keys, and the last one adds up all parts.
template <bool MENDED>
void split_twice(const RowParams& params) {
    const Global<u32> counter(params.workspace), parts(params.out);
    const u32 part = MENDED ? cta() : cta() / 2;
    parts.store(part * THREADS + thread(), thread());
    if (!last_of(counter, ctas())) return;
    u32 sum = 0;
    for (u32 c = 0; c < (MENDED ? ctas() : ctas() / 2); ++c) sum += parts.load(c * THREADS + thread());
    counter.store(1 + thread(), sum);
}

// Two CTAs bring scores to each other's shared memory, and each reads those that came.
template <bool RUNS, bool WAITS>
void brought(const RowParams& params) {
    const Shared<u32> home = arena<u32>(0, THREADS);
    home.store(thread(), 0);
    if (RUNS) {
        cluster_sync();
    } else {
        block_sync();
    }
    home.remote(1 - cluster_cta()).store(thread(), thread());
    if (WAITS) cluster_sync();
    Global<u32>(params.out).store(cta() * THREADS + thread(), home.load((thread() + 1) % THREADS));
    cluster_sync();
}

template <bool MENDED>
void not_home_yet(const RowParams& params) {
    brought<true, MENDED>(params);
}

template <bool MENDED>
void not_running_yet(const RowParams& params) {
    brought<MENDED, true>(params);
}

}  // namespace faults
