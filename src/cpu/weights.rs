//! exp(-beta gap) in lanes: its sum in a fixed order, and the probabilities.
//!
//! A chunk of columns is summed by one thread: four vectors as a tree in f32, which loses at most 2^-23 relative,
//! then lane by lane in f64; chunks in order in f64. So no bit depends on the threads or on the instruction set.

use super::lanes::{self, InstructionSet, Lanes, WIDTH, Work};
use super::plan::CHUNK;
use super::top::Chunks;
use crate::Element;
use rayon::prelude::*;

/// Scores that are taken at once: four vectors.
pub(super) const BLOCK: usize = 4 * WIDTH;

/// The end of a row as a whole block (or vector): masked scores behind it.
#[inline(always)]
pub(super) fn padded<T: Element, const N: usize>(tail: &[T]) -> [T; N] {
    padded_with(tail, f32::NEG_INFINITY)
}

/// The end of a row as a whole block with `value` behind it.
#[inline(always)]
pub(super) fn padded_with<T: Element, const N: usize>(tail: &[T], value: f32) -> [T; N] {
    let mut block = [T::from_f32(value); N];
    block[..tail.len()].copy_from_slice(tail);
    block
}

#[inline(always)]
pub(super) fn vectors<L: Lanes, T: Element>(lanes: L, block: &[T; BLOCK]) -> [L::F; 4] {
    let (v, _) = block.as_chunks::<WIDTH>();
    [
        lanes::load(lanes, &v[0]),
        lanes::load(lanes, &v[1]),
        lanes::load(lanes, &v[2]),
        lanes::load(lanes, &v[3]),
    ]
}

/// exp(-beta gap) for one row: beta in two floats of base 2, as the kernels have it (`kernels/math.cuh`).
#[derive(Debug, Clone, Copy)]
struct Exponent {
    high: f32,
    low: f32,
    /// What gaps are multiplied by so that the exponent of no weight leaves the range of f32: 0 for beta = 0.
    scale: f32,
    /// Whether beta is 0, infinite, or so far from 1 that `scale` is not 1.
    special: bool,
}

impl Exponent {
    /// `beta` >= 0.
    fn new(beta: f64) -> Exponent {
        const FAR: f64 = 18446744073709551616.0; // 2^64
        let base2 = beta * std::f64::consts::LOG2_E;
        let (scale, scaled) = match base2 {
            0.0 => (0.0, 0.0),
            b if b > FAR => (FAR, b / FAR),
            b if b < 1.0 / FAR => (1.0 / FAR, b * FAR),
            b => (1.0, b),
        };
        let high = if base2 > 2f64.powi(190) { f32::INFINITY } else { scaled as f32 };
        let low = (scaled - f64::from(high)) as f32; // not read where `high` is infinite
        Exponent { high, low, scale: scale as f32, special: scale != 1.0 }
    }
}

/// Weights are kept times 2^25: those down to 2^-150 are normal floats, and only a probability is ever rounded below
/// the normal range.
const WEIGHT_ONE: f32 = 33554432.0;
/// Added to a float below 2^22, it leaves the float's integer in the low bits.
const MAGIC: f32 = 12582912.0;

/// 2^25 exp(-beta gap) of every score, 0 below 2^-150: 2^f on -1/2..=1/2 by a polynomial, times a power of two.
#[inline(always)]
fn weigh<L: Lanes, const SPECIAL: bool>(lanes: L, score: L::F, max: f32, e: &Exponent) -> L::F {
    let splat = |x| lanes.splat(x);
    let mut gap = lanes.sub(splat(max), score);
    if SPECIAL {
        let (one, none) = (splat(WEIGHT_ONE), splat(0.0));
        if e.high == 0.0 && e.scale == 0.0 {
            // Every key alike, even one whose gap overflows.
            return lanes.select(lanes.ge(score, splat(f32::MIN)), one, none);
        }
        if e.high == 0.0 {
            return lanes.select(lanes.ge(splat(f32::MAX), gap), one, none);
        }
        if e.high == f32::INFINITY {
            return lanes.select(lanes.ge(none, gap), one, none);
        }
        gap = lanes.mul(gap, splat(e.scale));
    }
    let magic = splat(MAGIC);
    let shifted = lanes.fma(gap, splat(-e.high), magic);
    // The exponent's fraction: what `shifted` has rounded away.
    let f = lanes.fma(gap, splat(-e.high), lanes.sub(magic, shifted));
    let f = lanes.fma(gap, splat(-e.low), f);
    polynomial(lanes, f, shifted)
}

#[inline(always)]
fn polynomial<L: Lanes>(lanes: L, f: L::F, shifted: L::F) -> L::F {
    let term = |c: f32| lanes.splat(c * WEIGHT_ONE);
    let q = lanes.fma(term(0.00015353360504377633), f, term(0.0013398875016719103));
    let q = lanes.fma(q, f, term(0.00961843691766262));
    let q = lanes.fma(q, f, term(0.055503323674201965));
    let q = lanes.fma(q, f, term(0.24022647738456726));
    let q = lanes.fma(q, f, term(0.6931471824645996));
    let q = lanes.fma(q, f, term(1.0));
    // Far below, `shifted` has lost its integer.
    lanes.raise(q, shifted, lanes.splat(MAGIC - 150.0))
}

/// Z of a chunk of a row, times 2^25; `run` never sees NaN.
struct SumWeights<'a, T> {
    scores: &'a [T],
    ahead: &'a [T],
    max: f32,
    exponent: Exponent,
}

impl<T: Element> Work for SumWeights<'_, T> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        match self.exponent.special {
            true => self.sum::<L, true>(lanes),
            false => self.sum::<L, false>(lanes),
        }
    }
}

impl<T: Element> SumWeights<'_, T> {
    #[inline(always)]
    fn sum<L: Lanes, const SPECIAL: bool>(self, lanes: L) -> f64 {
        let (blocks, tail) = self.scores.as_chunks::<BLOCK>();
        let (ahead, _) = self.ahead.as_chunks::<BLOCK>();
        let mut sum = lanes.zero();
        for (i, block) in blocks.iter().enumerate() {
            if let Some(ahead) = ahead.get(i) {
                ahead.iter().step_by(LINE / size_of::<T>()).for_each(|at| lanes.prefetch(at));
            }
            sum = lanes.accumulate(sum, self.of_block::<L, SPECIAL>(lanes, block));
        }
        if !tail.is_empty() {
            sum = lanes.accumulate(sum, self.of_block::<L, SPECIAL>(lanes, &padded(tail)));
        }
        let mut sums = lanes.sums(sum);
        for width in [8, 4, 2, 1] {
            for j in 0..width {
                sums[j] += sums[j + width];
            }
        }
        sums[0]
    }

    #[inline(always)]
    fn of_block<L: Lanes, const SPECIAL: bool>(&self, lanes: L, block: &[T; BLOCK]) -> L::F {
        let [a, b, c, d] = vectors(lanes, block);
        let e = &self.exponent;
        let a = weigh::<L, SPECIAL>(lanes, a, self.max, e);
        let b = weigh::<L, SPECIAL>(lanes, b, self.max, e);
        let c = weigh::<L, SPECIAL>(lanes, c, self.max, e);
        let d = weigh::<L, SPECIAL>(lanes, d, self.max, e);
        lanes.add(lanes.add(a, b), lanes.add(c, d))
    }
}

/// What the probabilities of a row take: its maximum, its beta and its Z.
#[derive(Clone, Copy)]
pub(super) struct Probs {
    max: f32,
    exponent: Exponent,
    /// 2^-25 / Z.
    factor: f32,
    pub log_partition: f64,
}

impl Probs {
    /// Sums the weights of a row that has any, `max` being its maximum, at `beta` >= 0.
    pub(super) fn new<T: Element>(row: &Chunks<T>, max: f32, beta: f64) -> Probs {
        let exponent = Exponent::new(beta);
        let of_chunk = |scores, ahead| row.set.run(SumWeights { scores, ahead, max, exponent });
        let sum = match row.split {
            true => row.map(|scores| of_chunk(scores, &[])).into_iter().sum(),
            false => {
                let ahead = row.ahead.chunks(CHUNK).chain(std::iter::repeat(&[][..]));
                row.scores
                    .chunks(CHUNK)
                    .zip(ahead)
                    .map(|(scores, ahead)| of_chunk(scores, ahead))
                    .sum::<f64>()
            }
        };
        let log_partition = (sum / f64::from(WEIGHT_ONE)).ln();
        Probs { max, exponent, factor: (1.0 / sum) as f32, log_partition }
    }

    /// Writes the probabilities of a row to `out`, as many; past the caches if it `streams`.
    pub(super) fn write_row<T: Element, O: Element>(&self, row: &Chunks<T>, out: &mut [O], streams: bool) {
        let set = row.set;
        let of_chunk =
            |(scores, out): (&[T], &mut [O])| set.run(WriteProbs { probs: *self, scores, out, streams });
        match row.split {
            true => row.scores.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK)).for_each(of_chunk),
            false => of_chunk((row.scores, out)),
        }
    }

    /// Replaces the scores of a row by their probabilities, by all threads if it is `split`.
    pub(super) fn replace_row<T: Element>(&self, set: InstructionSet, row: &mut [T], split: bool) {
        let of_chunk = |row: &mut [T]| set.run(ReplaceByProbs { probs: *self, row });
        match split {
            true => row.par_chunks_mut(CHUNK).for_each(of_chunk),
            false => of_chunk(row),
        }
    }

    #[inline(always)]
    fn of<L: Lanes, const SPECIAL: bool>(&self, lanes: L, score: L::F) -> L::F {
        let weight = weigh::<L, SPECIAL>(lanes, score, self.max, &self.exponent);
        lanes.mul(weight, lanes.splat(self.factor))
    }

    #[inline(always)]
    fn write<L: Lanes, T: Element, O: Element, const SPECIAL: bool, const STREAM: bool>(
        &self,
        lanes: L,
        scores: &[T],
        out: &mut [O],
    ) {
        let (from, from_tail) = scores.as_chunks::<WIDTH>();
        let (to, to_tail) = out.as_chunks_mut::<WIDTH>();
        for (from, to) in from.iter().zip(to) {
            let probs = self.of::<L, SPECIAL>(lanes, lanes::load(lanes, from));
            lanes::store::<L, O, STREAM>(lanes, probs, to);
        }
        if !from_tail.is_empty() {
            let mut last = [O::from_f32(0.0); WIDTH];
            let probs = self.of::<L, SPECIAL>(lanes, lanes::load(lanes, &padded(from_tail)));
            lanes::store::<L, O, false>(lanes, probs, &mut last);
            to_tail.copy_from_slice(&last[..to_tail.len()]);
        }
    }

    #[inline(always)]
    fn replace<L: Lanes, T: Element, const SPECIAL: bool>(&self, lanes: L, row: &mut [T]) {
        let (vectors, tail) = row.as_chunks_mut::<WIDTH>();
        for v in vectors {
            let probs = self.of::<L, SPECIAL>(lanes, lanes::load(lanes, v));
            lanes::store::<L, T, false>(lanes, probs, v);
        }
        if !tail.is_empty() {
            let mut last = padded(tail);
            let probs = self.of::<L, SPECIAL>(lanes, lanes::load(lanes, &last));
            lanes::store::<L, T, false>(lanes, probs, &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}

/// Writes the probabilities of `scores` to `out`, as many; past the caches if it `streams`.
struct WriteProbs<'a, T, O> {
    probs: Probs,
    scores: &'a [T],
    out: &'a mut [O],
    streams: bool,
}

/// Bytes that streamed stores are aligned to: a cache line.
const LINE: usize = 64;

impl<T: Element, O: Element> Work for WriteProbs<'_, T, O> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let WriteProbs { probs, scores, out, streams } = self;
        if probs.exponent.special {
            return probs.write::<L, T, O, true, false>(lanes, scores, out);
        }
        if !streams {
            return probs.write::<L, T, O, false, false>(lanes, scores, out);
        }
        // Up to the first whole line through the caches.
        let head = out.as_ptr().align_offset(LINE).min(out.len());
        let (first, rest) = out.split_at_mut(head);
        probs.write::<L, T, O, false, false>(lanes, &scores[..head], first);
        probs.write::<L, T, O, false, true>(lanes, &scores[head..], rest);
        lanes.fence();
    }
}

/// Replaces the scores of a row by their probabilities.
struct ReplaceByProbs<'a, T> {
    probs: Probs,
    row: &'a mut [T],
}

impl<T: Element> Work for ReplaceByProbs<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.probs.exponent.special {
            true => self.probs.replace::<L, T, true>(lanes, self.row),
            false => self.probs.replace::<L, T, false>(lanes, self.row),
        }
    }
}
