// The memory of simt.cuh on a GPU: shared memory of a CTA and of its cluster, and device memory.
#pragma once

namespace simt {

extern __shared__ Vec16 dynamic_shared[];

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

#if __CUDA_ARCH__ >= 900
// A slice of shared memory of another CTA of the cluster.
template <class T>
struct Remote {
    static_assert(sizeof(T) == 4, "4-byte elements only");
    u32 at;
    DEVICE T load(u32 i) const {
        u32 bits;
        asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(bits) : "r"(at + 4 * i) : "memory");
        return reinterpret_cast<const T&>(bits);
    }
    DEVICE void store(u32 i, T value) const {
        const u32 bits = reinterpret_cast<const u32&>(value);
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(at + 4 * i), "r"(bits) : "memory");
    }
};
#endif

template <class T>
struct Shared {
    u32 at;  // bytes into the arena; the host also keeps the count, and checks it
    DEVICE T* data() const { return reinterpret_cast<T*>(reinterpret_cast<u8*>(dynamic_shared) + at); }
    DEVICE T load(u32 i) const { return data()[i]; }
    DEVICE void store(u32 i, T value) const { data()[i] = value; }
    DEVICE void add(u32 i, T value) const { atomicAdd(&data()[i], value); }
    DEVICE T claim(u32 i, T n) const { return atomicAdd(&data()[i], n); }
    // By its 32-bit address: then the compiler folds the base of a biased index into it, 2 slots less.
    DEVICE void increment(u32 i) const {
        asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(shared_address(dynamic_shared) + at + 4 * i) : "memory");
    }
    template <class U>
    DEVICE Shared<U> cast(u32 first, u32) const {
        return Shared<U>{at + first * static_cast<u32>(sizeof(U))};
    }
#if __CUDA_ARCH__ >= 900
    DEVICE Remote<T> remote(u32 rank) const {
        Remote<T> there;
        const u32 here = shared_address(data());
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there.at) : "r"(here), "r"(rank));
        return there;
    }
#endif
};

template <class T>
DEVICE Shared<T> arena(u32 offset, u32) {
    return Shared<T>{offset};
}

// How stores leave the L2 cache: in their turn, or before other data. A choice between two stores took 1 slot
// more a score of f32 (2026-11-30).
struct Streamed {
    u64 policy;
    DEVICE explicit Streamed(bool streamed) {
        if (streamed) {
            asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        } else {
            asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
        }
    }
};

// Device memory. Rows are read once: a streaming hint says so to the caches.
template <class T>
struct Global {
    u64 address;
    DEVICE explicit Global(u64 address) : address(address) {}
    DEVICE T* data() const { return reinterpret_cast<T*>(address); }
    DEVICE T load(u64 i) const { return data()[i]; }
    DEVICE T reload(u64 i) const { return data()[i]; }
    DEVICE void store(u64 i, T value) const { data()[i] = value; }
    DEVICE void store(u64 i, Vec16 v, Streamed how) const {
        asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::
                         "l"(address + 16 * i), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]),
                         "l"(how.policy) : "memory");
    }
    DEVICE void add(u64 i, T value) const { atomicAdd(&data()[i], value); }
};
template <>
DEVICE Vec16 Global<Vec16>::load(u64 i) const {
    const uint4 v = __ldcs(reinterpret_cast<const uint4*>(address) + i);
    return Vec16{{v.x, v.y, v.z, v.w}};
}
template <>
DEVICE void Global<Vec16>::store(u64 i, Vec16 v) const {
    reinterpret_cast<uint4*>(address)[i] = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

}  // namespace simt
