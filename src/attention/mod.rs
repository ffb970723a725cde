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

mod bundle;
mod call;
mod cursor;
mod one_pass;
pub mod reference;
mod scores;
mod scratch;
mod selection;
mod values;
mod views;

pub use call::{DecodeCall, DecodeRow};
pub use views::{BlockTable, Lens, PagedKv, Pages, Queries, Sequences, Strides};
pub(crate) use views::{DIM_STEP, DIMS, MAX_GROUP, MAX_KV_HEADS, MAX_QUERY_LEN};

#[cfg(doc)]
use crate::Error;
use crate::cpu::{Hands, InstructionSet, RowReport};
use crate::{Element, Result};
use bundle::Bundle;
use call::{Sequence, Shared};

/// While there are this many sequences for each thread, only those share threads that have more than a
/// thread's part of all keys.
const SEQS_PER_THREAD: usize = 4;
/// Sequences that do not share threads fall into this many bundles for each, if there are enough key heads.
const BUNDLES_PER_THREAD: usize = 2;
/// One thread does a call whose keys have fewer elements in all, about 0.05 ms of work. From there on two
/// threads gain: 3 query heads over 3 key heads and 2,048 keys of 64 elements took 0.65 of the time of one
/// (2026-11-29).
const ALONE: usize = 1 << 17;
/// Threads do not share a bundle with fewer keys.
const SHARED_KEYS: usize = 2048;
/// A bundle has at most this many scores, which are 16 MiB, unless one key head has more. With an eighth of
/// it, 32 query heads over 8 key heads and 32,768 keys took 1.15 times as long (2026-11-29).
const BUNDLE_SCORES: usize = 1 << 22;

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
    Ok(each_bundle(set, &shared, &seqs, outs, |bundle, mut out| bundle.decode(queries, kv, &mut out)))
}

/// As [`decode`] for a rule that measures nothing, in one pass over keys and values. It returns log Z of
/// every row with its largest score taken out. No row may be poisoned. Benchmarks compare the two phases
/// with it.
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
    Ok(each_bundle(set, &shared, &seqs, outs, |bundle, mut out| bundle.one_pass(queries, kv, &mut out)))
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
    Ok(each_bundle(set, &shared, &seqs, none, |bundle, _| bundle.measure(queries, keys, measure)))
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
    Ok(each_bundle(set, &shared, &seqs, none, |bundle, _| bundle.scores(queries, keys)))
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
    Ok(each_bundle(set, &shared, &seqs, none, |bundle, _| bundle.first_scores(queries, keys)))
}

/// Whether the calling thread alone does a call on these sequences, whatever else it asks for. Then it needs
/// no thread pool.
#[doc(hidden)]
pub fn is_small(sequences: &Sequences, kv_heads: usize, dim: usize) -> bool {
    let lens = (0..sequences.table.seqs()).map(|seq| sequences.lens.get(seq).unwrap_or(0));
    is_for_one(lens.fold(0, usize::saturating_add), kv_heads.saturating_mul(dim))
}

fn is_for_one(keys: usize, elements: usize) -> bool {
    keys.saturating_mul(elements) < ALONE
}

/// The output of every key head of every sequence: a slice for each query token.
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

/// Calls `of` with every bundle and the parts of its key heads, and puts what it finds for each row in the
/// order `[tokens, heads]`.
fn each_bundle<P: Send, R: Send>(
    set: InstructionSet,
    shared: &Shared,
    seqs: &[Sequence],
    parts: Vec<P>,
    of: impl Fn(&Bundle, Vec<P>) -> Vec<R> + Sync,
) -> Vec<R> {
    let keys: usize = seqs.iter().map(|seq| seq.keys.len()).sum();
    let threads =
        if is_for_one(keys, shared.kv_heads * shared.dim) { 1 } else { rayon::current_num_threads() };
    let few = seqs.len() < SEQS_PER_THREAD * threads;
    let splits = |seq: &Sequence| {
        let n = seq.keys.len();
        threads > 1 && n >= SHARED_KEYS && (few || n > keys / threads)
    };
    let whole = seqs.iter().filter(|seq| !splits(seq)).count() * shared.kv_heads;
    let (mut bundles, mut parts) = ([Vec::new(), Vec::new()], parts.into_iter());
    let mut found = Vec::new();
    for seq in seqs {
        let split = splits(seq);
        let scores = seq.keys.len() * seq.query_len * shared.group;
        let most =
            if split || threads == 1 { shared.kv_heads } else { whole / (BUNDLES_PER_THREAD * threads) };
        let most = (BUNDLE_SCORES / scores.max(1)).min(most).clamp(1, shared.kv_heads);
        let count = shared.kv_heads.div_ceil(most);
        for i in 0..count {
            let heads = i * shared.kv_heads / count..(i + 1) * shared.kv_heads / count;
            let parts: Vec<P> = parts.by_ref().take(heads.len()).collect();
            let bundle = Bundle { shared, seq, heads, hands: Hands { set, split } };
            bundles[usize::from(split)].push((bundle, parts, found.len()));
            found.push(Vec::new());
        }
    }
    let [mut whole, split] = bundles;
    // The longest go first, so that no thread ends with one of them alone.
    whole.sort_by_key(|(bundle, ..)| std::cmp::Reverse(bundle.seq.keys.len()));
    let one = |(bundle, parts, at): (Bundle, Vec<P>, usize)| (at, of(&bundle, parts));
    let mut of_whole: Vec<_> = whole.iter().map(|_| (0, Vec::new())).collect();
    let hands = Hands { set, split: threads > 1 };
    hands.each(whole.into_iter().zip(&mut of_whole).collect(), |_, (bundle, to)| *to = one(bundle));
    let of_split: Vec<_> = match split.iter().any(|(bundle, ..)| bundle.shares_columns()) {
        // A caller outside of the thread pool would wait at the door for each of its loops.
        true => rayon::scope(|_| split.into_iter().map(one).collect()),
        false => split.into_iter().map(one).collect(),
    };
    of_whole.into_iter().chain(of_split).for_each(|(at, rows)| found[at] = rows);
    let mut found = found.into_iter().flatten();
    let mut rows = Vec::new();
    for seq in seqs {
        let of_head = |_| found.by_ref().take(seq.query_len * shared.group).collect::<Vec<R>>().into_iter();
        let mut of_heads: Vec<_> = (0..shared.kv_heads).map(of_head).collect();
        for _ in 0..seq.query_len {
            of_heads.iter_mut().for_each(|rows_of| rows.extend(rows_of.take(shared.group)));
        }
    }
    rows
}
