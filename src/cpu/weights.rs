//! Z of a row in lanes, in a fixed order.
//!
//! One thread sums a chunk of columns. It adds four vectors as a tree in f32, which loses at most 2^-23
//! relative, and adds the result lane by lane in f64. The sums of chunks are added in order in f64. So no bit
//! depends on the threads or on the instruction set.

use super::exponent::{Exponent, weigh};
use super::lanes::{self, Lanes, WIDTH, Work};
use crate::Element;

/// Bytes of a cache line. Streamed stores are aligned to it.
pub(super) const LINE: usize = 64;

/// Number of scores that one step reads: four vectors.
pub(super) const BLOCK: usize = 4 * WIDTH;

/// The end of a row as a whole block or vector, with masked scores behind it.
#[inline(always)]
pub(super) fn padded<T: Element, const N: usize>(tail: &[T]) -> [T; N] {
    padded_with(tail, f32::NEG_INFINITY)
}

/// The end of a row as a whole block, with `value` behind it.
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

/// The sum of all lanes. Each step adds one half of them to the other.
#[inline(always)]
pub(super) fn fold(mut sums: [f64; WIDTH]) -> f64 {
    for width in [8, 4, 2, 1] {
        for j in 0..width {
            sums[j] += sums[j + width];
        }
    }
    sums[0]
}

/// Sums Z of a chunk of a row without NaN, times 2^25.
pub(super) struct SumWeights<'a, T> {
    pub scores: &'a [T],
    /// What will be read next.
    pub ahead: &'a [T],
    /// Where the weights go. It has the length of `scores`, or is empty.
    pub kept: &'a mut [f32],
    pub max: f32,
    pub exponent: Exponent,
}

impl<T: Element> Work for SumWeights<'_, T> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        match (self.exponent.special, self.kept.is_empty()) {
            (true, _) => self.sum::<L, true, false>(lanes),
            (false, true) => self.sum::<L, false, false>(lanes),
            (false, false) => self.sum::<L, false, true>(lanes),
        }
    }
}

impl<T: Element> SumWeights<'_, T> {
    #[inline(always)]
    fn sum<L: Lanes, const SPECIAL: bool, const KEEP: bool>(self, lanes: L) -> f64 {
        let SumWeights { scores, ahead, kept, max, exponent } = self;
        let (blocks, tail) = scores.as_chunks::<BLOCK>();
        let (kept, kept_tail) = kept.as_chunks_mut::<BLOCK>();
        let (ahead, _) = ahead.as_chunks::<BLOCK>();
        let mut sum = lanes.zero();
        for (i, block) in blocks.iter().enumerate() {
            if let Some(ahead) = ahead.get(i) {
                ahead.iter().step_by(LINE / size_of::<T>()).for_each(|at| lanes.prefetch(at));
            }
            let w = weigh_block::<L, T, SPECIAL>(lanes, block, max, &exponent);
            if KEEP {
                keep(lanes, w, &mut kept[i]);
            }
            sum = lanes.accumulate(sum, lanes.add(lanes.add(w[0], w[1]), lanes.add(w[2], w[3])));
        }
        if !tail.is_empty() {
            let w = weigh_block::<L, T, SPECIAL>(lanes, &padded(tail), max, &exponent);
            if KEEP {
                let mut last = [0.0; BLOCK];
                keep(lanes, w, &mut last);
                kept_tail.copy_from_slice(&last[..tail.len()]);
            }
            sum = lanes.accumulate(sum, lanes.add(lanes.add(w[0], w[1]), lanes.add(w[2], w[3])));
        }
        fold(lanes.sums(sum))
    }
}

// This is no closure: a closure has no instruction set of its own, and is not always inlined into what has
// one.
#[inline(always)]
fn weigh_block<L: Lanes, T: Element, const SPECIAL: bool>(
    lanes: L,
    block: &[T; BLOCK],
    max: f32,
    e: &Exponent,
) -> [L::F; 4] {
    let [a, b, c, d] = vectors(lanes, block);
    [
        weigh::<L, SPECIAL>(lanes, a, max, e),
        weigh::<L, SPECIAL>(lanes, b, max, e),
        weigh::<L, SPECIAL>(lanes, c, max, e),
        weigh::<L, SPECIAL>(lanes, d, max, e),
    ]
}

#[inline(always)]
fn keep<L: Lanes>(lanes: L, w: [L::F; 4], to: &mut [f32; BLOCK]) {
    let (to, _) = to.as_chunks_mut::<WIDTH>();
    for j in 0..4 {
        lanes.store(w[j], &mut to[j]);
    }
}

/// Replaces the scores of a chunk by their weights, and sums them as [`SumWeights`] does.
pub(super) struct ReplaceByWeights<'a> {
    pub row: &'a mut [f32],
    pub max: f32,
    pub exponent: Exponent,
}

impl Work for ReplaceByWeights<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        match self.exponent.special {
            true => self.replace::<L, true>(lanes),
            false => self.replace::<L, false>(lanes),
        }
    }
}

impl ReplaceByWeights<'_> {
    #[inline(always)]
    fn replace<L: Lanes, const SPECIAL: bool>(self, lanes: L) -> f64 {
        let ReplaceByWeights { row, max, exponent } = self;
        let (blocks, tail) = row.as_chunks_mut::<BLOCK>();
        let mut sum = lanes.zero();
        for block in blocks {
            let w = weigh_block::<L, f32, SPECIAL>(lanes, block, max, &exponent);
            keep(lanes, w, block);
            sum = lanes.accumulate(sum, lanes.add(lanes.add(w[0], w[1]), lanes.add(w[2], w[3])));
        }
        if !tail.is_empty() {
            let mut last = padded(tail);
            let w = weigh_block::<L, f32, SPECIAL>(lanes, &last, max, &exponent);
            keep(lanes, w, &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
            sum = lanes.accumulate(sum, lanes.add(lanes.add(w[0], w[1]), lanes.add(w[2], w[3])));
        }
        fold(lanes.sums(sum))
    }
}
