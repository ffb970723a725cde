//! The exponents that the fit gives for families with known ones. A head's exponent is compared with them.

use super::bins::Point;
use super::fit::Form;
use super::quantile::median;
use super::sample::BinMedians;
use critbeta::families::order::{normal_tail_quantile, sample_critical_beta};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;

/// The exponent that the fit gives for a family of known answer, over the same lengths.
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
pub(crate) const KNOWN: [(&str, f64, &str); 4] = [
    ("exponential", 0.0, "a constant"),
    ("gaussian", 0.5, "sqrt(log n)"),
    ("simplex", 1.0, "log n"),
    ("edge", 2.0, "(log n)^2"),
];

/// Medians of families at lengths. Many heads have the same lengths, so they are kept.
pub(crate) struct Yardsticks {
    seed: u64,
    normal: Box<dyn Fn(f64) -> f64 + Sync>,
    /// The key is the family, n and the bits of r.
    medians: HashMap<(&'static str, u64, u64), f64>,
}

/// Samples per length. All lengths share the seeds, so the slope errs by about a tenth of a median's error.
const YARDSTICK_ROWS: u64 = 1001;
/// Up to this n every length is sampled. Beyond it two per octave are, with straight lines in log n and log
/// median between them. Heads with different lengths then cost no more than one head.
const EVERY_LENGTH: f64 = 16.0;

impl Yardsticks {
    pub(crate) fn new(seed: u64) -> Self {
        Yardsticks { seed, normal: Box::new(normal_tail_quantile()), medians: HashMap::new() }
    }

    /// The exponents of all known families over the lengths of `bins`, weighted by their rows.
    pub(crate) fn over(&mut self, bins: &[BinMedians], resolve: f64) -> Vec<Yardstick> {
        let bins: Vec<(f64, usize)> = bins.iter().map(|bin| (bin.n, bin.rows)).collect();
        KNOWN
            .iter()
            .filter_map(|&(family, asymptotic, _)| {
                let mut points = Vec::new();
                for &(n, rows) in &bins {
                    points.push(Point {
                        ln_n: n.ln(),
                        value: self.between(family, n, resolve),
                        rows: rows as f64,
                    });
                }
                Form::LogPower.fit(&points).map(|[_, xi]| Yardstick { family, asymptotic, xi })
            })
            .collect()
    }

    fn between(&mut self, family: &'static str, n: f64, resolve: f64) -> f64 {
        if family == "simplex" {
            // The contact of this family is the whole row.
            return n.ln() - resolve;
        }
        if n <= EVERY_LENGTH {
            return self.at(family, n.round() as u64, resolve);
        }
        let step = (2.0 * n.log2()).floor() as i32;
        let [below, above] = [step, step + 1].map(|step| 2f64.powf(f64::from(step) / 2.0).round());
        let [low, high] = [below, above].map(|n| self.at(family, n as u64, resolve));
        let share = (n.ln() - below.ln()) / (above.ln() - below.ln());
        if low > 0.0 { low * (high / low).powf(share) } else { low }
    }

    fn at(&mut self, family: &'static str, n: u64, resolve: f64) -> f64 {
        let (seed, normal) = (self.seed, &self.normal);
        *self.medians.entry((family, n, resolve.to_bits())).or_insert_with(|| match family {
            "exponential" => sampled_median(|q| -q.ln(), n, resolve, seed),
            "edge" => sampled_median(|q| 1.0 / q.ln(), n, resolve, seed),
            _ => sampled_median(normal, n, resolve, seed),
        })
    }
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

    fn yardsticks(bins: &[(u64, usize)], resolve: f64, seed: u64) -> Vec<Yardstick> {
        let bin = |&(n, rows): &(u64, usize)| BinMedians {
            n: n as f64,
            rows,
            critical_beta: 1.0,
            resolved_beta: 1.0,
            critical_band: [1.0; 2],
            resolved_band: [1.0; 2],
            alpha: 1.0,
            contact_gap: 1.0,
        };
        Yardsticks::new(seed).over(&bins.iter().map(bin).collect::<Vec<_>>(), resolve)
    }

    #[test]
    fn between_two_lengths_the_median_is_that_of_the_length() {
        let mut yardsticks = Yardsticks::new(3);
        for n in [17u64, 100, 1000, 7648] {
            let (between, sampled) =
                (yardsticks.between("gaussian", n as f64, 0.0), yardsticks.at("gaussian", n, 0.0));
            assert!((between / sampled - 1.0).abs() < 0.01, "n {n}: {between} {sampled}");
        }
    }

    #[test]
    fn yardsticks_come_out_as_their_families_grow() {
        let bins: Vec<(u64, usize)> = (6..16).map(|i| (1 << i, 9)).collect();
        let all = yardsticks(&bins, 0.0, 7);
        let xi = |name: &str| all.iter().find(|y| y.family == name).unwrap().xi;
        assert!((xi("simplex") - 1.0).abs() < 1e-5);
        assert!(xi("exponential").abs() < 0.05 && (xi("edge") - 2.0).abs() < 0.2, "{all:?}");
        // Gaussian rows over n = 64 .. 1,048,576 give 0.604 from 200,000 samples (2026-11-24), not 0.5.
        let bins: Vec<(u64, usize)> = (6..=20).map(|i| (1 << i, 9)).collect();
        for seed in [1, 2, 3] {
            let all = yardsticks(&bins, 0.0, seed);
            let gaussian = all.iter().find(|y| y.family == "gaussian").unwrap();
            assert!((gaussian.xi - 0.604).abs() < 0.03, "{gaussian:?}");
        }
        // A resolve lowers the critical beta most at small n, so the same rows grow faster.
        let resolved = yardsticks(&bins, 0.69, 1);
        assert!(resolved.iter().zip(&all).all(|(resolved, all)| resolved.xi > all.xi), "{resolved:?}");
        assert!(yardsticks(&[(64, 9)], 0.0, 1).is_empty());
    }
}
