// Arguments of the attention kernels. Twin of src/cuda/attention_params.rs.
#pragma once
#include "../params.cuh"

// Tokens are dealt out to the CTAs of a key head in units of so many keys.
constexpr u32 UNIT = 64;
// Queries that share a key while it is in registers.
constexpr u32 QUERY_ROWS = 32;
// Queries of f32 that do so, and those that share a value in one pass.
constexpr u32 WIDE_QUERY_ROWS = 8;
// Threads of a CTA that adds values: a warp for every unit of keys at a time.
constexpr u32 VALUE_THREADS = 256;
// Query rows that share a value while it is in registers: as many as a CTA has room for, up to so many.
constexpr u32 VALUE_ROWS = 16;
// A sequence has at most so many chunks of keys, each with sums of its own, and two more at its ends.
constexpr u32 CHUNKS = 64;
// Elements of a value that a warp adds at a time.
constexpr u32 VALUE_BLOCK = 64;
// Shared memory of a CTA that adds values, for each query row, and for each element of its value.
constexpr u32 VALUE_BYTES_OF_ROW = 2592;
constexpr u32 VALUE_BYTES_OF_ELEMENT = 32;
// Shared memory of a CTA that adds values, beside that of its rows; and of one pass, beside its queries too.
constexpr u32 VALUE_BYTES = 2064;
constexpr u32 ONE_PASS_BYTES = 2048;
// Values of one pass may stay unread up to so many times the share of their masses that is within eps in any
// case. For 1,248 groups of SmolLM2-135M (3 heads, 900 to 7,658 keys, eps 1e-4 to 1e-2) the sum of the masses
// was at most 0.81 eps at 4, and at 8 too much for up to 28 % of them; at 1 a third to two thirds as many
// values stayed unread (python/benches/one_pass_keep.py, 2026-11-30).
constexpr u32 ALLOWANCE = 4;
// Masses fall into so many bins, four to an octave.
constexpr u32 MASS_BINS = 128;

// What a key head of a sequence left unread. dropped: the sum of masses, in units of 2^-32. repaired: 1 if
// too much was left unread first.
struct SkipReport {
    u32 dropped, unread, keys, repaired;
};

// What one pass knows of a key head beside its sums. All are 0 before a launch and after the last one.
// dropped: the sum of masses of the keys that stay unread. failed: it is too much, so all is done again.
struct Audit {
    u64 dropped, unread;
    u32 arrivals, failed;
};
static_assert(sizeof(Audit) == 24, "twin of src/cuda/attention/measure.rs");

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
    // Values in pages like those of the keys, and the output, [tokens, heads, value_dim]; then the scores are
    // probabilities. f32 sums of each row and chunk; u32 CTAs that are done, of each key head.
    u64 values, out, partials, arrivals;
    // Of each key head: u32 masses of its keys, and two u64 of each bin: the sum of its masses, and their
    // number. A SkipReport, or 0.
    u64 masses, histogram, skips;
    // Of one pass: an Audit of each key head of the launch; f32 beta of each row, or 0.
    u64 audits, betas_out;
    u64 query_token, query_head;
    u64 key_page, key_slot, key_head;
    u64 value_page, value_slot, value_head;
    u64 out_token, out_head;
    u64 table_stride, score_stride, mass_stride;
    // softcap: 0 if there is none. p: parameters of the rule of one pass.
    double scale, softcap, p[3];
    // The query tokens and the sequences of this launch.
    u32 token_first, token_count, seq_first, seqs;
    // group: query heads that share a key head. page: slots of one; pages: of the pool.
    u32 kv_heads, group, dim, page, pages;
    // The most query tokens of a sequence, the most keys of one, and the most that a query token sees: a row
    // has room for so many. splits: CTAs for each key head of a sequence.
    u32 query_len, max_len, cols, splits;
    // Elements of a value, and whether the output is f32 beside values of 16 bits. chunks: of one row, that
    // partials have room for. value_rows: query rows that a CTA has room for, whole eights.
    u32 value_dim, out_f32, chunks, value_rows;
    // Masses that a key head may leave unread, in units of 2^-32; 0: all values are read.
    u32 budget;
    // at / page is (high word of at * page_factor + at) >> page_shift, for at below 2^31.
    u32 page_factor, page_shift;
    // As in RowParams.
    u32 rule, law;
    // padding: this launch writes zeros for tokens that no sequence has. repairs: it does again what failed.
    u32 padding, repairs;
};

static_assert(sizeof(AttentionParams) == 376, "twin of src/cuda/attention_params.rs");

// Arguments of the kernels whose scores stay on chip. rows: those of the kernels for rows, but for scores and
// output. rows_at: where the rows of a CTA begin in its shared memory, in bytes. shift: the
// logarithm of the CTAs of a key head.
struct OnChipParams {
    AttentionParams attention;
    RowParams rows;
    u32 rows_at, shift;
};
static_assert(sizeof(OnChipParams) == 560, "twin of src/cuda/attention_params.rs");
