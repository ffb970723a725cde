//! Attention of few query tokens over a paged cache of keys and values, at each row's own beta, with a
//! certified skip of values.
//!
//! A row is one query token and head. Its scores come from one pass over the keys, and the row's critical
//! beta from its scores, exactly. Then the probabilities say which values matter. Values are left unread as
//! long as their probabilities sum to at most `eps` in every row. The report says how much that is, and
//! bounds the error.
//!
//! ```
//! use critbeta::Rescaling;
//! use critbeta::attention::{BlockTable, DecodeCall, PagedKv, Pages, Queries, Sequences, decode};
//!
//! // One page of two slots, one kv head of 64 elements: the keys differ, and so do the values.
//! let mut keys = [0.0f32; 2 * 64];
//! keys[0] = 8.0;
//! let mut values = [0.0f32; 2 * 64];
//! values[0] = 1.0;
//! let kv = PagedKv::new(Pages::nhd(&keys, [1, 2, 1, 64])?, Pages::nhd(&values, [1, 2, 1, 64])?)?;
//! let sequences = Sequences::new(BlockTable::rows(&[0], [1, 1], 1)?, &[2i32][..])?;
//! // One query head. Its scores are 8 / sqrt(64) = 1 and 0.
//! let mut query = [0.0f32; 64];
//! query[0] = 1.0;
//! let queries = Queries::dense(&query, [1, 1, 64])?;
//! let rules = ["critical".parse::<Rescaling>()?];
//! let mut out = [0.0f32; 64];
//! let rows = decode(&queries, &kv, &sequences, &DecodeCall::new(&rules), &mut out)?;
//! // Two scores within a gap of 1: the critical beta is log 2, and the weights are 2/3 and 1/3.
//! assert_eq!(rows[0].row.beta, 2f64.ln());
//! assert!((out[0] - 2.0 / 3.0).abs() < 1e-6);
//! # Ok::<(), critbeta::Error>(())
//! ```

mod call;
mod cursor;
mod group;
mod one_pass;
pub mod reference;
mod scores;
mod scratch;
mod selection;
mod values;
mod views;

pub use call::{DecodeCall, DecodeRow};
pub use views::{BlockTable, Lens, PagedKv, Pages, Queries, Sequences, Strides};

#[cfg(doc)]
use crate::Error;
use crate::cpu::{Hands, InstructionSet, RowReport};
use crate::{Element, Result};
use call::{Sequence, Shared};
use group::Group;
use rayon::prelude::*;

/// While there are this many groups for each thread, a thread takes whole groups.
const GROUPS_PER_THREAD: usize = 4;
/// Threads do not share a group with fewer keys.
const SHARED_KEYS: usize = 2048;

/// Writes the attention output of every query token and head to `out`, which is dense, `[tokens, heads,
/// v_head_dim]`. Reports on each row, in the order `[tokens, heads]`.
///
/// A row without keys gives 0. A row that sees a NaN or an infinite score gives NaN, and no other row does.
/// Every result has the same bits on any number of threads, any instruction set, any page size and layout,
/// and whatever else is in the batch. `out` cannot overlap the pages, because Rust lends no memory for
/// reading and writing at once.
///
/// Errors: [`Error::Attention`] for arguments that do not fit together; [`Error::Settings`] if the
/// environment names an unknown instruction set. `out` then stays as it was.
pub fn decode<Q: Element, T: Element, O: Element>(
    queries: &Queries<Q>,
    kv: &PagedKv<T>,
    sequences: &Sequences,
    call: &DecodeCall,
    out: &mut [O],
) -> Result<Vec<DecodeRow>> {
    decode_on(InstructionSet::chosen()?, queries, kv, sequences, call, out)
}

fn decode_on<Q: Element, T: Element, O: Element>(
    set: InstructionSet,
    queries: &Queries<Q>,
    kv: &PagedKv<T>,
    sequences: &Sequences,
    call: &DecodeCall,
    out: &mut [O],
) -> Result<Vec<DecodeRow>> {
    let (shared, seqs) = call::check(queries, &kv.k, sequences, call)?;
    call::check_values(&kv.v, [queries.tokens, queries.heads], call, &seqs, out.len())?;
    let outs = outs_of(&shared, &seqs, kv.v.dim(), out);
    Ok(each_group(set, &shared, &seqs, outs, |group, mut out| group.decode(queries, kv, &mut out)))
}

/// As [`decode`] for a rule that measures nothing, in one pass over keys and values. It returns log Z of
/// every row with its largest score taken out. Benchmarks compare the two phases with it.
#[doc(hidden)]
pub fn one_pass<Q: Element, T: Element, O: Element>(
    queries: &Queries<Q>,
    kv: &PagedKv<T>,
    sequences: &Sequences,
    call: &DecodeCall,
    out: &mut [O],
) -> Result<Vec<f64>> {
    let (shared, seqs) = call::check(queries, &kv.k, sequences, call)?;
    call::check_values(&kv.v, [queries.tokens, queries.heads], call, &seqs, out.len())?;
    let outs = outs_of(&shared, &seqs, kv.v.dim(), out);
    let set = InstructionSet::chosen()?;
    Ok(each_group(set, &shared, &seqs, outs, |group, mut out| group.one_pass(queries, kv, &mut out)))
}

/// Reports on the row of every query token and head, in the order `[tokens, heads]`, without any values. The
/// report is at the beta that the call's rescaling chooses, and measures what [`DecodeCall::measure`] asks
/// for: the critical beta at least.
///
/// Errors: as for [`decode`].
pub fn measure<Q: Element, T: Element>(
    queries: &Queries<Q>,
    keys: &Pages<T>,
    sequences: &Sequences,
    call: &DecodeCall,
) -> Result<Vec<RowReport>> {
    let (shared, seqs) = call::check(queries, keys, sequences, call)?;
    let measure = call.measure.unwrap_or_default();
    let none = vec![(); seqs.len() * shared.kv_heads];
    let set = InstructionSet::chosen()?;
    Ok(each_group(set, &shared, &seqs, none, |group, ()| group.measure(queries, keys, measure)))
}

/// The scores of every query token and head over the keys that it sees, in the order `[tokens, heads]`. Tests
/// compare them with [`reference::scores`].
#[doc(hidden)]
pub fn scores<Q: Element, T: Element>(
    queries: &Queries<Q>,
    keys: &Pages<T>,
    sequences: &Sequences,
    call: &DecodeCall,
) -> Result<Vec<Vec<f32>>> {
    let (shared, seqs) = call::check(queries, keys, sequences, call)?;
    let none = vec![(); seqs.len() * shared.kv_heads];
    let set = InstructionSet::chosen()?;
    Ok(each_group(set, &shared, &seqs, none, |group, ()| group.scores(queries, keys)))
}

/// The first score of every row, after the whole pass over the keys. Benchmarks time that pass alone.
#[doc(hidden)]
pub fn first_scores<Q: Element, T: Element>(
    queries: &Queries<Q>,
    keys: &Pages<T>,
    sequences: &Sequences,
    call: &DecodeCall,
) -> Result<Vec<f32>> {
    let (shared, seqs) = call::check(queries, keys, sequences, call)?;
    let none = vec![(); seqs.len() * shared.kv_heads];
    let set = InstructionSet::chosen()?;
    Ok(each_group(set, &shared, &seqs, none, |group, ()| group.first_scores(queries, keys)))
}

/// The output of every group: a slice for each of its query tokens.
fn outs_of<'o, O>(shared: &Shared, seqs: &[Sequence], dim: usize, out: &'o mut [O]) -> Vec<Vec<&'o mut [O]>> {
    let mut parts = out.chunks_mut(shared.group * dim);
    let mut outs: Vec<Vec<&mut [O]>> = Vec::new();
    for seq in seqs {
        let first = outs.len();
        outs.resize_with(first + shared.kv_heads, Vec::new);
        for _ in 0..seq.query_len {
            outs[first..].iter_mut().for_each(|out| out.extend(parts.next()));
        }
    }
    outs
}

/// Calls `of` with every group and its part, and puts what it finds for each row in the order `[tokens,
/// heads]`.
fn each_group<P: Send, R: Send>(
    set: InstructionSet,
    shared: &Shared,
    seqs: &[Sequence],
    parts: Vec<P>,
    of: impl Fn(&Group, P) -> Vec<R> + Sync,
) -> Vec<R> {
    let threads = rayon::current_num_threads();
    let longest = seqs.iter().map(|seq| seq.keys.len()).max().unwrap_or(0);
    let split = threads > 1 && parts.len() < GROUPS_PER_THREAD * threads && longest >= SHARED_KEYS;
    let one = |(index, part): (usize, P)| {
        let seq = &seqs[index / shared.kv_heads];
        let hands = Hands { set, split: split && seq.keys.len() >= SHARED_KEYS };
        of(&Group { shared, seq, kv_head: index % shared.kv_heads, hands }, part)
    };
    let one_by_one = |parts: Vec<P>| parts.into_iter().enumerate().map(one).collect();
    let found: Vec<Vec<R>> = if split {
        // A caller outside of the thread pool would wait at the door for each of its loops.
        rayon::scope(|_| one_by_one(parts))
    } else if threads == 1 || parts.len() == 1 {
        one_by_one(parts)
    } else {
        parts.into_par_iter().enumerate().map(one).collect()
    };
    let mut found: Vec<_> = found.into_iter().map(Vec::into_iter).collect();
    let mut rows = Vec::new();
    for (seq, found) in seqs.iter().zip(found.chunks_mut(shared.kv_heads)) {
        for _ in 0..seq.query_len {
            found.iter_mut().for_each(|rows_of| rows.extend(rows_of.take(shared.group)));
        }
    }
    rows
}
