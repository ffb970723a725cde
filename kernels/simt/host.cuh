// simt.cuh on a CPU: every thread is a fiber (scheduler.hpp), and every access is checked (memory.hpp).
#pragma once
#include "collectives.hpp"
#include "memory.hpp"
#include "rounded.hpp"

#define DEVICE inline
#define COLD __attribute__((noinline)) inline
#define SIMT_CLUSTERS 1
#define SIMT_TUNED 1

namespace simt {

DEVICE u32 thread() { return host::self->thread; }
DEVICE u32 threads() { return host::launch->threads; }
DEVICE u32 lane() { return host::self->lane; }
DEVICE u32 warp() { return host::self->thread >> 5; }
DEVICE u32 cta() { return host::self->cta->index; }
DEVICE u32 ctas() { return host::launch->grid; }
DEVICE u32 cluster_cta() { return host::self->cta->rank; }

template <class T>
struct Remote {
    static_assert(sizeof(T) == 4 && host::plain<T>(), "4-byte elements only");
    u32 rank, at, count;
    DEVICE T load(u32 i, Where where = HERE) const {
        return host::read<T>(host::remote_slot(rank, at, count, i, host::Access::read, where));
    }
    DEVICE void store(u32 i, T value, Where where = HERE) const {
        host::write(host::remote_slot(rank, at, count, i, host::Access::write, where), value);
    }
};

template <class T>
struct Shared {
    static_assert(host::plain<T>(), "1, 2, 4, 8 or 16 bytes of plain data");
    u32 at;  // bytes into the arena
    u32 count;
    DEVICE T load(u32 i, Where where = HERE) const {
        return host::read<T>(host::shared_slot(at, count, i, sizeof(T), host::Access::read, where));
    }
    DEVICE void store(u32 i, T value, Where where = HERE) const {
        host::write(host::shared_slot(at, count, i, sizeof(T), host::Access::write, where), value);
    }
    DEVICE void add(u32 i, T value, Where where = HERE) const {
        static_assert(host::countable<T>(), "4 or 8 byte integers only");
        u8* slot = host::shared_slot(at, count, i, sizeof(T), host::Access::atomic, where);
        host::write(slot, static_cast<T>(host::read<T>(slot) + value));
    }
    DEVICE void increment(u32 i, Where where = HERE) const { add(i, 1, where); }
    DEVICE T claim(u32 i, T n, Where where = HERE) const {
        static_assert(host::countable<T>(), "4 or 8 byte integers only");
        u8* slot = host::shared_slot(at, count, i, sizeof(T), host::Access::atomic, where);
        const T before = host::read<T>(slot);
        host::write(slot, static_cast<T>(before + n));
        return before;
    }
    template <class U>
    DEVICE Shared<U> cast(u32 first, u32 n, Where where = HERE) const {
        host::check_cast(at, u64{count} * sizeof(T), first, n, sizeof(U), where);
        return Shared<U>{at + first * static_cast<u32>(sizeof(U)), n};
    }
    DEVICE Remote<T> remote(u32 rank, Where where = HERE) const {
        host::check_rank(rank, where);
        return Remote<T>{rank, at, count};
    }
};

template <class T>
DEVICE Shared<T> arena(u32 offset, u32 count, Where where = HERE) {
    host::check_arena(offset, count, sizeof(T), where);
    return Shared<T>{offset, count};
}

struct Streamed {
    DEVICE explicit Streamed(bool) {}
};

template <class T>
struct Global {
    static_assert(host::plain<T>(), "1, 2, 4, 8 or 16 bytes of plain data");
    u64 address;
    DEVICE explicit Global(u64 address) : address(address) {}
    DEVICE T load(u64 i, Where where = HERE) const {
        host::launch->outcome->load_bytes += sizeof(T);
        return host::read<T>(host::global_slot(address, i, sizeof(T), host::Access::read, where));
    }
    DEVICE T reload(u64 i, Where where = HERE) const { return load(i, where); }
    DEVICE void store(u64 i, T value, Where where = HERE) const {
        host::launch->outcome->store_bytes += sizeof(T);
        host::write(host::global_slot(address, i, sizeof(T), host::Access::write, where), value);
    }
    DEVICE void store(u64 i, T value, Streamed, Where where = HERE) const { store(i, value, where); }
    DEVICE void add(u64 i, T value, Where where = HERE) const {
        static_assert(host::countable<T>(), "4 or 8 byte integers only");
        host::launch->outcome->load_bytes += sizeof(T);
        host::launch->outcome->store_bytes += sizeof(T);
        u8* slot = host::global_slot(address, i, sizeof(T), host::Access::atomic, where);
        host::write(slot, static_cast<T>(host::read<T>(slot) + value));
    }
};

DEVICE void looks(u32 pass, u32 vectors) { host::looks(pass, vectors); }
DEVICE void warp_sync(Where where = HERE) { host::warp_sync(where); }
DEVICE void block_sync(Where where = HERE) { host::block_sync(where); }
DEVICE void cluster_sync(Where where = HERE) { host::cluster_sync(where); }
DEVICE void group_sync(Global<u32> counter, u32 ctas, Where where = HERE) {
    host::group_sync(counter.address, ctas, where);
}
DEVICE bool last_of(Global<u32> counter, u32 ctas, Where where = HERE) {
    return host::last_of(counter.address, ctas, where);
}
DEVICE void load_async(Shared<Vec16> to, Global<Vec16> from, u64 first, u32 count, u32 turn,
                       Where where = HERE) {
    host::load_async(to.at, to.count, from.address, first, count, turn, where);
}
DEVICE void wait_async(u32 turn, bool ahead, Where where = HERE) { host::wait_async(turn, ahead, where); }
DEVICE void release_async() {}

// Collectives: the last lane to come does the work of all 32 at once, in the order of a GPU, so that the bits
// are the same.
template <class R, class Merge>
DEVICE R warp_fold(R value, Merge merge, Where where = HERE) {
    static_assert(sizeof(R) % 4 == 0 && std::is_trivially_copyable_v<R>, "whole words of plain data");
    if (void* const* lanes = host::lanes_at("warp_fold", &value, where)) {
        R folded[32], next[32];
        for (u32 i = 0; i < 32; ++i) folded[i] = *static_cast<R*>(lanes[i]);
        for (u32 mask = 16; mask > 0; mask /= 2) {
            for (u32 i = 0; i < 32; ++i) next[i] = merge(folded[i], folded[i ^ mask]);
            for (u32 i = 0; i < 32; ++i) folded[i] = next[i];
        }
        for (u32 i = 0; i < 32; ++i) *static_cast<R*>(lanes[i]) = folded[i];
        host::wake_warp();
    }
    return value;
}

template <class Merge>
inline u32 in_one_step(const char* what, u32 value, Merge merge, Where where) {
    if (void* const* lanes = host::lanes_at(what, &value, where, WAIT_STEP)) {
        u32 all = *static_cast<u32*>(lanes[0]);
        for (u32 i = 1; i < 32; ++i) all = merge(all, *static_cast<u32*>(lanes[i]));
        for (u32 i = 0; i < 32; ++i) *static_cast<u32*>(lanes[i]) = all;
        host::wake_warp();
    }
    return value;
}
DEVICE u32 warp_add(u32 value, Where where = HERE) {
    return in_one_step("warp_add", value, [](u32 a, u32 b) { return a + b; }, where);
}
DEVICE u32 warp_max(u32 value, Where where = HERE) {
    return in_one_step("warp_max", value, [](u32 a, u32 b) { return a > b ? a : b; }, where);
}
DEVICE u32 warp_min(u32 value, Where where = HERE) {
    return in_one_step("warp_min", value, [](u32 a, u32 b) { return a < b ? a : b; }, where);
}

DEVICE u32 warp_exclusive_sum(u32 value, Where where = HERE) {
    if (void* const* lanes = host::lanes_at("warp_exclusive_sum", &value, where)) {
        u32 sum = 0;
        for (u32 i = 0; i < 32; ++i) {
            u32& mine = *static_cast<u32*>(lanes[i]);
            const u32 below = sum;
            sum += mine;
            mine = below;
        }
        host::wake_warp();
    }
    return value;
}

template <class R>
DEVICE R warp_xor(R value, u32 mask, Where where = HERE) {
    if (void* const* lanes = host::lanes_at("warp_xor", &value, where)) {
        for (u32 i = 0; i < 32; ++i) {
            if (i < (i ^ mask)) std::swap(*static_cast<R*>(lanes[i]), *static_cast<R*>(lanes[i ^ mask]));
        }
        host::wake_warp();
    }
    return value;
}

DEVICE u32 ballot(bool predicate, Where where = HERE) {
    u32 value = predicate;
    if (void* const* lanes = host::lanes_at("ballot", &value, where, WAIT_STEP)) {
        u32 votes = 0;
        for (u32 i = 0; i < 32; ++i) votes |= *static_cast<u32*>(lanes[i]) << i;
        for (u32 i = 0; i < 32; ++i) *static_cast<u32*>(lanes[i]) = votes;
        host::wake_warp();
    }
    return value;
}

}  // namespace simt

#define KERNEL(Params, name, ...) \
    static void name(const Params& params); \
    static void name(const void* params) { name(*static_cast<const Params*>(params)); } \
    static void name([[maybe_unused]] const Params& params)
