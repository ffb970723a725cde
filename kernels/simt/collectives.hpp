// Barriers and collectives: one operation of the host each, done by the thread that comes last.
#pragma once
#include "memory.hpp"

namespace simt::host {

// What all 32 lanes brought, in the last to come, which answers with wake_warp(); null in the others, woken.
inline void* const* lanes_at(const char* what, void* mine, Where where) {
    Warp& warp = *self->warp;
    warp.slots[self->lane] = mine;
    return last_to(warp.meeting, 32, what, where) ? warp.slots : nullptr;
}
inline void wake_warp() {
    wake(*self->warp);
    give_way();
}

// Only warp_sync orders memory; a shuffle or a vote does not.
inline void warp_sync(Where where) {
    if (!lanes_at("warp_sync", nullptr, where)) return;
    complete(self->warp->meeting);
    wake_warp();
}

inline void block_sync(Where where) {
    Cta& cta = *self->cta;
    if (!last_to(cta.meeting, launch->threads, "block_sync", where)) return;
    complete(cta.meeting);
    wake(cta);
    give_way();
}

inline void cluster_sync(Where where) {
    Cta& cta = *self->cta;
    const u32 ctas = launch->kernel->cluster_ctas;
    if (!last_to(cta.cluster->meeting, ctas * launch->threads, "cluster_sync", where)) return;
    complete(cta.cluster->meeting);
    Cta* first = &cta - cta.rank;
    for (u32 i = 0; i < ctas; ++i) wake(first[i]);
    give_way();
}

// The barrier whose counter this is; made when its first thread comes.
inline Group& group_of(u64 counter, u32 ctas, Where where) {
    Cta& cta = *self->cta;
    if (cta.group) {
        if (cta.group->counter == counter && cta.group->ctas == ctas) return *cta.group;
        fault("a second group_sync counter, or another count of CTAs: %s, of %u CTAs after %u, at %s:%u", Name(thread_of_grid(*self)).text,
              ctas, cta.group->ctas, base_name(where.file), where.line);
    }
    for (Group& group : launch->groups) {
        if (group.counter == counter && group.ctas == ctas) return *(cta.group = &group);
    }
    if (ctas == 0 || ctas > launch->ctas.size()) {
        fault("group_sync of %u CTAs, of which %zu run together: %s, at %s:%u", ctas, launch->ctas.size(),
              Name(thread_of_grid(*self)).text, base_name(where.file), where.line);
    }
    launch->groups.push_back(Group{counter, ctas, 0, {}});
    return *(cta.group = &launch->groups.back());
}

inline void group_sync(u64 counter, u32 ctas, Where where) {
    Group& group = group_of(counter, ctas, where);
    if (!last_to(group.meeting, ctas * launch->threads, "group_sync", where)) return;
    u8* slot = global_range(counter, 0, 1, 4, Access::atomic, where);
    if (read<u32>(slot) != group.turns * ctas) {
        fault("group_sync counter holds %u, not the %u arrivals of its CTAs: zero it before the launch and leave it alone, at %s:%u",
              read<u32>(slot), group.turns * ctas, base_name(where.file), where.line);
    }
    write(slot, ++group.turns * ctas);
    complete(group.meeting);
    for (Cta& cta : launch->ctas) {
        if (cta.group == &group) wake(cta);
    }
    give_way();
}

inline void copy_async(Cta& cta, Where where) {
    Async& async = cta.async;
    const u8* from = global_range(async.source, 0, async.count, 16, Access::read, where);
    std::memcpy(cta.arena + async.at, from, std::size_t{16} * async.count);
    launch->outcome->load_bytes += u64{16} * async.count;
    async.copied = true;
}

inline void load_async(u32 at, u32 slice, u64 base, u64 first, u32 count, Where where) {
    Async& async = self->cta->async;
    const u64 source = base + 16 * first;
    if (count > slice) past_slice(at, slice, count - 1, 16, where);
    check_arena(at, count, 16, where);
    if (count) global_range(base, first, count, 16, Access::read, where);
    if (self->loads) {
        fault("a second load_async: %s, at %s:%u", Name(thread_of_grid(*self)).text, base_name(where.file), where.line);
    }
    ++self->loads;
    if (async.calls++ == 0) {
        async.at = at;
        async.count = count;
        async.source = source;
        async.pending = true;
    } else if (async.at != at || async.count != count || async.source != source) {
        fault("load_async with other arguments than the rest of its CTA: %s, at %s:%u", Name(thread_of_grid(*self)).text,
              base_name(where.file), where.line);
    }
    // The first thread begins the copy; all that were to touch either side before it must be behind a barrier.
    if (launch->shadow && self->thread == 0 && count) {
        async.pending = false;
        launch->shadow->touch_shared(*self->cta, at, u64{16} * count, Access::write, where);
        launch->shadow->touch_global(source, u64{16} * count, Access::read, where);
        async.pending = true;
    }
    // The copy may end at once or only when it is waited for: by the seed.
    if (count && self->thread == 0 && launch->random.below(2)) copy_async(*self->cta, where);
}

inline void wait_async(Where where) {
    Cta& cta = *self->cta;
    if (!last_to(cta.meeting, launch->threads, "wait_async", where)) return;
    Async& async = cta.async;
    if (async.calls != launch->threads) {
        fault("wait_async after load_async by %u of the %u threads of CTA %u, at %s:%u", async.calls, launch->threads, cta.index,
              base_name(where.file), where.line);
    }
    if (async.count && !async.copied) copy_async(cta, where);
    async.pending = false;
    complete(cta.meeting);
    wake(cta);
    give_way();
}

}  // namespace simt::host
