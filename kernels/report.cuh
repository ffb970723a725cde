// The report of a row.
#pragma once
#include "params.cuh"
#include "stats.cuh"

// Writes a report field by field: a value that is known leaves at once and occupies no registers.
struct ReportWords {
    Global<u32> words;
    DEVICE ReportWords(const RowParams& p, u32 row)
        : words(p.report + row * static_cast<u64>(sizeof(RowReport))) {}
    template <class R>
    DEVICE void put(u32 at, const R& value) const {
        const u32* from = reinterpret_cast<const u32*>(&value);
        for (u32 w = 0; w < sizeof(R) / 4; ++w) words.store(at / 4 + w, from[w]);
    }
};
// NVRTC has no offsetof.
#define FIELD(name) static_cast<u32>(reinterpret_cast<u64>(&reinterpret_cast<RowReport*>(256)->name) - 256)

DEVICE void report_top(const ReportWords& report, const RowMax& top, const Maxima& found) {
    const bool poisoned = top.poisoned();
    const float none = simt::float_of(0x7fc00000);
    report.put(FIELD(max), poisoned ? none : top.max);
    report.put(FIELD(second), poisoned ? none : top.len > 0 ? simt::add_rn(top.second, 0.0f) : top.second);
    report.put(FIELD(len), top.len);
    report.put(FIELD(ties), poisoned ? 0 : found.ties);
    report.put(FIELD(argmax), found.argmax == ~0u ? 0 : found.argmax);
    report.put(FIELD(poisoned), static_cast<u32>(poisoned));
    report.put(FIELD(critical), Contact{0, 0});
    report.put(FIELD(resolved), Contact{0, 0});
    report.put(FIELD(kth_gap), -1.0f);
    report.put(FIELD(reserved), 0u);
}
