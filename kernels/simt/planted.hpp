// The table of planted faults, and the functions that run them.
#pragma once
#include "unit_faults.cu"
#include "launch.hpp"

namespace faults {

template <void (*BODY)(const RowParams&)>
void run(const void* params) {
    BODY(*static_cast<const RowParams*>(params));
}

struct Fault {
    const char* name;  // "what is planted: what the message must say", or "what is planted, mended: clean"
    host::Kernel kernel;
    u32 cluster_ctas;
};
#define FAULT(name, says, body, cluster_ctas, together) \
    Fault{name ": " says, {#body, run<body<false>>, THREADS, host::Together::together}, cluster_ctas}, \
        Fault{name ", mended: clean", {#body, run<body<true>>, THREADS, host::Together::together}, cluster_ctas},
constexpr Fault ALL[] = {
    FAULT("increment without an atomic", "race", increment, 1, cluster)
    FAULT("no CTA barrier", "race", cta_barrier, 1, cluster)
    FAULT("a vote for a warp barrier", "race", warp_barrier, 1, cluster)
    FAULT("a warp barrier for a CTA barrier", "race", late_write, 1, cluster)
    FAULT("bulk copy not waited for", "load_async before wait_async", bulk_copy, 1, cluster)
    FAULT("three loads on their way", "load_async out of turn", three_loads, 1, cluster)
    FAULT("shared index past its slice", "shared index past its slice", shared_index, 1, cluster)
    FAULT("global index past its buffer", "global index past its buffer", global_index, 1, cluster)
    FAULT("write to what is read-only", "read-only buffer", read_only, 1, cluster)
    FAULT("barrier in a divergent branch", "barrier divergence", divergent, 1, cluster)
    FAULT("a lane that has returned", "has returned", returned, 1, cluster)
    FAULT("a CTA that misses its cluster", "barrier divergence", cluster_divergent, 2, cluster)
    FAULT("ring too short between grid barriers", "race", ring, 1, grid)
    FAULT("read of what nobody wrote", "nobody wrote", unwritten, 1, cluster)
    FAULT("remote read with no cluster barrier", "race", remote_read, 2, cluster)
    FAULT("exit before a remote read", "exit before a remote access", early_exit, 2, cluster)
    FAULT("global memory between CTAs", "race", between_ctas, 1, cluster)
    FAULT("a sum before the last CTA has come", "race", early_sum, 1, cluster)
    FAULT("a store behind last_of", "device memory after last_of", late_store, 1, cluster)
    FAULT("a slot of the last unit", "race", stale_slot, 1, cluster)
    FAULT("values before their slots are known", "race", early_values, 1, cluster)
    FAULT("a split counted twice", "race", split_twice, 1, cluster)
    FAULT("scores that are not at home yet", "race", not_home_yet, 2, cluster)
    FAULT("a CTA that may not run yet", "remote access before", not_running_yet, 2, cluster)
};
constexpr u32 COUNT = sizeof(ALL) / sizeof(ALL[0]);

}  // namespace faults

extern "C" const char* critbeta_simt_fault_name(u32 index) {
    return index < faults::COUNT ? faults::ALL[index].name : nullptr;
}

// As critbeta_simt_launch: 0 if nothing was found, 1 and a message if something was.
extern "C" int critbeta_simt_fault(u32 index, u64 seed, u32 shadow, SimtOutcome* outcome) {
    if (!outcome || index >= faults::COUNT) return 2;
    // The buffers lie apart from each other: an index past one buffer and in the next is a fault that nothing
    // can see.
    constexpr u64 BYTES = faults::WORDS * 4, APART = BYTES + 64;
    alignas(16) u8 memory[3 * APART] = {};
    RowParams params{};
    params.scores = static_cast<u64>(reinterpret_cast<std::uintptr_t>(memory));
    params.out = params.scores + APART;
    params.workspace = params.out + APART;
    const SimtBuffer buffers[] = {
        {params.scores, BYTES, 0, 0}, {params.out, BYTES, 1, 0}, {params.workspace, BYTES, 1, 0}};
    const faults::Fault& fault = faults::ALL[index];
    const SimtLaunch launch{0,       faults::GRID, fault.cluster_ctas, faults::SHARED_BYTES, seed,
                            buffers, 3,            &params,            shadow,               0};
    return simt::host::run_launch(fault.kernel, launch, *outcome);
}
