//! Checks that the kernels agree with the reference, and the rows and GPUs that the tests run them on.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use crate::common::every_family;
use crate::device::{Done, Out, Request, Rows, small};
use critbeta::cpu::{self, RowReport};
use critbeta::cuda::Arch;
use critbeta::cuda::internals::Scope;
use critbeta::reference::Row;
use critbeta::{DType, Element, Rescaling};

pub fn rescaling(text: &str) -> Rescaling {
    text.parse().unwrap()
}

/// exp(-beta gap), with the limits that a row needs.
pub fn weight(gap: f64, beta: f64) -> f64 {
    if gap == 0.0 || beta == 0.0 { 1.0 } else { (-beta * gap).exp() }
}

/// Checks that the relative error of each probability is at most (4 + z) 2^-23 against f64, with z = beta x
/// gap. For 16 bits it is (16 + z) 2^-23 and one rounding to `dtype`, and below 2^-126 it may be 0.
pub fn assert_probs(case: &str, scores: &[f32], beta: f64, probs: &[f32], dtype: DType) {
    let row = Row::from_f32(scores);
    let (len, z) = (scores.len(), row.partition(beta));
    let (rounding, digits, smallest) = match dtype {
        DType::F32 => (4.0, 24, 150),
        DType::F16 => (16.0, 11, 25),
        _ => (16.0, 8, 126),
    };
    assert!(probs[len..].iter().all(|&p| p == 0.0), "{case}: not 0 behind the row's length");
    for (j, (score, &prob)) in scores.iter().map(|s| s.score()).zip(probs).enumerate() {
        if row.is_poisoned() || beta.is_nan() {
            assert!(prob.is_nan(), "{case}: column {j} of a poisoned row is {prob}");
        } else if score == f32::NEG_INFINITY {
            assert_eq!(prob, 0.0, "{case}: column {j} is masked");
        } else {
            let gap = f64::from((row.max() as f32) - score);
            let expected = weight(gap, beta) / z;
            let depth = if expected > 0.0 { beta * gap } else { 0.0 };
            let depth = if depth.is_nan() { 0.0 } else { depth };
            let relative = (rounding + depth) * 2f64.powi(-23) + 2f64.powi(-digits);
            let error = (f64::from(prob) - expected).abs();
            // Weights below 2^-150 are 0 in the kernels, whatever Z is.
            let tolerance = expected * relative + 2f64.powi(-smallest);
            assert!(error <= tolerance, "{case}: column {j} gap {gap} beta {beta}: {prob}, not {expected}");
        }
    }
}

/// Checks that two reports are equal. Sums may differ by the rounding of f32 weights.
pub fn assert_same(case: &str, ours: &RowReport, cpu: &RowReport) {
    let bits = |report: &RowReport| {
        format!("{:?} {:?} {:?} {}", report.top, report.critical, report.resolved, report.beta)
    };
    assert_eq!(bits(ours), bits(cpu), "{case}");
    let n = (cpu.top.len as f64).max(2.0);
    // Each weight has a relative error of (4 + z) 2^-23. Weights with a large z are small, so their mean z is
    // below H + 1.
    let relative = (5.0 + cpu.entropy.max(0.0) + n.ln()) * 2f64.powi(-23);
    for (name, ours, cpu, scale) in [
        ("log Z", ours.log_partition, cpu.log_partition, 1.0),
        ("H", ours.entropy, cpu.entropy, 2.0 * (1.0 + n.ln())),
        ("D", ours.top_two, cpu.top_two, 1.0),
        ("largest weight", ours.max_weight, cpu.max_weight, 1.0),
    ] {
        let same = ours == cpu || (ours.is_nan() && cpu.is_nan());
        assert!(same || (ours - cpu).abs() <= scale * relative, "{case}: {name} {ours}, not {cpu}");
    }
}

/// Checks reports and probabilities of a launch against the CPU path and the reference.
pub fn check(case: &str, rows: &Rows, request: &Request, done: &Done) {
    let (out_dtype, has_out) = match request.out {
        Out::None => (DType::F32, false),
        Out::InPlace => (rows.dtype, true),
        Out::Apart(dtype, ..) => (dtype, true),
    };
    for (r, scores) in rows.rows.iter().enumerate() {
        let case = format!("{case}, row {r} of {} scores", scores.len());
        let report = &done.reports[r];
        let ours = report.decode(request.measure);
        if !has_out {
            let cpu = cpu::row_report(scores, ours.beta, request.measure);
            assert_same(&case, &ours, &cpu);
        } else {
            let beta = if report.poisoned != 0 { f64::NAN } else { report.beta };
            assert_probs(&case, scores, beta, &done.probs[r], out_dtype);
        }
    }
}

/// A row of every family, and the edge cases: masked, single, tied and poisoned rows.
pub fn rows_of(n: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = every_family(n, seed).map(|(_, row)| row).collect();
    let gaussian = rows[1].clone();
    let with = |at: usize, value: f32| {
        let mut row = gaussian.clone();
        row[at % n] = value;
        row
    };
    let lonely = |value: f32| (0..n).map(|i| if i == n / 3 { value } else { f32::NEG_INFINITY }).collect();
    rows.extend([vec![f32::NEG_INFINITY; n], lonely(2.5), lonely(f32::MAX), lonely(-0.0)]);
    rows.extend([with(n / 2, f32::NAN), with(n - 1, f32::INFINITY), with(0, f32::NEG_INFINITY)]);
    rows.push((0..n).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN / 2.0 }).collect());
    // Masks that are finite numbers: below half of the lowest number of f32 and bf16, and of f16 (-40,000).
    rows.push(vec![f32::MIN * 0.75; n]);
    rows.push(
        gaussian.iter().zip([f32::MIN * 0.75, 0.0, -4e4, -3e4].iter().cycle()).map(|(s, m)| s + m).collect(),
    );

    // Gaps near the limit of f32, and one that is far beyond all others.
    for large in [f32::MAX, half::bf16::MAX.to_f32()] {
        rows.push((0..n).map(|i| if i == 0 { large } else { (i - 1) as f32 * 1e34 }).collect());
        rows.push(with(n / 3, large));
    }
    rows.push((0..n).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect());
    rows.push((0..n).map(|i| -(i as f32) * 1e-45).collect());
    rows
}

/// A GPU and widths for every scope, such that each variant runs. `size` is the bytes of an element.
pub fn shapes(size: usize) -> Vec<(Scope, Arch, Vec<usize>)> {
    // There is room for `vectors` vectors of f32, and for half as many if rows have half the bytes.
    let part = |scope, vectors, sms, max_cluster| small(scope, vectors * size as u32 / 4, sms, max_cluster);
    // With room for so many CTAs on an SM.
    let shared = |mut arch: Arch, ctas: u32| {
        arch.shared_per_sm_bytes = ctas * (arch.shared_per_block_bytes + 1024);
        arch
    };
    let roomy = part(Scope::Block, 600, 64, 1);
    // A row of 575 vectors is more than a CTA holds that has no control structures of a cluster.
    let long = 2300 * 4 / size;
    let mut shapes = vec![
        (Scope::Warp, small(Scope::Warp, 4 * 258, 64, 1), vec![1, 2, 3, 4, 5, 31, 32, 33, 127, 1023, 1024]),
        (Scope::Block, shared(roomy.clone(), 6), vec![1025, 1200]),
        (Scope::Block, shared(roomy, 3), vec![1030, 1199]),
        (Scope::Block, part(Scope::Block, 300, 64, 1), vec![1100]),
        (Scope::Cluster, shared(small(Scope::Cluster, 300, 64, 2), 3), vec![long]),
        (Scope::Cluster, part(Scope::Cluster, 150, 64, 2), vec![1025]),
        (Scope::Cluster, part(Scope::Cluster, 76, 64, 4), vec![1100]),
        (Scope::Cluster, part(Scope::Cluster, 38, 64, 8), vec![1030]),
        (Scope::Cluster, part(Scope::Cluster, 20, 64, 16), vec![1111]),
        (Scope::Split, part(Scope::Split, 40, 8, 1), vec![1025]),
        // A part of the row does not stay on chip.
        (Scope::Split, part(Scope::Split, 20, 3, 1), vec![1300]),
        // The CTAs of one SM take all rows in turn, and have room for two.
        (Scope::Block, shared(part(Scope::Block, 640, 1, 1), 6), vec![1027, 1200]),
        (Scope::Block, shared(part(Scope::Block, 640, 1, 1), 3), vec![1200, 1031]),
        (Scope::Cluster, shared(small(Scope::Cluster, 600, 1, 4), 3), vec![3990 * 4 / size]),
    ];
    if size == 2 {
        // 225 vectors, 15 for each of 16 CTAs: the last one has none.
        shapes.push((Scope::Cluster, small(Scope::Cluster, 15, 64, 16), vec![1795]));
    }
    shapes
}

/// One GPU for each scope, and a width for it.
pub fn one_of_each(size: usize) -> Vec<(Scope, Arch, usize)> {
    let shapes = shapes(size).into_iter().enumerate();
    let short = |(i, (scope, arch, widths)): (usize, (Scope, Arch, Vec<usize>))| match i {
        0 => (scope, arch, 37),
        _ => (scope, arch, widths[0]),
    };
    let few = |(i, _): &(usize, _)| [0, 1, 4, 6, 9, 10, 11, 13].contains(i);
    shapes.filter(few).map(short).collect()
}
