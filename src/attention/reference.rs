//! Attention by its definition, in f64: obvious and slow. Tests compare [`super::decode`] with it.

use super::call::check;
use super::{DecodeCall, PagedKv, Pages, Queries, Sequences};
use crate::stats::weight;
use crate::{Element, Result};

/// The row of one query token and head: the keys that it sees, and their scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The sequence.
    pub seq: usize,
    /// The query head.
    pub head: usize,
    /// The 0-based position of the query token.
    pub position: u64,
    /// The position of the first key that it sees.
    pub first_key: usize,
    /// The scores of the keys that it sees.
    pub scores: Vec<f64>,
    /// For each score the sum of |q k| over the elements, times |scale|: a rounded score errs by a multiple.
    pub sizes: Vec<f64>,
}

/// The rows of every query token and head, in the order `[tokens, heads]`.
///
/// Errors: as for [`super::decode`].
pub fn rows<Q: Element, T: Element>(
    queries: &Queries<Q>,
    keys: &Pages<T>,
    sequences: &Sequences,
    call: &DecodeCall,
) -> Result<Vec<Row>> {
    let (shared, seqs) = check(queries, keys, sequences, call)?;
    let mut rows = Vec::new();
    let mut query = vec![0.0; keys.dim()];
    for (seq, of) in seqs.iter().enumerate() {
        for (token, head) in (0..of.query_len).flat_map(|t| (0..queries.heads).map(move |h| (t, h))) {
            queries.widen(of.token + token, head, &mut query);
            // Said once more, so that the fast path is compared with something else than itself.
            let position = of.len as i128 - of.query_len as i128 + token as i128;
            let first = call.window.map_or(0, |window| position - window as i128 + 1).max(0) as usize;
            let seen = first..(position + 1).max(0) as usize;
            let mut row = Row {
                seq,
                head,
                position: position.max(0) as u64,
                first_key: seen.start,
                scores: Vec::new(),
                sizes: Vec::new(),
            };
            for key in seen.map(|at| vector(keys, of.ids, head / shared.group, at)) {
                let products = query.iter().zip(&key).map(|(q, k)| f64::from(*q) * k);
                let score = products.clone().sum::<f64>() * shared.scale;
                row.scores.push(call.softcap.map_or(score, |cap| cap * (score / cap).tanh()));
                row.sizes.push(products.map(f64::abs).sum::<f64>() * shared.scale.abs());
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The output of a row with these scores, for the keys from `row.first_key` on, at inverse temperature
/// `beta`. All keys are read, and no score is NaN or +inf.
pub fn output<T: Element>(
    row: &Row,
    scores: &[f64],
    beta: f64,
    kv: &PagedKv<T>,
    sequences: &Sequences,
    group: usize,
) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| weight(max - s, beta)).collect();
    let z: f64 = weights.iter().sum();
    let mut out = vec![0.0; kv.v.dim()];
    for (i, w) in weights.iter().enumerate() {
        let value = vector(&kv.v, sequences.table.of(row.seq), row.head / group, row.first_key + i);
        out.iter_mut().zip(value).for_each(|(out, v)| *out += w / z * v);
    }
    out
}

/// The vector at position `at` of a sequence.
pub fn vector<T: Element>(pages: &Pages<T>, ids: &[i32], head: usize, at: usize) -> Vec<f64> {
    let mut found = vec![T::zeroed(); pages.dim()];
    let page = ids[at / pages.page()] as usize;
    pages.copy(pages.start(page, head), at % pages.page(), &mut found);
    found.into_iter().map(|v| f64::from(v.to_f32())).collect()
}
