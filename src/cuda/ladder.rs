//! The tables that choose a kernel. Each is `(limit, value)` with the reason for its steps. None has been
//! measured on a GPU yet (2026-11-25): the reasons are arithmetic on the limits of the GPUs.

/// One warp takes a row of up to this many columns. Its 32 lanes then hold at most 32 scores each, and the
/// four rows of a CTA hide each other's latency. In longer rows, the passes of the warp take longer than its
/// collectives.
pub(super) const WARP_COLS: u64 = 1024;

/// Rows of a CTA in the warp scope: each warp has one.
pub(super) const WARPS: u32 = 4;

/// A single CTA takes a row as long as this many CTAs fit on an SM. One loads while another counts and a
/// third writes, so reads stay in flight although the phases of each CTA follow one another.
pub(super) const BLOCK_CTAS_PER_SM: u32 = 3;

/// The choices for longer rows, ordered by CTAs that share an SM, then by CTAs of the cluster. A larger
/// cluster comes before fewer CTAs per SM, because the overlap of phases is worth more than the cost of a
/// cluster barrier.
pub(super) const CLUSTERS: [(u32, [u32; 4]); 3] =
    [(3, [2, 4, 8, 16]), (2, [2, 4, 8, 16]), (1, [2, 4, 8, 16])];

/// A row of at least this many columns is split over the whole grid if the rows are so few that less than
/// half of the SMs would work. A shorter row is finished in less time than some ten barriers of the grid
/// take.
pub(super) const SPLIT_COLS: u64 = 65_536;

/// Every CTA of a split row owns at least this many 16-byte vectors, one for each of its threads. More CTAs
/// would only make the barriers longer.
pub(super) const SPLIT_VECTORS: u64 = 512;

/// Bytes of shared memory that the hardware reserves for each CTA that is resident on an SM.
pub(super) const RESERVED_PER_CTA: u32 = 1024;

/// Bytes for the static shared memory of the kernels (the barrier of the copy engine, 8 bytes) in the limit
/// per CTA.
pub(super) const STATIC_BYTES: u32 = 128;

/// The most columns of a row: 16 million. Counts of columns, and sums of as many rounded terms, fit their
/// types well.
pub(super) const MAX_COLS: u64 = 1 << 24;

/// A grid has at most this many CTAs in its first dimension.
pub(super) const MAX_ROWS: u64 = (1 << 31) - 1;
