//! What people write without this crate: the critical beta by a sort, or of the largest scores alone.

use critbeta::stats::TopK;
use rayon::prelude::*;

/// log k of every rank k = 0..=n. A program that sorts many rows keeps such a table.
pub(super) fn log_ranks(n: usize) -> Vec<f64> {
    (0..=n).map(|rank| (rank as f64).ln()).collect()
}

/// The critical beta of a row by sorting its gaps; the sort uses all threads where it `is_alone`.
///
/// Gaps are not negative, so their bits sort as they do, by the fastest std sort. A poisoned row gives NaN.
pub(super) fn sorted(row: &[f32], logs: &[f64], is_alone: bool, gaps: &mut Vec<u32>) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return 0.0;
    }
    if is_poisoned(row) {
        return f64::NAN;
    }
    gaps.clear();
    gaps.extend(row.iter().map(|&score| (max - score).to_bits()));
    if is_alone {
        gaps.par_sort_unstable()
    } else {
        gaps.sort_unstable()
    }
    supremum(gaps.iter().map(|&bits| f32::from_bits(bits)), logs)
}

/// Whether a row has a NaN or +inf.
pub(super) fn is_poisoned(row: &[f32]) -> bool {
    row.iter().any(|&score| score.is_nan() || score == f32::INFINITY)
}

/// The critical beta of the `k` largest scores of a row; NaN for a poisoned row.
pub(super) fn of_largest(row: &[f32], k: usize, logs: &[f64]) -> f64 {
    if is_poisoned(row) {
        return f64::NAN;
    }
    let mut largest = TopK::new(k);
    largest.extend(row);
    let largest = largest.into_sorted();
    let Some(&max) = largest.first() else { return 0.0 };
    supremum(largest.iter().map(|&score| max - score), logs)
}

/// max over k >= 2 of log k / gap_k of ascending gaps; in a tied block the last rank has the largest ratio.
fn supremum(gaps: impl Iterator<Item = f32>, logs: &[f64]) -> f64 {
    gaps.zip(&logs[1..]).skip(1).map(|(gap, log)| log / f64::from(gap)).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use critbeta::families::Family;
    use critbeta::reference::Row;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    #[test]
    fn both_are_the_definition_on_every_family() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let (mut row, mut gaps) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            for n in [0, 1, 2, 7, 3000] {
                family.draw(n, &mut rng, &mut row);
                let (expected, logs) = (Row::from_f32(&row).critical_beta().beta, log_ranks(n));
                for is_alone in [false, true] {
                    assert_eq!(sorted(&row, &logs, is_alone, &mut gaps), expected, "{family} {n}");
                }
                assert_eq!(of_largest(&row, n, &logs), expected, "{family} {n}");
                row.sort_unstable_by(|a, b| b.total_cmp(a));
                let top = Row::from_f32(&row[..n.min(5)]).critical_beta().beta;
                assert_eq!(of_largest(&row, 5, &logs), top, "{family} {n}");
            }
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let row = [1.0, bad, f32::NEG_INFINITY];
            assert!(sorted(&row, &log_ranks(3), false, &mut gaps).is_nan());
            assert!(of_largest(&row, 2, &log_ranks(3)).is_nan());
        }
    }
}
