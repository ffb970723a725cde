// Planted faults between CTAs: of a cluster, of a group, and of the grid.
#pragma once
#include "faults.cu"

namespace faults {

template <bool MENDED>
void cluster_divergent(const RowParams&) {
    if (MENDED || cluster_cta() == 0) {
        cluster_sync();
    } else {
        block_sync();
    }
}

template <bool MENDED>
void ring(const RowParams& params) {
    constexpr u32 TURNS = MENDED ? 2 : 1;
    const Global<u32> counter(params.workspace), slots(params.workspace + 128);
    u32 sum = 0;
    for (u32 turn = 0; turn < 4; ++turn) {
        const u32 slot = turn % TURNS * ctas();
        if (thread() == 0) slots.store(slot + cta(), sum + turn);
        group_sync(counter, ctas());
        for (u32 c = 0; c < ctas(); ++c) sum += slots.load(slot + c);
    }
    Global<u32>(params.out).store(cta() * THREADS + thread(), sum);
}

template <bool MENDED>
void remote_read(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    words.store(thread(), 0);
    cluster_sync();
    words.store(thread(), cta());
    if (MENDED) {
        cluster_sync();
    } else {
        block_sync();
    }
    const u32 word = words.remote(cluster_cta() ^ 1).load(thread());
    cluster_sync();
    Global<u32>(params.out).store(cta() * THREADS + thread(), word);
}

// It is found whether the CTA that is read ends before the read or after it.
template <bool MENDED>
void early_exit(const RowParams& params) {
    const Shared<u32> words = arena<u32>(0, THREADS);
    words.store(thread(), cta());
    cluster_sync();
    const u32 word = cluster_cta() == 0 && thread() == 0 ? words.remote(1).load(5) : 0;
    Global<u32>(params.out).store(cta() * THREADS + thread(), word);
    if (MENDED) cluster_sync();
}

template <bool MENDED>
void between_ctas(const RowParams& params) {
    const Global<u32> words(params.out);
    words.store(cta() * THREADS + thread(), thread());
    const u32 source = MENDED ? cta() : (cta() + 1) % ctas();
    words.store(WORDS / 2 + cta() * THREADS + thread(), words.load(source * THREADS + thread()));
}

// One CTA too few is waited for.
template <bool MENDED>
void early_sum(const RowParams& params) {
    const Global<u32> counter(params.workspace), words(params.out);
    words.store(cta() * THREADS + thread(), thread());
    if (!last_of(counter, MENDED ? ctas() : ctas() - 1)) return;
    u32 sum = 0;
    for (u32 c = 0; c < ctas(); ++c) sum += words.load(c * THREADS + thread());
    counter.store(1 + thread(), sum);
}

template <bool MENDED>
void late_store(const RowParams& params) {
    const bool last = last_of(Global<u32>(params.workspace), ctas());
    if (MENDED && !last) return;
    Global<u32>(params.out).store(cta() * THREADS + thread(), 1);
}

}  // namespace faults
