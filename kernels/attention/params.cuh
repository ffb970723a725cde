// Arguments of the attention kernels. Twin of src/cuda/attention_params.rs.
#pragma once
#include "../simt.cuh"

// Tokens are dealt out to the CTAs of a key head in units of so many keys.
constexpr u32 UNIT = 64;
// Queries that share a key while it is in registers.
constexpr u32 QUERY_ROWS = 32;
// Queries of f32 that do so.
constexpr u32 WIDE_QUERY_ROWS = 8;

// Addresses are in bytes; 0 stands for what is absent. Strides count elements, and elements of a head are
// neighbours. A row is a query token and a head: row number (token - token_first) * heads + head.
struct AttentionParams {
    // [tokens, heads, dim], and keys in pages of slots.
    u64 queries, keys;
    // i32: page numbers of each sequence, and its number of keys.
    u64 table, lens;
    // i32, one per sequence and one more: where its query tokens begin. Absent: query_len tokens each.
    u64 starts;
    // f32 scores of each row, from its first visible key on; u32 length and position of each row.
    u64 scores, row_lens, positions;
    u64 query_token, query_head;
    u64 key_page, key_slot, key_head;
    u64 table_stride, score_stride;
    // softcap: 0 if there is none.
    double scale, softcap;
    // The query tokens and the sequences of this launch.
    u32 token_first, token_count, seq_first, seqs;
    // group: query heads that share a key head. page: slots of one; pages: of the pool.
    u32 kv_heads, group, dim, page, pages;
    // The most query tokens of a sequence, the most keys of one, and the most that a query token sees: a row
    // has room for so many. splits: CTAs for each key head of a sequence.
    u32 query_len, max_len, cols, splits;
    u32 reserved;
};

static_assert(sizeof(AttentionParams) == 192, "twin of src/cuda/attention_params.rs");
