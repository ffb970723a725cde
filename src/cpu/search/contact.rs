//! This file finds the supremum without sorting the row. It bounds what can still win, keeps only that, and
//! ranks the rest.
//!
//! 1. The pass that found the maximum also found some large scores. Their ranks among themselves attain a
//!    ratio, a lower bound L on Lambda(r). No gap beyond (log n - r) / L can be the contact.
//! 2. If few gaps are left, their scores are moved together. Fewer scores bring the cut nearer, and so on.
//! 3. If many gaps are left (the contact is in the bulk: a sink, a heavy tail), they are counted in bins. A
//!    bin of gaps `low..=high` with `after` scores through it attains at least (log after - r) / high and at
//!    most (log after - r) / low. The hull of the bins that can still win is moved together. Step 1 then
//!    starts again.
//! 4. Bins cannot thin out a log grid, on which every rank is a contact. Such scores are spread into buckets.
//!    If they lie too close for f32 to divide, they are sorted.
//!
//! Only the end decides, by the one rounded ratio of `critical.rs`. So the result equals that of sorting, bit
//! for bit.

use super::bins::Bins;
use super::gather::{AtLeast, Gather, Inside};
use super::rank::{self, FEW, TopRatio};
use super::spread;
use super::state::Search;
use super::tally::Tally;
use crate::Element;
use crate::cpu::lanes::{InstructionSet, WIDTH};
use crate::cpu::top::{Chunks, GapRange, Tops, Within};
use crate::critical::CriticalBeta;
use crate::stats::RowMax;

/// If at most this many scores of the sample are in a part of a row, the part is gathered rather than
/// counted.
const FEW_ENOUGH: u32 = SAMPLES as u32 / 2;
/// If the ratio of the bulk seems to exceed that of the top by this factor, the row is counted at once. With
/// 1.4, Gaussian rows of 65,536 scores took 3.9 ms instead of 3.7; sinks took the same time (2026-11-25).
const BULK: f64 = 1.1;
/// Shorter rows are always gathered.
const SHORT: usize = 1024;
/// Up to this many scores are not worth thinning out.
const TINY: usize = 2 * WIDTH;
/// Up to this many scores are ranked by comparing all pairs. More scores are counted again.
const PAIRS: usize = 96;
/// Scores of the sample, and how many of them are neighbours.
const SAMPLES: usize = 256;
const PER_LINE: usize = 8;

/// Scratch of one thread, which every row reuses.
#[derive(Default)]
pub(in crate::cpu) struct Contact {
    /// Scores that can still be the contact.
    near: Gather,
    tally: Tally,
    room: spread::Room,
}

impl Contact {
    /// Bytes that grow with the row.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        self.near.bytes() + self.room.bytes()
    }

    /// Lambda(resolve) of a row without NaN or +inf.
    pub(in crate::cpu) fn critical_beta<T: Element>(
        &mut self,
        row: &Chunks<T>,
        top: &RowMax,
        tops: &Tops,
        resolve: f64,
    ) -> CriticalBeta {
        let best = CriticalBeta::at_top(top.ties, resolve);
        // No rank is above n.
        if !best.beta.is_finite() || top.len < 2 || (top.len as f64).ln() <= resolve {
            return best;
        }
        let mut search = Search { best, attained: 0.0, resolve, max: top.max };
        search.attained = row.set.run(TopRatio { tops: &tops.scores, max: top.max, resolve });
        let cut = search.cut(top.len);
        if row.scores.len() < SHORT {
            self.gather(row, cut, &mut search);
            return search.best;
        }
        let sample = Sample::of(row, top.max);
        if sample.within(cut) <= FEW_ENOUGH {
            self.gather(row, cut, &mut search);
            return search.best;
        }
        if let Some(near) = sample.near(cut, &search) {
            // The ratios of the largest scores bring the cut nearer.
            self.gather(row, near, &mut search);
            let cut = search.cut(top.len);
            if cut <= near {
                return search.best;
            }
            if sample.within(cut) <= FEW_ENOUGH {
                self.gather(row, cut, &mut search);
                return search.best;
            }
        }
        self.count(row, top, tops, &mut search);
        search.best
    }

    /// Offers every gap of at most `cut`.
    fn gather<T: Element>(&mut self, row: &Chunks<T>, cut: f32, search: &mut Search) {
        self.near.collect(row, AtLeast::within(search.max, cut));
        self.narrow(row.set, 0, search);
    }

    /// Offers every gap that bins leave.
    fn count<T: Element>(&mut self, row: &Chunks<T>, top: &RowMax, tops: &Tops, search: &mut Search) {
        let (mut low, mut high) = (top.max - top.second, top.max - tops.lowest);
        if low == 0.0 || high == f32::INFINITY {
            // Either the second largest score ties with the maximum and has no gap, or some gap has
            // overflowed.
            (low, high) = (f32::INFINITY, 0.0);
            let of_chunk = |scores| row.set.run(GapRange { scores, max: search.max });
            row.each(of_chunk, |[near, far]| (low, high) = (low.min(near), high.max(far)));
        }
        if low == high {
            // The row is a sink over equal scores: it has one gap.
            let mut rank = 0;
            let of_chunk = |scores| row.set.run(Within { scores, max: search.max, gap: low });
            row.each(of_chunk, |within| rank += within);
            return search.offer(low, rank);
        }
        let Some(bins) = Bins::between(low, high.min(search.cut(top.len)), row.scores.len()) else {
            self.near.collect(row, AtLeast::within(search.max, f32::MAX));
            return self.rank(row.set, 0, search);
        };
        let hull = self.tally.hull(row, &bins, 0, search);
        self.near.collect(row, Inside::new(search.max, bins, &hull));
        if hull.inside > top.len / 4 * 3 {
            return self.rank(row.set, hull.before, search);
        }
        self.narrow(row.set, hull.before, search);
    }

    /// Offers every gap of the scores that are left. `before` smaller gaps come before them.
    fn rank(&mut self, set: InstructionSet, before: u64, search: &mut Search) {
        spread::ranks(set, self.near.kept_and_room(), &mut self.room, before, search);
    }

    /// Finds the contact among the scores that are left. `before` smaller gaps come before them.
    fn narrow(&mut self, set: InstructionSet, mut before: u64, search: &mut Search) {
        // Whether the bins have left more than half of the scores.
        let mut is_stuck = false;
        loop {
            let left = self.near.kept().len();
            if left > TINY {
                let cut = search.cut(before + left as u64);
                self.near.retain(set, AtLeast::within(search.max, cut));
            }
            let kept = self.near.kept().len();
            if kept > TINY && kept <= left - left / 4 {
                continue;
            }
            if kept <= PAIRS || is_stuck && kept <= FEW {
                return rank::few(set, self.near.kept(), before, search);
            }
            let row = Chunks { scores: self.near.kept(), ahead: &[], set, split: false };
            let [low, high] = set.run(GapRange { scores: row.scores, max: search.max });
            let Some(bins) = Bins::between(low, high, kept).filter(|_| !is_stuck) else {
                return self.rank(set, before, search);
            };
            let hull = self.tally.hull(&row, &bins, before, search);
            self.near.retain(set, Inside::new(search.max, bins, &hull));
            before = hull.before;
            is_stuck = hull.inside as usize > kept / 2;
        }
    }
}

/// Some scores of a row. They only decide what to do first.
struct Sample {
    scores: [f32; SAMPLES],
    max: f32,
    set: InstructionSet,
    /// How many scores of the row stand behind each score of the sample.
    every: f64,
}

impl Sample {
    fn of<T: Element>(row: &Chunks<T>, max: f32) -> Sample {
        // The sample takes neighbours, because a whole cache line is read in any case.
        let step = row.scores.len() / (SAMPLES / PER_LINE);
        let mut scores = [0.0; SAMPLES];
        for (i, scores) in scores.as_chunks_mut::<PER_LINE>().0.iter_mut().enumerate() {
            let line = &row.scores[i * step..][..PER_LINE];
            scores.iter_mut().zip(line).for_each(|(score, s)| *score = s.to_f32());
        }
        Sample { scores, max, set: row.set, every: row.scores.len() as f64 / SAMPLES as f64 }
    }

    /// How many scores of the sample have a gap of at most `cut`.
    fn within(&self, cut: f32) -> u32 {
        self.set.run(Within { scores: &self.scores, max: self.max, gap: cut }) as u32
    }

    /// A smaller cut that seems to lie above the contact's gap; `None` if the contact is in the bulk.
    fn near(&self, cut: f32, search: &Search) -> Option<f32> {
        let mut near = None;
        for share in [0.875, 0.75, 0.625, 0.5, 0.375] {
            let gap = cut.min(f32::MAX / 2.0) * share;
            let within = self.within(gap);
            if within <= SAMPLES as u32 / 16 {
                return near.or(Some(gap)).filter(|_| within > 0);
            }
            let ratio = ((self.every * f64::from(within)).ln() - search.resolve) / f64::from(gap);
            if ratio > search.attained * BULK {
                return None;
            }
            near = (within <= FEW_ENOUGH).then_some(gap);
        }
        near
    }
}
