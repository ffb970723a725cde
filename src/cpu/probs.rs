//! The probabilities of a row: its weights over their sum, stored as any element type.

use super::exponent::{Exponent, WEIGHT_ONE, weigh};
use super::lanes::{self, InstructionSet, Lanes, WIDTH, Work};
use super::plan::CHUNK;
use super::search::gather::reserve;
use super::top::{Chunks, Found, Progress, Tops};
use super::weights::{BLOCK, LINE, SumWeights, padded, vectors};
use crate::Element;
use rayon::prelude::*;

/// The weights of rows of up to so many scores are kept. They, their row and the next row fit the second
/// cache. The weights of longer rows are computed twice.
const KEPT: usize = 1 << 16;

/// What the probabilities of a row need: its maximum, its beta and its Z.
#[derive(Clone, Copy)]
pub(super) struct Probs {
    max: f32,
    exponent: Exponent,
    /// 2^-25 / Z.
    factor: f32,
    /// Whether the weights were kept.
    keeps: bool,
    pub log_partition: f64,
}

impl Probs {
    /// Sums the weights of a row at `beta` >= 0. The row has at least one weight, and `max` is its maximum.
    /// Afterwards `kept` begins with the weights if they were worth keeping.
    pub(super) fn new<T: Element>(row: &Chunks<T>, max: f32, beta: f64, kept: &mut Vec<f32>) -> Probs {
        let exponent = Exponent::new(beta);
        let work = SumWeights { scores: row.scores, ahead: &[], kept: &mut [], max, exponent };
        let keeps = !row.split && row.scores.len() <= KEPT && !exponent.special;
        let sum = if row.split {
            let mut sum = 0.0;
            row.each(|scores| row.set.run(SumWeights { scores, kept: &mut [], ..work }), |part| sum += part);
            sum
        } else {
            if keeps {
                reserve(kept, row.scores.len());
            }
            let mut kept =
                if keeps { kept[..row.scores.len()].chunks_mut(CHUNK) } else { [].chunks_mut(CHUNK) };
            let mut ahead = row.ahead.chunks(CHUNK);
            let of_chunk = |scores| {
                let (ahead, kept) = (ahead.next().unwrap_or_default(), kept.next().unwrap_or_default());
                row.set.run(SumWeights { scores, ahead, kept, ..work })
            };
            row.scores.chunks(CHUNK).map(of_chunk).sum::<f64>()
        };
        let log_partition = (sum / f64::from(WEIGHT_ONE)).ln();
        Probs { max, exponent, factor: (1.0 / sum) as f32, keeps, log_partition }
    }

    /// Writes the probabilities of a row to `out`, which has the length of the row. If it `streams`, they go
    /// past the caches. The thread must then call [`InstructionSet::fence`], which waits for memory, before
    /// it hands them on. Storing waits for memory too. Meanwhile the thread looks at the top of the next row,
    /// `row.ahead`.
    pub(super) fn write_row<T: Element, O: Element>(
        &self,
        row: &Chunks<T>,
        kept: &[f32],
        out: &mut [O],
        streams: bool,
    ) -> Progress {
        let set = row.set;
        let write = |scores, out, next| match self.exponent.special {
            true => set.run(WriteProbs { of: Weighed::<true>(*self), scores, out, next, streams }),
            false => set.run(WriteProbs { of: Weighed::<false>(*self), scores, out, next, streams }),
        };
        if row.split {
            let chunks = row.scores.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK));
            chunks.for_each(|(scores, out)| {
                write(scores, out, &[]);
                set.fence();
            });
            return Progress::NONE;
        }
        let mut progress = Progress::NONE;
        let mut next = row.ahead.chunks(CHUNK);
        for (i, (scores, out)) in row.scores.chunks(CHUNK).zip(out.chunks_mut(CHUNK)).enumerate() {
            let next = next.next().unwrap_or_default();
            let found = match self.keeps {
                true => {
                    let scores = &kept[i * CHUNK..][..out.len()];
                    set.run(WriteProbs { of: Scaled(self.factor), scores, out, next, streams })
                }
                false => write(scores, out, next),
            };
            if !next.is_empty() {
                progress.take(&found, next.len());
            }
        }
        progress
    }

    /// Replaces the scores of a row by their probabilities. All threads work on it if it is `split`.
    pub(super) fn replace_row<T: Element>(
        &self,
        set: InstructionSet,
        kept: &[f32],
        row: &mut [T],
        split: bool,
    ) {
        if self.keeps {
            let scores = &kept[..row.len()];
            set.run(WriteProbs {
                of: Scaled(self.factor),
                scores,
                out: row,
                next: &[0f32; 0],
                streams: false,
            });
            return;
        }
        let of_chunk = |row: &mut [T]| match self.exponent.special {
            true => set.run(ReplaceByProbs { of: Weighed::<true>(*self), row }),
            false => set.run(ReplaceByProbs { of: Weighed::<false>(*self), row }),
        };
        match split {
            true => row.par_chunks_mut(CHUNK).for_each(of_chunk),
            false => of_chunk(row),
        }
    }
}

/// Turns loaded values into probabilities.
trait Prob: Copy {
    /// Must be `#[inline(always)]`.
    fn of<L: Lanes>(&self, lanes: L, loaded: L::F) -> L::F;
}

/// The loaded values are kept weights. The factor is 2^-25 / Z.
#[derive(Clone, Copy)]
struct Scaled(f32);

impl Prob for Scaled {
    #[inline(always)]
    fn of<L: Lanes>(&self, lanes: L, weight: L::F) -> L::F {
        lanes.mul(weight, lanes.splat(self.0))
    }
}

/// The loaded values are scores.
#[derive(Clone, Copy)]
struct Weighed<const SPECIAL: bool>(Probs);

impl<const SPECIAL: bool> Prob for Weighed<SPECIAL> {
    #[inline(always)]
    fn of<L: Lanes>(&self, lanes: L, score: L::F) -> L::F {
        let weight = weigh::<L, SPECIAL>(lanes, score, self.0.max, &self.0.exponent);
        lanes.mul(weight, lanes.splat(self.0.factor))
    }
}

/// Writes the probabilities of `scores` to `out`, which has their length, and finds the tops of `next`.
struct WriteProbs<'a, P, T, O, N> {
    of: P,
    scores: &'a [T],
    out: &'a mut [O],
    next: &'a [N],
    streams: bool,
}

impl<P: Prob, T: Element, O: Element, N: Element> Work for WriteProbs<'_, P, T, O, N> {
    type Out = Tops;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Tops {
        let WriteProbs { of, scores, out, next, streams } = self;
        let mut found = Found::nothing(lanes);
        let next = if streams {
            // Up to the first whole cache line, stores go through the caches.
            let head = out.as_ptr().align_offset(LINE).min(out.len());
            let (first, rest) = out.split_at_mut(head);
            write::<L, P, T, O, T, false>(lanes, of, &scores[..head], first, &[], &mut found);
            write::<L, P, T, O, N, true>(lanes, of, &scores[head..], rest, next, &mut found)
        } else {
            write::<L, P, T, O, N, false>(lanes, of, scores, out, next, &mut found)
        };
        let (blocks, tail) = next.as_chunks::<BLOCK>();
        blocks.iter().for_each(|block| found.block(lanes, block));
        found.tail(lanes, tail);
        found.tops(lanes)
    }
}

/// Returns the part of `next` that it has not read.
#[inline(always)]
fn write<'a, L: Lanes, P: Prob, T: Element, O: Element, N: Element, const STREAM: bool>(
    lanes: L,
    of: P,
    scores: &[T],
    out: &mut [O],
    next: &'a [N],
    found: &mut Found<L>,
) -> &'a [N] {
    let (from, from_tail) = scores.as_chunks::<BLOCK>();
    let (to, to_tail) = out.as_chunks_mut::<BLOCK>();
    let (ahead, _) = next.as_chunks::<BLOCK>();
    let both = from.len().min(ahead.len());
    for ((from, to), ahead) in from.iter().zip(&mut *to).zip(ahead) {
        write_block::<L, P, T, O, STREAM>(lanes, of, from, to);
        found.block(lanes, ahead);
    }
    for (from, to) in from[both..].iter().zip(&mut to[both..]) {
        write_block::<L, P, T, O, STREAM>(lanes, of, from, to);
    }
    if !from_tail.is_empty() {
        let mut last = [O::from_f32(0.0); BLOCK];
        write_block::<L, P, T, O, false>(lanes, of, &padded(from_tail), &mut last);
        to_tail.copy_from_slice(&last[..to_tail.len()]);
    }
    &next[both * BLOCK..]
}

#[inline(always)]
fn write_block<L: Lanes, P: Prob, T: Element, O: Element, const STREAM: bool>(
    lanes: L,
    of: P,
    from: &[T; BLOCK],
    to: &mut [O; BLOCK],
) {
    let (to, _) = to.as_chunks_mut::<WIDTH>();
    for (v, to) in vectors(lanes, from).into_iter().zip(to) {
        lanes::store::<L, O, STREAM>(lanes, of.of(lanes, v), to);
    }
}

/// Replaces the scores of a chunk by their probabilities.
struct ReplaceByProbs<'a, P, T> {
    of: P,
    row: &'a mut [T],
}

impl<P: Prob, T: Element> Work for ReplaceByProbs<'_, P, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (vectors, tail) = self.row.as_chunks_mut::<WIDTH>();
        for v in vectors {
            lanes::store::<L, T, false>(lanes, self.of.of(lanes, lanes::load(lanes, v)), v);
        }
        if !tail.is_empty() {
            let mut last = padded(tail);
            let probs = self.of.of(lanes, lanes::load(lanes, &last));
            lanes::store::<L, T, false>(lanes, probs, &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}
