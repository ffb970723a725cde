//! Plain arguments and results of the kernels. This file is the twin of `kernels/params.cuh`: names, order
//! and constants are the same, and `tests/twins.rs` compares them.

use bytemuck::{Pod, Zeroable};

/// Bins of one counting level in the warp scope.
pub const WARP_BINS: u32 = 256;
/// Bins of one counting level in the block and cluster scopes.
pub const BINS: u32 = 1024;
/// Bins of one counting level in the split scope.
pub const SPLIT_BINS: u32 = 512;
/// Gaps that a warp ranks pair by pair.
pub const WARP_CANDIDATES: u32 = 64;
/// Gaps that the block and cluster scopes rank pair by pair.
pub const CANDIDATES: u32 = 512;
/// Gaps that the split scope ranks pair by pair.
pub const SPLIT_CANDIDATES: u32 = 256;
/// Bytes of shared memory beside the resident row, per warp.
pub const WARP_CONTROL_BYTES: u32 = 1344;
/// Bytes of shared memory beside the resident row, per CTA of the block scope.
pub const BLOCK_CONTROL_BYTES: u32 = 7232;
/// Bytes of shared memory beside the resident row, per CTA of the cluster scope.
pub const CLUSTER_CONTROL_BYTES: u32 = 10896;
/// The same, for CTAs of 512 threads.
pub const WIDE_CLUSTER_CONTROL_BYTES: u32 = 11408;
/// Bytes of shared memory beside the resident row, per CTA of the split scope.
pub const SPLIT_CONTROL_BYTES: u32 = 4224;
/// The most CTAs of a grid of the split scope.
pub const SPLIT_CTAS: u32 = 256;
/// Bytes of workspace for each of [`SPLIT_CTAS`], however many a launch has.
pub const SLOT_BYTES: u32 = 64;
/// Bytes of workspace per row group of the split scope, behind the slots.
pub const GROUP_BYTES: u32 = 7296;

/// beta = `p[0]`.
pub const RULE_FIXED: u32 = 0;
/// beta = `betas[row]`.
pub const RULE_ARRAY: u32 = 1;
/// beta = the law `law` with its parameters p.
pub const RULE_LAW: u32 = 2;
/// beta = `p[0]` * Lambda(resolve), clamped to `p[1]`..`p[2]`.
pub const RULE_CRITICAL: u32 = 3;
/// beta = `p[0] (ln n)^p[1]`, or `(ln n / p[2])^p[1]` where `p[2]` > 0.
pub const RULE_CALIBRATED: u32 = 4;

/// The arguments of every kernel.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowParams {
    /// Address of the first row's first score.
    pub scores: u64,
    /// Address of the probabilities; 0 where absent, as in all addresses below.
    pub out: u64,
    /// One u32 per row: its length.
    pub lens: u64,
    /// One f32 per row: its beta.
    pub betas: u64,
    /// One u32 per row: its position.
    pub positions: u64,
    /// One [`RowReport`] per row.
    pub report: u64,
    /// One f32 per row: the beta that the rule gave.
    pub betas_out: u64,
    /// Scratch, 256-byte aligned. The split scope finds zeros in it, or what its last launch left there.
    pub workspace: u64,
    /// Elements from the begin of one row of scores to the next.
    pub score_stride: u64,
    /// Elements from the begin of one row of probabilities to the next.
    pub out_stride: u64,
    /// Parameters of the rule.
    pub p: [f64; 3],
    /// r of Lambda(r), nats.
    pub resolve: f64,
    /// ln([`exceeding`](Self::exceeding)) - `resolve`, as the CPU path rounds it.
    pub excess: f64,
    /// Rows.
    pub rows: u32,
    /// Allocated width of a row in elements.
    pub cols: u32,
    /// CTAs per row.
    pub ctas: u32,
    /// 16-byte vectors of the row that each CTA (warp) keeps in shared memory.
    pub resident: u32,
    /// A CTA, a cluster or a group takes each so many-th row.
    pub groups: u32,
    /// 1: probabilities as f32; 0: in the scores' dtype.
    pub out_f32: u32,
    /// One of the `RULE_` constants.
    pub rule: u32,
    /// Index in [`LAWS`](crate::laws::LAWS).
    pub law: u32,
    /// Count only this many largest scores; 0 is all.
    pub top_k: u32,
    /// 1: report Lambda beside Lambda(resolve).
    pub both: u32,
    /// The smallest count whose logarithm exceeds the resolve.
    pub exceeding: u32,
    /// 1: the report has Z and the gap-weighted Z.
    pub sums: u32,
    /// 1: nobody reads the probabilities soon.
    pub out_streamed: u32,
    /// 1 if nothing is written behind the length of a row.
    pub out_open: u32,
}

/// The gap and the rank where a ratio is attained, as a kernel reports them.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[non_exhaustive]
#[repr(C)]
pub struct Contact {
    /// The contact gap; 0 where no gap attains a ratio.
    pub gap: f32,
    /// N(gap).
    pub rank: u32,
}

/// The report of a kernel on one row, as it lies in device memory. [`RowReport::decode`] makes a
/// `cpu::RowReport` of it.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[non_exhaustive]
#[repr(C)]
pub struct RowReport {
    /// The largest score.
    pub max: f32,
    /// The largest score when one maximum is left out.
    pub second: f32,
    /// Unmasked scores.
    pub len: u32,
    /// Scores at the maximum.
    pub ties: u32,
    /// Column of the first maximum, or of the first NaN or +inf.
    pub argmax: u32,
    /// 1 for a row with a NaN or +inf.
    pub poisoned: u32,
    /// The contact of Lambda.
    pub critical: Contact,
    /// The contact of Lambda(resolve).
    pub resolved: Contact,
    /// The k-th smallest gap under top-k; -1 where every score was counted.
    pub kth_gap: f32,
    /// Padding.
    pub reserved: u32,
    /// The inverse temperature that the sums are taken at.
    pub beta: f64,
    /// Z, the sum of the weights relative to the maximum.
    pub sum: f64,
    /// Sum of gap * weight.
    pub gap_sum: f64,
}
