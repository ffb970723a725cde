//! What a caller asks for, what is checked before anything is written, and what comes back for each row.

use super::views::{MAX_GROUP, MAX_QUERY_LEN, Pages, Queries, Sequences};
use crate::cpu::{Measure, RowReport, SoftmaxRow};
use crate::{Element, Error, Rescaling, Result};
use std::ops::Range;

/// The rules of one attention call. A query token sees the keys up to its own position, which is `len - q_len
/// + i` for token `i` of a sequence.
///
/// A score is `scale * q.k`, then `softcap * tanh(score / softcap)` if there is a softcap. No score counts as
/// masked: one that is -inf or below [`crate::DType::masked_below`] becomes NaN, as one that overflows does,
/// and poisons its row.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct DecodeCall<'a> {
    /// The factor of q.k; 1 / sqrt(head_dim) if it is `None`.
    pub scale: Option<f64>,
    /// The bound of softcapped scores, above 0.
    pub softcap: Option<f64>,
    /// The number of keys that a query token sees, itself included; at least 1.
    pub window: Option<usize>,
    /// One rule for all query heads, or one for each.
    pub rescaling: &'a [Rescaling],
    /// The share of a row's weights whose values may stay unread, 0 <= eps < 1. Values below 2^-32 read
    /// everything, as 0 does.
    pub eps: f64,
    /// For each page and kv head, at least the largest norm of `v - centre` over the slots in use; `[pages,
    /// kv_heads]`. With the Euclidean norm, so is the bound; with the maximum norm, the bound holds for each
    /// element.
    pub v_radius: Option<&'a [f32]>,
    /// For each kv head the vector that stands for values that stay unread, `[kv_heads, v_head_dim]`; 0 if it
    /// is `None`.
    pub centre: Option<&'a [f32]>,
    /// What to measure of each row besides. [`DecodeRow::report`] then holds it.
    pub measure: Option<Measure>,
}

impl<'a> DecodeCall<'a> {
    /// Reads every value, and leaves every option at its default.
    pub fn new(rescaling: &'a [Rescaling]) -> Self {
        DecodeCall {
            scale: None,
            softcap: None,
            window: None,
            rescaling,
            eps: 0.0,
            v_radius: None,
            centre: None,
            measure: None,
        }
    }
}

/// What is known about the row of one query token and head.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DecodeRow {
    /// The top of the row, its beta, and log Z of all its keys.
    pub row: SoftmaxRow,
    /// What [`DecodeCall::measure`] asked for.
    pub report: Option<RowReport>,
    /// The share of the weights whose values stayed unread, in units of 2^-32. Each weight is rounded up to a
    /// unit, so the true share is at most this and 2^-18 of it. It is at most `eps * (1 - 2^-18) * 2^32`.
    pub dropped: u64,
    /// How many of the row's keys had their values read.
    pub kept: u64,
    /// At least what the unread values change in the output, in the norm of [`DecodeCall::v_radius`]. The
    /// rounding of sums in f32 and of the output to its type comes on top.
    /// Without radii it is 0 if nothing stayed unread, and NaN otherwise: then the distance is at most
    /// `dropped * 2^-32` times the diameter of the row's values and the centre, which is 0 if there is none.
    /// It is NaN for a poisoned row.
    pub bound: f64,
}

impl DecodeRow {
    /// log of the sum of exp(beta * score) over ALL keys of the row, read or not; -inf for a row without
    /// keys, NaN for a poisoned one.
    pub fn lse(&self) -> f64 {
        let SoftmaxRow { top, beta, log_partition, .. } = self.row;
        let top = match top.len {
            0 => f64::NEG_INFINITY,
            // This avoids 0 * inf.
            _ if top.max == 0.0 || beta == 0.0 => 0.0,
            _ => beta * f64::from(top.max),
        };
        top + log_partition
    }
}

/// The keys that a query token sees.
pub(super) fn visible(len: usize, query_len: usize, token: usize, window: Option<usize>) -> Range<usize> {
    let end = len.saturating_add(token + 1).saturating_sub(query_len);
    end.saturating_sub(window.unwrap_or(end))..end
}

/// One sequence of a checked call.
#[derive(Debug, Clone)]
pub(super) struct Sequence<'a> {
    /// Its first query token, and how many it has.
    pub token: usize,
    pub query_len: usize,
    /// The keys that any of its query tokens sees.
    pub keys: Range<usize>,
    pub len: usize,
    pub ids: &'a [i32],
}

/// What all bundles of a checked call share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    /// The call, whose scale is now given.
    pub call: DecodeCall<'a>,
    pub scale: f64,
    pub kv_heads: usize,
    /// Elements of a key.
    pub dim: usize,
    /// Query heads that share a key head.
    pub group: usize,
    /// The largest sum of masses that may stay unread, in units of 2^-32. It is 0 if all are read.
    pub budget: f64,
}

impl<'a> Shared<'a> {
    pub(super) fn rule(&self, head: usize) -> &'a Rescaling {
        &self.call.rescaling[if self.call.rescaling.len() == 1 { 0 } else { head }]
    }
}

/// The largest number of rows of a key head.
pub(super) const MAX_ROWS: usize = MAX_GROUP * MAX_QUERY_LEN;

/// The relative error of a mass is below 2^-18: 2^-23 each for a weight and for their sum, and two roundings
/// of 2^-24.
pub(super) const MASS_ERROR: f64 = 1.0 / 262_144.0;
/// A mass of 1.
pub(super) const MASS_ONE: f64 = 4_294_967_296.0;

/// Checks everything about keys and queries.
///
/// Errors: [`Error::Attention`].
pub(super) fn check<'a, Q: Element, T: Element>(
    queries: &Queries<Q>,
    keys: &Pages<T>,
    sequences: &Sequences<'a>,
    call: &DecodeCall<'a>,
) -> Result<(Shared<'a>, Vec<Sequence<'a>>)> {
    let fail = |what: String, detail: String| Err(Error::attention(what, detail));
    let (heads, kv_heads) = (queries.heads, keys.heads());
    if queries.dim != keys.dim() {
        return fail(format!("queries of {} elements", queries.dim), format!("keys have {}", keys.dim()));
    }
    let group = heads / kv_heads;
    if !heads.is_multiple_of(kv_heads) || !(1..=MAX_GROUP).contains(&group) {
        let detail = format!("{kv_heads} kv heads must divide them into groups of 1 to {MAX_GROUP}");
        return fail(format!("{heads} query heads"), detail);
    }
    if ![1, heads].contains(&call.rescaling.len()) {
        let detail = format!("expected one for all, or one for each of {heads} query heads");
        return fail(format!("{} rescalings", call.rescaling.len()), detail);
    }
    if !(0.0..1.0).contains(&call.eps) {
        return fail(format!("eps {}", call.eps), "expected at least 0 and below 1".to_owned());
    }
    let scale = call.scale.unwrap_or(1.0 / (keys.dim() as f64).sqrt());
    if !scale.is_finite() {
        return fail(format!("scale {scale}"), "expected a finite number".to_owned());
    }
    if let Some(cap) = call.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        return fail(format!("softcap {cap}"), "expected a finite number above 0".to_owned());
    }
    if call.window == Some(0) {
        return fail("window 0".to_owned(), "expected at least 1, the query's own key".to_owned());
    }
    if let Some(measure) = call.measure.filter(|m| !(m.resolve.is_finite() && m.resolve >= 0.0)) {
        return fail(format!("resolve {}", measure.resolve), "expected a finite number >= 0".to_owned());
    }
    let budget = (call.eps * (1.0 - MASS_ERROR) * MASS_ONE).floor();
    let shared = Shared { call: *call, scale, kv_heads, dim: keys.dim(), group, budget };
    let seqs = checked_sequences(queries, keys, sequences, call)?;
    Ok((shared, seqs))
}

fn checked_sequences<'a, Q: Element, T: Element>(
    queries: &Queries<Q>,
    keys: &Pages<T>,
    sequences: &Sequences<'a>,
    call: &DecodeCall,
) -> Result<Vec<Sequence<'a>>> {
    let fail = |what: String, detail: String| Err(Error::attention(what, detail));
    let count = sequences.table.seqs();
    if let Some(lens) = queries.lens.filter(|lens| lens.len() != count) {
        return fail(
            format!("{} query lengths", lens.len()),
            format!("expected one for each of {count} sequences"),
        );
    }
    let (mut token, mut found) = (0usize, Vec::with_capacity(count));
    for seq in 0..count {
        let query_len = queries.lens.map_or(Ok(1), |lens| lens.get(seq));
        let query_len = match query_len {
            Ok(len) if len <= MAX_QUERY_LEN => len,
            len => {
                let len = len.map_or_else(i64::from, |len| len as i64);
                return fail(
                    format!("query length {len} of sequence {seq}"),
                    format!("expected 0 to {MAX_QUERY_LEN}"),
                );
            }
        };
        let ids = sequences.table.of(seq);
        let len = match sequences.lens.get(seq) {
            Ok(len) => len,
            Err(len) => {
                return fail(format!("length {len} of sequence {seq}"), "expected at least 0".to_owned());
            }
        };
        if len > ids.len().saturating_mul(keys.page()) {
            let detail = format!("its table has {} pages of {} slots", ids.len(), keys.page());
            return fail(format!("length {len} of sequence {seq}"), detail);
        }
        // Every token sees a range of keys, and the ranges rise with the token.
        let keys_seen = match query_len {
            0 => 0..0,
            n => visible(len, n, 0, call.window).start..visible(len, n, n - 1, call.window).end,
        };
        if !keys_seen.is_empty() {
            let used = keys_seen.start / keys.page()..keys_seen.end.div_ceil(keys.page());
            let bad = ids[used.clone()].iter().position(|&id| id < 0 || id as usize >= keys.pages());
            if let Some(at) = bad {
                let block = used.start + at;
                let what = format!("page {} in entry {block} of sequence {seq}", ids[block]);
                let detail = format!("length {len} needs it, but the pool has {} pages", keys.pages());
                return fail(what, detail);
            }
        }
        found.push(Sequence { token, query_len, keys: keys_seen, len, ids });
        token += query_len;
    }
    if token != queries.tokens {
        let detail = format!("the sequences have {token} in all");
        return fail(format!("{} query tokens", queries.tokens), detail);
    }
    Ok(found)
}

/// Checks everything about values and the output.
///
/// Errors: [`Error::Attention`].
pub(super) fn check_values<T: Element>(
    values: &Pages<T>,
    [tokens, heads]: [usize; 2],
    call: &DecodeCall,
    seqs: &[Sequence],
    out: usize,
) -> Result<()> {
    let fail = |what: String, detail: String| Err(Error::attention(what, detail));
    let dim = values.dim();
    if tokens.checked_mul(heads).and_then(|rows| rows.checked_mul(dim)) != Some(out) {
        let detail = format!("expected {tokens} tokens x {heads} heads x {dim}");
        return fail(format!("an output of {out} elements"), detail);
    }
    let kv_heads = values.heads();
    if let Some(centre) = call.centre {
        if centre.len() != kv_heads * dim {
            let detail = format!("expected {kv_heads} kv heads x {dim}");
            return fail(format!("a centre of {} elements", centre.len()), detail);
        }
        if let Some(at) = centre.iter().position(|c| !c.is_finite()) {
            return fail(format!("element {at} of the centre"), format!("it is {}", centre[at]));
        }
    }
    let Some(radii) = call.v_radius else { return Ok(()) };
    if Some(radii.len()) != values.pages().checked_mul(kv_heads) {
        let detail = format!("expected {} pages x {kv_heads} kv heads", values.pages());
        return fail(format!("{} radii", radii.len()), detail);
    }
    for (seq, Sequence { keys, ids, .. }) in seqs.iter().enumerate().filter(|(_, seq)| !seq.keys.is_empty()) {
        for &id in &ids[keys.start / values.page()..keys.end.div_ceil(values.page())] {
            let of_page = &radii[id as usize * kv_heads..][..kv_heads];
            if let Some(head) = of_page.iter().position(|r| r.is_nan() || *r < 0.0) {
                let what = format!("radius {} of page {id}, kv head {head}", of_page[head]);
                return fail(what, format!("sequence {seq} uses the page; expected at least 0"));
            }
        }
    }
    Ok(())
}
