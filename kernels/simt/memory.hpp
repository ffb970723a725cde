// Every access of a kernel passes here. Its bounds, alignment and rights are always checked; the shadow
// checks it if the launch says so.
#pragma once
#include <type_traits>

#include "shadow.hpp"

namespace simt::host {

[[noreturn]] __attribute__((noinline, cold)) inline void past_slice(u32 at, u32 count, u64 index, u32 size,
                                                                    Where where) {
    if (index >= count && count) {
        fault("shared index past its slice: %s, index %llu of %u elements of %u bytes, at %s", Name().text,
              index, count, size, Place(where).text);
    }
    fault("shared slice past the arena, or misaligned: %s, %u elements of %u bytes from byte %u of %u, at %s",
          Name().text, count, size, at, launch->shared_bytes, Place(where).text);
}

// The bytes of element `index` of a slice in the arena of `cta`.
inline u8* shared_slot(const Cta& cta, u32 at, u32 count, u64 index, u32 size, Where where) {
    const u64 first = at + index * size;
    const bool inside = index < count && first + size <= launch->shared_bytes && at % size == 0;
    if (!inside) past_slice(at, count, index, size, where);
    return cta.arena + first;
}

[[noreturn]] __attribute__((noinline, cold)) inline void left_early(const Cta& target, u32 thread,
                                                                    Where where) {
    fault("exit before a remote access: CTA %u ends with no cluster_sync after %s used its memory, at %s",
          target.index, Name(thread).text, Place(where).text);
}

[[noreturn]] __attribute__((noinline, cold)) inline void outside(u64 base, u64 index, u64 count, u32 size,
                                                                 Access access, Where where) {
    const char* verb = access == Access::read ? "read" : access == Access::write ? "write" : "add";
    const u64 address = base + index * size;
    if (address % size) {
        fault("misaligned global %s: %s, address 0x%llx of an element of %u bytes, at %s", verb, Name().text,
              address, size, Place(where).text);
    }
    for (u64 b = 0; b < launch->buffer_count; ++b) {
        const SimtBuffer& buffer = launch->buffers[b];
        const bool inside = address - buffer.address < buffer.bytes &&
                            count * size <= buffer.bytes - (address - buffer.address);
        if (inside) {
            fault("global %s of a read-only buffer: %s, byte %llu of buffer %llu, at %s", verb, Name().text,
                  address - buffer.address, b, Place(where).text);
        }
    }
    for (u64 b = 0; b < launch->buffer_count; ++b) {
        const SimtBuffer& buffer = launch->buffers[b];
        if (base - buffer.address <= buffer.bytes) {
            fault("global index past its buffer: %s, %s of index %llu (%llu elements of %u bytes) from byte "
                  "%llu of buffer %llu, which has %llu bytes, at %s",
                  Name().text, verb, index, count, size, base - buffer.address, b, buffer.bytes,
                  Place(where).text);
        }
    }
    fault("global address outside every buffer: %s, %s at 0x%llx, index %llu of elements of %u bytes, at %s",
          Name().text, verb, base, index, size, Place(where).text);
}

// `count` elements from element `index` of the memory that begins at address `base`.
inline u8* global_range(u64 base, u64 index, u64 count, u32 size, Access access, Where where) {
    const u64 address = base + index * size;
    u64& last = access == Access::read ? launch->last_read : launch->last_written;
    for (u64 tried = 0; tried < launch->buffer_count; ++tried) {
        const SimtBuffer& buffer = launch->buffers[last];
        const u64 offset = address - buffer.address;
        if (offset < buffer.bytes && count * size <= buffer.bytes - offset &&
            (access == Access::read || buffer.writable) && address % size == 0 && index < u64{1} << 56) {
            return reinterpret_cast<u8*>(static_cast<std::uintptr_t>(address));
        }
        last = last + 1 == launch->buffer_count ? 0 : last + 1;
    }
    outside(base, index, count, size, access, where);
}

inline u8* global_slot(u64 base, u64 index, u32 size, Access access, Where where) {
    u8* slot = global_range(base, index, 1, size, access, where);
    if (launch->shadow) launch->shadow->touch_global(base + index * size, size, access, where);
    return slot;
}

inline u8* shared_slot(u32 at, u32 count, u32 index, u32 size, Access access, Where where) {
    u8* slot = shared_slot(*self->cta, at, count, index, size, where);
    if (launch->shadow) launch->shadow->touch_shared(*self->cta, at + u64{index} * size, size, access, where);
    return slot;
}

// An element in the arena of another CTA of the cluster. This CTA must have begun, and must not have ended.
inline u8* remote_slot(u32 rank, u32 at, u32 count, u32 index, Access access, Where where) {
    Cta& target = self->cta[static_cast<i64>(rank) - self->cta->rank];
    if (&target != self->cta) {
        if (!target.cluster->barrier.sync) {
            fault("remote access before the first cluster_sync: %s, of CTA %u, which may not run yet, at %s",
                  Name().text, target.index, Place(where).text);
        }
        if (target.returned == launch->threads) left_early(target, thread_of_grid(*self), where);
        target.remote_use = RemoteUse{thread_of_grid(*self), launch->clock, true, where};
    }
    u8* slot = shared_slot(target, at, count, index, 4, where);
    if (launch->shadow) launch->shadow->touch_shared(target, at + u64{index} * 4, 4, access, where);
    return slot;
}

inline void check_rank(u32 rank, Where where) {
    if (rank < launch->cluster_ctas) return;
    fault("no such CTA in the cluster: %s, rank %u of %u, at %s", Name().text, rank,
          launch->cluster_ctas, Place(where).text);
}
inline void check_arena(u32 at, u32 count, u32 size, Where where) {
    if (at % size || at + u64{count} * size > launch->shared_bytes) past_slice(at, count, 0, size, where);
}
inline void check_cast(u32 at, u64 bytes, u32 first, u32 count, u32 size, Where where) {
    if (at % size == 0 && (u64{first} + count) * size <= bytes) return;
    fault("cast past its slice, or misaligned: %s, %u elements of %u bytes from element %u of a slice of "
          "%llu bytes at byte %u, at %s",
          Name().text, count, size, first, bytes, at, Place(where).text);
}

template <class T>
T read(const u8* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}
template <class T>
void write(u8* to, T value) {
    std::memcpy(to, &value, sizeof(T));
}

template <class T>
constexpr bool plain() {
    constexpr auto size = sizeof(T);
    return size <= 16 && (size & (size - 1)) == 0 && std::is_trivially_copyable_v<T>;
}
// There are no atomics of floats: their order would show.
template <class T>
constexpr bool countable() {
    return std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);
}

}  // namespace simt::host
