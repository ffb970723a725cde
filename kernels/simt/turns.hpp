// Who runs next, and what a barrier waits for.
#pragma once
#include "scheduler.hpp"

namespace simt::host {

// Some thread waits and nobody can run: name it, and one for which it waits.
[[noreturn]] __attribute__((noinline, cold)) inline void stalled() {
    const Fiber* waiting = nullptr;
    const Fiber* missing = nullptr;
    // Of all meetings the narrowest says most: a lane that its warp waits for, then a warp of the CTA.
    u32 narrowest = ~0u;
    for (const Fiber& fiber : launch->fibers) {
        if (!fiber.waits) continue;
        const Meeting* of[3] = {&fiber.warp->meeting, &fiber.cta->meeting, &fiber.cta->cluster->meeting};
        u32 rank = 0;
        while (rank < 3 && of[rank] != fiber.waits) ++rank;
        if (rank >= narrowest) continue;
        for (const Fiber& other : launch->fibers) {
            const bool member = rank == 0   ? other.warp == fiber.warp
                                : rank == 1 ? other.cta == fiber.cta
                                : rank == 2 ? other.cta->cluster == fiber.cta->cluster
                                            : other.cta->group == fiber.cta->group;
            if (!member || other.waits == fiber.waits) continue;
            waiting = &fiber;
            missing = &other;
            narrowest = rank;
            break;
        }
    }
    if (!waiting) {
        // Every CTA that has a group waits in it: there are too few of them.
        for (const Fiber& fiber : launch->fibers) {
            if (fiber.waits) waiting = &fiber;
        }
        const Group& group = *waiting->cta->group;
        fault("barrier divergence: %s waits at %s (%s:%u) for %u CTAs, of which %u threads came",
              Name(thread_of_grid(*waiting)).text, group.meeting.what, base_name(group.meeting.where.file), group.meeting.where.line,
              group.ctas, group.meeting.arrived);
    }
    const Meeting& meeting = *waiting->waits;
    if (missing->returned || !missing->waits) {
        fault("barrier divergence: %s waits at %s (%s:%u), but %s has returned", Name(thread_of_grid(*waiting)).text, meeting.what,
              base_name(meeting.where.file), meeting.where.line, Name(thread_of_grid(*missing)).text);
    }
    fault("barrier divergence: %s waits at %s (%s:%u), %s at %s (%s:%u)", Name(thread_of_grid(*waiting)).text, meeting.what,
          base_name(meeting.where.file), meeting.where.line, Name(thread_of_grid(*missing)).text, missing->waits->what,
          base_name(missing->waits->where.file), missing->waits->where.line);
}

inline Fiber* next_lane(Warp& warp) {
    u32 lane;
    do {
        lane = (warp.stride * warp.step++ + warp.offset) & 31;
    } while (!(warp.ready >> lane & 1));
    warp.ready &= ~(1u << lane);
    return warp.lanes + lane;
}

inline Fiber* next_fiber() {
    auto& queue = launch->queue;
    if (queue.empty()) stalled();
    const u32 i = launch->random.below(static_cast<u32>(queue.size()));
    Warp* warp = queue[i];
    queue[i] = queue.back();
    queue.pop_back();
    return next_lane(*warp);
}

inline void run(Fiber* next) {
    Fiber* left = self;
    if (next == left) return;
    ++launch->outcome->switches;
    self = next;
    change(left->context, next->context);
}

// The others of the warp go on, so that its stacks stay in the cache; now and then, by the seed, another warp.
inline Fiber* successor(Warp& warp) {
    if (warp.ready) {
        if (launch->random.next() >> 58) return next_lane(warp);
        launch->queue.push_back(&warp);
    }
    return next_fiber();
}

__attribute__((noinline)) inline void park(const Meeting& meeting) {
    if (static_cast<u8*>(__builtin_frame_address(0)) < self->context.low + Stacks::MARGIN) {
        fault("stack of %s is used up, at %s (%s:%u)", Name(thread_of_grid(*self)).text, meeting.what, base_name(meeting.where.file),
              meeting.where.line);
    }
    self->waits = &meeting;
    run(successor(*self->warp));
    self->waits = nullptr;
}

// A new order of lanes; all of them may run but the caller, who does.
inline void wake(Warp& warp) {
    const u64 order = launch->random.next();
    warp.stride = static_cast<u32>(order) | 1;
    warp.offset = static_cast<u32>(order >> 32);
    warp.step = 0;
    warp.ready = ~0u;
    if (self && &warp == self->warp) {
        warp.ready &= ~(1u << self->lane);
    } else {
        launch->queue.push_back(&warp);
    }
}

inline void wake(Cta& cta) {
    for (u32 w = 0; w < launch->warps_per_cta; ++w) wake(cta.warps[w]);
}

// Who came last goes on, or by the seed another warp does.
inline void give_way() {
    if (launch->random.next() >> 62) return;
    self->warp->ready |= 1u << self->lane;
    launch->queue.push_back(self->warp);
    run(next_fiber());
}

[[noreturn]] __attribute__((noinline, cold)) inline void met_apart(const Meeting& meeting, const char* what, Where where) {
    fault("barrier divergence: %s came to %s (%s:%u), %s to %s (%s:%u)", Name(meeting.first).text, meeting.what,
          base_name(meeting.where.file), meeting.where.line, Name(thread_of_grid(*self)).text, what, base_name(where.file), where.line);
}

inline bool same(const char* a, const char* b) { return a == b || !std::strcmp(a, b); }

// All came to a barrier: what they did before is ordered before what they do now.
inline void complete(Meeting& meeting) { meeting.sync = ++launch->clock; }

// True in the last of `all` threads to come, which does the work and wakes the others; they return when woken.
inline bool last_to(Meeting& meeting, u32 all, const char* what, Where where) {
    if (meeting.arrived == 0) {
        meeting.what = what;
        meeting.where = where;
        meeting.first = thread_of_grid(*self);
    } else if (meeting.where.line != where.line || !same(meeting.what, what) || !same(meeting.where.file, where.file)) {
        met_apart(meeting, what, where);
    }
    if (++meeting.arrived < all) {
        park(meeting);
        return false;
    }
    meeting.arrived = 0;
    return true;
}

}  // namespace simt::host
