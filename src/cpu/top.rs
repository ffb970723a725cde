//! This file finds the top of a row in one pass: its maximum, the scores near it, and whether a score needs
//! care.

use super::lanes::{InstructionSet, Lanes, WIDTH, Work};
use super::plan::CHUNK;
use super::weights::{BLOCK, padded, padded_with, vectors};
use crate::Element;
use crate::stats::RowMax;
use rayon::prelude::*;

/// What one pass finds in a chunk of a row. Chunks merge in any order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tops {
    /// The largest score of every lane, and the second largest; -inf if there is none.
    pub scores: [[f32; WIDTH]; 2],
    /// The lowest score; -inf if one is masked, +inf if there is no score.
    pub lowest: f32,
    /// Whether there is a NaN. If so, nothing else is of use.
    pub nan: bool,
    /// Whether finite scores of the row are masked. [`Chunks::top`] finds it. Then nothing else is of use.
    pub hides: bool,
}

impl Tops {
    pub(super) const EMPTY: Tops =
        Tops { scores: [[f32::NEG_INFINITY; WIDTH]; 2], lowest: f32::INFINITY, nan: false, hides: false };

    pub(super) fn max(&self) -> f32 {
        self.largest_two()[0]
    }

    /// The largest score and the second largest, which are equal under ties. Halves of the lanes are compared
    /// with each other. One lane after the other would wait for the last result, as long as a thousand scores
    /// take.
    fn largest_two(&self) -> [f32; 2] {
        let [mut max, mut second] = self.scores;
        for width in [8, 4, 2, 1] {
            for j in 0..width {
                let (a, b) = (max[j], max[j + width]);
                let low = if a < b { a } else { b };
                max[j] = if a < b { b } else { a };
                let (a, b) = (second[j], second[j + width]);
                let high = if a < b { b } else { a };
                second[j] = if low < high { high } else { low };
            }
        }
        [max[0], second[0]]
    }

    pub(super) fn merge(mut self, other: &Tops) -> Tops {
        for j in 0..WIDTH {
            let (a, b) = (self.scores[0][j], other.scores[0][j]);
            self.scores[0][j] = a.max(b);
            self.scores[1][j] = a.min(b).max(self.scores[1][j]).max(other.scores[1][j]);
        }
        Tops { lowest: self.lowest.min(other.lowest), nan: self.nan | other.nan, ..self }
    }
}

/// What is known about a row from its first chunks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    tops: Tops,
    /// Where the first chunk that has the maximum begins.
    start: usize,
    highest: f32,
    /// Number of columns already read: whole chunks, or the whole row.
    done: usize,
}

impl Progress {
    pub(super) const NONE: Progress =
        Progress { tops: Tops::EMPTY, start: 0, highest: f32::NEG_INFINITY, done: 0 };

    /// Adds the next chunk.
    pub(super) fn take(&mut self, found: &Tops, chunk: usize) {
        let max = found.max();
        if max > self.highest {
            (self.start, self.highest) = (self.done, max);
        }
        self.tops = if self.done == 0 { *found } else { self.tops.merge(found) };
        self.done += chunk;
    }
}

/// A row in chunks, as its thread or all threads see it.
#[derive(Clone, Copy)]
pub(super) struct Chunks<'a, T> {
    pub scores: &'a [T],
    /// What the same thread reads next: the next row, or nothing.
    pub ahead: &'a [T],
    pub set: InstructionSet,
    /// Whether all threads share its chunks.
    pub split: bool,
}

impl<'a, T: Element> Chunks<'a, T> {
    /// A row that one thread works on.
    pub(super) fn of_one(scores: &'a [T]) -> Self {
        Chunks { scores, ahead: &[], set: InstructionSet::chosen_or_fastest(), split: false }
    }

    /// Calls `see` with `of` of every chunk, in order.
    pub(super) fn each<R: Send>(&self, of: impl Fn(&'a [T]) -> R + Send + Sync, mut see: impl FnMut(R)) {
        match self.split {
            true => self.scores.par_chunks(CHUNK).map(of).collect::<Vec<R>>().into_iter().for_each(see),
            false => self.scores.chunks(CHUNK).for_each(|chunk| see(of(chunk))),
        }
    }

    /// Like `each`, but parts may have any size. It is for results that have no order.
    pub(super) fn each_part<R: Send>(&self, of: impl Fn(&'a [T]) -> R + Send + Sync, see: impl FnMut(R)) {
        let parts = if self.split { 2 * rayon::current_num_threads() } else { 1 };
        let part = self.scores.len().div_ceil(parts).next_multiple_of(CHUNK);
        self.scores.par_chunks(part).map(of).collect::<Vec<R>>().into_iter().for_each(see);
    }

    /// The top of the row and what else the pass has found. The pass goes on from `begun`. There is no top if
    /// the row hides finite scores.
    pub(super) fn top(&self, begun: Progress) -> (RowMax, Tops) {
        let mut progress = begun;
        let rest = Chunks { scores: &self.scores[progress.done.min(self.scores.len())..], ..*self };
        rest.each(|chunk| self.set.run(FindTops(chunk)), |found| progress.take(&found, CHUNK));
        let Progress { mut tops, start, .. } = progress;
        let [max, second] = tops.largest_two();
        if tops.nan || max == f32::INFINITY {
            let wide: Vec<f32> = self.scores.iter().map(|s| s.score()).collect();
            return (RowMax::of(&wide, 0), tops);
        }
        if max == f32::NEG_INFINITY {
            return (RowMax::EMPTY, tops);
        }
        let mut len = self.scores.len() as u64;
        if tops.lowest == f32::NEG_INFINITY {
            (len, tops.lowest) = (0, f32::INFINITY);
            self.each(
                |chunk| self.set.run(Visible(chunk)),
                |(visible, lowest)| {
                    len += visible;
                    tops.lowest = tops.lowest.min(lowest);
                },
            );
        }
        // The pass compares with the lowest score, so a row without finite masks costs nothing more.
        if tops.lowest < T::DTYPE.masked_below() as f32 {
            tops.hides = true;
            return (RowMax::EMPTY, tops);
        }
        // A lane that shows the maximum twice may hide more.
        let attained = |scores, counts| self.set.run(Attained { scores, max, counts });
        let mut ties = 0;
        match tops.scores[1].contains(&max) {
            true => self.each(|chunk| attained(chunk, true).1, |count| ties += count),
            false => ties = tops.scores[0].iter().map(|&s| u64::from(s == max)).sum(),
        }
        let argmax = start + attained(&self.scores[start..], false).0.unwrap_or(0);
        // -0 and 0 are one score. Adding 0 makes its sign independent of the order of the row.
        let (max, second) = (max + 0.0, second + 0.0);
        (RowMax { max, second, len, argmax: argmax as u64, ties, poisoned: false }, tops)
    }
}

/// Finds the tops of a chunk.
pub(super) struct FindTops<'a, T>(pub &'a [T]);

impl<T: Element> Work for FindTops<'_, T> {
    type Out = Tops;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Tops {
        let mut found = Found::<L>::nothing(lanes);
        let (blocks, tail) = self.0.as_chunks::<BLOCK>();
        blocks.iter().for_each(|block| found.block(lanes, block));
        found.tail(lanes, tail);
        found.tops(lanes)
    }
}

/// Four vectors side by side. One alone would wait for its own last result.
pub(super) struct Found<L: Lanes> {
    max: [L::F; 4],
    second: [L::F; 4],
    lowest: [L::F; 2],
    nan: L::M,
}

impl<L: Lanes> Found<L> {
    #[inline(always)]
    pub(super) fn nothing(lanes: L) -> Self {
        let none = lanes.splat(f32::NEG_INFINITY);
        let lowest = [lanes.splat(f32::INFINITY); 2];
        Found { max: [none; 4], second: [none; 4], lowest, nan: lanes.no() }
    }

    #[inline(always)]
    pub(super) fn block<T: Element>(&mut self, lanes: L, block: &[T; BLOCK]) {
        let v = vectors(lanes, block);
        self.largest(lanes, v);
        self.lowest(lanes, v);
    }

    /// The end of a chunk.
    #[inline(always)]
    pub(super) fn tail<T: Element>(&mut self, lanes: L, tail: &[T]) {
        if !tail.is_empty() {
            self.largest(lanes, vectors(lanes, &padded(tail)));
            // What lies behind the end is not a masked score.
            self.lowest(lanes, vectors(lanes, &padded_with(tail, f32::INFINITY)));
        }
    }

    #[inline(always)]
    fn largest(&mut self, lanes: L, v: [L::F; 4]) {
        for (j, v) in v.into_iter().enumerate() {
            self.second[j] = lanes.max(self.second[j], lanes.min(self.max[j], v));
            self.max[j] = lanes.max(self.max[j], v);
        }
    }

    #[inline(always)]
    fn lowest(&mut self, lanes: L, v: [L::F; 4]) {
        for j in 0..2 {
            self.lowest[j] = lanes.min(self.lowest[j], lanes.min(v[j], v[j + 2]));
            self.nan = lanes.or(self.nan, lanes.unordered(v[j], v[j + 2]));
        }
    }

    #[inline(always)]
    pub(super) fn tops(self, lanes: L) -> Tops {
        let Found { mut max, mut second, lowest, nan } = self;
        for j in [1, 2, 3] {
            second[0] = lanes.max(lanes.max(second[0], second[j]), lanes.min(max[0], max[j]));
            max[0] = lanes.max(max[0], max[j]);
        }
        let mut scores = [[0.0; WIDTH]; 2];
        lanes.store(max[0], &mut scores[0]);
        lanes.store(second[0], &mut scores[1]);
        let mut lows = [0.0; WIDTH];
        lanes.store(lanes.min(lowest[0], lowest[1]), &mut lows);
        Tops { scores, lowest: lowest_of(lows), nan: lanes.any(nan), hides: false }
    }
}

/// Where a chunk first attains `max`; `None` if it does not. With `counts` set, also how often it does.
pub(super) struct Attained<'a, T> {
    pub scores: &'a [T],
    pub max: f32,
    pub counts: bool,
}

impl<T: Element> Work for Attained<'_, T> {
    type Out = (Option<usize>, u64);
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (Option<usize>, u64) {
        let max = lanes.splat(self.max);
        let (mut first, mut ties) = (None, 0);
        let (blocks, tail) = self.scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        for (i, block) in blocks.iter().chain([&last]).enumerate() {
            let [a, b, c, d] = vectors(lanes, block);
            // The vectors are compared one by one, because a map over an array is not always inlined.
            let (a, b) = (lanes.ge(a, max), lanes.ge(b, max));
            let (c, d) = (lanes.ge(c, max), lanes.ge(d, max));
            if !lanes.any(lanes.or(lanes.or(a, b), lanes.or(c, d))) {
                continue;
            }
            let bits = u64::from(lanes.bits(a) | lanes.bits(b) << 16)
                | u64::from(lanes.bits(c) | lanes.bits(d) << 16) << 32;
            first = first.or(Some(i * BLOCK + bits.trailing_zeros() as usize));
            ties += u64::from(bits.count_ones());
            if !self.counts {
                break;
            }
        }
        (first, ties)
    }
}

/// The lowest of some lanes, +inf at most. Halves are compared, because one lane after the other would wait.
#[inline(always)]
fn lowest_of(mut lanes: [f32; WIDTH]) -> f32 {
    for width in [8, 4, 2, 1] {
        for j in 0..width {
            lanes[j] = if lanes[j + width] < lanes[j] { lanes[j + width] } else { lanes[j] };
        }
    }
    lanes[0]
}

/// How many scores of a chunk are not masked, and the lowest of them (+inf if there is none).
pub(super) struct Visible<'a, T>(pub &'a [T]);

impl<T: Element> Work for Visible<'_, T> {
    type Out = (u64, f32);
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (u64, f32) {
        let (smallest, far) = (lanes.splat(f32::MIN), lanes.splat(f32::INFINITY));
        let (mut len, mut lowest) = (0, [far; 4]);
        let (blocks, tail) = self.0.as_chunks::<BLOCK>();
        let last = padded(tail);
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            let mut bits = [0; 4];
            for j in 0..4 {
                let m = lanes.ge(v[j], smallest);
                bits[j] = lanes.bits(m);
                lowest[j] = lanes.min(lowest[j], lanes.select(m, v[j], far));
            }
            len += u64::from((bits[0] | bits[1] << 16).count_ones() + (bits[2] | bits[3] << 16).count_ones());
        }
        let mut lows = [0.0; WIDTH];
        lanes.store(lanes.min(lanes.min(lowest[0], lowest[1]), lanes.min(lowest[2], lowest[3])), &mut lows);
        (len, lowest_of(lows))
    }
}

/// How many scores of a chunk have a gap of at most `gap`.
pub(super) struct Within<'a, T> {
    pub scores: &'a [T],
    pub max: f32,
    pub gap: f32,
}

impl<T: Element> Work for Within<'_, T> {
    type Out = u64;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> u64 {
        let (max, gap) = (lanes.splat(self.max), lanes.splat(self.gap));
        let (blocks, tail) = self.scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        let mut count = 0;
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            let mut bits = [0; 4];
            for j in 0..4 {
                bits[j] = lanes.bits(lanes.ge(gap, lanes.sub(max, v[j])));
            }
            count +=
                u64::from((bits[0] | bits[1] << 16).count_ones() + (bits[2] | bits[3] << 16).count_ones());
        }
        count
    }
}

/// The smallest gap above 0 of a chunk, or +inf if there is none; and the largest finite gap, or 0.
pub(super) struct GapRange<'a, T> {
    pub scores: &'a [T],
    pub max: f32,
}

impl<T: Element> Work for GapRange<'_, T> {
    type Out = [f32; 2];
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> [f32; 2] {
        let (max, far, none) = (lanes.splat(self.max), lanes.splat(f32::INFINITY), lanes.splat(0.0));
        let (mut low, mut high) = ([far; 4], [none; 4]);
        let (blocks, tail) = self.scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            for j in 0..4 {
                let gap = lanes.sub(max, v[j]);
                low[j] = lanes.min(low[j], lanes.select(lanes.ge(none, gap), far, gap));
                high[j] = lanes.max(high[j], lanes.select(lanes.ge(gap, far), none, gap));
            }
        }
        let mut gaps = [[0.0; WIDTH]; 2];
        lanes.store(lanes.min(lanes.min(low[0], low[1]), lanes.min(low[2], low[3])), &mut gaps[0]);
        lanes.store(lanes.max(lanes.max(high[0], high[1]), lanes.max(high[2], high[3])), &mut gaps[1]);
        [lowest_of(gaps[0]), -lowest_of(gaps[1].map(|gap| -gap))]
    }
}
