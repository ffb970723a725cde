// The shadow of memory: who touched every two bytes, at which barrier. Two accesses by different threads, at least one of them a
// write, must have a barrier of both threads between them; atomics among themselves need none.
//
// Barriers are numbered by one clock. As one fiber runs at a time, an access at clock t lies before a barrier if and only if that
// barrier was completed at a clock above t: so it is enough to know, per warp, CTA, cluster and group, the last one.
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
    u16 bytes = 0;  // which of the two
};

// How far apart two threads are, and so which barriers can order them.
enum Distance : u32 { same_thread, same_warp, same_cta, same_cluster_or_group, apart };

// The latest touch, and for each distance the latest of those that far from it. An older one at that distance cannot be in a race
// unless the one kept is too: barriers of a distance order all that came before them.
using Trail = Touch[5];

// A write is ordered behind all that was there, or it is a race: so one write is enough, and it clears the trails.
struct Cell {
    Touch write;
    Trail reads, atomics;
    u32 written;  // which of the two bytes, by anyone
};

class Shadow {
  public:
    explicit Shadow(const Launch& of) : l(of), shared(zeroed(u64{of.shared_bytes} / 2 * of.ctas.size())), regions() {
        // In place or views of one allocation: bytes have one shadow whatever buffers they belong to.
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

    // Arenas of new CTAs: nobody wrote anything.
    void begin(std::vector<Cta>& ctas) {
        const u64 each = l.shared_bytes / 2;
        std::memset(static_cast<void*>(shared.get()), 0, each * ctas.size() * sizeof(Cell));
        for (std::size_t c = 0; c < ctas.size(); ++c) ctas[c].cells = shared.get() + c * each;
    }

    void touch_shared(const Cta& cta, u64 first, u64 size, Access access, Where where) {
        const Async& async = cta.async;
        if (async.pending && first < async.at + u64{16} * async.count && async.at < first + size) {
            fault("destination of load_async before wait_async: %s %s byte %llu of the shared memory of CTA %u, at %s:%u",
                  Name(thread_of_grid(*self)).text, past_tense(access), first, cta.index, base_name(where.file), where.line);
        }
        const Touch now = touch_of(where);
        for (u64 at = first; at < first + size; at = (at | 1) + 1) {
            Cell& cell = cta.cells[at / 2];
            const u16 bytes = bytes_of(at, first + size);
            if (access != Access::write && bytes & ~cell.written) {
                fault("read of shared memory that nobody wrote: %s %s byte %llu of CTA %u, at %s:%u", Name(thread_of_grid(*self)).text,
                      past_tense(access), at, cta.index, base_name(where.file), where.line);
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
        const Async& async = self->cta->async;
        if (async.pending && access != Access::read && address < async.source + u64{16} * async.count && async.source < address + size) {
            fault("source of load_async before wait_async: %s %s what CTA %u loads, at %s:%u", Name(thread_of_grid(*self)).text,
                  past_tense(access), self->cta->index, base_name(where.file), where.line);
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
                u64 b = 0;  // the one that holds it: a range that was checked lies in one
                while (region.first + at - l.buffers[b].address >= l.buffers[b].bytes) ++b;
                std::snprintf(place, sizeof place, "byte %llu of buffer %llu", region.first + at - l.buffers[b].address, b);
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
    // calloc: what no kernel touches costs no memory.
    static Cells zeroed(u64 count) {
        auto* cells = static_cast<Cell*>(std::calloc(count + 1, sizeof(Cell)));
        if (!cells) throw std::bad_alloc();
        return Cells(cells);
    }
    static u16 bytes_of(u64 at, u64 end) { return static_cast<u16>(at & 1 ? 2 : at + 1 < end ? 3 : 1); }

    const Launch& l;
    Cells shared;
    std::vector<Region> regions;
    std::vector<Where> sites;  // lines that touched memory
    std::size_t last_site = 0;

    Touch touch_of(Where where) {
        const auto here = [&](const Where& site) { return site.line == where.line && site.file == where.file; };
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
        if (cta == self->cta->index) return thread % l.threads / 32 == self->thread / 32 ? same_warp : same_cta;
        if (cta - l.first_cta >= l.ctas.size()) return apart;
        const Cta& other = l.ctas[cta - l.first_cta];
        return other.cluster == self->cta->cluster || (other.group && other.group == self->cta->group) ? same_cluster_or_group : apart;
    }

    bool ordered(const Touch& before) const {
        const Cta& cta = *self->cta;
        u32 last = 0;
        const auto since = [&last](const Meeting& meeting) { last = meeting.sync > last ? meeting.sync : last; };
        const Distance far = distance(before.who - 1);
        if (far == same_thread) return true;
        if (far == apart) return false;
        if (far == same_warp) since(self->warp->meeting);
        if (far <= same_cta) since(cta.meeting);
        const Cta& other = l.ctas[(before.who - 1) / l.threads - l.first_cta];
        if (other.cluster == cta.cluster) since(cta.cluster->meeting);
        if (other.group && other.group == cta.group) since(cta.group->meeting);
        return last > before.clock;
    }

    const Touch* disorder(const Touch* touches, u32 count, const Touch& now, u16 bytes) const {
        for (u32 i = 0; i < count; ++i) {
            const Touch& before = touches[i];
            if (before.who && before.who != now.who && before.bytes & bytes && !ordered(before)) return &before;
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

    // The earlier touch with which this one races, or null and the cell knows of it.
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

    [[noreturn]] void race(const Cell& cell, const Touch& before, Access access, Where where, const char* place) const {
        const bool of_reads = &before >= cell.reads && &before < cell.reads + 5;
        const Access earlier = &before == &cell.write ? Access::write : of_reads ? Access::read : Access::atomic;
        const Where there = sites[before.site];
        fault("race: %s %s %s (%s:%u), and %s %s it (%s:%u), with no barrier of both between", Name(before.who - 1).text,
              past_tense(earlier), place, base_name(there.file), there.line, Name(thread_of_grid(*self)).text, past_tense(access),
              base_name(where.file), where.line);
    }
};

}  // namespace simt::host
