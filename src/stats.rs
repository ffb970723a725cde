//! Statistics that a row gives piece by piece, and how the pieces merge.
//!
//! Each type is a monoid: merging in any grouping gives the same value. Counts are integers, and merge only
//! against the same anchor. Only [`Partition`] adds floating-point numbers, so its order matters in the last
//! bits.

use crate::{Element, Error, Result};

/// The top of a row: its maximum, and the scores that attain it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RowMax {
    /// The largest score, never -0. It is -inf for an empty row, and NaN for a poisoned one.
    pub max: f32,
    /// The largest score when one maximum is left out (equal to `max` under ties); -inf if there is none.
    pub second: f32,
    /// Number of unmasked scores, n. NaN and +inf count.
    pub len: u64,
    /// Index of the first maximum. In a poisoned row it is that of the first NaN or +inf, and in an empty row
    /// it is 0.
    pub argmax: u64,
    /// How many scores equal the maximum, N(0). It is 0 for an empty or poisoned row.
    pub ties: u64,
    /// Whether the row has a NaN or +inf score.
    pub poisoned: bool,
}

impl RowMax {
    /// The row without scores.
    pub const EMPTY: RowMax = RowMax {
        max: f32::NEG_INFINITY,
        second: f32::NEG_INFINITY,
        len: 0,
        argmax: 0,
        ties: 0,
        poisoned: false,
    };

    /// The top of `scores`, which begin at index `offset` of their row.
    pub fn of(scores: &[f32], offset: u64) -> Self {
        let mut top = RowMax::EMPTY;
        for (i, s) in scores.iter().map(|s| s.score()).enumerate() {
            if s > top.max {
                if s == f32::INFINITY {
                    return RowMax::poisoned(scores, offset, i);
                }
                top = RowMax { max: s, second: top.max, argmax: offset + i as u64, ties: 1, ..top };
            } else if s == top.max {
                top.ties += 1;
                top.second = s;
            } else if s.is_nan() {
                return RowMax::poisoned(scores, offset, i);
            } else if s > top.second {
                top.second = s;
            }
        }
        top.len = visible(scores);
        if top.len == 0 {
            return RowMax::EMPTY;
        }
        // -0 and 0 are one score. Adding 0 makes the sign independent of the order of the row.
        RowMax { max: top.max + 0.0, second: top.second + 0.0, ..top }
    }

    fn poisoned(scores: &[f32], offset: u64, at: usize) -> Self {
        let argmax = offset + at as u64;
        RowMax { max: f32::NAN, second: f32::NAN, len: visible(scores), argmax, ties: 0, poisoned: true }
    }

    /// The top of both parts of a row.
    pub fn merge(self, other: RowMax) -> RowMax {
        let len = self.len + other.len;
        let (a, b) = if self.argmax <= other.argmax { (self, other) } else { (other, self) };
        let wins = if a.poisoned || b.poisoned {
            if a.poisoned { a } else { b }
        } else if a.len == 0 || b.max > a.max {
            RowMax { second: if a.len == 0 { b.second } else { b.second.max(a.max) }, ..b }
        } else if b.len == 0 || a.max > b.max {
            RowMax { second: if b.len == 0 { a.second } else { a.second.max(b.max) }, ..a }
        } else {
            RowMax { second: a.max, ties: a.ties + b.ties, ..a }
        };
        RowMax { len, ..wins }
    }
}

fn visible(scores: &[f32]) -> u64 {
    scores.iter().filter(|s| s.score() != f32::NEG_INFINITY).count() as u64
}

/// Number of level-1 bins. A bin is the exponent and three mantissa bits of a finite f32 gap.
const BINS: usize = (f32::INFINITY.to_bits() >> BIN_SHIFT) as usize;
const BIN_SHIFT: u32 = 20;

/// Integer gap counts below one anchor: how many gaps fall into each of 2,040 bins.
///
/// A bin is the leading 11 bits of the f32 gap, so bins are fixed, ascending, and eight to an octave. Gaps
/// that overflow f32 are not counted, because no finite t reaches them.
#[derive(Debug, Clone, PartialEq)]
pub struct GapProfile {
    /// The maximum that gaps are measured from.
    pub anchor: f32,
    counts: Vec<u64>,
}

impl GapProfile {
    /// Counts the gaps of `scores` below `anchor`. Masked scores have no gap.
    ///
    /// The anchor must be at least the maximum of `scores` and finite.
    pub fn of(scores: &[f32], anchor: f32) -> Self {
        let mut profile = GapProfile { anchor, counts: Vec::new() };
        profile.recount(scores, anchor);
        profile
    }

    /// Replaces this profile by that of `scores`, and reuses its memory.
    pub(crate) fn recount(&mut self, scores: &[f32], anchor: f32) {
        self.anchor = anchor;
        self.counts.clear();
        self.counts.resize(BINS, 0);
        for s in scores.iter().map(|s| s.score()) {
            // Masked and overflowing gaps are +inf, so their key is beyond the table.
            if let Some(count) = self.counts.get_mut(Self::bin((anchor - s).to_bits())) {
                *count += 1;
            }
        }
    }

    /// The bin of a gap's bits.
    pub(crate) fn bin(gap_bits: u32) -> usize {
        (gap_bits >> BIN_SHIFT) as usize
    }

    /// The counts per bin, in the order of ascending gaps.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The smallest and the largest gap that bin `bin` can hold.
    pub fn edges(bin: usize) -> (f32, f32) {
        let first = (bin as u32) << BIN_SHIFT;
        (f32::from_bits(first), f32::from_bits(first + ((1 << BIN_SHIFT) - 1)))
    }

    /// The profile of both parts of a row.
    ///
    /// Errors: [`Error::AnchorMismatch`] for different anchors. Counts below different maxima count different
    /// gaps, and their sum is not the gap count of the whole row.
    pub fn merge(mut self, other: &GapProfile) -> Result<GapProfile> {
        if self.anchor != other.anchor {
            return Err(Error::AnchorMismatch { left: self.anchor, right: other.anchor });
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        Ok(self)
    }
}

/// The `k` largest unmasked scores of a row. They merge exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    k: usize,
    /// At most 2k scores in no order. Every score that was left out is <= `floor`.
    kept: Vec<f32>,
    floor: f32,
}

impl TopK {
    /// An empty part that keeps the `k` largest scores; `k` >= 1.
    pub fn new(k: usize) -> Self {
        TopK { k: k.max(1), kept: Vec::new(), floor: f32::NEG_INFINITY }
    }

    /// Adds more scores of the row. It leaves out NaN, because a poisoned row has no gaps to count.
    pub fn extend(&mut self, scores: &[f32]) {
        for s in scores.iter().map(|s| s.score()) {
            if s > self.floor {
                self.kept.push(s);
                if self.kept.len() >= self.k.saturating_mul(2) {
                    self.prune();
                }
            }
        }
    }

    fn prune(&mut self) {
        if self.kept.len() > self.k {
            let (_, kth, _) = self.kept.select_nth_unstable_by(self.k - 1, |a, b| b.total_cmp(a));
            self.floor = *kth;
            self.kept.truncate(self.k);
        }
    }

    /// The k largest of both parts of a row.
    pub fn merge(mut self, other: &TopK) -> TopK {
        self.extend(&other.kept);
        self
    }

    /// The kept scores, largest first.
    pub fn into_sorted(mut self) -> Vec<f32> {
        self.prune();
        self.kept.sort_unstable_by(|a, b| b.total_cmp(a));
        self.kept
    }
}

/// Log-sum-exp state of a row at one beta: its maximum, Z and the gap-weighted Z.
///
/// An empty part merges without effect. Nothing here computes -inf - -inf, which would be NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Partition {
    /// The maximum that the sums are relative to; -inf if the part is empty.
    pub max: f32,
    /// Z = sum of exp(-beta gap), >= 1 unless the part is empty.
    pub sum: f64,
    /// Sum of gap * exp(-beta gap), in score units.
    pub gap_sum: f64,
}

impl Partition {
    /// The state of no scores.
    pub const EMPTY: Partition = Partition { max: f32::NEG_INFINITY, sum: 0.0, gap_sum: 0.0 };

    /// Sums `scores` below their maximum `max` (finite) at inverse temperature `beta` >= 0, in order, in f64.
    pub fn of(scores: &[f32], max: f32, beta: f64) -> Self {
        let mut part = Partition { max, ..Partition::EMPTY };
        for s in scores.iter().map(|s| s.score()) {
            if s > f32::NEG_INFINITY {
                let gap = f64::from(max - s);
                let weight = weight(gap, beta);
                part.sum += weight;
                if weight > 0.0 && gap.is_finite() {
                    part.gap_sum += gap * weight;
                }
            }
        }
        part
    }

    /// The state of both parts of a row, relative to the larger maximum.
    pub fn merge(self, other: Partition, beta: f64) -> Partition {
        let (high, low) = if self.max >= other.max { (self, other) } else { (other, self) };
        if low.sum == 0.0 {
            return high;
        }
        let gap = f64::from(high.max - low.max);
        let weight = weight(gap, beta);
        if weight == 0.0 {
            return high;
        }
        let shift = if gap.is_finite() { gap * low.sum } else { 0.0 };
        Partition {
            max: high.max,
            sum: high.sum + weight * low.sum,
            gap_sum: high.gap_sum + weight * (low.gap_sum + shift),
        }
    }

    /// F = log Z; -inf if the part is empty.
    pub fn log(&self) -> f64 {
        self.sum.ln()
    }

    /// Entropy of the weights in nats at the same beta; 0 if the part is empty.
    pub fn entropy(&self, beta: f64) -> f64 {
        if self.sum == 0.0 {
            0.0
        } else if self.gap_sum == 0.0 || beta == 0.0 {
            self.log()
        } else {
            self.log() + beta * self.gap_sum / self.sum
        }
    }
}

/// exp(-beta gap) with the limits that a row needs: it is 1 at beta = 0 or gap 0, whatever the other factor
/// is.
pub(crate) fn weight(gap: f64, beta: f64) -> f64 {
    if gap == 0.0 || beta == 0.0 { 1.0 } else { (-beta * gap).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_merges_from_any_cut() {
        let inf = f32::NEG_INFINITY;
        let rows: [&[f32]; 7] = [
            &[1.0, 3.0, 3.0, 2.0, inf],
            &[inf, inf],
            &[-0.0, 0.0, inf, -1.0],
            &[5.0],
            &[1.0, f32::NAN, 2.0, f32::INFINITY],
            &[inf, 4.0, 1.0, 4.0, 4.0, 2.0],
            &[],
        ];
        for row in rows {
            let whole = RowMax::of(row, 0);
            for cut in 0..=row.len() {
                let (left, right) = (RowMax::of(&row[..cut], 0), RowMax::of(&row[cut..], cut as u64));
                for merged in [left.merge(right), right.merge(left)] {
                    assert_eq!(format!("{merged:?}"), format!("{whole:?}"), "{row:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn counts_below_different_maxima_do_not_merge() {
        let row = [0.0f32, 1.0, 2.5, f32::NEG_INFINITY, 2.5];
        let whole = GapProfile::of(&row, 2.5);
        assert_eq!(whole.counts().iter().sum::<u64>(), 4);
        let merged = GapProfile::of(&row[..2], 2.5).merge(&GapProfile::of(&row[2..], 2.5)).unwrap();
        assert_eq!(merged, whole);
        let error = GapProfile::of(&row[..2], 1.0).merge(&whole).unwrap_err().to_string();
        assert!(error.contains("anchored at 1 and 2.5"), "{error}");
    }

    #[test]
    fn every_gap_lies_between_the_edges_of_its_bin() {
        for gap in [0.0f32, 1e-45, 1e-38, 0.1, 1.0, 1.124, 1.125, 3e38, f32::MAX] {
            let (low, high) = GapProfile::edges(GapProfile::bin(gap.to_bits()));
            assert!(low <= gap && gap <= high, "{gap}: {low}..{high}");
        }
        assert_eq!(GapProfile::edges(BINS - 1).1, f32::MAX);
    }

    #[test]
    fn the_k_largest_survive_any_cut() {
        let row: Vec<f32> = (0..100).map(|i| ((i * 37) % 50) as f32).collect();
        let mut sorted = row.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 7, 99, 100, 200] {
            for cut in [0, 1, 50, 100] {
                let (mut left, mut right) = (TopK::new(k), TopK::new(k));
                left.extend(&row[..cut]);
                right.extend(&row[cut..]);
                assert_eq!(left.merge(&right).into_sorted(), sorted[..k.min(100)], "k {k} cut {cut}");
            }
        }
    }

    #[test]
    fn partitions_merge_and_an_empty_one_is_neutral() {
        let row = [0.0f32, 1.0, 2.5, f32::NEG_INFINITY, 2.5];
        for beta in [0.0, 0.3, 1.0, 40.0, f64::INFINITY] {
            let whole = Partition::of(&row, 2.5, beta);
            let merged = Partition::of(&row[..2], 1.0, beta).merge(Partition::of(&row[2..], 2.5, beta), beta);
            assert!((merged.sum - whole.sum).abs() <= 1e-15 * whole.sum, "{beta}");
            assert!((merged.gap_sum - whole.gap_sum).abs() <= 1e-14, "{beta}");
            assert_eq!(whole.merge(Partition::EMPTY, beta), whole);
            assert_eq!(Partition::EMPTY.merge(whole, beta), whole);
            assert_eq!(Partition::EMPTY.merge(Partition::EMPTY, beta), Partition::EMPTY);
        }
        assert_eq!(Partition::EMPTY.log(), f64::NEG_INFINITY);
        assert_eq!(Partition::EMPTY.entropy(1.0), 0.0);
    }
}
