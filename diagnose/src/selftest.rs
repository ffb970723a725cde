//! Measures rows whose answer is known by the working path. `critbeta families` prints the result.
//!
//! Where Lambda is known exactly, one row is enough. Where it is random, the median over seeded rows is
//! compared with the median of its exact finite-n distribution. That distribution is derived without this
//! crate. The k-th largest of n independent scores is the tail quantile at Gamma_k / Gamma_(n+1), where
//! Gamma_k is a sum of k unit exponentials (Renyi 1953). So Lambda = max over k of log k / (x_1 - x_k) can be
//! sampled in f64 from the quantile function alone, with no row, no f32, no sort and no histogram.
//! `tests/selftest.rs` does so. `MEDIANS` are its results from 1,000,000 samples each (the sink: 250,000, all
//! ranks; 2026-11-24).
//!
//! The sampling error of a median of R rows is known. The median lies between the quantiles 1/2 - 2.5 /
//! sqrt(R) and 1/2 + 2.5 / sqrt(R) of the distribution, except once in 1.7 million (5 sigma of the rank). The
//! tolerance is the distance to the further one. Over 200 seeds the worst difference was 0.79 of a tolerance.

use crate::Device;
use critbeta::cpu::Measure;
use critbeta::cuda::Engine;
use critbeta::families::{Family, median, row_seeds};
use critbeta::{CriticalBeta, Result, Scores};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rayon::prelude::*;
use serde::Serialize;

/// One comparison of a measured number with a known one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Family and quantity.
    pub name: String,
    /// The known value.
    pub expected: f64,
    /// The measured value.
    pub measured: f64,
    /// The largest difference that rounding, or sampling with any seed, explains.
    pub tolerance: f64,
    /// Whether the difference is within the tolerance.
    pub pass: bool,
    /// What is measured, and the source of its known value.
    pub what: String,
}

/// Lengths and rows of every median: 37 million scores a family.
const SIZES: [(usize, usize); 3] = [(64, 4001), (1_024, 4001), (16_384, 2001)];

/// Median of Lambda at each of [`SIZES`], and its tolerance over every seed.
const MEDIANS: [Known; 7] = [
    (Family::Gaussian, [(2.9846, 0.2844), (4.1345, 0.3902), (5.0538, 0.6961)]),
    (Family::Exponential, [(1.2748, 0.1172), (1.2745, 0.1174), (1.2740, 0.1730)]),
    (Family::Stretched { p: 3.0 }, [(9.1701, 0.8803), (13.295, 1.252), (16.845, 2.329)]),
    (Family::Edge { c: 1.0 }, [(18.787, 1.807), (55.072, 5.248), (110.886, 15.372)]),
    (Family::Sphere { d: 5.0 }, [(14.887, 1.426), (62.189, 5.907), (251.150, 35.294)]),
    (Family::Pareto { a: 2.0 }, [(0.521853, 0.040948), (0.193062, 0.012930), (0.065364, 0.005867)]),
    (Family::Sink { height: 20.0 }, [(0.191980, 0.000175), (0.322257, 0.000068), (0.455581, 0.000033)]),
];

/// Median of contact rank / n under the sink at the last of [`SIZES`], from the same samples.
const SINK_DEPTH: (f64, f64) = (0.72870, 0.00214);

/// [`check_on`] this CPU.
pub fn check(seed: u64, progress: &mut dyn FnMut(usize, usize)) -> Vec<Check> {
    // The CPU returns no error.
    check_on(&Device::Cpu, seed, progress).unwrap_or_default()
}

/// Measures every family with a known answer on `device` and compares.
///
/// Calls `progress(done, total)` after each family. Only the seed matters. Errors: the device's.
pub fn check_on(device: &Device, seed: u64, progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Check>> {
    let measurer = match device {
        Device::Cpu => Measurer::Row(|scores| critbeta::cpu::critical_beta(scores, 0.0)),
        Device::Cuda(engine) => Measurer::Engine(engine),
    };
    check_with(&measurer, median, &MEDIANS, seed, progress)
}

/// Medians of one family at each of [`SIZES`], with their tolerances.
type Known = (Family, [(f64, f64); SIZES.len()]);

fn check_with(
    measurer: &Measurer,
    summary: fn(Vec<f64>) -> f64,
    random: &[Known],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Check>> {
    let total = random.len() + 2;
    let mut checks = Vec::new();
    for (n, _) in SIZES {
        let family = Family::Simplex { gap: 4.0 };
        let measured = measurer.each_of(&family, n, 1, seed)?[0].beta;
        let what = "log n / (q - p), exactly, q - p = 4; one row".into();
        // A gap of 4 is exact. The ratio is one logarithm and one division, so it errs by 2 ulps of f64.
        let expected = (n as f64).ln() / 4.0;
        checks.push(Check::new(&family, format!("n = {n}"), expected, measured, 4.5e-16 * expected, what));
    }
    progress(1, total);
    checks.push(log_grid(measurer)?);
    progress(2, total);
    for (i, (family, known)) in random.iter().enumerate() {
        let mut medians = Vec::new();
        for (&(n, rows), &(expected, tolerance)) in SIZES.iter().zip(known) {
            let rows = measurer.each_of(family, n, rows, seed)?;
            let measured = summary(rows.iter().map(|critical| critical.beta).collect());
            medians.push(measured);
            let what = format!("median of {} rows; exact distribution of the order statistics", rows.len());
            checks.push(Check::new(family, format!("n = {n}"), expected, measured, tolerance, what));
            if matches!(family, Family::Sink { .. }) && n == SIZES[2].0 {
                let measured = summary(rows.iter().map(|c| c.contact_rank as f64 / n as f64).collect());
                let what = "median contact rank / n: the contact lies deep in the bulk".into();
                let (expected, tolerance) = SINK_DEPTH;
                checks.push(Check::new(family, "contact".into(), expected, measured, tolerance, what));
            }
        }
        checks.extend(exponent(family, known, &medians));
        progress(i + 3, total);
    }
    Ok(checks)
}

/// Every prefix of a log grid has its contact at its last score, up to the rounding of that gap.
fn log_grid(measurer: &Measurer) -> Result<Check> {
    let (n, beta) = (1024, 2.5);
    let family = Family::LogGrid { beta };
    let mut whole = Vec::new();
    family.draw(n, &mut Xoshiro256PlusPlus::seed_from_u64(0), &mut whole);
    let betas = measurer.each(n - 1, |row, scores| {
        scores.clear();
        scores.extend_from_slice(&whole[..row + 2]);
    })?;
    let furthest = betas.iter().map(|critical| critical.beta);
    let furthest = furthest.max_by(|a, b| (a - beta).abs().total_cmp(&(b - beta).abs())).unwrap_or(f64::NAN);
    // One f32 rounding of a gap is 2^-24 relative, and its square.
    let tolerance = beta * 2f64.powi(-24) * 1.000001;
    let what = "the value furthest from L over the rows of the first k scores, k = 2..1024".into();
    Ok(Check::new(&family, "every k".into(), beta, furthest, tolerance, what))
}

/// Compares the slope of `medians` with the slope of the known medians at the same lengths. At such n the
/// exponent is far from its limit (Gaussian rows: 0.62, not 0.50).
fn exponent(family: &Family, known: &[(f64, f64)], medians: &[f64]) -> Option<Check> {
    let growth = family.known()?;
    let lengths = SIZES.map(|(n, _)| (n as f64).ln());
    let (abscissa, against, asymptotic) = match growth.power {
        0.0 => (lengths.map(f64::ln), "log log n", growth.log_power),
        power => (lengths, "log n", power),
    };
    let mean = abscissa.iter().sum::<f64>() / abscissa.len() as f64;
    let spread: f64 = abscissa.iter().map(|x| (x - mean).powi(2)).sum();
    let weights = abscissa.map(|x| (x - mean) / spread);
    let slope = |y: &mut dyn Iterator<Item = f64>| weights.iter().zip(y).map(|(w, y)| w * y).sum::<f64>();
    let expected = slope(&mut known.iter().map(|(median, _)| median.ln()));
    let measured = slope(&mut medians.iter().map(|median| median.ln()));
    let errors = known.iter().map(|(median, tolerance)| tolerance / median);
    let tolerance = weights.iter().zip(errors).map(|(w, error)| (w * error).powi(2)).sum::<f64>().sqrt();
    let what = format!("slope of log median over {against}; its limit is {asymptotic:.2}");
    Some(Check::new(family, "exponent".into(), expected, measured, tolerance, what))
}

impl Check {
    fn new(
        family: &Family,
        quantity: String,
        expected: f64,
        measured: f64,
        tolerance: f64,
        what: String,
    ) -> Check {
        let pass = (measured - expected).abs() <= tolerance;
        Check { name: format!("{family} {quantity}"), expected, measured, tolerance, pass, what }
    }
}

/// The function or device that measures critical betas.
enum Measurer<'a> {
    /// A function of one row. Rows run in parallel.
    Row(fn(&[f32]) -> CriticalBeta),
    /// A GPU, which takes many rows at once.
    Engine(&'a Engine),
}

/// This many scores (64 MB) wait for a GPU at once.
const BATCH_SCORES: usize = 1 << 24;

impl Measurer<'_> {
    /// The critical beta of each of `rows` rows, in order. `draw` writes row `i` to its argument.
    fn each(&self, rows: usize, draw: impl Fn(usize, &mut Vec<f32>) + Sync) -> Result<Vec<CriticalBeta>> {
        let drawn = |scores: &mut Vec<f32>, row| draw(row, scores);
        match *self {
            Measurer::Row(measure) => {
                let one = |scores: &mut Vec<f32>, row| {
                    drawn(scores, row);
                    measure(scores)
                };
                Ok((0..rows).into_par_iter().map_init(Vec::new, one).collect())
            }
            Measurer::Engine(engine) => {
                let mut betas = Vec::with_capacity(rows);
                while betas.len() < rows {
                    // The last row says how many fit, because lengths of neighbours differ little.
                    let mut last = Vec::new();
                    draw(betas.len(), &mut last);
                    let count = (BATCH_SCORES / last.len().max(1)).clamp(1, rows - betas.len());
                    let range = betas.len()..betas.len() + count;
                    let one = |row| {
                        let mut scores = Vec::new();
                        drawn(&mut scores, row);
                        scores
                    };
                    let batch: Vec<Vec<f32>> = range.into_par_iter().map(one).collect();
                    let lens: Vec<u32> = batch.iter().map(|row| row.len() as u32).collect();
                    let cols = batch.iter().map(Vec::len).max().unwrap_or(0);
                    let mut packed = vec![0.0; count * cols];
                    for (row, to) in batch.iter().zip(packed.chunks_exact_mut(cols.max(1))) {
                        to[..row.len()].copy_from_slice(row);
                    }
                    let view = Scores::dense(&packed, count, cols)?.with_lens(&lens)?;
                    let reports = engine.row_reports(&view, 1.0, Measure::default())?;
                    betas.extend(reports.iter().map(|report| report.critical));
                }
                Ok(betas)
            }
        }
    }

    /// The critical beta of each of `rows` seeded rows of `family`, in order.
    fn each_of(&self, family: &Family, n: usize, rows: usize, seed: u64) -> Result<Vec<CriticalBeta>> {
        let seeds = row_seeds(rows, seed);
        self.each(rows, |row, scores| {
            family.draw(n, &mut Xoshiro256PlusPlus::seed_from_u64(seeds[row]), scores);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use critbeta::CriticalBeta;
    use critbeta::cpu::{Measure, critical_beta, row_report};
    use critbeta::stats::RowMax;

    /// The names of the checks of `random` families that fail under a faulty measure.
    fn failures(
        measure: fn(&[f32]) -> CriticalBeta,
        summary: fn(Vec<f64>) -> f64,
        random: &[&str],
    ) -> Vec<String> {
        let random: Vec<Known> = MEDIANS.into_iter().filter(|(f, _)| random.contains(&f.name())).collect();
        let checks = check_with(&Measurer::Row(measure), summary, &random, 1, &mut |_, _| {}).unwrap();
        checks.into_iter().filter(|check| !check.pass).map(|check| check.name).collect()
    }

    fn with_beta(critical: CriticalBeta, beta: f64) -> CriticalBeta {
        CriticalBeta { beta, ..critical }
    }

    #[test]
    fn counting_the_top_2048_only_is_found_out() {
        let faulty = |scores: &[f32]| row_report(scores, 1.0, Measure::new(0.0, Some(2048))).critical;
        let found = failures(faulty, median, &["pareto", "sink"]);
        for name in ["simplex:gap=4 n = 16384", "pareto:a=2 n = 16384", "sink:height=20 contact"] {
            assert!(found.iter().any(|f| f == name), "{name} is not among {found:?}");
        }
        assert!(!found.iter().any(|name| name.contains("n = 1024")), "all are counted there: {found:?}");
    }

    #[test]
    fn means_instead_of_medians_are_found_out() {
        let mean = |betas: Vec<f64>| betas.iter().sum::<f64>() / betas.len() as f64;
        let found = failures(|scores| critical_beta(scores, 0.0), mean, &["gaussian", "exponential"]);
        for name in ["gaussian n = 64", "gaussian n = 1024", "exponential n = 64"] {
            assert!(found.iter().any(|f| f == name), "{name} is not among {found:?}");
        }
    }

    #[test]
    fn binary_logarithms_are_found_out_everywhere() {
        let faulty = |scores: &[f32]| {
            let critical = critical_beta(scores, 0.0);
            with_beta(critical, critical.beta / std::f64::consts::LN_2)
        };
        let found = failures(faulty, median, &["gaussian", "edge", "sphere"]);
        // A constant factor changes everything but the exponents.
        let expected = 3 + 1 + 3 * 3;
        assert_eq!(found.iter().filter(|name| !name.contains("exponent")).count(), expected, "{found:?}");
    }

    #[test]
    fn gaps_from_the_second_largest_score_are_found_out() {
        let faulty = |scores: &[f32]| {
            let second = RowMax::of(scores, 0).second;
            critical_beta(&scores.iter().map(|s| s.min(second)).collect::<Vec<_>>(), 0.0)
        };
        let found = failures(faulty, median, &["gaussian"]);
        assert!(found.len() >= 3 + 1 + 3, "{found:?}");
    }

    #[test]
    fn a_rank_too_small_by_one_is_found_out() {
        let faulty = |scores: &[f32]| {
            let critical = critical_beta(scores, 0.0);
            let rank = critical.contact_rank.saturating_sub(1);
            with_beta(critical, (rank as f64).ln() / critical.contact_gap)
        };
        let found = failures(faulty, median, &[]);
        assert_eq!(found.len(), 3 + 1, "{found:?}");
    }

    #[test]
    fn a_wrong_exponent_is_found_out_without_its_constant() {
        // Lambda sqrt(log n) is right at no n, and steeper by 1/2.
        let faulty = |scores: &[f32]| {
            let critical = critical_beta(scores, 0.0);
            with_beta(critical, critical.beta * (scores.len() as f64).ln().sqrt())
        };
        let found = failures(faulty, median, &["gaussian"]);
        assert!(found.iter().any(|name| name == "gaussian exponent"), "{found:?}");
    }

    #[test]
    fn a_measure_of_nothing_passes_nowhere() {
        for nothing in [f64::NAN, f64::INFINITY, 0.0] {
            let check = Check::new(&Family::Gaussian, String::new(), 1.0, nothing, 0.5, String::new());
            assert!(!check.pass);
        }
    }
}
