// The shadow of memory: which threads touched every two bytes, and when. Between two accesses by different
// threads, at least one of them a write, there must be a barrier of both threads; between two atomics there
// need be none.
//
// One clock numbers the barriers. One fiber runs at a time, so an access at clock t lies before a barrier if
// and only if that barrier was completed at a clock above t. It is enough to know the last barrier of each
// warp, CTA, cluster and group.
#pragma once
#include <cstdlib>
#include <new>

#include "turns.hpp"

namespace simt::host {

enum class Access : u32 { read, write, atomic };

inline const char* past_tense(Access access) {
    return access == Access::read ? "read" : access == Access::write ? "wrote" : "added to";
}

struct Touch {
    u32 who = 0;  // thread of the grid + 1; 0: nobody
    u32 clock = 0;
    u16 site = 0;
    u16 bytes = 0;  // which of the two: one bit each
};

// How far apart two threads are. It decides which barriers can order them.
enum Distance : u32 { same_thread, same_warp, same_cta, same_cluster_or_group, apart };

// The latest touch, and for each distance the latest of the touches that are so far from it. An older one at
// the same distance is in a race only if the kept one is too: a barrier orders all that came before it.
using Trail = Touch[5];

// A write is ordered behind all earlier touches, or it is a race: so one write is enough, and it clears the
// trails.
struct Cell {
    Touch write;
    Trail reads, atomics;
    u32 written;  // which of the two bytes some thread wrote
};

class Shadow {
  public:
    explicit Shadow(const Launch& of)
        : l(of), shared(zeroed(u64{of.shared_bytes} / 2 * of.ctas.size())), regions() {
        // Buffers may overlap, as in place or as views of one allocation: a byte has one shadow in all of
        // them.
        for (u64 b = 0; b < of.buffer_count; ++b) {
            u64 first = of.buffers[b].address & ~u64{15}, end = of.buffers[b].address + of.buffers[b].bytes;
            for (std::size_t r = 0; r < regions.size();) {
                if (regions[r].first <= end && first <= regions[r].end) {
                    first = first < regions[r].first ? first : regions[r].first;
                    end = end > regions[r].end ? end : regions[r].end;
                    regions.erase(regions.begin() + static_cast<std::ptrdiff_t>(r));
                    r = 0;
                } else {
                    ++r;
                }
            }
            regions.push_back(Region{first, end, {}});
        }
        for (Region& region : regions) region.cells = zeroed((region.end - region.first + 1) / 2);
    }

    // In the arenas of new CTAs no thread has written anything.
    void begin(std::vector<Cta>& ctas) {
        const u64 each = l.shared_bytes / 2;
        std::memset(static_cast<void*>(shared.get()), 0, each * ctas.size() * sizeof(Cell));
        for (std::size_t c = 0; c < ctas.size(); ++c) ctas[c].cells = shared.get() + c * each;
    }

    void touch_shared(const Cta& cta, u64 first, u64 size, Access access, Where where) {
        for (const Async& async : cta.async) {
            if (async.pending && first < async.at + u64{16} * async.count && async.at < first + size) {
                fault("destination of load_async before wait_async: %s %s shared byte %llu of CTA %u, at %s",
                      Name().text, past_tense(access), first, cta.index, Place(where).text);
            }
        }
        const Touch now = touch_of(where);
        for (u64 at = first; at < first + size; at = (at | 1) + 1) {
            Cell& cell = cta.cells[at / 2];
            const u16 bytes = bytes_of(at, first + size);
            if (access != Access::write && bytes & ~cell.written) {
                fault("read of shared memory that nobody wrote: %s %s byte %llu of CTA %u, at %s",
                      Name().text, past_tense(access), at, cta.index, Place(where).text);
            }
            cell.written |= bytes;
            if (const Touch* before = touch(cell, now, bytes, access)) {
                char place[64];
                std::snprintf(place, sizeof place, "byte %llu of the shared memory of CTA %u", at, cta.index);
                race(cell, *before, access, where, place);
            }
        }
    }

    void touch_global(u64 address, u64 size, Access access, Where where) {
        const Arrival& arrival = l.arrivals[self->cta->index];
        if (arrival.counter && !arrival.last) {
            fault("device memory after last_of: %s %s it, at %s", Name().text, past_tense(access),
                  Place(where).text);
        }
        for (const Async& async : self->cta->async) {
            if (async.pending && access != Access::read && address < async.source + u64{16} * async.count &&
                async.source < address + size) {
                fault("source of load_async before wait_async: %s %s what CTA %u loads, at %s", Name().text,
                      past_tense(access), self->cta->index, Place(where).text);
            }
        }
        std::size_t r = 0;
        while (address - regions[r].first >= regions[r].end - regions[r].first) ++r;
        const Region& region = regions[r];
        const Touch now = touch_of(where);
        const u64 first = address - region.first;
        for (u64 at = first; at < first + size; at = (at | 1) + 1) {
            Cell& cell = region.cells.get()[at / 2];
            if (const Touch* before = touch(cell, now, bytes_of(at, first + size), access)) {
                char place[64];
                u64 b = 0;  // the buffer that holds it: a range that was checked lies in one
                while (region.first + at - l.buffers[b].address >= l.buffers[b].bytes) ++b;
                std::snprintf(place, sizeof place, "byte %llu of buffer %llu",
                              region.first + at - l.buffers[b].address, b);
                race(cell, *before, access, where, place);
            }
        }
    }

  private:
    struct Free {
        void operator()(Cell* cells) const { std::free(cells); }
    };
    using Cells = std::unique_ptr<Cell[], Free>;
    struct Region {
        u64 first, end;
        Cells cells;
    };
    // By calloc: cells that no kernel touches cost no memory.
    static Cells zeroed(u64 count) {
        auto* cells = static_cast<Cell*>(std::calloc(count + 1, sizeof(Cell)));
        if (!cells) throw std::bad_alloc();
        return Cells(cells);
    }
    static u16 bytes_of(u64 at, u64 end) { return static_cast<u16>(at & 1 ? 2 : at + 1 < end ? 3 : 1); }

    const Launch& l;
    Cells shared;
    std::vector<Region> regions;
    std::vector<Where> sites;  // lines of the source that touched memory
    std::size_t last_site = 0;

    Touch touch_of(Where where) {
        const auto here = [&](const Where& site) {
            return site.line == where.line && site.file == where.file;
        };
        if (sites.empty() || !here(sites[last_site])) {
            last_site = 0;
            while (last_site < sites.size() && !here(sites[last_site])) ++last_site;
            if (last_site == sites.size()) sites.push_back(where);
        }
        return Touch{thread_of_grid(*self) + 1, l.clock, static_cast<u16>(last_site), 0};
    }

    Distance distance(u32 thread) const {
        const u32 mine = thread_of_grid(*self);
        if (thread == mine) return same_thread;
        const u32 cta = thread / l.threads;
        if (cta == self->cta->index) {
            return thread % l.threads / 32 == self->thread / 32 ? same_warp : same_cta;
        }
        if (cta - l.first_cta >= l.ctas.size()) return apart;
        const Cta& other = l.ctas[cta - l.first_cta];
        const bool group = other.group && other.group == self->cta->group;
        return group || other.cluster == self->cta->cluster ? same_cluster_or_group : apart;
    }

    bool ordered(const Touch& before) const {
        const Cta& cta = *self->cta;
        u32 last = 0;
        const auto since = [&last](const Barrier& barrier) {
            last = barrier.sync > last ? barrier.sync : last;
        };
        const Distance far = distance(before.who - 1);
        if (far == same_thread) return true;
        // The last CTA that came to last_of sees what the others did before they came.
        const Arrival& arrival = l.arrivals[cta.index];
        const Arrival& theirs = l.arrivals[(before.who - 1) / l.threads];
        if (arrival.last && arrival.counter == theirs.counter && theirs.clock > before.clock) return true;
        if (far == apart) return false;
        if (far == same_warp) since(self->warp->barrier);
        if (far <= same_cta) since(cta.barrier);
        const Cta& other = l.ctas[(before.who - 1) / l.threads - l.first_cta];
        if (other.cluster == cta.cluster) since(cta.cluster->barrier);
        if (other.group && other.group == cta.group) since(cta.group->barrier);
        return last > before.clock;
    }

    const Touch* disorder(const Touch* touches, u32 count, const Touch& now, u16 bytes) const {
        for (u32 i = 0; i < count; ++i) {
            const Touch& before = touches[i];
            const bool other = before.who && before.who != now.who && before.bytes & bytes;
            if (other && !ordered(before)) return &before;
        }
        return nullptr;
    }

    void note(Trail& trail, const Touch& now) const {
        if (trail[0].who && trail[0].who != now.who) {
            const Distance far = distance(trail[0].who - 1);
            trail[far] = trail[0];
            for (u32 nearer = 1; nearer < far; ++nearer) trail[nearer] = Touch{};
        }
        trail[0] = now;
    }

    // The earlier touch with which this one races; or null, and then the cell remembers this one.
    const Touch* touch(Cell& cell, Touch now, u16 bytes, Access access) const {
        now.bytes = bytes;
        if (const Touch* before = disorder(&cell.write, 1, now, bytes)) return before;
        if (access != Access::atomic) {
            if (const Touch* before = disorder(cell.atomics, 5, now, bytes)) return before;
        }
        if (access != Access::read) {
            if (const Touch* before = disorder(cell.reads, 5, now, bytes)) return before;
        }
        if (access == Access::read) {
            note(cell.reads, now);
        } else if (access == Access::atomic) {
            note(cell.atomics, now);
        } else {
            cell = Cell{now, {}, {}, cell.written};
        }
        return nullptr;
    }

    [[noreturn]] void race(const Cell& cell, const Touch& before, Access access, Where where,
                           const char* place) const {
        const bool of_reads = &before >= cell.reads && &before < cell.reads + 5;
        const Access others = of_reads ? Access::read : Access::atomic;
        const Access earlier = &before == &cell.write ? Access::write : others;
        const Where there = sites[before.site];
        fault("race: %s %s %s (%s), and %s %s it (%s), with no barrier of both between",
              Name(before.who - 1).text, past_tense(earlier), place, Place(there).text, Name().text,
              past_tense(access), Place(where).text);
    }
};

}  // namespace simt::host
