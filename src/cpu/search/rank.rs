//! The ratios of what is left: few scores are ranked by all pairs, and the k largest alone are sorted.

use super::state::Search;
use crate::cpu::lanes::{InstructionSet, Lanes, WIDTH, Work};
use crate::cpu::ln::{LN_ERROR, ln};
use crate::critical::{CriticalBeta, ratio};
use crate::stats::{RowMax, TopK};
use std::sync::LazyLock;

/// Up to this many scores are ranked by comparing all pairs, which is faster than sorting them.
pub(super) const FEW: usize = 256;

/// Logs of the ranks of the top scores among themselves.
static LN: LazyLock<[f64; 2 * WIDTH + 1]> = LazyLock::new(|| std::array::from_fn(|rank| (rank as f64).ln()));

/// A ratio that one of the top scores of a row with maximum `max` attains; 0 if none does.
pub(super) struct TopRatio<'a> {
    pub tops: &'a [[f32; WIDTH]; 2],
    pub max: f32,
    pub resolve: f64,
}

impl Work for TopRatio<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        let [a, b] = [lanes.load(&self.tops[0]), lanes.load(&self.tops[1])];
        let (mut logs, mut gaps) = ([0.0; 2 * WIDTH], [0.0; 2 * WIDTH]);
        let ln = &*LN;
        for (log, &score) in logs.iter_mut().zip(self.tops.as_flattened()) {
            let score = lanes.splat(score);
            let (in_a, in_b) = (lanes.ge(a, score), lanes.ge(b, score));
            *log = ln[(lanes.bits(in_a) | lanes.bits(in_b) << WIDTH).count_ones() as usize];
        }
        for (gap, &score) in gaps.iter_mut().zip(self.tops.as_flattened()) {
            let g = f64::from(self.max - score);
            // A gap of 0 does not count, and an infinite gap attains nothing.
            *gap = if g > 0.0 { g } else { f64::INFINITY };
        }
        // Maxima are taken of integers: floats that are not negative have the order of their bits.
        let mut attained = 0;
        for (log, gap) in logs.iter().zip(&gaps) {
            attained = attained.max(((log - self.resolve) / gap).to_bits() as i64);
        }
        f64::from_bits(attained as u64)
    }
}

/// Offers every gap of up to [`FEW`] scores with its rank, which includes the `before` smaller gaps.
pub(super) fn few(set: InstructionSet, scores: &[f32], before: u64, search: &mut Search) {
    // Clearing the largest room costs as much as ranking a few scores.
    match scores.len() {
        0..=64 => set.run(Few::<64> { scores, before, search }),
        _ => set.run(Few::<FEW> { scores, before, search }),
    }
}

struct Few<'a, const N: usize> {
    scores: &'a [f32],
    before: u64,
    search: &'a mut Search,
}

impl<const N: usize> Work for Few<'_, N> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Few { scores, before, search } = self;
        let mut padded = [f32::NEG_INFINITY; N];
        padded[..scores.len()].copy_from_slice(scores);
        let (vectors, _) = padded[..scores.len().next_multiple_of(WIDTH)].as_chunks::<WIDTH>();
        let mut ranks = [0; N];
        for (rank, &score) in ranks.iter_mut().zip(scores) {
            for v in vectors {
                *rank += lanes.bits(lanes.ge(lanes.load(v), lanes.splat(score))).count_ones();
            }
        }
        offer_best::<N>(scores, |j| before + u64::from(ranks[j]), search);
    }
}

/// Among up to `N` scores, offers those whose ratio can be the largest. `rank_of(j)` is at most the rank of
/// score j. It equals that rank at the last of equal scores.
#[inline(always)]
pub(super) fn offer_best<const N: usize>(
    scores: &[f32],
    rank_of: impl Fn(usize) -> u64,
    search: &mut Search,
) {
    // The compiler vectorises these plain loops over arrays. So maxima are taken of integers: floats that are
    // not negative have the order of their bits. A gap of 0 does not count.
    let (mut gaps, mut logs) = ([0.0; N], [0.0; N]);
    for (gap, &score) in gaps.iter_mut().zip(scores) {
        let g = f64::from(search.max - score);
        *gap = if g > 0.0 { g } else { f64::INFINITY };
    }
    for (j, log) in logs[..scores.len()].iter_mut().enumerate() {
        *log = ln(rank_of(j) as f64) - search.resolve;
    }
    // A score that cannot win has its sign bit set. A product is cheaper than the quotient, and is mostly
    // enough.
    let margin = |log: &f64, gap: &f64, needed: f64| (log + LN_ERROR - needed * gap).to_bits() as i64;
    let needed = search.attained * (1.0 - 1e-12);
    let pairs = || logs.iter().zip(&gaps[..scores.len()]);
    if pairs().fold(-1, |signs, (log, gap)| signs & margin(log, gap, needed)) < 0 {
        return;
    }
    let mut best = search.attained.to_bits() as i64;
    for (log, gap) in pairs() {
        best = best.max((((log - LN_ERROR) / gap) * (1.0 - 1e-12)).to_bits() as i64);
    }
    search.attained = f64::from_bits(best as u64);
    let needed = search.attained * (1.0 - 1e-12);
    for j in 0..scores.len() {
        if margin(&logs[j], &gaps[j], needed) >= 0 {
            search.offer(search.max - scores[j], rank_of(j));
        }
    }
}

/// Lambda(resolve) as far as the `k` largest scores show it, with an upper bound.
pub(in crate::cpu) fn of_largest(scores: &[f32], top: &RowMax, k: usize, resolve: f64) -> CriticalBeta {
    let best = CriticalBeta::at_top(top.ties, resolve);
    let mut search = Search { best, attained: 0.0, resolve, max: top.max };
    let mut largest = TopK::new(k);
    largest.extend(scores);
    let largest = largest.into_sorted();
    let furthest = largest.last().map_or(0.0, |&s| f64::from(top.max - s));
    let finite = largest.partition_point(|&s| (top.max - s).is_finite());
    for (rank, &score) in (1..).zip(&largest[..finite]) {
        let gap = top.max - score;
        if gap > 0.0 {
            search.offer(gap, rank);
        }
    }
    let mut best = search.best;
    if (largest.len() as u64) < top.len && best.beta < f64::INFINITY {
        // The certificate: every gap beyond the k-th has a ratio below (log n - r) / D_(k).
        best.upper = best.beta.max(ratio(furthest, top.len, resolve));
    }
    best
}
