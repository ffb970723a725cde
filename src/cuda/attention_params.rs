//! Plain arguments of the attention kernels. This file is the twin of `kernels/attention/params.cuh`: names,
//! order and constants are the same, and `tests/twins.rs` compares them.

use bytemuck::{Pod, Zeroable};

/// Tokens are dealt out to the CTAs of a key head in units of so many keys.
pub const UNIT: u32 = 64;
/// Queries that share a key while it is in registers.
pub const QUERY_ROWS: u32 = 32;
/// Queries of f32 that do so.
pub const WIDE_QUERY_ROWS: u32 = 8;

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
    /// From a row of the table to the next.
    pub table_stride: u64,
    /// From a row of scores to the next.
    pub score_stride: u64,
    /// The factor of q.k.
    pub scale: f64,
    /// The bound of softcapped scores; 0 if there is none.
    pub softcap: f64,
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
    /// 0.
    pub reserved: u32,
}
