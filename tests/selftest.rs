//! The self-test's known medians, derived again from the quantile functions of the families alone.
//!
//! The k-th largest of n independent scores is the tail quantile at Gamma_k / Gamma_(n+1), Gamma_k
//! being the sum of k unit exponentials (Renyi 1953). So max over k of log k / (x_1 - x_k) is sampled
//! here without a row, in f64; nothing of the crate under test takes part.

use critbeta::families::selftest::{Check, check};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::{Exp1, Gamma};
use rayon::prelude::*;

/// Lengths and rows of the self-test's medians.
const SIZES: [(usize, usize); 3] = [(64, 4001), (1_024, 4001), (16_384, 2001)];
const SAMPLES: u64 = 4_000;
/// Up to this rank every score is looked at; then one in rank / EVERY. Between two of them log k
/// changes by 1 / EVERY: at 256 the median of the sink, whose contact is that deep, moved by 1.4e-5.
const EVERY: usize = 1_024;

/// z with P(Z > z) = q for a standard normal Z: Simpson's rule for the tail, then linear in log q.
fn normal_quantile() -> impl Fn(f64) -> f64 {
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
        let at = table.partition_point(|&(log_mass, _)| log_mass < q.ln()).clamp(1, table.len() - 1);
        let ((m0, z0), (m1, z1)) = (table[at - 1], table[at]);
        z0 + (z1 - z0) * (q.ln() - m0) / (m1 - m0)
    }
}

/// Lambda and contact rank / n of one sample of n scores, the best of them at `sink` if there is one.
fn sample(quantile: impl Fn(f64) -> f64, sink: Option<f64>, n: usize, seed: u64) -> (f64, f64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let above = usize::from(sink.is_some());
    let (mut k, mut sum) = (0, 0.0);
    let mut arrivals = Vec::new();
    while k < n - above {
        let step = (k / EVERY).clamp(1, n - above - k);
        sum += match step {
            1 => rng.sample::<f64, _>(Exp1),
            _ => rng.sample(Gamma::new(step as f64, 1.0).unwrap()),
        };
        k += step;
        arrivals.push((k + above, sum));
    }
    let total = sum + rng.sample::<f64, _>(Exp1);
    let top = sink.unwrap_or_else(|| quantile(arrivals[0].1 / total));
    let below = arrivals.iter().filter(|&&(rank, _)| rank > 1);
    let ratios = below.map(|&(k, sum)| ((k as f64).ln() / (top - quantile(sum / total)), k));
    let (beta, rank) = ratios.fold((0.0, 0), |best, next| if next.0 >= best.0 { next } else { best });
    (beta, rank as f64 / n as f64)
}

/// The known value lies where the median of these samples may lie, and its tolerance is the distance
/// to the quantiles 1/2 -+ 2.5 / sqrt(rows), as far as as many samples tell.
fn agrees(check: &Check, mut samples: Vec<f64>, rows: usize) {
    samples.sort_by(f64::total_cmp);
    let quantile = |q: f64| samples[(q * samples.len() as f64) as usize];
    let sigmas = |count: usize| 2.5 / (count as f64).sqrt();
    let (low, high) = (0.5 - sigmas(samples.len()), 0.5 + sigmas(samples.len()));
    let told = format!("{check:?}: {} of {}..{}", quantile(0.5), quantile(low), quantile(high));
    assert!((quantile(low)..=quantile(high)).contains(&check.expected), "{told}");
    let furthest = |more: f64| {
        let side = sigmas(rows) + more;
        (quantile(0.5 + side) - check.expected).max(check.expected - quantile(0.5 - side))
    };
    let (least, most) = (furthest(-sigmas(samples.len()) * 0.8), furthest(sigmas(samples.len())));
    assert!((least..=most).contains(&check.tolerance), "{told}, tolerance {least}..{most}");
}

#[test]
fn known_medians_follow_from_the_quantile_functions() {
    let mut steps = Vec::new();
    let checks = check(20_261_124, &mut |done, total| steps.push((done, total)));
    assert!(checks.iter().all(|check| check.pass), "{checks:#?}");
    assert_eq!(steps, (1..=9).map(|done| (done, 9)).collect::<Vec<_>>());
    let named = |name: String| checks.iter().find(|check| check.name == name).ok_or(name).unwrap();
    let normal = normal_quantile();
    // P(1 - x > u) for the first coordinate of S^4 is 1 - (3 v^2 - 2 v^3), v = u / 2; solved for v.
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
            let one = |seed| sample(quantile, sink, n, seed);
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
