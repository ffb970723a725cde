// The sum of what one pass leaves unread of a key head, and what the last CTA says of it.
#pragma once
#include "pass_unit.cuh"

// What the CTAs of a key head know together. All are 0 again behind the last of them.
struct SharedAudit {
    Global<u64> sums;
    Global<u32> counter, failed;
    DEVICE SharedAudit(const AttentionParams& p, u32 of)
        : sums(at(p, of)),
          counter(at(p, of) + 2 * sizeof(u64)),
          failed(at(p, of) + 2 * sizeof(u64) + sizeof(u32)) {}
    // In the order of the fields of Audit: NVRTC has no offsetof without a header.
    static DEVICE u64 at(const AttentionParams& p, u32 of) { return p.audits + sizeof(Audit) * of; }
    template <class T>
    DEVICE void add(const PassUnit<T>& unit) const {
        const auto sum = [](u64 one, u64 other) { return one + other; };
        const u64 dropped = simt::warp_fold(unit.dropped, sum);
        const u32 unread = simt::warp_add(unit.unread);
        if (simt::lane() != 0 || unread == 0) return;
        sums.add(0, dropped);
        sums.add(1, unread);
    }
    // Whether what stays unread is within the budget; the head's report, if so.
    DEVICE bool close(const AttentionParams& p, const Sequence& seq, u32 head, u32 keys) const {
        const u64 dropped = sums.load(0), unread = sums.load(1);
        const bool within = dropped <= p.budget;
        simt::block_sync();
        if (simt::thread() != 0) return within;
        sums.store(0, 0);
        sums.store(1, 0);
        failed.store(0, !within);
        if (p.skips && within) {
            const u64 at = 4 * (static_cast<u64>(seq.seq) * p.kv_heads + head);
            Global<u32>(p.skips).store(at, static_cast<u32>(dropped));
            Global<u32>(p.skips).store(at + 1, static_cast<u32>(unread));
            Global<u32>(p.skips).store(at + 2, keys);
            Global<u32>(p.skips).store(at + 3, p.repairs);
        }
        return within;
    }
};
