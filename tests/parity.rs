//! Compares the working path with the reference for every family, length, dtype and resolve.

mod common;

use common::{RESOLVES, draw, every_family, prob_error, sum_error};
use critbeta::cpu::{self, Measure, RowReport};
use critbeta::families::Family;
use critbeta::reference::Row;
use critbeta::{Element, Rescaling, Scores};
use half::{bf16, f16};

/// Lengths around 1, 8 and 64 have vector tails. From 65 on there is a histogram refinement. The rest are
/// real lengths.
const LENGTHS: [usize; 11] = [1, 2, 3, 7, 8, 63, 64, 65, 1000, 4097, 65_536];

/// The betas at which weights are compared: all equal, blurred, the model's own, sharp, and the limit.
const BETAS: [f64; 6] = [0.0, 0.3, 1.0, 40.0, 1e300, f64::INFINITY];

fn critical_betas_agree<T: Element>(family: Family, stored: &[T]) {
    let wide: Vec<f32> = stored.iter().map(|s| s.score()).collect();
    let reference = Row::from_f32(&wide);
    let view = Scores::dense(stored, 1, stored.len()).unwrap();
    for resolve in RESOLVES {
        let report = cpu::row_reports(&view, 1.0, Measure::new(resolve, None))[0];
        let case = format!("{family} n = {} as {}, r = {resolve}", wide.len(), std::any::type_name::<T>());
        assert_eq!(report.critical, reference.critical_beta(), "{case}");
        assert_eq!(report.resolved, reference.resolved_critical_beta(resolve), "{case}");
        assert_eq!(report.resolved, cpu::critical_beta(&wide, resolve), "{case}");
        assert_eq!((report.top.len, report.top.ties), (reference.n(), reference.gap_count(0.0)), "{case}");
        assert_eq!(f64::from(report.top.max), reference.max(), "{case}");
        assert_eq!(report.alpha(), reference.alpha(), "{case}");
    }
}

#[test]
fn critical_betas_equal_the_reference_bit_for_bit() {
    for n in LENGTHS {
        for (family, row) in every_family(n, n as u64) {
            critical_betas_agree(family, &row);
            critical_betas_agree(family, &row.iter().map(|&s| f16::from_f32(s)).collect::<Vec<_>>());
            critical_betas_agree(family, &row.iter().map(|&s| bf16::from_f32(s)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn critical_betas_of_a_million_scores_equal_the_reference_bit_for_bit() {
    for (i, (family, row)) in every_family(1 << 20, 11).enumerate() {
        // Each family has one dtype here. The smaller lengths test every dtype.
        match i % 3 {
            0 => critical_betas_agree(family, &row),
            1 => critical_betas_agree(family, &row.iter().map(|&s| f16::from_f32(s)).collect::<Vec<_>>()),
            _ => critical_betas_agree(family, &row.iter().map(|&s| bf16::from_f32(s)).collect::<Vec<_>>()),
        }
    }
}

#[test]
fn reports_agree_within_the_rounding_of_their_sums() {
    for n in LENGTHS {
        for (family, scores) in every_family(n, 77 + n as u64) {
            let row = Row::from_f32(&scores);
            if row.n() == 0 {
                continue; // tests/seeds.rs checks the empty rows exactly.
            }
            for beta in BETAS {
                let report = cpu::row_report(&scores, beta, Measure::default());
                let RowReport { log_partition, entropy, top_two, max_weight, .. } = report;
                let error = sum_error(n);
                // a log a of each weight has the errors of a and of log a, both relative to 1 + log n.
                let entropy_error = 2.0 * error * (1.0 + (n as f64).ln());
                for (name, measured, expected, tolerance) in [
                    ("log Z", log_partition, row.log_partition(beta), error),
                    ("H", entropy, row.entropy(beta), entropy_error),
                    ("D", top_two, row.top_two(beta), error),
                    ("largest weight", max_weight, row.max_weight(beta), error),
                ] {
                    assert!(
                        (measured - expected).abs() <= tolerance,
                        "{family} n = {n} beta = {beta}: {name} {measured}, reference {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn probabilities_are_the_reference_weights_within_their_bound() {
    let texts = ["identity", "fixed:0", "fixed:1e300", "rem:c=1.5", "su", "velickovic", "ssmax:s=0.43"];
    let measured = ["critical", "critical:resolve=0.69,cap=8", "critical:ratio=3,resolve=3,floor=0.5"];
    let mut rescalings: Vec<Rescaling> = texts.iter().chain(&measured).map(|t| t.parse().unwrap()).collect();
    rescalings.push(Rescaling::Fixed(f64::INFINITY));
    // One thread does not split a row. More threads give the same bits (tests/lanes.rs).
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for n in [1, 2, 7, 64, 65, 1000, 4097, 70_000] {
        for (family, scores) in every_family(n, 300 + n as u64) {
            let row = Row::from_f32(&scores);
            let mut best_first: Vec<usize> = (0..n).collect();
            best_first.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let view = Scores::dense(&scores, 1, n).unwrap();
            for rescaling in &rescalings {
                let mut probs = vec![f32::NAN; n];
                let positions = [n as u32 - 1];
                let reports = alone.install(|| cpu::softmax(&view, rescaling, Some(&positions), &mut probs));
                let report = reports.unwrap()[0];
                if let Rescaling::Critical(rule) = rescaling {
                    let critical = row.resolved_critical_beta(rule.resolve).beta;
                    assert_eq!(report.beta, (rule.ratio * critical).clamp(rule.floor, rule.cap), "{family}");
                }
                let mut weights = row.weights(report.beta);
                weights.resize(n, 0.0); // masked scores come last
                for (&at, weight) in best_first.iter().zip(weights) {
                    let gap = row.max() - f64::from(scores[at]);
                    let z = if gap == 0.0 { 0.0 } else { report.beta * gap };
                    let tolerance = prob_error(weight, z);
                    let case = || format!("{family} n = {n} {rescaling}: score {at} has {}", probs[at]);
                    assert!((f64::from(probs[at]) - weight).abs() <= tolerance, "{}, not {weight}", case());
                }
            }
        }
    }
}

/// One key lies above a bulk that shares the weight. An error that all keys of the bulk share then shows in
/// the largest probability.
#[test]
fn the_largest_probability_bears_the_errors_of_a_whole_bulk() {
    let few = |n: usize, top: f32, every: usize, bulk: f32| -> Vec<f32> {
        (0..n).map(|i| if i % every == 0 { top } else { bulk }).collect()
    };
    let rows = [
        (few(1 << 20, 0.0, 1 << 20, -16.711525), "critical:ratio=0.85"),
        (few(1 << 16, 0.0, 1 << 14, -10.950548), "fixed:0.6931483786888568"),
        (few(1 << 20, 0.010996849, 1 << 20, -16.517296), "fixed:0.6931512533125695"),
    ];
    for (scores, rule) in rows {
        let view = Scores::dense(&scores, 1, scores.len()).unwrap();
        let mut probs = vec![0.0f32; scores.len()];
        let beta = cpu::softmax(&view, &rule.parse().unwrap(), Some(&[0]), &mut probs).unwrap()[0].beta;
        let weight = |s: f32| (-beta * f64::from(scores[0] - s)).exp();
        let exact = 1.0 / scores.iter().map(|&s| weight(s)).sum::<f64>();
        let off = (f64::from(probs[0]) / exact - 1.0).abs() * 2f64.powi(23);
        assert!(off <= 4.0, "{} keys, {rule}: the largest is {off} * 2^-23 off", scores.len());
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours_or_on_the_threads() {
    let rows: Vec<Vec<f32>> =
        (0..40).map(|i| draw(Family::ALL[i % Family::ALL.len()], 257, i as u64)).collect();
    let block = rows.concat();
    let view = Scores::dense(&block, rows.len(), 257).unwrap();
    let measure = Measure::new(0.69, None);
    let alone: Vec<RowReport> = rows.iter().map(|row| cpu::row_report(row, 1.0, measure)).collect();
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| cpu::row_reports(&view, 1.0, measure)), alone, "{threads} threads");
    }
}
