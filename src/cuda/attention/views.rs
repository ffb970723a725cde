//! Borrowed views of what a server holds in device memory. Nothing here is checked; a call checks it.

use crate::DType;
use crate::attention::Strides;

/// A pool of keys in pages, in device memory. Each page has the same number of slots, and a slot holds one
/// vector for each head, whose elements are neighbours. What a slot holds
/// that no sequence uses changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DevicePages {
    /// Device address of the first element, 16-byte aligned.
    pub address: u64,
    /// Element type: f32, f16 or bf16.
    pub dtype: DType,
    /// Pages of the pool, 1 to 2^31 - 1.
    pub pages: u64,
    /// Slots of a page.
    pub page: u64,
    /// Heads of a slot.
    pub heads: u64,
    /// Elements of a head: a multiple of 8 in 64..=256.
    pub dim: u64,
    /// Distances in elements. That of elements is 1, and the others are multiples of 16 bytes.
    pub strides: Strides,
}

impl DevicePages {
    /// Dense pages of the shape `[pages, page, heads, dim]`.
    pub fn nhd(address: u64, dtype: DType, [pages, page, heads, dim]: [u64; 4]) -> DevicePages {
        let slot = (heads * dim) as usize;
        let strides = Strides { page: page as usize * slot, slot, head: dim as usize, element: 1 };
        DevicePages { address, dtype, pages, page, heads, dim, strides }
    }

    /// Dense pages of the shape `[pages, heads, page, dim]`.
    pub fn hnd(address: u64, dtype: DType, [pages, heads, page, dim]: [u64; 4]) -> DevicePages {
        let head = (page * dim) as usize;
        let strides = Strides { page: heads as usize * head, slot: dim as usize, head, element: 1 };
        DevicePages { address, dtype, pages, page, heads, dim, strides }
    }

    /// The same pool with other distances.
    pub fn with_strides(self, strides: Strides) -> DevicePages {
        DevicePages { strides, ..self }
    }
}

/// Query vectors of the shape `[tokens, heads, dim]` in device memory, of the type and size of the keys. The
/// tokens of a sequence follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DeviceQueries {
    /// Device address of the first element, 16-byte aligned.
    pub address: u64,
    /// Query tokens in all.
    pub tokens: u64,
    /// Query heads.
    pub heads: u64,
    /// From a token to the next and from a head to the next, in elements: multiples of 16 bytes.
    pub strides: [u64; 2],
    /// The query tokens of each sequence, 1 to 8; the most that one has, if there are `starts`.
    pub query_len: u64,
    /// Device address of one i32 per sequence and one more, which rise: where the tokens of the sequence
    /// begin. Tokens behind the last are padding, whose rows are empty. Those of a sequence beyond
    /// `query_len` are nobody's: what is written for them has no meaning. Without `starts` every sequence
    /// has `query_len` tokens.
    pub starts: Option<u64>,
}

impl DeviceQueries {
    /// Dense queries, one token for each sequence.
    pub fn dense(address: u64, [tokens, heads, dim]: [u64; 3]) -> DeviceQueries {
        DeviceQueries { address, tokens, heads, strides: [heads * dim, dim], query_len: 1, starts: None }
    }
}

/// Sequences in a paged cache, in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DeviceSequences {
    /// Sequences, 1 at least.
    pub seqs: u64,
    /// Device address of one row of i32 page numbers per sequence. Entries behind its length may hold
    /// anything.
    pub table: u64,
    /// Entries in a row of the table.
    pub blocks: u64,
    /// Entries from the begin of a row to the begin of the next, at least `blocks`.
    pub stride: u64,
    /// Device address of one i32 per sequence: its number of keys. Those of the query tokens are among them.
    pub lens: u64,
    /// The most keys that a sequence has, now and in every replay of a graph: at most `blocks` pages.
    pub max_len: u64,
}

impl DeviceSequences {
    /// Sequences with a dense table of the shape `[seqs, blocks]`.
    pub fn dense(table: u64, [seqs, blocks]: [u64; 2], lens: u64, max_len: u64) -> DeviceSequences {
        DeviceSequences { seqs, table, blocks, stride: blocks, lens, max_len }
    }
}
