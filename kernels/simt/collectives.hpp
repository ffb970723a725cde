// Barriers and collectives: each is one operation of the host, done by the thread that comes last.
#pragma once
#include "memory.hpp"
#include "rounded.hpp"

namespace simt::host {

// What all 32 lanes brought, for the last to come, which works on it and calls wake_warp(). The others get
// null when they are woken.
inline void* const* lanes_at(const char* what, void* mine, Where where, Wait wait = WAIT_WARP) {
    Warp& warp = *self->warp;
    warp.slots[self->lane] = mine;
    return last_to(warp.barrier, wait, 32, what, where) ? warp.slots : nullptr;
}
inline void wake_warp() {
    wake(*self->warp);
    give_way();
}

// One product of matrices, from the fragments of all lanes. The sum of each element is rounded once.
template <class Widen>
inline void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], Widen widen, Where where) {
    struct Fragments {
        const u32 *a, *b;
        float* c;
    } mine{a, b, c};
    void* const* lanes = lanes_at("multiply", &mine, where, WAIT_STEP);
    if (!lanes) return;
    const auto of = [&](u32 lane) -> const Fragments& { return *static_cast<Fragments*>(lanes[lane]); };
    const auto element = [&](const u32* words, u32 word, u32 k) {
        return double{widen(static_cast<u16>(words[word] >> 16 * (k & 1)))};
    };
    double left[16][16], right[16][8];
    for (u32 row = 0; row < 16; ++row) {
        for (u32 k = 0; k < 16; ++k) {
            left[row][k] = element(of(row % 8 * 4 + k % 8 / 2).a, row / 8 + k / 8 * 2, k);
            if (row < 8) right[k][row] = element(of(row * 4 + k % 8 / 2).b, k / 8, k);
        }
    }
    for (u32 lane = 0; lane < 32; ++lane) {
        for (u32 i = 0; i < 4; ++i) {
            const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = of(lane).c[i];
            for (u32 k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
            of(lane).c[i] = static_cast<float>(sum);
        }
    }
    wake_warp();
}

// A warp goes through a pass as long as one of its lanes does. Between two passes its lanes meet.
inline void looks(u32 pass, u32 vectors) {
    Warp& warp = *self->warp;
    if (warp.looked_at[pass] != warp.turn) warp.looks[pass] = 0;
    warp.looked_at[pass] = warp.turn;
    if (vectors <= warp.looks[pass]) return;
    launch->outcome->looks[pass] += vectors - warp.looks[pass];
    warp.looks[pass] = vectors;
}

// Only warp_sync orders memory: a shuffle or a vote does not.
inline void warp_sync(Where where) {
    if (!lanes_at("warp_sync", nullptr, where, WAIT_STEP)) return;
    complete(self->warp->barrier);
    wake_warp();
}

inline void block_sync(Where where) {
    Cta& cta = *self->cta;
    if (!last_to(cta.barrier, WAIT_CTA, launch->threads, "block_sync", where)) return;
    complete(cta.barrier);
    wake(cta);
    give_way();
}

inline void cluster_sync(Where where) {
    Cta& cta = *self->cta;
    const u32 ctas = launch->cluster_ctas;
    const u32 all = ctas * launch->threads;
    if (!last_to(cta.cluster->barrier, WAIT_CLUSTER, all, "cluster_sync", where)) return;
    complete(cta.cluster->barrier);
    Cta* first = &cta - cta.rank;
    for (u32 i = 0; i < ctas; ++i) wake(first[i]);
    give_way();
}

// The barrier with this counter. It is made when its first thread comes.
inline Group& group_of(u64 counter, u32 ctas, Where where) {
    Cta& cta = *self->cta;
    if (cta.group) {
        if (cta.group->counter == counter && cta.group->ctas == ctas) return *cta.group;
        fault("a second group_sync counter, or another count of CTAs: %s, of %u CTAs after %u, at %s",
              Name().text, ctas, cta.group->ctas, Place(where).text);
    }
    if (ctas == 0 || ctas > launch->ctas.size()) {
        fault("group_sync of %u CTAs, of which %zu run together: %s, at %s", ctas, launch->ctas.size(),
              Name().text, Place(where).text);
    }
    const u32 index = cta.index / ctas;
    for (Group& group : launch->groups) {
        if (group.counter != counter) continue;
        if (group.ctas == ctas && group.index == index) return *(cta.group = &group);
        fault("a group_sync counter of two groups: %s, of %u CTAs in group %u, after group %u of %u, at %s",
              Name().text, ctas, index, group.index, group.ctas, Place(where).text);
    }
    launch->groups.push_back(Group{counter, ctas, index, {}});
    return *(cta.group = &launch->groups.back());
}

inline void group_sync(u64 counter, u32 ctas, Where where) {
    Group& group = group_of(counter, ctas, where);
    if (!last_to(group.barrier, WAIT_GROUP, ctas * launch->threads, "group_sync", where)) return;
    u8* slot = global_range(counter, 0, 1, 4, Access::atomic, where);
    // The top bit changes with every barrier, as on a GPU (device.cuh).
    constexpr u32 TURN = 1u << 31;
    const u32 before = read<u32>(slot);
    if (before % TURN) {
        fault("group_sync counter holds 0x%x: a workspace must be zeros before its first launch, and again "
              "after one that failed, at %s", before, Place(where).text);
    }
    write(slot, before ^ TURN);
    complete(group.barrier);
    for (Cta& cta : launch->ctas) {
        if (cta.group == &group) wake(cta);
    }
    give_way();
}

inline bool last_of(u64 counter, u32 ctas, Where where) {
    Cta& cta = *self->cta;
    Arrival& arrival = launch->arrivals[cta.index];
    if (last_to(cta.barrier, WAIT_CTA, launch->threads, "last_of", where)) {
        u8* slot = global_range(counter, 0, 1, 4, Access::atomic, where);
        const u32 before = read<u32>(slot);
        if (before >= ctas) {
            fault("last_of counter holds %u, of %u CTAs: it must be 0 before the first comes, at %s", before,
                  ctas, Place(where).text);
        }
        if (arrival.counter) fault("a second last_of: %s, at %s", Name().text, Place(where).text);
        const bool last = before + 1 == ctas;
        write(slot, last ? 0 : before + 1);
        complete(cta.barrier);
        arrival = Arrival{counter, launch->clock, last};
        wake(cta);
        give_way();
    }
    return arrival.last;
}

inline void copy_async(Cta& cta, Async& async, Where where) {
    const u8* from = global_range(async.source, 0, async.count, 16, Access::read, where);
    std::memcpy(cta.arena + async.at, from, std::size_t{16} * async.count);
    launch->outcome->load_bytes += u64{16} * async.count;
    async.copied = true;
}

inline void load_async(u32 at, u32 slice, u64 base, u64 first, u32 count, u32 turn, Where where) {
    Async& async = self->cta->async[turn & 1];
    const u64 source = base + 16 * first;
    if (count > slice) past_slice(at, slice, count - 1, 16, where);
    check_arena(at, count, 16, where);
    if (count) global_range(base, first, count, 16, Access::read, where);
    if (turn != self->loads || turn > self->waited + 1) {
        fault("load_async out of turn: %s, turn %u after %u loads, of which %u were waited for, at %s",
              Name().text, turn, self->loads, self->waited, Place(where).text);
    }
    ++self->loads;
    if (async.calls++ == 0) {
        async.copied = false;
        async.at = at;
        async.count = count;
        async.source = source;
        async.pending = true;
    } else if (async.at != at || async.count != count || async.source != source) {
        fault("load_async with other arguments than the rest of its CTA: %s, at %s", Name().text,
              Place(where).text);
    }
    // The first thread begins the copy. A barrier must lie between it and all earlier accesses to either
    // side.
    if (launch->shadow && self->thread == 0 && count) {
        async.pending = false;
        launch->shadow->touch_shared(*self->cta, at, u64{16} * count, Access::write, where);
        launch->shadow->touch_global(source, u64{16} * count, Access::read, where);
        async.pending = true;
    }
    // The seed decides whether the copy ends at once or only when the CTA waits for it.
    if (count && self->thread == 0 && launch->random.below(2)) copy_async(*self->cta, async, where);
}

inline void wait_async(u32 turn, bool ahead, Where where) {
    Cta& cta = *self->cta;
    if (turn != self->waited || self->loads != turn + 1 + ahead) {
        fault("wait_async out of turn: %s, turn %u after %u waits and %u loads, at %s", Name().text, turn,
              self->waited, self->loads, Place(where).text);
    }
    ++self->waited;
    if (!last_to(cta.barrier, WAIT_CTA, launch->threads, "wait_async", where)) return;
    Async& async = cta.async[turn & 1];
    if (async.calls != launch->threads) {
        fault("wait_async after load_async by %u of the %u threads of CTA %u, at %s", async.calls,
              launch->threads, cta.index, Place(where).text);
    }
    if (async.count && !async.copied) copy_async(cta, async, where);
    async.pending = false;
    async.calls = 0;
    complete(cta.barrier);
    wake(cta);
    give_way();
}

}  // namespace simt::host

namespace simt {

inline void multiply_halves(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], Where where = HERE) {
    host::multiply(c, a, b, half_to_float, where);
}
inline void multiply_bfloats(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], Where where = HERE) {
    host::multiply(c, a, b, bfloat_to_float, where);
}

}  // namespace simt
