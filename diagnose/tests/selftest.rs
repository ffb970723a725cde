//! Derives the self-test's known medians again, from the quantile functions of the families alone.
//!
//! [`sample_critical_beta`] draws max over k of log k / (x_1 - x_k) in f64, without a row. It uses no part of
//! the path that the self-test checks.

use critbeta::families::order::{normal_tail_quantile, sample_critical_beta};
use critbeta_diagnose::selftest::{Check, check};
use rayon::prelude::*;

/// Lengths and rows of the self-test's medians.
const SIZES: [(usize, usize); 3] = [(64, 4001), (1_024, 4001), (16_384, 2001)];
const SAMPLES: u64 = 4_000;
/// The known value must lie where the median of these samples may lie. Its tolerance must be the distance to
/// the quantiles 1/2 -+ 2.5 / sqrt(rows), as closely as this many samples can show.
fn agrees(check: &Check, mut samples: Vec<f64>, rows: usize) {
    samples.sort_by(f64::total_cmp);
    let quantile = |q: f64| samples[(q * samples.len() as f64) as usize];
    let sigmas = |count: usize| 2.5 / (count as f64).sqrt();
    let (low, high) = (0.5 - sigmas(samples.len()), 0.5 + sigmas(samples.len()));
    let message = format!("{check:?}: {} of {}..{}", quantile(0.5), quantile(low), quantile(high));
    assert!((quantile(low)..=quantile(high)).contains(&check.expected), "{message}");
    let furthest = |more: f64| {
        let side = sigmas(rows) + more;
        (quantile(0.5 + side) - check.expected).max(check.expected - quantile(0.5 - side))
    };
    let (least, most) = (furthest(-sigmas(samples.len()) * 0.8), furthest(sigmas(samples.len())));
    assert!((least..=most).contains(&check.tolerance), "{message}, tolerance {least}..{most}");
}

#[test]
fn known_medians_follow_from_the_quantile_functions() {
    let mut steps = Vec::new();
    let checks = check(20_261_124, &mut |done, total| steps.push((done, total)));
    assert!(checks.iter().all(|check| check.pass), "{checks:#?}");
    assert_eq!(steps, (1..=9).map(|done| (done, 9)).collect::<Vec<_>>());
    let named = |name: String| checks.iter().find(|check| check.name == name).ok_or(name).unwrap();
    let normal = normal_tail_quantile();
    // P(1 - x > u) for the first coordinate of S^4 is 1 - (3 v^2 - 2 v^3), v = u / 2. This solves it for v.
    let sphere = |q: f64| -1.0 + 2.0 * ((1.0 - 2.0 * q).asin() / 3.0).sin();
    type Quantile<'a> = &'a (dyn Fn(f64) -> f64 + Sync);
    let families: [(&str, Quantile, Option<f64>); 7] = [
        ("gaussian", &normal, None),
        ("exponential", &|q| -q.ln(), None),
        ("stretched:p=3", &|q| (-q.ln()).cbrt(), None),
        ("edge:c=1", &|q| 1.0 / q.ln(), None),
        ("sphere:d=5", &sphere, None),
        ("pareto:a=2", &|q| q.powf(-0.5), None),
        ("sink:height=20", &normal, Some(20.0)),
    ];
    for (family, quantile, sink) in families {
        for (n, rows) in SIZES {
            let one = |seed| {
                let (beta, rank) = sample_critical_beta(quantile, sink, n as u64, 0.0, seed);
                (beta, rank as f64 / n as f64)
            };
            let (betas, depths): (Vec<f64>, Vec<f64>) = (0..SAMPLES).into_par_iter().map(one).unzip();
            let median = named(format!("{family} n = {n}"));
            assert!(median.what.contains(&format!("{rows} rows")), "{median:?}");
            agrees(median, betas, rows);
            if sink.is_some() && n == SIZES[2].0 {
                agrees(named(format!("{family} contact")), depths, rows);
            }
        }
    }
    for family in ["simplex", "gaussian", "exponential", "edge", "log-grid", "sphere", "pareto", "sink"] {
        assert!(checks.iter().any(|check| check.name.contains(family)), "{family}");
    }
}
