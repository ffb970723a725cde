//! The tables that choose a kernel. Each is `(limit, value)` with the reason for its steps; none has been
//! measured on a GPU yet (2026-11-25): the reasons are arithmetic on the limits of the parts.

/// A row of up to this many columns is one warp's: its 32 lanes then hold at most 32 scores each, and four rows
/// hide each other's latency in a CTA. Above it, the warp's passes over the row outlast its collectives.
pub(super) const WARP_COLS: u64 = 1024;

/// Rows of a CTA in the warp scope, one to each warp.
pub(super) const WARPS: u32 = 4;

/// A row goes to a single CTA while this many CTAs share an SM: one loads while another counts and a third writes,
/// so that reads stay in flight although each CTA's phases follow one another.
pub(super) const BLOCK_CTAS_PER_SM: u32 = 3;

/// Longer rows, by CTAs that share an SM, then by CTAs of the cluster: rather a larger cluster than fewer CTAs
/// per SM, because overlap of phases is worth more than the cost of a cluster barrier.
pub(super) const CLUSTERS: [(u32, [u32; 4]); 3] =
    [(3, [2, 4, 8, 16]), (2, [2, 4, 8, 16]), (1, [2, 4, 8, 16])];

/// A row of at least this many columns is split over the whole grid where rows are so few that less than half of
/// the SMs would work. Shorter ones are done before the grid has met at its barriers some ten times.
pub(super) const SPLIT_COLS: u64 = 65_536;

/// Every CTA of a split row owns at least this many 16-byte vectors, one for each of its threads: more CTAs would
/// only lengthen the barriers.
pub(super) const SPLIT_VECTORS: u64 = 512;

/// What the hardware keeps of shared memory for each CTA that is resident on an SM.
pub(super) const RESERVED_PER_CTA: u32 = 1024;

/// Room for the kernels' static shared memory (the barrier of the copy engine, 8 bytes) in the per-CTA limit.
pub(super) const STATIC_BYTES: u32 = 128;

/// 16 million scores: counts of columns, and sums of as many rounded terms, stay well inside their types.
pub(super) const MAX_COLS: u64 = 1 << 24;

/// A grid has at most this many CTAs in its first dimension.
pub(super) const MAX_ROWS: u64 = (1 << 31) - 1;
