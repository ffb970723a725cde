//! The supremum without a sort: bound what can still win, keep only that, and rank the rest.
//!
//! 1. Some large scores are known from the pass that found the maximum. Their ranks among themselves attain a ratio,
//!    a lower bound L on Lambda(r). No gap beyond (log n - r) / L can be the contact.
//! 2. Where few gaps are left, they are moved together; with fewer of them the cut is nearer, and so on.
//! 3. Where many are left (the contact is in the bulk: a sink, a heavy tail), they are counted in bins. A bin of gaps
//!    `low..=high` with `after` scores through it attains at least (log after - r) / high and at most
//!    (log after - r) / low; the hull of the bins that can still win is moved together; again from 1.
//! 4. What bins do not thin out (every rank of a log grid is a contact) is sorted.
//!
//! Only the end decides, by the one rounded ratio of `critical.rs`: the result is that of sorting, bit for bit.

use super::bins::{Bins, Tally};
use super::gather::{AtLeast, Gather, Inside};
use super::lanes::InstructionSet;
use super::rank::{self, FEW, TopRatio};
use super::top::{Chunks, SmallestGap, Tops};
use crate::Element;
use crate::critical::{CriticalBeta, ratio};
use crate::stats::RowMax;

/// Bounds are widened by this: far above the rounding of two f64 ratios, and of a gap to f32.
const SLACK: f64 = 1e-9;
/// In longer rows a sample decides whether to gather or to count.
const SAMPLED: usize = 8192;
/// Scores of the sample: one load each, most of them from memory.
const SAMPLES: usize = 256;

/// Scratch of one thread, reused from row to row.
#[derive(Default)]
pub(super) struct Contact {
    /// Scores that can still be the contact.
    near: Gather,
    tally: Tally,
    spare: Vec<f32>,
}

/// What the search knows.
pub(super) struct Search {
    pub best: CriticalBeta,
    /// A ratio that some score attains.
    pub attained: f64,
    pub resolve: f64,
    pub max: f32,
}

impl Search {
    /// The largest gap that `count` scores within it could make the contact.
    fn cut(&self, count: u64) -> f32 {
        let reach = ((count as f64).ln() - self.resolve) / self.attained * (1.0 + SLACK);
        // Nothing attained yet: every finite gap.
        if reach < f64::from(f32::MAX) { (reach as f32).next_up() } else { f32::MAX }
    }

    pub(super) fn offer(&mut self, gap: f32, rank: u64) {
        let (gap, best) = (f64::from(gap), &self.best);
        let ratio = ratio(gap, rank, self.resolve);
        // Among equal ratios the largest gap is the contact, in whatever order they come.
        if ratio > 0.0 && (ratio > best.beta || ratio == best.beta && gap > best.contact_gap) {
            self.best = CriticalBeta { beta: ratio, upper: ratio, contact_gap: gap, contact_rank: rank };
            self.attained = self.attained.max(ratio);
        }
    }
}

impl Contact {
    /// Lambda(resolve) of a row without NaN or +inf.
    pub(super) fn critical_beta<T: Element>(
        &mut self,
        row: &Chunks<T>,
        top: &RowMax,
        tops: &Tops,
        resolve: f64,
    ) -> CriticalBeta {
        let best = CriticalBeta::at_top(top.ties, resolve);
        // No rank exceeds n.
        if best.beta == f64::INFINITY || top.len < 2 || (top.len as f64).ln() <= resolve {
            return best;
        }
        let mut search = Search { best, attained: 0.0, resolve, max: top.max };
        search.attained = row.set.run(TopRatio { tops: &tops.scores, max: top.max, resolve });
        let cut = search.cut(top.len);
        let scores = row.scores;
        let before = if scores.len() >= SAMPLED && is_bulk(row, top.max, cut) {
            let low = match top.ties {
                1 => top.max - top.second,
                _ => {
                    let mut least = f32::INFINITY;
                    let of_chunk = |scores| row.set.run(SmallestGap { scores, max: top.max });
                    row.each(of_chunk, |gap| least = least.min(gap));
                    least
                }
            };
            let Some(bins) = Bins::between(low, cut.min(top.max - tops.lowest), scores.len()) else {
                // Too narrow to divide: one gap in all.
                return self.rank_all(row, &mut search);
            };
            let hull = self.tally.hull(row, &bins, 0, &mut search);
            self.near.collect(row, Inside { max: top.max, bins, hull });
            hull.before
        } else {
            self.near.collect(row, AtLeast::within(top.max, cut));
            0
        };
        self.narrow(row.set, before, &mut search);
        search.best
    }

    fn rank_all<T: Element>(&mut self, row: &Chunks<T>, search: &mut Search) -> CriticalBeta {
        self.near.collect(row, AtLeast::within(search.max, f32::MAX));
        rank::sorted(row.set, self.near.kept_mut(), &mut self.spare, 0, search);
        search.best
    }

    /// Finds the contact among the scores that are left, above `before` smaller gaps.
    fn narrow(&mut self, set: InstructionSet, mut before: u64, search: &mut Search) {
        loop {
            let left = self.near.kept().len();
            if left <= FEW {
                return rank::few(set, self.near.kept(), before, search);
            }
            let cut = search.cut(before + left as u64);
            self.near.retain(set, AtLeast::within(search.max, cut));
            let kept = self.near.kept().len();
            if kept <= left - left / 4 {
                continue;
            }
            let row = Chunks { scores: self.near.kept(), ahead: &[], set, split: false };
            let low = set.run(SmallestGap { scores: row.scores, max: search.max });
            let high = search.max - row.scores.iter().fold(f32::MAX, |low, &s| if s < low { s } else { low });
            let Some(bins) = Bins::between(low, high, kept) else {
                return rank::sorted(set, self.near.kept_mut(), &mut self.spare, before, search);
            };
            let hull = self.tally.hull(&row, &bins, before, search);
            let inside = hull.inside as usize;
            self.near.retain(set, Inside { max: search.max, bins, hull });
            before = hull.before;
            if inside > kept / 2 {
                return rank::sorted(set, self.near.kept_mut(), &mut self.spare, before, search);
            }
        }
    }
}

/// Whether most scores of a row have a gap of at most `cut`, as far as a sample tells.
fn is_bulk<T: Element>(row: &Chunks<T>, max: f32, cut: f32) -> bool {
    let step = row.scores.len() / SAMPLES;
    let within = |i: usize| max - row.scores[i * step].to_f32() <= cut;
    (0..SAMPLES).filter(|&i| within(i)).count() > SAMPLES / 4
}
