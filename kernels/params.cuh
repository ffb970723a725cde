// Arguments and results of every family. Twin of src/cuda/params.rs, with the same names in the same order:
// tests/twins.rs compares the fields and the constants below.
#pragma once
#include "simt.cuh"

// Bins of one count, for each scope: a power of two.
constexpr u32 WARP_BINS = 256;
constexpr u32 BINS = 1024;
constexpr u32 SPLIT_BINS = 512;
// At most so many gaps are ranked pair by pair; a range with more is first counted in finer bins.
constexpr u32 WARP_CANDIDATES = 64;
constexpr u32 CANDIDATES = 512;
constexpr u32 SPLIT_CANDIDATES = 256;
// Bytes of shared memory beside the resident row: per warp in the warp scope, per CTA in the others. In the
// split scope they decide how long a row may be and still be read once.
constexpr u32 WARP_CONTROL_BYTES = 1344;
constexpr u32 BLOCK_CONTROL_BYTES = 7232;
constexpr u32 CLUSTER_CONTROL_BYTES = 10896;
constexpr u32 WIDE_CLUSTER_CONTROL_BYTES = 11408;  // of CTAs of 512 threads
constexpr u32 SPLIT_CONTROL_BYTES = 4224;
// The workspace of the split scope: SLOT_BYTES for each of SPLIT_CTAS, the most CTAs of its grid, then
// GROUP_BYTES for each group of CTAs. Nothing has another place under another plan: what a launch leaves as
// it found it, the next one finds.
constexpr u32 SPLIT_CTAS = 256;
constexpr u32 SLOT_BYTES = 64;
constexpr u32 GROUP_BYTES = 7296;

// How beta is chosen. Twin of `Rescaling`.
constexpr u32 RULE_FIXED = 0;       // p[0]
constexpr u32 RULE_ARRAY = 1;       // betas[row]
constexpr u32 RULE_LAW = 2;         // law, p[0..3]
constexpr u32 RULE_CRITICAL = 3;    // p[0] * Lambda(resolve), clamped to p[1]..p[2]
constexpr u32 RULE_CALIBRATED = 4;  // p[0] (ln n)^p[1], or (ln n / p[2])^p[1] where p[2] > 0 is ln N0

struct RowParams {
    // Addresses of device memory; 0 if absent. lens: u32 per row. betas: f32 per row. positions: u32 per row.
    // report: RowReport per row. betas_out: f32 per row, the beta that the rule gave. workspace: 256-byte
    // aligned; zeros before the first launch that uses it.
    u64 scores, out, lens, betas, positions, report, betas_out, workspace;
    // From a row to the next, in elements.
    u64 score_stride, out_stride;
    // p: parameters of the rule. resolve: r of Lambda(r), in nats. excess: ln(exceeding) - resolve, as the
    // host rounds it.
    double p[3], resolve, excess;
    u32 rows, cols;
    // ctas: CTAs per row. In the cluster scope they are those of a cluster.
    // resident: 16-byte vectors of the row that each CTA (warp scope: each warp) keeps in shared memory.
    // Every pass reads the others again.
    u32 ctas, resident;
    // groups: a CTA, a cluster or a group takes each so many-th row. out_f32: probabilities as f32, else in
    // the dtype of the scores.
    u32 groups, out_f32;
    u32 rule, law;
    // top_k: count only so many of the largest scores; 0: all. both: report Lambda beside Lambda(resolve).
    u32 top_k, both;
    // exceeding: the smallest count whose logarithm exceeds the resolve. sums: the report has Z and the
    // gap-weighted Z.
    u32 exceeding, sums;
    // out_streamed: nobody reads the probabilities soon. out_open: nothing is written behind a row's length.
    u32 out_streamed, out_open;
};

struct Contact {
    float gap;  // 0 if no gap attains a ratio
    u32 rank;   // N(gap)
};

// The results of one row: the fields of `cpu::RowReport` from which the host computes the rest.
struct RowReport {
    float max, second;
    u32 len, ties, argmax, poisoned;
    Contact critical, resolved;
    // With top_k: the k-th smallest gap, which the certificate needs. -1 if every score was counted.
    float kth_gap;
    u32 reserved;
    // Z and the gap-weighted Z at beta (0 if beta is 0); without meaning if the row is poisoned.
    double beta, sum, gap_sum;
};

static_assert(sizeof(RowParams) == 176, "twin of src/cuda/params.rs");
static_assert(sizeof(RowReport) == 72, "twin of src/cuda/params.rs");
