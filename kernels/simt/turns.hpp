// Which thread runs next, and for whom a barrier waits.
#pragma once
#include "scheduler.hpp"

namespace simt::host {

// A thread waits and none can run: names it, and one for which it waits.
[[noreturn]] __attribute__((noinline, cold)) inline void stalled() {
    const Fiber* waiting = nullptr;
    const Fiber* missing = nullptr;
    // The narrowest barrier says most: that of a warp, then that of a CTA.
    u32 narrowest = ~0u;
    for (const Fiber& fiber : launch->fibers) {
        if (!fiber.waits) continue;
        const Barrier* of[3] = {&fiber.warp->barrier, &fiber.cta->barrier, &fiber.cta->cluster->barrier};
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
        // All CTAs of a group wait in it: the group has too few CTAs.
        for (const Fiber& fiber : launch->fibers) {
            if (fiber.waits) waiting = &fiber;
        }
        const Group& group = *waiting->cta->group;
        fault("barrier divergence: %s waits at %s (%s) for %u CTAs, of which %u threads came",
              Name(thread_of_grid(*waiting)).text, group.barrier.what, Place(group.barrier.where).text,
              group.ctas, group.barrier.arrived);
    }
    const Barrier& barrier = *waiting->waits;
    if (missing->returned || !missing->waits) {
        fault("barrier divergence: %s waits at %s (%s), but %s has returned",
              Name(thread_of_grid(*waiting)).text, barrier.what, Place(barrier.where).text,
              Name(thread_of_grid(*missing)).text);
    }
    fault("barrier divergence: %s waits at %s (%s), %s at %s (%s)", Name(thread_of_grid(*waiting)).text,
          barrier.what, Place(barrier.where).text, Name(thread_of_grid(*missing)).text, missing->waits->what,
          Place(missing->waits->where).text);
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

// The other lanes of the warp go on, so that its stacks stay in the cache. Now and then, by the seed, it is
// another warp.
inline Fiber* successor(Warp& warp) {
    if (warp.ready) {
        if (launch->random.next() >> 58) return next_lane(warp);
        launch->queue.push_back(&warp);
    }
    return next_fiber();
}

__attribute__((noinline)) inline void park(const Barrier& barrier) {
    if (static_cast<u8*>(__builtin_frame_address(0)) < self->context.low + Stacks::MARGIN) {
        fault("stack of %s is used up, at %s (%s)", Name().text, barrier.what, Place(barrier.where).text);
    }
    self->waits = &barrier;
    run(successor(*self->warp));
    self->waits = nullptr;
}

// Gives the lanes a new order. All of them may run; the caller runs already.
inline void wake(Warp& warp) {
    const u64 order = launch->random.next();
    warp.stride = static_cast<u32>(order) | 1;
    warp.offset = static_cast<u32>(order >> 32);
    warp.step = 0;
    warp.ready = ~0u;
    ++warp.turn;
    if (self && &warp == self->warp) {
        warp.ready &= ~(1u << self->lane);
    } else {
        launch->queue.push_back(&warp);
    }
}

inline void wake(Cta& cta) {
    for (u32 w = 0; w < launch->warps_per_cta; ++w) wake(cta.warps[w]);
}

// The thread that came last goes on, or by the seed another warp.
inline void give_way() {
    if (launch->random.next() >> 62) return;
    self->warp->ready |= 1u << self->lane;
    launch->queue.push_back(self->warp);
    run(next_fiber());
}

[[noreturn]] __attribute__((noinline, cold)) inline void diverged(const Barrier& barrier, const char* what,
                                                                   Where where) {
    fault("barrier divergence: %s came to %s (%s), %s to %s (%s)", Name(barrier.first).text, barrier.what,
          Place(barrier.where).text, Name().text, what, Place(where).text);
}

inline bool same(const char* a, const char* b) { return a == b || !std::strcmp(a, b); }

// All came to a barrier: it orders what they did before, and what they do from now on.
inline void complete(Barrier& barrier) { barrier.sync = ++launch->clock; }

// True for the last of `all` threads, which does the work and wakes the others. The others return when they
// are woken.
inline bool last_to(Barrier& barrier, Wait wait, u32 all, const char* what, Where where) {
    if (barrier.arrived == 0) {
        barrier.what = what;
        barrier.where = where;
        barrier.first = thread_of_grid(*self);
    } else if (barrier.where.line != where.line || !same(barrier.what, what) ||
               !same(barrier.where.file, where.file)) {
        diverged(barrier, what, where);
    }
    if (++barrier.arrived < all) {
        park(barrier);
        return false;
    }
    barrier.arrived = 0;
    ++launch->outcome->waits[wait];
    return true;
}

}  // namespace simt::host
