//! The ratios of what is left: few scores by all pairs, many by sorting.

use super::contact::Search;
use super::lanes::{InstructionSet, Lanes, WIDTH, Work};
use crate::critical::{CriticalBeta, ratio};
use crate::stats::{RowMax, TopK};
use std::sync::LazyLock;

/// So many scores are ranked by comparing all pairs: faster than sorting them.
pub(super) const FEW: usize = 128;

/// Logs of the ranks that near-top contacts have.
static LN: LazyLock<[f64; FEW + 1]> = LazyLock::new(|| std::array::from_fn(|rank| (rank as f64).ln()));

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
        let mut attained = 0.0;
        for &score in self.tops.as_flattened() {
            let score_lanes = lanes.splat(score);
            let (in_a, in_b) = (lanes.ge(a, score_lanes), lanes.ge(b, score_lanes));
            let rank = (lanes.bits(in_a) | lanes.bits(in_b) << WIDTH).count_ones();
            let gap = f64::from(self.max - score);
            let excess = LN[rank as usize] - self.resolve;
            // An infinite gap attains nothing, and 0 is not a gap.
            if gap > 0.0 && excess > attained * gap {
                attained = excess / gap;
            }
        }
        attained
    }
}

/// Offers every gap of up to [`FEW`] scores with its rank, `before` smaller ones included.
pub(super) fn few(set: InstructionSet, scores: &[f32], before: u64, search: &mut Search) {
    set.run(Few { scores, before, search });
}

struct Few<'a> {
    scores: &'a [f32],
    before: u64,
    search: &'a mut Search,
}

impl Work for Few<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Few { scores, before, search } = self;
        let mut padded = [f32::NEG_INFINITY; FEW];
        padded[..scores.len()].copy_from_slice(scores);
        let (vectors, _) = padded[..scores.len().next_multiple_of(WIDTH)].as_chunks::<WIDTH>();
        for &score in scores {
            let mut rank = 0;
            for v in vectors {
                rank += lanes.bits(lanes.ge(lanes.load(v), lanes.splat(score))).count_ones();
            }
            let gap = search.max - score;
            let rank = before + u64::from(rank);
            let ln = if before == 0 { LN[rank as usize] } else { (rank as f64).ln() };
            // Far cheaper than the division, and enough to tell most of them.
            if gap > 0.0 && ln - search.resolve >= search.attained * f64::from(gap) * (1.0 - 1e-12) {
                search.offer(gap, rank);
            }
        }
    }
}

/// Sorts scores, largest first, and offers every gap with its rank.
pub(super) fn sorted(
    set: InstructionSet,
    scores: &mut [f32],
    spare: &mut Vec<f32>,
    before: u64,
    search: &mut Search,
) {
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let _ = (set, spare);
    offer_in_order(scores, before, search);
}

/// Offers the gaps of scores that come largest first.
fn offer_in_order(scores: &[f32], before: u64, search: &mut Search) {
    for (i, &score) in scores.iter().enumerate() {
        let gap = search.max - score;
        // A tie has the rank of its last score.
        if gap > 0.0 && scores.get(i + 1) != Some(&score) {
            search.offer(gap, before + i as u64 + 1);
        }
    }
}

/// Lambda(resolve) as far as the `k` largest scores tell, with what bounds it from above.
pub(super) fn of_largest(scores: &[f32], top: &RowMax, k: usize, resolve: f64) -> CriticalBeta {
    let best = CriticalBeta::at_top(top.ties, resolve);
    let mut search = Search { best, attained: 0.0, resolve, max: top.max };
    let mut largest = TopK::new(k);
    largest.extend(scores);
    let largest = largest.into_sorted();
    let furthest = largest.last().map_or(0.0, |&s| f64::from(top.max - s));
    let finite = largest.partition_point(|&s| (top.max - s).is_finite());
    offer_in_order(&largest[..finite], 0, &mut search);
    let mut best = search.best;
    if (largest.len() as u64) < top.len && best.beta < f64::INFINITY {
        // The certificate: whatever lies beyond the k-th gap has a ratio below (log n - r) / D_(k).
        best.upper = best.beta.max(ratio(furthest, top.len, resolve));
    }
    best
}
