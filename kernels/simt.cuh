// The only door to the machine: threads, warps, barriers, clusters, memory, rounded arithmetic. It has one
// contract and two bodies, simt/device.cuh (intrinsics and PTX) and simt/host.cuh (fibers on a CPU, with a
// checker): so every kernel is tested without a GPU.
//
// The contract. T is 1, 2, 4, 8 or 16 bytes of plain data; every index is in elements.
//
//   thread() threads() lane() warp() cta() ctas()   my place in my CTA and in the grid
//   cluster_cta()                                    my CTA's rank in its cluster
//   arena<T>(byte_offset, count) -> Shared<T>        a typed slice of the CTA's dynamic shared memory
//   Shared<T>   .load(i) .store(i, v) .add(i, v)     add is atomic, without a result: no order can leak
//               .increment(i)                        of u32: add(i, 1), in fewer instructions
//               .claim(i, n)                         add, and returns what was there: each thread gets n
//                                                    places, but no result may show which
//               .remote(rank) -> Remote<T>           the same slice in another CTA of the cluster:
//                                                    .load(i) .store(i, v)
//               .cast<U>(first, count)               a slice of a slice, of another type
//   Global<T>(address)                               device memory; i has 64 bits
//               .load(i) .store(i, v) .add(i, v)     a Vec16 that is loaded does not stay in the caches
//               .reload(i)                           the same load, for data that will be read again
//               .store(i, v, Streamed(b))            of a Vec16; if b, nobody reads it soon
//   load_async(Shared<Vec16>, Global<Vec16>, first, count, turn)
//                                                    begins load number `turn` of a CTA, from 0 on; all its
//                                                    threads call it; at most two loads are on their way
//   wait_async(turn, ahead)                          after it all threads of the CTA see what that load
//                                                    brought; `ahead`: the next load has begun too
//   release_async()                                  what this thread did with shared memory comes before
//                                                    the loads that begin behind the next barrier
//   warp_sync() block_sync() cluster_sync()          barriers; they order memory among their threads
//   group_sync(Global<u32> counter, ctas)            barrier of the CTAs with one cta() / ctas; the counter
//                                                    is 0 before its first use and nothing else uses it; a
//                                                    later launch may, with another number of CTAs
//   last_of(Global<u32> counter, ctas)               true for the last of so many CTAs that come here with
//                                                    the counter, which is 0 before and after: it sees what
//                                                    the others did, and they leave device memory alone
//   warp_fold(value, merge)                          every lane gets the fold of all 32, in one fixed tree
//   warp_add(u32) warp_max(u32) warp_min(u32)        the same for these operations, in one step
//   warp_exclusive_sum(u32)                          sum over lower lanes
//   warp_xor(value, mask)                            the value of lane() ^ mask
//   ballot(bool)
//   low_halves(a, b) high_halves(a, b)               the low, the high 16 bits of both; a is the lower half
//   multiply_halves(c, a, b)                         c += a b of a warp, a 16 x 16, b 16 x 8, c of f32: the
//   multiply_bfloats(c, a, b)                        instruction mma.m16n8k16, each lane with its fragments.
//                                                    With g = lane() / 4 and t = lane() % 4, two elements a
//                                                    word: a has rows g, g + 8 at 2t, then both at 2t + 8; b
//                                                    has column g at rows 2t, 2t + 8; c has row g at columns
//                                                    2t, 2t + 1, then row g + 8. The products are exact, and
//                                                    order and rounding of their sums are the device's
//   looks(pass, vectors)                             this thread is about to look at so many 16-byte
//                                                    vectors of scores; only the simulator counts them
//
// Rules that one of the two bodies cannot check: all threads of a collective or barrier call it at one line
// of the source; no loop waits; no order comes from an atomic; a compiler may contract no arithmetic, so
// every rounding has a name.
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
