// simt.cuh on a GPU.
#pragma once

#define DEVICE __device__ __forceinline__
// Runs rarely, and is full of constants that would occupy registers if it were inlined.
#define COLD static __device__ __noinline__
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900  // the host pass of nvcc only parses
#endif
#define SIMT_CLUSTERS (__CUDA_ARCH__ >= 900)
#define SIMT_TUNED (__CUDA_ARCH__ == 900)

namespace simt {

// The place of a collective in the source: nothing here, file and line on the host.
struct Where {};
#define HERE ::simt::Where()

DEVICE u32 thread() { return threadIdx.x; }
DEVICE u32 threads() { return blockDim.x; }
DEVICE u32 lane() { return threadIdx.x & 31; }
DEVICE u32 warp() { return threadIdx.x >> 5; }
DEVICE u32 cta() { return blockIdx.x; }
DEVICE u32 ctas() { return gridDim.x; }

DEVICE void looks(u32, u32) {}
DEVICE void warp_sync(Where = HERE) { __syncwarp(); }
DEVICE void block_sync(Where = HERE) { __syncthreads(); }

#if __CUDA_ARCH__ >= 900
DEVICE u32 cluster_cta() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE void cluster_sync(Where = HERE) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#else
// Clusters begin with sm_90; below it there are no cluster variants.
DEVICE u32 cluster_cta() { return 0; }
DEVICE void cluster_sync(Where = HERE) { __syncthreads(); }
#endif

}  // namespace simt

#include "spaces.cuh"

namespace simt {

DEVICE void group_sync(Global<u32> counter, u32 ctas, Where = HERE) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        // All steps together flip the top bit, and leave the other bits at 0.
        constexpr u32 TURN = 1u << 31;
        const u32 before = atomicAdd(counter.data(), blockIdx.x % ctas == 0 ? TURN - (ctas - 1) : 1u);
        u32 now;
        do {
            const u64 at = counter.address;
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(at) : "memory");
        } while (((now ^ before) & TURN) == 0);
        __threadfence();
    }
    __syncthreads();
}

DEVICE bool last_of(Global<u32> counter, u32 ctas, Where = HERE) {
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        if ((last = atomicAdd(counter.data(), 1u) == ctas - 1)) *counter.data() = 0;
        __threadfence();
    }
    return __syncthreads_or(last);
}

#if __CUDA_ARCH__ >= 900
// Two loads may be on their way, each with its barrier.
DEVICE u32 async_barrier(u32 turn) {
    __shared__ alignas(8) u64 barriers[2];
    return shared_address(&barriers) + 8 * (turn & 1);
}
#endif

DEVICE void load_async(Shared<Vec16> to, Global<Vec16> from, u64 first, u32 count, u32 turn) {
#if __CUDA_ARCH__ >= 900
    // One thread begins bulk copies, which the copy engine does; they complete on a barrier.
    const u32 barrier = async_barrier(turn);
    if (threadIdx.x == 0) {
        const u32 bytes = count * 16;
        if (turn < 2) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
                         "fence.mbarrier_init.release.cluster;\n\t"
                         "fence.proxy.async.shared::cta;" ::"r"(barrier) : "memory");
        }
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::
                         "r"(barrier), "r"(bytes) : "memory");
        constexpr u32 PIECE = 4096;  // vectors per copy: several copies are in flight at once
        for (u32 done = 0; done < count; done += PIECE) {
            const u32 n = count - done < PIECE ? count - done : PIECE;
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                         "[%0], [%1], %2, [%3];" ::
                         "r"(shared_address(to.data() + done)), "l"(from.address + 16 * (first + done)),
                         "r"(n * 16), "r"(barrier) : "memory");
        }
    }
#else
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to.data() + i)),
                     "l"(from.address + 16 * (first + i))
                     : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

DEVICE void wait_async(u32 turn, [[maybe_unused]] bool ahead, Where = HERE) {
#if __CUDA_ARCH__ >= 900
    __syncthreads();  // from here on the barrier is initialised
    // Each barrier completes a phase at every second turn.
    const u32 parity = turn / 2 & 1;
    u32 done = 0;
    while (!done) {
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done) : "r"(async_barrier(turn)), "r"(parity) : "memory");
    }
#else
    if (ahead) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
#endif
    __syncthreads();
}

// The copy engine reads and writes shared memory by a proxy of its own.
DEVICE void release_async() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

template <class R>
DEVICE R warp_xor(const R& value, u32 mask, Where = HERE) {
    static_assert(sizeof(R) % 4 == 0, "whole words");
    R result;
    for (u32 i = 0; i < sizeof(R) / 4; ++i) {
        const u32 word = reinterpret_cast<const u32*>(&value)[i];
        reinterpret_cast<u32*>(&result)[i] = __shfl_xor_sync(~0u, word, mask);
    }
    return result;
}

template <class R, class Merge>
DEVICE R warp_fold(R value, Merge merge, Where = HERE) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) value = merge(value, warp_xor(value, mask));
    return value;
}

DEVICE u32 warp_add(u32 value, Where = HERE) { return __reduce_add_sync(~0u, value); }
DEVICE u32 warp_max(u32 value, Where = HERE) { return __reduce_max_sync(~0u, value); }
DEVICE u32 warp_min(u32 value, Where = HERE) { return __reduce_min_sync(~0u, value); }

DEVICE u32 warp_exclusive_sum(u32 value, Where = HERE) {
    u32 sum = value;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        const u32 below = __shfl_up_sync(~0u, sum, d);
        if (lane() >= d) sum += below;
    }
    return sum - value;
}

DEVICE u32 ballot(bool predicate, Where = HERE) { return __ballot_sync(~0u, predicate); }

#define OF_TYPE(name, type) \
    DEVICE void name(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], Where = HERE) { \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 " \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
    }
OF_TYPE(multiply_halves, "f16")
OF_TYPE(multiply_bfloats, "bf16")
#undef OF_TYPE

}  // namespace simt

#include "arithmetic.cuh"

// RESIDENT: at least so many CTAs share an SM: a thread has at most 65,536 / (THREADS * RESIDENT) registers.
#define KERNEL(Params, name, THREADS, RESIDENT) \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) \
        name(const __grid_constant__ Params params)
