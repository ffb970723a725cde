//! The tables that choose a kernel. Each is `(limit, value)` with the reason for its steps. None has been
//! measured on a GPU yet (2026-11-30): the reasons are arithmetic on the limits of the GPUs.

use super::variants::{Family, Scope};

/// One warp takes a row of up to this many columns. Its 32 lanes then hold at most 32 scores each, and the
/// four rows of a CTA hide each other's latency. In longer rows, the passes of the warp take longer than its
/// collectives.
pub(super) const WARP_COLS: u64 = 1024;

/// Rows of a CTA in the warp scope: each warp has one.
pub(super) const WARPS: u32 = 4;

/// Threads of a CTA in the block and cluster scopes. Fewer of them leave registers for more CTAs, more of
/// them keep an SM busy that has room for one CTA.
pub(super) const THREADS: u32 = 256;
pub(super) const FEW_THREADS: u32 = 128;
/// Also those of the split scope, which has one CTA per SM.
pub(super) const MANY_THREADS: u32 = 512;

/// A row of the block scope is given to few threads where this many such CTAs have shared memory on an SM:
/// they are as many threads as the three CTAs of 256 that have registers. By the model a row of 4,096 f32
/// scores waits for 2 of the 4 us that it spends on an SM (plain), so more rows at once use the memory
/// better. With fewer than six the SM has fewer threads, and loses.
pub(super) const FEW_THREADS_CTAS_PER_SM: u32 = 6;

/// A single CTA takes a row as long as this many CTAs fit on an SM. One loads while another counts and a
/// third writes, so reads stay in flight although the phases of each CTA follow one another.
pub(super) const BLOCK_CTAS_PER_SM: u32 = 3;

/// The choices for rows of which two fit on chip in each CTA: `(threads, CTAs that share an SM)`. While a CTA
/// works on one row it loads its next one, so neither its start nor its loads are waited for. By the model a
/// contact near the top of 4,096 bf16 scores then takes 0.73 of a copy, and 0.48 without. More rows at once
/// come before more threads; with four CTAs of 128 threads the SM would have less to do than with three of
/// 256.
pub(super) const IN_TURNS: [(u32, u32); 3] = [(FEW_THREADS, 6), (FEW_THREADS, 5), (THREADS, 3)];

/// Clusters that take rows in turn, so that probabilities of one row are written while the next one is
/// loaded. They have twice as many CTAs, each with half as much of a row. By the model 64K f32 scores take
/// 0.94 of a copy and not 0.84 if plain; if critical they take 0.62 with either, since fewer scores share the
/// barriers of a row. Statistics, which write nothing, would lose a fifth, so they are not taken in turn.
pub(super) const CLUSTERS_IN_TURNS: [u32; 3] = [4, 8, 16];

/// SMs of a processing cluster (GPC) of the GPUs that have clusters: 16, or some more. A cluster of CTAs lies
/// in one of them.
pub(super) const SMS_OF_A_GPC: u32 = 16;

/// The choices for longer rows, ordered by CTAs that share an SM, then by CTAs of the cluster. A larger
/// cluster comes before fewer CTAs per SM, because the overlap of phases is worth more than the cost of a
/// cluster barrier.
pub(super) const CLUSTERS: [(u32, [u32; 4]); 3] =
    [(3, [2, 4, 8, 16]), (2, [2, 4, 8, 16]), (1, [2, 4, 8, 16])];

/// A row of at least this many columns is given to more CTAs than hold it if the rows are so few that less
/// than half of the SMs would work. A shorter row is finished in less time than their barriers take.
pub(super) const SPLIT_COLS: u64 = 65_536;

/// Such a row gets the largest cluster instead of a share of the grid where at most so many rows have at most
/// so many columns: `(rows, columns)`. A barrier of a cluster takes about 0.3 us, one of the grid 1.3 us
/// (neither was measured on a GPU), so a cluster saves 4 us of a plain row and 5 us of a critical one
/// (`model.rs`). But 16 CTAs work longer than a share of 132 SMs. By that, one row is faster in a cluster up
/// to 181,000 columns if critical and 251,000 if plain, and four rows up to 270,000 and 400,000. Eight
/// clusters of 16 would need 16 SMs in each of 8 processing clusters, and not every part has them.
pub(super) const FEW_IN_A_CLUSTER: [(u64, u64); 2] = [(2, 196_608), (4, 294_912)];

/// Threads of an SM for which the registers of a kernel suffice, with probabilities and without: the bounds
/// that it is compiled for on sm_90. Twin of the STAMPs in `kernels/verbs.cuh` (`tests/twins.rs` compares
/// them).
#[doc(hidden)]
pub const RESIDENT_THREADS: [(Scope, [u32; 2]); 3] =
    [(Scope::Warp, [640, 640]), (Scope::Block, [768, 512]), (Scope::Cluster, [768, 512])];

/// CTAs of a kernel that share an SM as far as its registers decide: twin of `resident_ctas` in
/// `kernels/verbs.cuh`. Kernels take up to 48 registers more where they are not for sm_90.
pub(super) fn resident_ctas(family: Family, scope: Scope, threads: u32, sm: u32) -> u32 {
    let row = RESIDENT_THREADS.iter().find(|row| row.0 == scope);
    let bound = row.map_or(0, |row| row.1[usize::from(family == Family::GapProfile)]);
    let bound = if sm == 90 || bound == 512 { bound } else { bound.saturating_sub(256) };
    if threads > 256 { 1 } else { (bound / threads).max(1) }
}

/// Every CTA of a split row owns at least this many 16-byte vectors, one for each of its threads. More CTAs
/// would only make the barriers longer.
pub(super) const SPLIT_VECTORS: u64 = 512;

/// Bytes of shared memory that the hardware reserves for each CTA that is resident on an SM.
pub(super) const RESERVED_PER_CTA: u32 = 1024;

/// Bytes for the static shared memory of the kernels (the barriers of the copy engine, 16 bytes) in the limit
/// per CTA.
pub(super) const STATIC_BYTES: u32 = 128;

/// The most columns of a row: 16 million. Counts of columns, and sums of as many rounded terms, fit their
/// types well.
pub(super) const MAX_COLS: u64 = 1 << 24;

/// So many rows fill any GPU many times over.
pub(super) const MANY_ROWS: u64 = 1 << 24;

/// A grid has at most this many CTAs in its first dimension.
pub(super) const MAX_ROWS: u64 = (1 << 31) - 1;
