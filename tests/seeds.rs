//! Rows with closed forms, each tested at every pad offset and behind every stride.

mod common;

use critbeta::cpu::{self, Measure, RowReport};
use critbeta::reference::Row;
use critbeta::stats::RowMax;
use critbeta::{CriticalBeta, Rescaling, Scores};

const MASK: f32 = f32::NEG_INFINITY;

/// A row, and the values that are known by hand.
struct Seed {
    name: &'static str,
    scores: Vec<f32>,
    n: u64,
    ties: u64,
    critical: CriticalBeta,
    /// Weights at beta = 1, largest first.
    weights: Vec<f64>,
}

fn seed(name: &'static str, scores: &[f32], [n, ties, rank]: [u64; 3], gap: f64, weights: &[f64]) -> Seed {
    let beta = match (ties, rank) {
        (2.., _) => f64::INFINITY,
        (_, 0 | 1) => 0.0,
        _ => (rank as f64).ln() / gap,
    };
    let critical = CriticalBeta { beta, upper: beta, contact_gap: gap, contact_rank: rank };
    let z: f64 = weights.iter().sum();
    let weights = weights.iter().map(|w| w / z).collect();
    Seed { name, scores: scores.to_vec(), n, ties, critical, weights }
}

/// `weights` need not be normalised.
fn seeds() -> Vec<Seed> {
    let w = |gap: f64| (-gap).exp();
    let simplex: Vec<f32> = (0..100).map(|i| if i == 37 { 3.0 } else { 0.0 }).collect();
    let simplex_weights: Vec<f64> = (0..100).map(|i| if i == 0 { 1.0 } else { w(3.0) }).collect();
    let one_hot: Vec<f32> = (0..70).map(|i| if i == 69 { 1.0 } else { 0.0 }).collect();
    let one_hot_weights: Vec<f64> = (0..70).map(|i| if i == 0 { 1.0 } else { w(1.0) }).collect();
    let spaced: Vec<f32> = (0..66).map(|i| i as f32 * 0.25 - 3.0).collect();
    let spaced_weights: Vec<f64> = (0..66).map(|i| w(f64::from(i) * 0.25)).collect();
    let sink: Vec<f32> = (0..65).map(|i| if i == 0 { 20.0 } else { i as f32 / 64.0 }).collect();
    let sink_weights: Vec<f64> =
        (0..65).map(|i| if i == 0 { 1.0 } else { w(19.0 + (i - 1) as f64 / 64.0) }).collect();
    // log k / (19 + (k - 2) / 64) still rises at k = 65. One more score changes log k by 1 / 65 = 0.015 of
    // 4.17, and the gap by 1 / 64 of 20.
    let far = [0.0, f32::MIN / 2.0, f32::MAX];
    vec![
        seed("empty", &[], [0, 0, 0], 0.0, &[]),
        seed("all masked", &[MASK; 5], [0, 0, 0], 0.0, &[]),
        seed("single", &[-7.5], [1, 1, 1], 0.0, &[1.0]),
        seed("single among masked", &[MASK, MASK, 2.0, MASK], [1, 1, 1], 0.0, &[1.0]),
        seed("all equal", &[0.3; 67], [67, 67, 67], 0.0, &[1.0; 67]),
        seed("both zeros", &[-0.0, 0.0, -1.0], [3, 2, 2], 0.0, &[1.0, 1.0, w(1.0)]),
        seed("one hot", &one_hot, [70, 1, 70], 1.0, &one_hot_weights),
        seed("simplex", &simplex, [100, 1, 100], 3.0, &simplex_weights),
        // log 2 / 0.25 is the largest of log k / ((k - 1) 0.25).
        seed("evenly spaced", &spaced, [66, 1, 2], 0.25, &spaced_weights),
        // log 2 / 1 < log 6 / 1.5: the lower level wins.
        seed(
            "two levels",
            &[0.0, 0.5, 0.0, 1.5, 0.0, 0.0],
            [6, 1, 6],
            1.5,
            &[1.0, w(1.0), w(1.5), w(1.5), w(1.5), w(1.5)],
        ),
        // log 2 / 2 = log 4 / 4: of two contacts, the one with the larger gap is reported.
        seed("two contacts", &[0.0, 2.0, 4.0, 0.0], [4, 1, 4], 4.0, &[1.0, w(2.0), w(4.0), w(4.0)]),
        seed("tied top", &[5.0, 1.0, 5.0], [3, 2, 2], 0.0, &[1.0, 1.0, w(4.0)]),
        seed("sink", &sink, [65, 1, 65], 19.0 + 63.0 / 64.0, &sink_weights),
        // No finite t reaches a gap that overflows f32, but the score is visible.
        seed("overflowing gap", &far, [3, 1, 2], f64::from(f32::MAX), &[1.0, 0.0, 0.0]),
    ]
}

/// Every pad in front, behind and on both sides, up to a vector of 64 scores.
fn pads() -> impl Iterator<Item = (usize, usize)> {
    (0..=64).flat_map(|pad| [(pad, 0), (0, pad), (pad, pad)])
}

fn padded(scores: &[f32], (front, back): (usize, usize)) -> Vec<f32> {
    [&vec![MASK; front], scores, &vec![MASK; back]].concat()
}

/// The row as the middle one of three. The other elements of the block are poison, and nothing may read them.
fn strided<R>(scores: &[f32], slack: usize, see: impl FnOnce(Scores<f32>) -> R) -> R {
    let cols = scores.len() + slack;
    let stride = cols + slack % 3;
    let mut block = vec![f32::NAN; 3 * stride];
    block[stride..][..scores.len()].copy_from_slice(scores);
    let lens = [0, scores.len() as u32, 0];
    see(Scores::strided(&block, 3, cols, stride).unwrap().with_lens(&lens).unwrap())
}

fn close(measured: f64, expected: f64, tolerance: f64, case: &str) {
    let same = measured == expected || (measured - expected).abs() <= tolerance;
    assert!(same, "{case}: {measured}, expected {expected}");
}

fn is_as_known(seed: &Seed, report: RowReport, case: &str) {
    assert_eq!((report.top.len, report.top.ties, report.top.poisoned), (seed.n, seed.ties, false), "{case}");
    assert_eq!(report.critical, seed.critical, "{case}");
    assert_eq!(report.resolved, seed.critical, "{case}");
    let log_z = seed.weights.first().map_or(f64::NEG_INFINITY, |first| -first.ln());
    let plogp = |&a: &f64| if a > 0.0 { -a * a.ln() } else { 0.0 };
    let entropy: f64 = seed.weights.iter().map(plogp).sum();
    let at = |i: usize| seed.weights.get(i).copied().unwrap_or(0.0);
    // There are at most 100 terms, so 100 roundings of 2^-53, and those of entropies of at most log 100.
    let tolerance = 4.0 * common::sum_error(100);
    close(report.log_partition, log_z, tolerance, case);
    close(report.entropy, entropy, tolerance, case);
    close(report.max_weight, at(0), tolerance, case);
    close(report.top_two, at(0) - at(1), tolerance, case);
}

#[test]
fn closed_forms_hold_at_every_pad_and_stride() {
    for seed in seeds() {
        for pad in pads() {
            let case = format!("{} padded by {pad:?}", seed.name);
            let row = padded(&seed.scores, pad);
            is_as_known(&seed, cpu::row_report(&row, 1.0, Measure::default()), &case);
            assert_eq!(Row::from_f32(&row).critical_beta(), seed.critical, "reference: {case}");
            let first = seed.scores.iter().position(|&s| f64::from(s) == Row::from_f32(&row).max());
            let argmax = RowMax::of(&row, 0).argmax;
            assert_eq!(argmax, first.filter(|_| seed.n > 0).map_or(0, |at| at + pad.0) as u64, "{case}");
        }
        for slack in 0..=64 {
            let case = format!("{} with {slack} columns of slack", seed.name);
            let reports =
                strided(&seed.scores, slack, |view| cpu::row_reports(&view, 1.0, Measure::default()));
            is_as_known(&seed, reports[1], &case);
            let betas = strided(&seed.scores, slack, |view| cpu::critical_betas(&view, 0.0));
            assert_eq!(betas, reports.iter().map(|report| report.critical).collect::<Vec<_>>(), "{case}");
            assert_eq!((reports[0].top, reports[2].top), (RowMax::EMPTY, RowMax::EMPTY), "{case}");
        }
    }
}

#[test]
fn softmax_of_closed_forms_is_within_its_bound_and_zero_where_masked() {
    for seed in seeds() {
        for pad in pads() {
            let row = padded(&seed.scores, pad);
            let case = format!("{} padded by {pad:?}", seed.name);
            let cols = row.len() + 3;
            let mut out = vec![f32::NAN; 3 * cols];
            let rows = strided(&row, 3, |view| {
                cpu::softmax(&view, &Rescaling::Identity, Some(&[0, 1, 2]), &mut out)
            });
            assert_eq!(rows.unwrap()[1].top.len, seed.n, "{case}");
            assert!(out[..cols].iter().chain(&out[2 * cols..]).all(|&p| p == 0.0), "{case}: empty rows");
            let probs = &out[cols..2 * cols];
            assert!(probs[row.len()..].iter().all(|&p| p == 0.0), "{case}: beyond the length");
            for (i, &s) in row.iter().enumerate().filter(|&(_, &s)| s == MASK) {
                assert_eq!(probs[i], 0.0, "{case}: masked {s}");
            }
            let mut sorted: Vec<f32> = probs.iter().copied().filter(|&p| p > 0.0).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(sorted.len(), seed.weights.iter().filter(|&&w| w > 0.0).count(), "{case}");
            for (p, w) in sorted.iter().zip(&seed.weights) {
                // At beta = 1, z is the gap, which is the log of the ratio to the largest weight.
                close(f64::from(*p), *w, common::prob_error(*w, (seed.weights[0] / w).ln()), &case);
            }
        }
    }
}

#[test]
fn hard_maximum_shares_its_weight_among_the_tied() {
    let mut out = [f32::NAN; 5];
    let scores = [1.0, 3.0, MASK, 3.0, 2.0];
    let view = Scores::dense(&scores, 1, 5).unwrap();
    cpu::softmax(&view, &Rescaling::Fixed(f64::INFINITY), Some(&[4]), &mut out).unwrap();
    assert_eq!(out, [0.0, 0.5, 0.0, 0.5, 0.0]);
    let critical: Rescaling = "critical".parse().unwrap();
    assert_eq!(cpu::softmax(&view, &critical, Some(&[4]), &mut out).unwrap()[0].beta, f64::INFINITY);
    assert_eq!(out, [0.0, 0.5, 0.0, 0.5, 0.0]);
    cpu::softmax(&view, &Rescaling::Fixed(0.0), Some(&[4]), &mut out).unwrap();
    assert_eq!(out, [0.25, 0.25, 0.0, 0.25, 0.25]);
}

#[test]
fn poison_stays_in_its_row_at_every_pad() {
    for poison in [f32::NAN, f32::INFINITY, -f32::NAN] {
        for pad in pads() {
            let row = padded(&[0.5, poison, 2.0, MASK], pad);
            let clean = padded(&[0.5, 1.0, 2.0, MASK], pad);
            let case = format!("{poison} padded by {pad:?}");
            assert!(Row::from_f32(&row).is_poisoned(), "{case}");
            let block = [clean.as_slice(), &row, &clean].concat();
            let view = Scores::dense(&block, 3, row.len()).unwrap();
            let reports = cpu::row_reports(&view, 1.0, Measure::default());
            assert_eq!(reports[0], reports[2], "{case}");
            assert_eq!(reports[0], cpu::row_report(&clean, 1.0, Measure::default()), "{case}");
            let bad = reports[1];
            assert!(bad.top.poisoned && bad.top.max.is_nan() && bad.top.second.is_nan(), "{case}");
            assert_eq!((bad.top.len, bad.top.argmax), (3, pad.0 as u64 + 1), "{case}");
            let numbers = [bad.critical.beta, bad.resolved.beta, bad.log_partition, bad.entropy];
            let more = [bad.top_two, bad.max_weight, bad.alpha(), bad.ratio(), bad.critical.contact_gap];
            assert!(numbers.iter().chain(&more).all(|v| v.is_nan()), "{case}: {bad:?}");
            let mut out = vec![0.0; block.len()];
            let critical: Rescaling = "critical".parse().unwrap();
            for rescaling in [Rescaling::Identity, critical] {
                cpu::softmax(&view, &rescaling, Some(&[0, 1, 2]), &mut out).unwrap();
                let (before, rest) = out.split_at(row.len());
                let (middle, after) = rest.split_at(row.len());
                assert!(middle.iter().all(|p| p.is_nan()), "{case}");
                assert!(before == after && before.iter().all(|p| p.is_finite()), "{case}");
            }
        }
    }
}
