//! Attention in one pass over keys and values, as flash decoding does it: the peer of the two phases.
//!
//! A tile of keys is scored, weighted against the largest score so far, and its values are added, before the
//! next tile. When a larger score comes, all sums shrink. Beta must be known before the row is, no value can
//! stay unread, and the bits depend on how positions are shared between threads. It is not faster than the
//! two phases (`critbeta bench --decode`, `dense` beside `decode_full`), so it is no path of
//! [`super::decode`].

use super::bundle::Bundle;
use super::call::Sequence;
use super::cursor::Cursor;
use super::scores::{Finish, ScoreKeys};
use super::values::{AddValues, Kept, Tally};
use super::views::{PagedKv, Queries};
use crate::Element;
use crate::cpu::{BLOCK, Lanes, WIDTH, Work, element_of, weights_at};
use crate::rescaling::RowFacts;
use std::ops::Range;

/// Keys of a tile. Their scores, and the keys and values of one head, stay in a second cache.
const TILE: usize = 256;

/// What a part of the positions adds up to, for each row.
struct Part {
    max: Vec<f32>,
    z: Vec<f64>,
    sums: Vec<f32>,
}

impl Bundle<'_, '_> {
    /// Writes the output of every row, and returns log Z of each with its largest score taken out.
    pub(super) fn one_pass<Q: Element, T: Element, O: Element>(
        &self,
        queries: &Queries<Q>,
        kv: &PagedKv<T>,
        out: &mut [Vec<&mut [O]>],
    ) -> Vec<f64> {
        let (rows, span) = (self.rows(), self.seq.keys.len());
        let mut blocks = vec![0.0; rows * kv.k.dim().next_multiple_of(BLOCK)];
        self.widen::<Q, T>(queries, &mut blocks);
        let blocks = blocks.as_chunks::<BLOCK>().0;
        let parts = if self.hands.split { rayon::current_num_threads() } else { 1 };
        let each = span.div_ceil(parts).next_multiple_of(TILE);
        let part = |i: usize| {
            let keys = (i * each).min(span)..((i + 1) * each).min(span);
            self.part(blocks, kv, keys)
        };
        let mut parts: Vec<Option<Part>> = (0..parts).map(|_| None).collect();
        self.hands.each(parts.iter_mut().collect(), |i, to| *to = Some(part(i)));
        let parts: Vec<Part> = parts.into_iter().flatten().collect();
        let (dim, padded) = (kv.v.dim(), kv.v.dim().next_multiple_of(BLOCK));
        let outs = out.iter_mut().flatten().flat_map(|out| out.chunks_exact_mut(dim));
        let of_row = |(row, out): (usize, &mut [O])| {
            let max = parts.iter().map(|part| part.max[row]).fold(f32::NEG_INFINITY, f32::max);
            let beta = self.known_beta(row);
            let shrink = |part: &Part| if part.z[row] > 0.0 { shrunk(part.max[row], max, beta) } else { 0.0 };
            let z: f64 = parts.iter().map(|part| part.z[row] * f64::from(shrink(part))).sum();
            for at in 0..padded {
                let sum = parts.iter().map(|part| part.sums[row * padded + at] * shrink(part)).sum::<f32>();
                if let Some(out) = out.get_mut(at / BLOCK * BLOCK + element_of::<T>(at % BLOCK)) {
                    *out = O::from_f32(if z > 0.0 { (f64::from(sum) / z) as f32 } else { 0.0 });
                }
            }
            z.ln()
        };
        outs.enumerate().map(of_row).collect()
    }

    fn known_beta(&self, row: usize) -> f64 {
        let (rule, position) = self.rule(row);
        let n = self.seen(row).len() as u64;
        rule.beta(&RowFacts { n, position, critical: f64::NAN, entropy: f64::NAN })
    }

    fn part<T: Element>(&self, queries: &[[f32; BLOCK]], kv: &PagedKv<T>, keys: Range<usize>) -> Part {
        let (rows, padded) = (self.rows(), kv.v.dim().next_multiple_of(BLOCK));
        let mut part =
            Part { max: vec![f32::NEG_INFINITY; rows], z: vec![0.0; rows], sums: vec![0.0; rows * padded] };
        let Sequence { keys: all, ids, .. } = self.seq;
        let finish = Finish { scale: self.shared.scale, softcap: self.shared.call.softcap };
        let (mut scores, mut tallies) = (vec![0.0f32; rows * TILE], vec![Tally::default(); rows]);
        let (mut seen, cuts) = (vec![0..0; rows], vec![0.0; self.heads.len()]);
        let set = self.hands.set;
        for at in keys.clone().step_by(TILE) {
            let tile = at..(at + TILE).min(keys.end);
            let from = all.start + at;
            let mut out: Vec<&mut [f32]> =
                scores.chunks_mut(TILE).map(|row| &mut row[..tile.len()]).collect();
            let cursor = Cursor::new(&kv.k, ids, self.heads.start, from);
            let heads = self.heads.len();
            set.run(ScoreKeys { keys: cursor, from, heads, queries, finish, out: &mut out });
            for (row, scores) in out.iter_mut().enumerate() {
                let own = self.seen(row);
                let own =
                    own.start.clamp(tile.start, tile.end) - at..own.end.clamp(tile.start, tile.end) - at;
                seen[row] = own.clone();
                if own.is_empty() {
                    continue;
                }
                let scores = &mut scores[own];
                let max = set.run(Largest { row: scores }).max(part.max[row]);
                let beta = self.known_beta(row);
                if max > part.max[row] && part.z[row] > 0.0 {
                    let factor = shrunk(part.max[row], max, beta);
                    part.z[row] *= f64::from(factor);
                    part.sums[row * padded..][..padded].iter_mut().for_each(|sum| *sum *= factor);
                }
                part.max[row] = max;
                part.z[row] += weights_at(set, scores, max, beta);
            }
            let kept = Kept { probs: &scores, stride: TILE, seen: &seen, masses: &[], cuts: &cuts };
            let values = Cursor::new(&kv.v, ids, self.heads.start, from);
            let (sums, tallies) = (&mut part.sums[..], &mut tallies[..]);
            let keys = 0..tile.len();
            set.run(AddValues { values, first: from, keys, kept, ahead: 0, radii: None, sums, tallies });
        }
        part
    }
}

/// What a weight against `old` is against `new`, which is at least as large.
fn shrunk(old: f32, new: f32, beta: f64) -> f32 {
    if old == new { 1.0 } else { (-beta * f64::from(new - old)).exp() as f32 }
}

struct Largest<'a> {
    row: &'a [f32],
}

impl Work for Largest<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let (blocks, tail) = self.row.as_chunks::<WIDTH>();
        let mut largest = [f32::NEG_INFINITY; WIDTH];
        largest[..tail.len()].copy_from_slice(tail);
        let mut found = lanes.load(&largest);
        for block in blocks {
            found = lanes.max(found, lanes.load(block));
        }
        lanes.store(found, &mut largest);
        largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
