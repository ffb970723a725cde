//! The supremum without a sort: histogram the gaps, bound every bin, refine what can still win.
//!
//! A bin of gaps `a..=b` with `before` scores below it and `after` scores through it attains at least
//! (log after - r) / b and at most (log after - r) / a. Bins whose upper bound is below the best
//! lower bound anywhere cannot hold the contact. What survives is refined 10 bits at a time until
//! a bin is one f32 gap, so the result is that of sorting, bit for bit.

use crate::critical::{CriticalBeta, ratio};
use crate::stats::{GapProfile, RowMax, TopK};

/// A bin survives unless it is this much below the best: far above the rounding of two f64 ratios.
const SLACK: f64 = 1.0 - 1e-12;
/// Bins of up to this many gaps are sorted: no histogram pays below it.
const SORTED: usize = 64;
/// Bits per refinement: two of them take the 20 bits that a level-1 bin leaves open.
const RADIX_BITS: u32 = 10;
const RADIX: usize = 1 << RADIX_BITS;

/// Scratch of one thread, reused from row to row.
#[derive(Default)]
pub(super) struct Refiner {
    /// Surviving gaps as f32 bits, grouped by bin; one buffer per level.
    survivors: [Vec<u32>; 2],
    segments: [Vec<Segment>; 2],
    /// Where the next gap of a bin goes, or `NOWHERE`.
    cursors: Vec<usize>,
}

/// The gaps of one surviving bin, `start..end` of its level's buffer, above `before` smaller ones.
#[derive(Clone, Copy)]
struct Segment {
    start: usize,
    end: usize,
    before: u64,
}

const NOWHERE: usize = usize::MAX;

/// The best so far, and a ratio that is known to be attained by something not yet offered.
struct Search {
    best: CriticalBeta,
    attained: f64,
    resolve: f64,
}

impl Search {
    fn offer(&mut self, gap_bits: u32, rank: u64) {
        if gap_bits > 0 {
            self.best.offer(f32::from_bits(gap_bits).into(), rank, self.resolve);
            self.attained = self.attained.max(self.best.beta);
        }
    }

    /// Offers a bin by its bounds: raises the attained ratio.
    fn bound_below(&mut self, high: f32, after: u64) {
        self.attained = self.attained.max(ratio(high.into(), after, self.resolve));
    }

    fn can_win(&self, low: f32, after: u64) -> bool {
        let low = f64::from(low.max(f32::from_bits(1)));
        let upper = ratio(low, after, self.resolve);
        upper > 0.0 && upper >= self.attained * SLACK
    }
}

impl Refiner {
    /// Lambda(resolve) of a row whose gaps are counted in `profile`.
    pub(super) fn critical_beta(
        &mut self,
        scores: &[f32],
        top: &RowMax,
        profile: &GapProfile,
        resolve: f64,
    ) -> CriticalBeta {
        let best = CriticalBeta::at_top(top.ties, resolve);
        if best.beta == f64::INFINITY || top.len < 2 {
            return best;
        }
        let mut search = Search { best, attained: 0.0, resolve };
        let Refiner { survivors, segments, cursors } = self;
        let [first, second] = survivors;
        let [bins, narrow_bins] = segments;
        select(profile.counts(), 0, GapProfile::edges, &mut search, bins, cursors);
        first.clear();
        first.resize(bins.last().map_or(0, |last| last.end), 0);
        for &s in scores {
            let gap_bits = (profile.anchor - s).to_bits();
            if let Some(cursor) = cursors.get_mut(GapProfile::bin(gap_bits)).filter(|c| **c != NOWHERE) {
                first[*cursor] = gap_bits;
                *cursor += 1;
            }
        }
        let mut counts = [0u64; RADIX];
        for bin in bins.iter() {
            let gaps = &mut first[bin.start..bin.end];
            if gaps.len() <= SORTED {
                sweep(gaps, bin.before, &mut search);
                continue;
            }
            counts.fill(0);
            let digit = |gap_bits: u32, shift: u32| (gap_bits >> shift) as usize % RADIX;
            gaps.iter().for_each(|&g| counts[digit(g, RADIX_BITS)] += 1);
            let prefix = gaps[0] >> (2 * RADIX_BITS);
            let edges = |bin: usize| {
                let low = (prefix << RADIX_BITS | bin as u32) << RADIX_BITS;
                (f32::from_bits(low), f32::from_bits(low | (RADIX as u32 - 1)))
            };
            select(&counts, bin.before, edges, &mut search, narrow_bins, cursors);
            second.clear();
            second.resize(narrow_bins.last().map_or(0, |last| last.end), 0);
            for &g in gaps.iter() {
                let cursor = &mut cursors[digit(g, RADIX_BITS)];
                if *cursor != NOWHERE {
                    second[*cursor] = g;
                    *cursor += 1;
                }
            }
            for bin in narrow_bins.iter() {
                let gaps = &mut second[bin.start..bin.end];
                if gaps.len() <= SORTED {
                    sweep(gaps, bin.before, &mut search);
                    continue;
                }
                counts.fill(0);
                gaps.iter().for_each(|&g| counts[digit(g, 0)] += 1);
                let prefix = gaps[0] >> RADIX_BITS << RADIX_BITS;
                let mut rank = bin.before;
                for (low, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
                    rank += count;
                    search.offer(prefix | low as u32, rank);
                }
            }
        }
        search.best
    }

    /// Lambda(resolve) as far as the `k` largest scores tell, with what bounds it from above.
    pub(super) fn critical_beta_of_top(scores: &[f32], top: &RowMax, k: usize, resolve: f64) -> CriticalBeta {
        let mut search = Search { best: CriticalBeta::at_top(top.ties, resolve), attained: 0.0, resolve };
        let mut largest = TopK::new(k);
        largest.extend(scores);
        let mut gaps: Vec<u32> = largest.into_sorted().iter().map(|&s| (top.max - s).to_bits()).collect();
        let furthest = gaps.last().map_or(0.0, |&g| f64::from(f32::from_bits(g)));
        let complete = gaps.len() as u64 == top.len;
        gaps.retain(|&g| f32::from_bits(g).is_finite());
        sweep(&mut gaps, 0, &mut search);
        let mut best = search.best;
        if !complete && best.beta < f64::INFINITY {
            // The certificate: whatever lies beyond the k-th gap has a ratio below (log n - r) / D_(k).
            best.upper = best.beta.max(ratio(furthest, top.len, resolve));
        }
        best
    }
}

/// Finds the bins of `counts` that can still win, raises the attained ratio on the way, and lays
/// their gaps out: `segments` in ascending order of gap, `cursors[bin]` where to put them.
fn select(
    counts: &[u64],
    before: u64,
    edges: impl Fn(usize) -> (f32, f32),
    search: &mut Search,
    segments: &mut Vec<Segment>,
    cursors: &mut Vec<usize>,
) {
    let occupied = || counts.iter().enumerate().filter(|&(_, &count)| count > 0);
    let mut rank = before;
    for (bin, &count) in occupied() {
        rank += count;
        search.bound_below(edges(bin).1, rank);
    }
    segments.clear();
    cursors.clear();
    cursors.resize(counts.len(), NOWHERE);
    let (mut start, mut rank) = (0, before);
    for (bin, &count) in occupied() {
        if search.can_win(edges(bin).0, rank + count) {
            let end = start + count as usize;
            segments.push(Segment { start, end, before: rank });
            cursors[bin] = start;
            start = end;
        }
        rank += count;
    }
}

/// Offers every distinct gap of `gaps` with its rank, in ascending order.
fn sweep(gaps: &mut [u32], before: u64, search: &mut Search) {
    gaps.sort_unstable();
    for (i, &gap) in gaps.iter().enumerate() {
        if gaps.get(i + 1) != Some(&gap) {
            search.offer(gap, before + i as u64 + 1);
        }
    }
}
