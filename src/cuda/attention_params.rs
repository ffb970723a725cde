//! Plain arguments of the attention kernels. This file is the twin of `kernels/attention/params.cuh`: names,
//! order and constants are the same, and `tests/twins.rs` compares them.

use super::params::RowParams;
use bytemuck::{Pod, Zeroable};

/// Tokens are dealt out to the CTAs of a key head in units of so many keys.
pub const UNIT: u32 = 64;
/// Queries that share a key while it is in registers.
pub const QUERY_ROWS: u32 = 32;
/// Queries of f32 that do so.
pub const WIDE_QUERY_ROWS: u32 = 8;
/// Threads of a CTA that adds values: a warp for every unit of keys at a time.
pub const VALUE_THREADS: u32 = 256;
/// Query rows that share a value while it is in registers: as many as a CTA has room for, up to so many.
pub const VALUE_ROWS: u32 = 16;
/// A sequence has at most so many chunks of keys, each with sums of its own, and two more at its ends.
pub const CHUNKS: u32 = 64;
/// Elements of a value that a warp adds at a time.
pub const VALUE_BLOCK: u32 = 64;
/// Shared memory of a CTA that adds values, for each query row.
pub const VALUE_BYTES_OF_ROW: u32 = 2592;
/// Shared memory of a CTA that adds values, for each element of the value of a query row.
pub const VALUE_BYTES_OF_ELEMENT: u32 = 32;
/// Shared memory of a CTA that adds values, beside that of its rows.
pub const VALUE_BYTES: u32 = 2064;
/// Shared memory of a CTA of one pass, beside that of its rows and their queries.
pub const ONE_PASS_BYTES: u32 = 2048;
/// How many times the share of its masses that is within eps in any case one pass may leave unread.
pub const ALLOWANCE: u32 = 4;
/// Masses fall into so many bins, four to an octave.
pub const MASS_BINS: u32 = 128;

/// What a key head of a sequence left unread, of [`DecodeCall::skips`](super::DecodeCall::skips).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SkipReport {
    /// The sum of the masses of keys whose values were not read, in units of 2^-32: at least what any of the
    /// rows lost of its probabilities.
    pub dropped: u32,
    /// Keys whose values were not read.
    pub unread: u32,
    /// Keys that some row sees.
    pub keys: u32,
    /// 1 if one pass left too much unread first, and then all values were read.
    pub repaired: u32,
}

/// The arguments of every attention kernel. Addresses are 0 where absent; strides are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionParams {
    /// Address of the queries, `[tokens, heads, dim]`.
    pub queries: u64,
    /// Address of the pages of keys.
    pub keys: u64,
    /// One row of i32 page numbers per sequence.
    pub table: u64,
    /// One i32 per sequence: its number of keys.
    pub lens: u64,
    /// One i32 per sequence and one more: where its query tokens begin.
    pub starts: u64,
    /// f32 scores of each row.
    pub scores: u64,
    /// One u32 per row: its length.
    pub row_lens: u64,
    /// One u32 per row: its position.
    pub positions: u64,
    /// Address of the pages of values; 0 if only scores are wanted.
    pub values: u64,
    /// Address of the output, `[tokens, heads, value_dim]`.
    pub out: u64,
    /// f32 sums of each row and chunk.
    pub partials: u64,
    /// One u32 for each key head of the launch: CTAs that are done.
    pub arrivals: u64,
    /// u32 masses of the keys of each key head.
    pub masses: u64,
    /// Two u64 of each bin and key head: the sum of its masses, and their number.
    pub histogram: u64,
    /// One [`SkipReport`] for each sequence and key head.
    pub skips: u64,
    /// What one pass knows of each key head: its masses that stay unread, keys, CTAs, and failure.
    pub audits: u64,
    /// f32 beta of each row, of one pass.
    pub betas_out: u64,
    /// From a query token to the next.
    pub query_token: u64,
    /// From a query head to the next.
    pub query_head: u64,
    /// From a page of keys to the next.
    pub key_page: u64,
    /// From a slot of a page to the next.
    pub key_slot: u64,
    /// From a key head to the next.
    pub key_head: u64,
    /// From a page of values to the next.
    pub value_page: u64,
    /// From a slot of a page to the next.
    pub value_slot: u64,
    /// From a value head to the next.
    pub value_head: u64,
    /// From a token of the output to the next.
    pub out_token: u64,
    /// From a head of the output to the next.
    pub out_head: u64,
    /// From a row of the table to the next.
    pub table_stride: u64,
    /// From a row of scores to the next.
    pub score_stride: u64,
    /// From the masses of a key head to those of the next.
    pub mass_stride: u64,
    /// The factor of q.k.
    pub scale: f64,
    /// The bound of softcapped scores; 0 if there is none.
    pub softcap: f64,
    /// Parameters of the rule of one pass.
    pub p: [f64; 3],
    /// The first query token of the launch.
    pub token_first: u32,
    /// Query tokens of the launch.
    pub token_count: u32,
    /// The first sequence of the launch.
    pub seq_first: u32,
    /// Sequences of the launch.
    pub seqs: u32,
    /// Key heads.
    pub kv_heads: u32,
    /// Query heads that share a key head.
    pub group: u32,
    /// Elements of a head.
    pub dim: u32,
    /// Slots of a page.
    pub page: u32,
    /// Pages of the pool.
    pub pages: u32,
    /// The most query tokens of a sequence.
    pub query_len: u32,
    /// The most keys of a sequence.
    pub max_len: u32,
    /// The most keys that a query token sees: a row has room for so many.
    pub cols: u32,
    /// CTAs for each key head of a sequence.
    pub splits: u32,
    /// Elements of a value.
    pub value_dim: u32,
    /// 1 if the output is f32 beside values of 16 bits.
    pub out_f32: u32,
    /// Chunks of one row that partials have room for.
    pub chunks: u32,
    /// Query rows that a CTA has room for, whole eights.
    pub value_rows: u32,
    /// Masses that a key head may leave unread, in units of 2^-32; 0 if all values are read.
    pub budget: u32,
    /// at / page is (high word of at * factor + at) >> shift.
    pub page_factor: u32,
    /// See `page_factor`.
    pub page_shift: u32,
    /// One of the `RULE_` constants, of one pass.
    pub rule: u32,
    /// Index in the registry of laws.
    pub law: u32,
    /// 1 if this launch writes zeros for tokens that no sequence has.
    pub padding: u32,
    /// 1 if this launch does again what failed.
    pub repairs: u32,
}

/// The arguments of the kernels whose scores stay on chip.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct OnChipParams {
    /// Those of attention.
    pub attention: AttentionParams,
    /// Those of the kernels for rows, but for scores and output.
    pub rows: RowParams,
    /// Where the rows of a CTA begin in its shared memory, in bytes.
    pub rows_at: u32,
    /// The logarithm of the CTAs of a key head.
    pub shift: u32,
}
