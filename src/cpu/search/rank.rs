//! The ratios of what is left: few scores by all pairs; and the k largest alone, sorted.

use super::state::Search;
use crate::cpu::lanes::{InstructionSet, Lanes, WIDTH, Work};
use crate::cpu::ln::{LN_ERROR, ln};
use crate::critical::{CriticalBeta, ratio};
use crate::stats::{RowMax, TopK};
use std::sync::LazyLock;

/// So many scores are ranked by comparing all pairs: faster than sorting them.
pub(super) const FEW: usize = 256;

/// Logs of the ranks of tops among themselves.
static LN: LazyLock<[f64; 2 * WIDTH + 1]> = LazyLock::new(|| std::array::from_fn(|rank| (rank as f64).ln()));

/// A ratio that one of the tops of a row with maximum `max` attains; 0 if none does.
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
            // 0 is not a gap, and an infinite one attains nothing.
            *gap = if g > 0.0 { g } else { f64::INFINITY };
        }
        // Maxima are of integers, floats that are not negative being ordered as their bits.
        let mut attained = 0;
        for (log, gap) in logs.iter().zip(&gaps) {
            attained = attained.max(((log - self.resolve) / gap).to_bits() as i64);
        }
        f64::from_bits(attained as u64)
    }
}

/// Offers every gap of up to [`FEW`] scores with its rank, `before` smaller ones included.
pub(super) fn few(set: InstructionSet, scores: &[f32], before: u64, search: &mut Search) {
    // Clearing room for the most costs as much as ranking a few.
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

/// Offers those of up to `N` scores whose ratio can be the largest. `rank_of` the `j`-th is at most its rank, and
/// its rank if it is the last of equal scores.
#[inline(always)]
pub(super) fn offer_best<const N: usize>(
    scores: &[f32],
    rank_of: impl Fn(usize) -> u64,
    search: &mut Search,
) {
    // Plain loops over arrays, which the compiler makes lanes of; maxima are of integers, floats that are not negative
    // being ordered as their bits. A gap of 0 is none.
    let (mut gaps, mut excess) = ([0.0; N], [0.0; N]);
    for (gap, &score) in gaps.iter_mut().zip(scores) {
        let g = f64::from(search.max - score);
        *gap = if g > 0.0 { g } else { f64::INFINITY };
    }
    for (j, excess) in excess[..scores.len()].iter_mut().enumerate() {
        *excess = ln(rank_of(j) as f64) - search.resolve;
    }
    // What cannot win has its sign bit set; a product is cheaper than the quotient, and mostly it is enough.
    let margin = |excess: &f64, gap: &f64, needed: f64| (excess + LN_ERROR - needed * gap).to_bits() as i64;
    let needed = search.attained * (1.0 - 1e-12);
    let pairs = || excess.iter().zip(&gaps[..scores.len()]);
    if pairs().fold(-1, |signs, (excess, gap)| signs & margin(excess, gap, needed)) < 0 {
        return;
    }
    let mut best = search.attained.to_bits() as i64;
    for (excess, gap) in pairs() {
        best = best.max((((excess - LN_ERROR) / gap) * (1.0 - 1e-12)).to_bits() as i64);
    }
    search.attained = f64::from_bits(best as u64);
    let needed = search.attained * (1.0 - 1e-12);
    for j in 0..scores.len() {
        if margin(&excess[j], &gaps[j], needed) >= 0 {
            search.offer(search.max - scores[j], rank_of(j));
        }
    }
}

/// Lambda(resolve) as far as the `k` largest scores tell, with what bounds it from above.
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
        // The certificate: whatever lies beyond the k-th gap has a ratio below (log n - r) / D_(k).
        best.upper = best.beta.max(ratio(furthest, top.len, resolve));
    }
    best
}
