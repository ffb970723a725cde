// Threads, warps, CTAs and clusters as fibers. An OS thread runs one launch at a time, and shares nothing.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "fiber.hpp"


// The C interface. Twin of src/cuda/launch_simt.rs.
struct SimtBuffer {
    u64 address, bytes;
    u32 writable, reserved;
};
struct SimtLaunch {
    u32 variant, grid, cluster_ctas, shared_bytes;  // cluster_ctas: 1 without clusters
    u64 seed;
    const SimtBuffer* buffers;
    u64 buffer_count;
    const void* params;
    u32 shadow, reserved;
};
constexpr u32 PASSES = 10;
// Who waits for whom: the lanes of a warp in a tree of shuffles, or in one step; a CTA, a cluster, a group of
// the split scope.
enum Wait : u32 { WAIT_WARP, WAIT_STEP, WAIT_CTA, WAIT_CLUSTER, WAIT_GROUP, WAITS };
struct SimtOutcome {
    u64 load_bytes, store_bytes, switches;
    u64 looks[PASSES];
    u64 waits[WAITS];  // how often all had come
    u32 faults, reserved;
    char message[1000];
};

namespace simt {

// Where a collective or an access stands in the source.
struct Where {
    const char* file;
    u32 line;
    constexpr Where(const char* file = __builtin_FILE(), u32 line = __builtin_LINE())
        : file(file), line(line) {}
};
#define HERE ::simt::Where()

namespace host {

// Which CTAs run together: those of a cluster, or all of the grid.
enum class Together { cluster, grid };

struct Kernel {
    const char* name;
    void (*body)(const void* params);
    u32 threads;
    Together together;
};

// The threads that must come to one barrier or collective.
struct Barrier {
    u32 arrived = 0, first = 0;  // first: thread of the grid
    u32 sync = 0;                // the clock when all had come for the last time
    const char* what = nullptr;
    Where where{};
};

struct Cta;
struct Warp;

struct Fiber {
    Context context;
    Cta* cta = nullptr;
    Warp* warp = nullptr;
    const Barrier* waits = nullptr;
    u32 thread = 0, lane = 0;
    u32 loads = 0, waited = 0;  // calls of load_async and wait_async
    bool returned = false;
};

struct Warp {
    Fiber* lanes = nullptr;
    u32 ready = 0;                        // lanes that may run
    u32 stride = 1, offset = 0, step = 0;  // their order: lane (stride * step + offset) mod 32
    Barrier barrier;
    void* slots[32] = {};  // what the lanes brought to a collective
    u32 turn = 0;         // how often all lanes have met
    u32 looks[PASSES] = {}, looked_at[PASSES] = {};  // in one pass, and its turn
};

struct Cluster {
    Barrier barrier;
};
// CTAs that share a group_sync counter.
struct Group {
    u64 counter = 0;
    u32 ctas = 0, index = 0;  // index: its CTAs are index * ctas and those behind it
    Barrier barrier;
};

// What a CTA said to last_of, and when.
struct Arrival {
    u64 counter = 0;
    u32 clock = 0;
    bool last = false;
};

struct Async {
    u32 at = 0, count = 0, calls = 0;  // destination in the arena, 16-byte vectors, threads that called
    u64 source = 0;
    bool pending = false, copied = false;
};

struct Cell;  // of the shadow
struct RemoteUse {
    u32 thread = 0, clock = 0;
    bool any = false;
    Where where{};
};

struct Cta {
    u32 index = 0, rank = 0, returned = 0;
    u8* arena = nullptr;
    Cell* cells = nullptr;
    Warp* warps = nullptr;
    Cluster* cluster = nullptr;
    Group* group = nullptr;
    Barrier barrier;
    Async async[2];  // of an even and an odd turn
    RemoteUse remote_use;  // the latest access to this arena from another CTA
};

class Random {
  public:
    explicit Random(u64 seed) : state(seed) {}
    // splitmix64: every seed, 0 too, gives a stream of its own.
    u64 next() {
        u64 z = state += 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
    u32 below(u32 n) { return static_cast<u32>(((next() >> 32) * n) >> 32); }

  private:
    u64 state;
};

class Shadow;

struct Launch {
    const Kernel* kernel = nullptr;
    const void* params = nullptr;
    SimtOutcome* outcome = nullptr;
    u32 grid = 0, cluster_ctas = 1, shared_bytes = 0, threads = 0, warps_per_cta = 0;
    u64 seed = 0;
    const SimtBuffer* buffers = nullptr;
    u64 buffer_count = 0, last_read = 0, last_written = 0;  // last_: the buffers of the latest accesses
    Shadow* shadow = nullptr;
    Random random{0};
    u32 clock = 0;  // barriers completed
    u32 first_cta = 0, running = 0;
    Context origin;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Warp*> queue;  // warps with lanes that may run, without the warp that runs
    std::vector<Cta> ctas;
    std::vector<Cluster> clusters;
    std::vector<Group> groups;
    std::vector<Arrival> arrivals;  // by CTA of the grid
    std::unique_ptr<u8[]> arenas;
};

static thread_local Launch* launch = nullptr;
static thread_local Fiber* self = nullptr;
static thread_local Stacks stacks;

inline u32 thread_of_grid(const Fiber& fiber) { return fiber.cta->index * launch->threads + fiber.thread; }

// Ends the launch with its first fault. A fiber calls it; the other fibers are left where they stand.
[[noreturn]] __attribute__((format(printf, 1, 2), noinline, cold))
inline void fault(const char* format, ...) {
    SimtOutcome& out = *launch->outcome;
    const std::size_t size = sizeof out.message;
    const char* kernel = launch->kernel->name;
    const int length = std::snprintf(out.message, size, "%s (seed %llu): ", kernel, launch->seed);
    va_list values;
    va_start(values, format);
    std::vsnprintf(out.message + length, size - static_cast<std::size_t>(length), format, values);
    va_end(values);
    out.faults = 1;
    change(self->context, launch->origin);
    __builtin_unreachable();
}

// For messages: "CTA 3 thread 70", and "search.cuh:61".
struct Name {
    char text[40];
    explicit Name(u32 thread = thread_of_grid(*self)) {
        const u32 threads = launch->threads;
        std::snprintf(text, sizeof text, "CTA %u thread %u", thread / threads, thread % threads);
    }
};
struct Place {
    char text[100];
    explicit Place(Where where) {
        const char* slash = std::strrchr(where.file, '/');
        std::snprintf(text, sizeof text, "%s:%u", slash ? slash + 1 : where.file, where.line);
    }
};

}  // namespace host
}  // namespace simt

#include "turns.hpp"
