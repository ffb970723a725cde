// Every kernel that works on rows, on three short rows under the shadow: no fault, and the answer by sorting. It is here for the
// sanitizers; tests/parity_device.rs goes through all laws, lengths and alignments.
#pragma once
#include <algorithm>
#include <string>

#include "../params.cuh"
#include "expected.hpp"

namespace rows {

constexpr u32 ROWS = 3, COLS = 333, STRIDE = 340, OFFSET = 1;

// `family_dtype_scopeTHREADSxCTAS`, taken apart.
struct Symbol {
    bool parsed = false, writes = false;
    std::string dtype, scope;
    u32 threads = 0, ctas = 0;
    explicit Symbol(const char* name) {
        char type[8], where[16];
        const char* rest = std::strncmp(name, "gap_profile_", 12) == 0 ? name + 12 : nullptr;
        if (std::strncmp(name, "critical_softmax_", 17) == 0) {
            rest = name + 17;
            writes = true;
        }
        if (!rest || std::sscanf(rest, "%7[a-z0-9]_%15[a-z]%ux%u", type, where, &threads, &ctas) != 4) return;
        dtype = type;
        scope = where;
        parsed = true;
    }
};

// Scores as they lie in memory, and what they are worth.
struct Scores {
    std::vector<u8> bytes;
    std::vector<float> values;
    u32 size;
    explicit Scores(const std::string& dtype) : bytes(4 * (OFFSET + ROWS * STRIDE)), values(ROWS * COLS), size(dtype == "f32" ? 4 : 2) {
        u32 state = 7;
        const auto uniform = [&state] { return static_cast<float>((state = 1664525 * state + 1013904223) >> 8) * 0x1p-24f; };
        for (u32 i = 0; i < ROWS * COLS; ++i) {
            float value = 0;
            for (u32 k = 0; k < 6; ++k) value += 2 * uniform() - 1;
            const u32 at = (OFFSET + i / COLS * STRIDE + i % COLS) * size;
            u32 bits = expected::bits(value);
            if (dtype == "f16") {
                bits = expected::half_bits(value);
                value = expected::half_value(bits);
            } else if (dtype == "bf16") {
                bits >>= 16;
                value = expected::as_float(bits << 16);
            }
            std::memcpy(&bytes[at], &bits, size);
            values[i] = value;
        }
    }
};

// What is wrong with a row's beta or its probabilities, by sorting its gaps.
inline std::string judge(const float* scores, double beta, const float* probs) {
    const float max = *std::max_element(scores, scores + COLS);
    std::vector<float> gaps(scores, scores + COLS);
    for (float& gap : gaps) gap = max - gap;
    std::vector<float> sorted = gaps;
    std::sort(sorted.begin(), sorted.end());
    double critical = 0, z = 0;
    for (u32 k = 1; k < COLS; ++k) critical = std::max(critical, std::log(k + 1.0) / static_cast<double>(sorted[k]));
    if (!(beta == critical || std::fabs(beta - critical) <= critical * 0x1p-22)) {
        return "beta " + std::to_string(beta) + ", not " + std::to_string(critical);
    }
    const auto weight = [&](float gap) { return gap == 0 ? 1.0 : std::exp(-critical * static_cast<double>(gap)); };
    for (const float gap : gaps) z += weight(gap);
    for (u32 j = 0; probs && j < COLS; ++j) {
        const double want = weight(gaps[j]) / z, off = std::fabs(static_cast<double>(probs[j]) - want);
        if (!(off <= 1e-5 * want + 1e-30)) return "column " + std::to_string(j) + " is " + std::to_string(probs[j]) + ", not " + std::to_string(want);
    }
    return "";
}

inline u64 address(const void* p) { return static_cast<u64>(reinterpret_cast<std::uintptr_t>(p)); }

// Empty, or what went wrong. launch: critbeta_simt_launch.
template <class F>
std::string check(const Symbol& symbol, u32 variant, u64 seed, F launch) {
    const Scores scores(symbol.dtype);
    std::vector<float> out(ROWS * STRIDE);
    std::vector<u64> workspace(1 << 14), report(ROWS * sizeof(RowReport) / 8);
    const bool split = symbol.scope == "split", warp = symbol.scope == "warp";
    // A row may begin anywhere between two 16-byte boundaries.
    const u32 each = 16 / scores.size, vectors = (COLS + 2 * (each - 1)) / each, warps = symbol.threads / 32;
    RowParams params{};
    params.scores = address(scores.bytes.data()) + OFFSET * scores.size;
    params.out = symbol.writes ? address(out.data()) : 0;
    params.report = address(report.data());
    params.workspace = split ? address(workspace.data()) : 0;
    params.score_stride = params.out_stride = STRIDE;
    params.p[0] = 1;
    params.p[2] = INFINITY;
    params.exceeding = 2;
    params.excess = std::log(2.0);
    params.rows = ROWS;
    params.cols = COLS;
    params.ctas = split ? 3 : symbol.ctas;
    params.groups = split ? 2 : 1;
    // The split scope need not keep all: half of the row is read again.
    params.resident = split ? vectors / 6 : (vectors + params.ctas - 1) / params.ctas;
    params.out_f32 = 1;
    params.rule = RULE_CRITICAL;
    const SimtBuffer buffers[] = {{address(scores.bytes.data()), scores.bytes.size(), 0, 0},
                                  {address(out.data()), out.size() * 4, 1, 0},
                                  {address(report.data()), report.size() * 8, 1, 0},
                                  {address(workspace.data()), workspace.size() * 8, 1, 0}};
    const u32 grid = split ? 6 : warp ? (ROWS + warps - 1) / warps : ROWS * symbol.ctas;
    const u32 control = warp ? WARP_CONTROL_BYTES : split ? SPLIT_CONTROL_BYTES : symbol.ctas > 1 ? CLUSTER_CONTROL_BYTES : BLOCK_CONTROL_BYTES;
    const u32 shared = (warp ? warps : 1) * (control + 16 * params.resident);
    const SimtLaunch given{variant, grid, shared, 1, seed, buffers, 4, &params};
    SimtOutcome outcome;
    if (launch(&given, &outcome)) return outcome.message;
    for (u32 r = 0; r < ROWS; ++r) {
        RowReport of_row;
        std::memcpy(&of_row, &report[r * sizeof(RowReport) / 8], sizeof of_row);
        const std::string why = judge(&scores.values[r * COLS], of_row.beta, symbol.writes ? &out[r * STRIDE] : nullptr);
        if (!why.empty()) return "row " + std::to_string(r) + ": " + why;
    }
    return "";
}

}  // namespace rows
