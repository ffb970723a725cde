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

/// Families of known exponent, fitted as the rows are; heads with the same bins share one answer.
pub(super) struct Yardsticks {
    seed: u64,
    /// By n and rows of the bins.
    by_bins: HashMap<Vec<(u64, usize)>, Arc<Vec<Yardstick>>>,
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

    pub(super) fn over(&mut self, bins: &[BinMedians]) -> Arc<Vec<Yardstick>> {
        let bins: Vec<(u64, usize)> = bins.iter().map(|bin| (bin.n as u64, bin.rows)).collect();
        let seed = self.seed;
        if self.by_bins.len() >= MAX_SETS && !self.by_bins.contains_key(&bins) {
            return Arc::default();
        }
        self.by_bins.entry(bins).or_insert_with_key(|bins| Arc::new(yardsticks(bins, seed))).clone()
    }
}

fn yardsticks(bins: &[(u64, usize)], seed: u64) -> Vec<Yardstick> {
    let normal = normal_tail_quantile();
    type Quantile<'a> = &'a (dyn Fn(f64) -> f64 + Sync);
    let random: [(&str, f64, Quantile); 3] =
        [("exponential", 0.0, &|q| -q.ln()), ("gaussian", 0.5, &normal), ("edge", 2.0, &|q| 1.0 / q.ln())];
    let slope = |median: &dyn Fn(u64) -> f64| {
        let point =
            |&(n, rows): &(u64, usize)| Point { ln_n: (n as f64).ln(), value: median(n), rows: rows as f64 };
        let points: Vec<Point> = bins.iter().map(point).collect();
        Form::LogPower.fit(&points).map(|[_, xi]| xi)
    };
    let simplex = slope(&|n| (n as f64).ln());
    let simplex = simplex.map(|xi| Yardstick { family: "simplex", asymptotic: 1.0, xi });
    let random = random.into_iter().filter_map(|(family, asymptotic, quantile)| {
        let sample = |n| {
            let of = |i| sample_critical_beta(quantile, None, n, seed.wrapping_add(i)).0;
            let mut betas: Vec<f64> = (0..YARDSTICK_ROWS).into_par_iter().map(of).collect();
            betas.sort_unstable_by(f64::total_cmp);
            median(&betas)
        };
        slope(&sample).map(|xi| Yardstick { family, asymptotic, xi })
    });
    let mut all: Vec<Yardstick> = random.chain(simplex).collect();
    all.sort_by(|a, b| a.asymptotic.total_cmp(&b.asymptotic));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yardsticks_come_out_as_their_families_grow() {
        let bins: Vec<(u64, usize)> = (6..16).map(|i| (1 << i, 9)).collect();
        let all = yardsticks(&bins, 7);
        let xi = |name: &str| all.iter().find(|y| y.family == name).unwrap().xi;
        assert!((xi("simplex") - 1.0).abs() < 1e-5);
        assert!(xi("exponential").abs() < 0.05 && (xi("edge") - 2.0).abs() < 0.2, "{all:?}");
        // Gaussian rows over n = 64 .. 1,048,576: 0.604 from 200,000 samples (2026-11-24), not 0.5.
        let bins: Vec<(u64, usize)> = (6..=20).map(|i| (1 << i, 9)).collect();
        for seed in [1, 2, 3] {
            let all = yardsticks(&bins, seed);
            let gaussian = all.iter().find(|y| y.family == "gaussian").unwrap();
            assert!((gaussian.xi - 0.604).abs() < 0.03, "{gaussian:?}");
        }
        assert!(yardsticks(&[(64, 9)], 1).is_empty());
    }
}
