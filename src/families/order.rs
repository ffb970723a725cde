//! Samples Lambda of independent scores from their order statistics, without a row, f32 scores or counts.
//!
//! The known medians of the self-test and the yardsticks of a diagnosis come from here, at any n and without
//! the code under test.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::{Beta, Exp1};

/// Every score up to this rank is used, and then one in rank / EVERY. Between two of them log k changes by 1
/// / EVERY. At 256 the median under a sink, whose contact is that deep, moved by 1.4e-5 (2026-11-24).
const EVERY: u64 = 1024;

/// One sample of Lambda(`resolve`) and its contact rank for `n` independent scores with P(s > quantile(q)) =
/// q. If there is a `sink`, it replaces the best score.
///
/// The k-th smallest of n uniform numbers lies above the one before it by a Beta(1, n - k + 1) share of the
/// rest (Renyi 1953). Sampling ends when the certificate (section 2 of `docs/how-it-works.md`) holds: after a
/// few ten to a thousand scores for Gaussian rows of any length. The same seed at another n draws the same
/// top of the row, so ratios of medians over n have far smaller errors than each median.
pub fn sample_critical_beta(
    quantile: impl Fn(f64) -> f64,
    sink: Option<f64>,
    n: u64,
    resolve: f64,
    seed: u64,
) -> (f64, u64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let above = u64::from(sink.is_some());
    let drawn = n - above.min(n);
    let (mut top, mut best) = (sink, (0.0, 1));
    let (mut k, mut mass) = (0, 0.0f64);
    while k < drawn {
        let step = (k / EVERY).clamp(1, drawn - k);
        let share = match step {
            1 => -(-rng.sample::<f64, _>(Exp1) / (drawn - k) as f64).exp_m1(),
            // Both shapes are at least 1, so the Beta distribution exists.
            _ => Beta::new(step as f64, (drawn - k - step + 1) as f64).map_or(0.5, |beta| rng.sample(beta)),
        };
        mass += (1.0 - mass) * share;
        k += step;
        let score = quantile(mass);
        let Some(top) = top else {
            top = Some(score);
            continue;
        };
        let rank = k + above;
        let ratio = ((rank as f64).ln() - resolve) / (top - score);
        if ratio > 0.0 && ratio >= best.0 {
            best = (ratio, rank);
        }
        if ((n as f64).ln() - resolve) / (top - score) < best.0 {
            break;
        }
    }
    best
}

/// Maps q to x with P(Z > x) = q, for a standard normal Z and 1e-33 < q < 1. Simpson's rule gives the tail in
/// steps of 1 / 1024, and x is linear in log q between them.
pub fn normal_tail_quantile() -> impl Fn(f64) -> f64 {
    const STEP: f64 = 1.0 / 1024.0;
    let density = |z: f64| (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let (mut z, mut mass) = (12.0, 1.8e-33);
    let mut table = vec![(f64::ln(mass), z)];
    while z > -8.0 {
        mass += STEP / 6.0 * (density(z) + 4.0 * density(z - STEP / 2.0) + density(z - STEP));
        z -= STEP;
        table.push((mass.ln(), z));
    }
    move |q| {
        let log = q.ln();
        let at = table.partition_point(|&(log_mass, _)| log_mass < log).clamp(1, table.len() - 1);
        let ((m0, z0), (m1, z1)) = (table[at - 1], table[at]);
        z0 + (z1 - z0) * (log - m0) / (m1 - m0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Row;

    #[test]
    fn samples_have_the_law_of_whole_rows() {
        let n = 200;
        let quantile = |q: f64| -q.ln();
        for (sink, resolve) in [(None, 0.0), (Some(9.0), 0.0), (None, 1.1)] {
            let mut by_order: Vec<f64> =
                (0..4000).map(|seed| sample_critical_beta(quantile, sink, n, resolve, seed).0).collect();
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
            let whole = |_| {
                let mut row: Vec<f64> = (0..n).map(|_| rng.sample(Exp1)).collect();
                row[0] = sink.unwrap_or(row[0]);
                Row::new(&row).resolved_critical_beta(resolve).beta
            };
            let mut by_row: Vec<f64> = (0..4000).map(whole).collect();
            by_order.sort_by(f64::total_cmp);
            by_row.sort_by(f64::total_cmp);
            for i in (100..4000).step_by(300) {
                // These are two empirical distributions of 4,000 samples. Their ranks differ by at most 5 *
                // sqrt(2 * 4000 / 4).
                let rank = by_order.partition_point(|&beta| beta < by_row[i]);
                assert!(rank.abs_diff(i) < 225, "{sink:?} {resolve}: {} is at {rank} and {i}", by_row[i]);
            }
        }
    }

    #[test]
    fn the_normal_quantile_has_its_known_values() {
        let quantile = normal_tail_quantile();
        for (q, z) in
            [(0.5, 0.0), (0.158655253931457, 1.0), (0.977249868051821, -2.0), (2.866515718791939e-7, 5.0)]
        {
            assert!((quantile(q) - z).abs() < 1e-6, "{q}: {}", quantile(q));
        }
    }

    #[test]
    fn rows_of_nothing_have_nothing_to_separate() {
        for n in [0, 1] {
            assert_eq!(sample_critical_beta(|q| -q.ln(), None, n, 0.0, 1), (0.0, 1));
        }
    }
}
