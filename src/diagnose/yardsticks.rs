//! What the fit gives for families whose exponent is known: what to hold a head's exponent against.

use super::fit::{Form, Point};
use super::length_law::BinMedians;
use super::quantile::median;
use crate::families::order::{normal_tail_quantile, sample_critical_beta};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// The exponent that the fit gives for a family of known law, over the same lengths.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Yardstick {
    /// The family.
    pub family: &'static str,
    /// Its exponent as n goes to infinity.
    pub asymptotic: f64,
    /// Its exponent over these lengths, by the fit used here.
    pub xi: f64,
}

/// Family, exponent as n goes to infinity, and the law in words.
pub(super) const KNOWN: [(&str, f64, &str); 4] = [
    ("exponential", 0.0, "a constant"),
    ("gaussian", 0.5, "sqrt(log n)"),
    ("simplex", 1.0, "log n"),
    ("edge", 2.0, "(log n)^2"),
];

/// n and rows of every bin.
type Lengths = Vec<(u64, usize)>;

/// Families of known exponent, fitted as the rows are; heads with the same bins share one answer.
pub(super) struct Yardsticks {
    seed: u64,
    /// By bins and the bits of r.
    by_bins: HashMap<(Lengths, u64), Arc<Vec<Yardstick>>>,
}

/// Samples per length. They share their seeds over the lengths, so their slope errs by about a tenth
/// of what each median does.
const YARDSTICK_ROWS: u64 = 1001;
/// Sets of bins that get yardsticks, 0.2 s each: heads whose masks give every one its own lengths
/// must not cost more than their rows.
const MAX_SETS: usize = 32;

impl Yardsticks {
    pub(super) fn new(seed: u64) -> Self {
        Yardsticks { seed, by_bins: HashMap::new() }
    }

    pub(super) fn over(&mut self, bins: &[BinMedians], resolve: f64) -> Arc<Vec<Yardstick>> {
        let bins: Lengths = bins.iter().map(|bin| (bin.n as u64, bin.rows)).collect();
        let key = (bins, resolve.to_bits());
        let seed = self.seed;
        if self.by_bins.len() >= MAX_SETS && !self.by_bins.contains_key(&key) {
            return Arc::default();
        }
        self.by_bins
            .entry(key)
            .or_insert_with_key(|(bins, _)| Arc::new(yardsticks(bins, resolve, seed)))
            .clone()
    }
}

fn yardsticks(bins: &[(u64, usize)], resolve: f64, seed: u64) -> Vec<Yardstick> {
    let normal = normal_tail_quantile();
    let one = |&(family, asymptotic, _): &(&'static str, f64, &str)| {
        let median = |n: u64| match family {
            "exponential" => sampled_median(|q| -q.ln(), n, resolve, seed),
            "gaussian" => sampled_median(&normal, n, resolve, seed),
            "edge" => sampled_median(|q| 1.0 / q.ln(), n, resolve, seed),
            // The simplex: its one contact is the whole row.
            _ => (n as f64).ln() - resolve,
        };
        let point =
            |&(n, rows): &(u64, usize)| Point { ln_n: (n as f64).ln(), value: median(n), rows: rows as f64 };
        let points: Vec<Point> = bins.iter().map(point).collect();
        Form::LogPower.fit(&points).map(|[_, xi]| Yardstick { family, asymptotic, xi })
    };
    KNOWN.iter().filter_map(one).collect()
}

fn sampled_median(quantile: impl Fn(f64) -> f64 + Sync, n: u64, resolve: f64, seed: u64) -> f64 {
    let sample = |i| sample_critical_beta(&quantile, None, n, resolve, seed.wrapping_add(i)).0;
    let mut betas: Vec<f64> = (0..YARDSTICK_ROWS).into_par_iter().map(sample).collect();
    betas.sort_unstable_by(f64::total_cmp);
    median(&betas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yardsticks_come_out_as_their_families_grow() {
        let bins: Vec<(u64, usize)> = (6..16).map(|i| (1 << i, 9)).collect();
        let all = yardsticks(&bins, 0.0, 7);
        let xi = |name: &str| all.iter().find(|y| y.family == name).unwrap().xi;
        assert!((xi("simplex") - 1.0).abs() < 1e-5);
        assert!(xi("exponential").abs() < 0.05 && (xi("edge") - 2.0).abs() < 0.2, "{all:?}");
        // Gaussian rows over n = 64 .. 1,048,576: 0.604 from 200,000 samples (2026-11-24), not 0.5.
        let bins: Vec<(u64, usize)> = (6..=20).map(|i| (1 << i, 9)).collect();
        for seed in [1, 2, 3] {
            let all = yardsticks(&bins, 0.0, seed);
            let gaussian = all.iter().find(|y| y.family == "gaussian").unwrap();
            assert!((gaussian.xi - 0.604).abs() < 0.03, "{gaussian:?}");
        }
        // Forgiving pairs leaves less to lose at small n: the same rows grow faster.
        let resolved = yardsticks(&bins, 0.69, 1);
        assert!(resolved.iter().zip(&all).all(|(resolved, all)| resolved.xi > all.xi), "{resolved:?}");
        assert!(yardsticks(&[(64, 9)], 0.0, 1).is_empty());
    }
}
