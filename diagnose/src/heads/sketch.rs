//! A few rows of a head for plots. Statistics never use them.

use crate::law::sample::RowSample;
use critbeta::CriticalBeta;
use critbeta::operating_ratio;

/// Rows of a head that a plot may show.
#[derive(Debug, Clone, Default)]
pub struct HeadSketch {
    /// Rows in ascending order of their operating ratio, evenly spaced by rank, with both ends. Up to
    /// [`HeadSketch::POINTS`] rows all are here.
    pub points: Vec<SketchPoint>,
    /// The gap counts of the rows at [`HeadSketch::QUANTILES`]. Only a head that was
    /// [looked at again](crate::look_again) has them.
    pub staircases: Vec<Staircase>,
    /// The indices of those rows over all sources of the head.
    pub(crate) picks: Vec<u64>,
}

/// One row of a phase plot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SketchPoint {
    /// beta / Lambda.
    pub ratio: f64,
    /// Largest minus second largest weight.
    pub top_two: f64,
    /// Entropy / log n.
    pub relative_entropy: f64,
}

/// N(t) of one row with some steps left out. Every step that is here is one of the row.
#[derive(Debug, Clone, PartialEq)]
pub struct Staircase {
    /// The quantile of the head's critical beta that the row stands at.
    pub quantile: f64,
    /// Visible keys.
    pub n: u64,
    /// 0-based position of its query.
    pub position: u64,
    /// Lambda with its contact.
    pub critical: CriticalBeta,
    /// Lambda(r) with its contact.
    pub resolved: CriticalBeta,
    /// Gaps in ascending order from 0, and how many scores lie within each.
    pub steps: Vec<(f64, u64)>,
}

impl HeadSketch {
    /// Most points that are kept of a head.
    pub const POINTS: usize = 512;
    /// The quantiles of the critical beta whose rows are shown.
    pub const QUANTILES: [f64; 3] = [0.05, 0.5, 0.95];

    pub(crate) fn of(rows: &[RowSample], beta: f64) -> Self {
        let mut rows: Vec<&RowSample> = rows.iter().collect();
        // Equal critical betas have a fixed order, so the order of arrival does not matter.
        rows.sort_by(|a, b| a.critical.total_cmp(&b.critical).then(a.ordinal.cmp(&b.ordinal)));
        let Some(last) = rows.len().checked_sub(1) else { return HeadSketch::default() };
        let picks = Self::QUANTILES.map(|p| rows[(p * last as f64).round() as usize].ordinal).to_vec();
        let shown = rows.len().min(Self::POINTS);
        let at = |i: usize| rows[last - i * last / (shown - 1).max(1)];
        let point = |row: &RowSample| SketchPoint {
            ratio: operating_ratio(beta, row.critical),
            top_two: row.top_two.into(),
            relative_entropy: f64::from(row.entropy) / (row.n as f64).ln(),
        };
        HeadSketch { points: (0..shown).map(|i| point(at(i))).collect(), staircases: Vec::new(), picks }
    }
}

/// Steps that are kept of a row.
const STEPS: usize = 96;
impl Staircase {
    /// A row is followed to this many times its contact gap, or to its median gap if that is further.
    pub const BEYOND_CONTACT: f64 = 1.5;

    /// The staircase of a row that is neither poisoned nor empty. Masked scores (-inf) have no gap.
    pub(crate) fn of(
        scores: &[f32],
        quantile: f64,
        position: u64,
        [critical, resolved]: [CriticalBeta; 2],
    ) -> Staircase {
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut gaps: Vec<f32> =
            scores.iter().filter(|&&s| s != f32::NEG_INFINITY).map(|&s| max - s).collect();
        gaps.sort_unstable_by(f32::total_cmp);
        let n = gaps.len() as u64;
        let half = f64::from(gaps[gaps.len() / 2]);
        let contact = critical.contact_gap.max(resolved.contact_gap);
        let end = half.max(Self::BEYOND_CONTACT * contact);
        let contacts = [critical.contact_gap, resolved.contact_gap];
        let mut steps: Vec<(f64, u64)> = Vec::new();
        let mut seen = None;
        for block in gaps.chunk_by(|a, b| a == b) {
            let gap = f64::from(block[0]);
            let rank = steps.last().map_or(0, |&(_, rank)| rank) + block.len() as u64;
            if gap > end {
                break;
            }
            // The last step of each slot stands for the slot. A contact stays too: the curves touch there.
            let slot = (gap / end * STEPS as f64) as usize;
            let replaces = seen == Some(slot) && steps.last().is_some_and(|(gap, _)| !contacts.contains(gap));
            if replaces && steps.len() > 1 {
                steps.pop();
            }
            seen = Some(slot);
            steps.push((gap, rank));
        }
        Staircase { quantile, n, position, critical, resolved, steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use critbeta::cpu::{Measure, row_report};

    #[test]
    fn every_step_is_one_of_the_row_and_the_contact_is_among_them() {
        let scores: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.618_034).fract().powi(3) * 9.0).collect();
        let report = row_report(&scores, 1.0, Measure::new(0.69, None));
        let found = Staircase::of(&scores, 0.5, 4999, [report.critical, report.resolved]);
        let row = critbeta::reference::Row::from_f32(&scores);
        assert!(found.steps.len() > 20 && found.steps.len() <= STEPS + 3, "{}", found.steps.len());
        assert_eq!(found.steps[0].0, 0.0);
        assert!(found.steps.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for &(gap, rank) in &found.steps {
            assert_eq!(row.gap_count(gap), rank);
        }
        assert!(found.steps.contains(&(report.critical.contact_gap, report.critical.contact_rank)));
        assert!(found.steps.contains(&(report.resolved.contact_gap, report.resolved.contact_rank)));
    }

    #[test]
    fn rows_are_picked_at_their_quantiles_and_points_keep_both_ends() {
        let rows: Vec<RowSample> = (0..2001u64)
            .map(|i| RowSample { ordinal: i, ..RowSample::with(8, 1.0 + (i * 7 % 2001) as f64) })
            .collect();
        let sketch = HeadSketch::of(&rows, 1.0);
        let ranks: Vec<u64> = sketch.picks.iter().map(|ordinal| ordinal * 7 % 2001).collect();
        assert_eq!(ranks, [100, 1000, 1900]);
        assert_eq!(sketch.points.len(), HeadSketch::POINTS);
        assert_eq!((sketch.points[0].ratio, sketch.points[511].ratio), (1.0 / 2001.0, 1.0));
        assert_eq!(HeadSketch::of(&rows[..1], 1.0).points.len(), 1);
        assert!(HeadSketch::of(&[], 1.0).points.is_empty());
    }
}
