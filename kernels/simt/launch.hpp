// A whole launch: the seed orders its clusters, which run one after the other; CTAs of the split scope run
// all together.
#pragma once
#include "host.cuh"

namespace simt::host {

constexpr u32 MOST_SHARED_BYTES = 232448;  // 227 KB, of an sm_90 CTA
constexpr u32 MOST_CLUSTER_CTAS = 16;      // of sm_90, beyond the portable 8
constexpr u64 MOST_FIBERS = 1 << 18;

[[noreturn]] inline void leave() {
    if (Stacks::overrun(self->context.low)) fault("stack of %s is used up", Name().text);
    Cta& cta = *self->cta;
    self->returned = true;
    if (++cta.returned == launch->threads && cta.remote_use.any &&
        cta.remote_use.clock >= cta.cluster->barrier.sync) {
        left_early(cta, cta.remote_use.thread, cta.remote_use.where);
    }
    if (--launch->running == 0) change(self->context, launch->origin);
    run(successor(*self->warp));
    __builtin_unreachable();
}

inline void begin() {
    entered(launch->origin);
    launch->kernel->body(launch->params);
    leave();
}

// CTAs first_cta .. first_cta + count, from their first instruction to their last.
inline void run_together(u32 first_cta, u32 count) {
    Launch& l = *launch;
    self = nullptr;
    l.first_cta = first_cta;
    l.running = count * l.threads;
    l.queue.clear();
    l.groups.clear();
    // A CTA finds neither the data of an earlier CTA nor zeros in shared memory.
    std::memset(l.arenas.get(), 0xFF, std::size_t{count} * l.shared_bytes);
    for (u32 c = 0; c < count; ++c) {
        Cta& cta = l.ctas[c];
        cta = Cta{};
        cta.index = first_cta + c;
        cta.rank = c % l.cluster_ctas;
        cta.arena = l.arenas.get() + std::size_t{c} * l.shared_bytes;
        cta.warps = &l.warps[std::size_t{c} * l.warps_per_cta];
        cta.cluster = &l.clusters[c / l.cluster_ctas];
        *cta.cluster = Cluster{};
        for (u32 w = 0; w < l.warps_per_cta; ++w) {
            cta.warps[w] = Warp{};
            cta.warps[w].lanes = &l.fibers[std::size_t{c} * l.threads + 32 * w];
        }
        for (u32 t = 0; t < l.threads; ++t) {
            Fiber& fiber = l.fibers[std::size_t{c} * l.threads + t];
            fiber.cta = &cta;
            fiber.warp = &cta.warps[t / 32];
            fiber.waits = nullptr;
            fiber.thread = t;
            fiber.lane = t % 32;
            fiber.loads = fiber.waited = 0;
            fiber.returned = false;
            prepare(fiber.context, stacks.low(std::size_t{c} * l.threads + t), Stacks::BYTES, begin);
        }
        wake(cta);
    }
    if (l.shadow) l.shadow->begin(l.ctas);
    self = next_fiber();
    change(l.origin, self->context);
}

// 0: ok. 1: a fault was found. 2: nothing was launched. The message says why.
inline int run_launch(const Kernel& kernel, const SimtLaunch& given, SimtOutcome& out) {
    out = SimtOutcome{};
    const auto refused = [&out](const char* format, auto... values) {
        std::snprintf(out.message, sizeof out.message, format, values...);
        return 2;
    };
    if (!given.params) return refused("%s: params is null", kernel.name);
    if (given.cluster_ctas == 0 || given.cluster_ctas > MOST_CLUSTER_CTAS) {
        return refused("%s: a cluster of %u CTAs; 1 to %u", kernel.name, given.cluster_ctas,
                       MOST_CLUSTER_CTAS);
    }
    if (given.grid == 0 || given.grid % given.cluster_ctas) {
        return refused("%s: a grid of %u CTAs is no multiple of its cluster of %u", kernel.name, given.grid,
                       given.cluster_ctas);
    }
    if (given.shared_bytes > MOST_SHARED_BYTES || given.shared_bytes % 16) {
        return refused("%s: %u bytes of shared memory; at most %u, and a multiple of 16", kernel.name,
                       given.shared_bytes, MOST_SHARED_BYTES);
    }
    if (given.buffer_count && !given.buffers) {
        return refused("%s: buffers is null, of %llu", kernel.name, given.buffer_count);
    }
    for (u64 b = 0; b < given.buffer_count; ++b) {
        const SimtBuffer& buffer = given.buffers[b];
        if (!buffer.address || buffer.address + buffer.bytes < buffer.address) {
            return refused("%s: buffer %llu of %llu bytes at address 0x%llx", kernel.name, b, buffer.bytes,
                           buffer.address);
        }
    }
    const u32 together = kernel.together == Together::grid ? given.grid : given.cluster_ctas;
    const u64 fibers = u64{together} * kernel.threads;
    if (fibers > MOST_FIBERS || u64{given.grid} * kernel.threads > 0xFFFFFFFF) {
        return refused("%s: %u CTAs of %u threads, %u of them together; at most %llu threads together, "
                       "2^32 in all", kernel.name, given.grid, kernel.threads, together, MOST_FIBERS);
    }
    if (!stacks.reserve(fibers)) {
        return refused("%s: no memory for the stacks of %llu threads", kernel.name, fibers);
    }

    Launch l;
    l.kernel = &kernel;
    l.params = given.params;
    l.outcome = &out;
    l.grid = given.grid;
    l.cluster_ctas = given.cluster_ctas;
    l.shared_bytes = given.shared_bytes;
    l.threads = kernel.threads;
    l.warps_per_cta = kernel.threads / 32;
    l.seed = given.seed;
    l.buffers = given.buffers;
    l.buffer_count = given.buffer_count;
    l.random = Random(given.seed);
    l.fibers.resize(fibers);
    l.warps.resize(fibers / 32);
    l.queue.reserve(fibers / 32);
    l.ctas.resize(together);
    l.clusters.resize(together / given.cluster_ctas);
    l.groups.reserve(together);
    l.arrivals.resize(given.grid);
    l.arenas.reset(new u8[std::size_t{together} * given.shared_bytes + 16]);

    std::vector<u32> order(given.grid / together);
    for (u32 i = 0; i < order.size(); ++i) order[i] = i;
    for (std::size_t i = order.size(); i > 1; --i) {
        std::swap(order[i - 1], order[l.random.below(static_cast<u32>(i))]);
    }
    std::unique_ptr<Shadow> shadow(given.shadow ? new Shadow(l) : nullptr);
    l.shadow = shadow.get();
    launch = &l;
    for (const u32 i : order) {
        run_together(i * together, together);
        if (out.faults) break;
    }
    launch = nullptr;
    self = nullptr;
    if (out.faults) stacks.drop();
    return out.faults ? 1 : 0;
}

}  // namespace simt::host
