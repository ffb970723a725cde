// The only door to the machine: threads, warps, barriers, clusters, memory, rounded arithmetic. Two bodies behind one contract:
// simt/device.cuh (intrinsics and PTX) and simt/host.cuh (fibers on a CPU, with a checker), so that every kernel
// runs and is tested without a GPU.
//
// The contract. T is 1, 2, 4, 8 or 16 bytes of plain data; every index is in elements.
//
//   thread() threads() lane() warp() cta() ctas()   who am I: in my CTA, in the grid
//   cluster_cta()                                    my CTA's rank in its cluster
//   arena<T>(byte_offset, count) -> Shared<T>        a typed slice of the CTA's dynamic shared memory
//   Shared<T>   .load(i) .store(i, v) .add(i, v)     add: atomic, no result, so that no order can leak
//               .remote(rank) -> Remote<T>           the same slice in another CTA of the cluster: .load(i) .store(i, v)
//               .cast<U>(first, count)               a slice of a slice, of another type
//   Global<T>(address)  .load(i) .store(i, v) .add(i, v)    device memory; i is 64 bits wide. Vec16 passes the caches by, but for
//               .reload(i)                           what will be read again
//   load_async(Shared<Vec16>, Global<Vec16>, first, count) begin, by all threads of the CTA, once per launch and CTA;
//   wait_async()                                     after it all threads of the CTA see what was loaded
//   warp_sync() block_sync() cluster_sync()          barriers; they order memory among their threads
//   group_sync(Global<u32> counter, ctas)            barrier of `ctas` whole CTAs; counter starts at 0 and is theirs alone
//   warp_fold(value, merge)                          every lane gets the fold of all 32, in one fixed tree
//   warp_exclusive_sum(u32)                          sum over lower lanes
//   ballot(bool)
//
// Rules, because one of the two bodies cannot see the fault: collectives and barriers at one source line by all their threads; no
// loop that waits; no order from an atomic; no arithmetic that a compiler may contract: named roundings below.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef int i32;

struct alignas(16) Vec16 {
    u32 word[4];
};

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include "simt/device.cuh"
#else
#include "simt/host.cuh"
#endif

using simt::Global;
using simt::Shared;
#if SIMT_CLUSTERS
using simt::Remote;
#endif
