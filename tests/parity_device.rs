//! The CUDA kernels against the reference: every variant, dtype, family, alignment and rule. On the simulator, or on
//! the first GPU with CRITBETA_REQUIRE_GPU=1.

#[path = "common/mod.rs"]
mod common;
#[path = "common/device.rs"]
mod device;

use common::every_family;
use critbeta::cpu::{self, Measure, RowReport};
use critbeta::cuda::{Arch, Beta, Engine, Family, Plan, Problem, Scope, SimtOptions, Variant};
use critbeta::reference::Row;
use critbeta::{DType, Rescaling, Scores};
use device::{Ask, DTYPES, Done, Out, PLAIN, Rows, engine, engine_of, run, small};
use std::collections::BTreeSet;

fn rescaling(text: &str) -> Rescaling {
    text.parse().unwrap()
}

/// exp(-beta gap), with the limits that a row needs.
fn weight(gap: f64, beta: f64) -> f64 {
    if gap == 0.0 || beta == 0.0 { 1.0 } else { (-beta * gap).exp() }
}

/// The probabilities of `row` lie within (4 + z) 2^-23 of f64, relative, z = beta x gap, and one rounding to `dtype`.
fn assert_probs(told: &str, scores: &[f32], beta: f64, probs: &[f32], dtype: DType) {
    let row = Row::from_f32(scores);
    let (len, z) = (scores.len(), row.partition(beta));
    let (digits, smallest) = match dtype {
        DType::F32 => (24, 150),
        DType::F16 => (11, 25),
        _ => (8, 134),
    };
    assert!(probs[len..].iter().all(|&p| p == 0.0), "{told}: not 0 behind the row's length");
    for (j, (&score, &prob)) in scores.iter().zip(probs).enumerate() {
        if row.is_poisoned() || beta.is_nan() {
            assert!(prob.is_nan(), "{told}: column {j} of a poisoned row is {prob}");
        } else if score == f32::NEG_INFINITY {
            assert_eq!(prob, 0.0, "{told}: column {j} is masked");
        } else {
            let gap = f64::from((row.max() as f32) - score);
            let expected = weight(gap, beta) / z;
            let depth = if expected > 0.0 { beta * gap } else { 0.0 };
            let depth = if depth.is_nan() { 0.0 } else { depth };
            let relative = (4.0 + depth) * 2f64.powi(-23) + 2f64.powi(-digits);
            let error = (f64::from(prob) - expected).abs();
            // Weights below 2^-150 are 0 in the kernels, whatever Z is.
            let tolerance = expected * relative + 2f64.powi(-smallest);
            assert!(error <= tolerance, "{told}: column {j} gap {gap} beta {beta}: {prob}, not {expected}");
        }
    }
}

/// Everything but sums is equal; these within the rounding of f32 weights.
fn assert_same(told: &str, ours: &RowReport, cpu: &RowReport) {
    let bits = |report: &RowReport| {
        format!("{:?} {:?} {:?} {}", report.top, report.critical, report.resolved, report.beta)
    };
    assert_eq!(bits(ours), bits(cpu), "{told}");
    let n = (cpu.top.len as f64).max(2.0);
    // Each weight has a relative error of (4 + z) 2^-23; weights with a large z are small, so that their mean z is below H + 1.
    let relative = (5.0 + cpu.entropy.max(0.0) + n.ln()) * 2f64.powi(-23);
    for (name, ours, cpu, scale) in [
        ("log Z", ours.log_partition, cpu.log_partition, 1.0),
        ("H", ours.entropy, cpu.entropy, 2.0 * (1.0 + n.ln())),
        ("D", ours.top_two, cpu.top_two, 1.0),
        ("largest weight", ours.max_weight, cpu.max_weight, 1.0),
    ] {
        let same = ours == cpu || (ours.is_nan() && cpu.is_nan());
        assert!(same || (ours - cpu).abs() <= scale * relative, "{told}: {name} {ours}, not {cpu}");
    }
}

/// Checks reports and probabilities of a launch against the CPU path and the reference.
fn check(told: &str, rows: &Rows, ask: &Ask, done: &Done) {
    let (out_dtype, has_out) = match ask.out {
        Out::None => (DType::F32, false),
        Out::InPlace => (rows.dtype, true),
        Out::Apart(dtype, ..) => (dtype, true),
    };
    for (r, scores) in rows.rows.iter().enumerate() {
        let told = format!("{told}, row {r} of {} scores", scores.len());
        let report = &done.reports[r];
        let ours = report.decode(ask.measure);
        if !has_out {
            let cpu = cpu::row_report(scores, ours.beta, ask.measure);
            assert_same(&told, &ours, &cpu);
        } else {
            let beta = if report.poisoned != 0 { f64::NAN } else { report.beta };
            assert_probs(&told, scores, beta, &done.probs[r], out_dtype);
        }
    }
}

/// Every family as a row, and rows that are edges: masked, single, tied, poisoned.
fn rows_of(n: usize, seed: u64) -> Vec<Vec<f32>> {
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
    rows.push((0..n).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect());
    rows.push((0..n).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect());
    rows.push((0..n).map(|i| -(i as f32) * 1e-45).collect());
    rows
}

/// A part and widths for every scope, such that each variant is met. `size`: bytes of an element.
fn shapes(size: usize) -> Vec<(Scope, Arch, Vec<usize>)> {
    // Room for `vectors` vectors of f32, and half of it where rows are half as long.
    let part = |vectors, sms, max_cluster| small(vectors * size as u32 / 4, sms, max_cluster);
    let roomy = Arch { shared_per_sm_bytes: 4 << 20, ..part(600, 64, 1) };
    vec![
        (Scope::Warp, small(700, 64, 1), vec![1, 2, 3, 4, 5, 31, 32, 33, 127, 1023, 1024]),
        (Scope::Block, roomy, vec![1025, 1200]),
        (Scope::Block, part(300, 64, 1), vec![1100]),
        (Scope::Cluster, part(150, 64, 2), vec![1025]),
        (Scope::Cluster, part(76, 64, 4), vec![1100]),
        (Scope::Cluster, part(38, 64, 8), vec![1030]),
        (Scope::Cluster, part(20, 64, 16), vec![1111]),
        (Scope::Split, part(40, 8, 1), vec![1025]),
        // Not all of a row stays on chip.
        (Scope::Split, part(20, 3, 1), vec![1300]),
    ]
}

#[test]
fn every_variant_agrees_on_every_family_and_edge() {
    let mut met = BTreeSet::new();
    for dtype in DTYPES {
        for (scope, arch, widths) in shapes(dtype.size_bytes()) {
            let Some(engine) = engine("every_variant_agrees_on_every_family_and_edge", &arch) else { return };
            for &n in &widths {
                let rows = Rows::dense(dtype, &rows_of(n, n as u64));
                let rescaling = rescaling("critical:ratio=0.7,resolve=0.69,cap=50");
                let other = if n % 2 == 0 { dtype } else { DType::F32 };
                for (family, out) in
                    [(Family::GapProfile, Out::None), (Family::CriticalSoftmax, Out::Apart(other, 0, 0))]
                {
                    let count = rows.rows.len() as u64;
                    let plan =
                        Plan::choose(&Problem { rows: count, cols: n as u64, dtype, family }, &arch).unwrap();
                    let told = format!("{n} x {dtype} by {}", plan.variant);
                    assert_eq!(plan.variant.scope(), scope, "{told}");
                    met.insert(plan.variant as u32);
                    let measure = Measure { resolve: 0.69, top_k: None };
                    let both = out == Out::None;
                    let ask = Ask { measure, both, ..Ask::new(out, Beta::Rescaling(&rescaling)) };
                    let done = run(&engine, &rows, &ask).unwrap_or_else(|error| panic!("{told}: {error}"));
                    check(&told, &rows, &ask, &done);
                    for (r, scores) in rows.rows.iter().enumerate() {
                        let told = format!("{told}, row {r}");
                        let row = Row::from_f32(scores);
                        let ours = done.reports[r].decode(measure);
                        if row.is_poisoned() {
                            continue;
                        }
                        if both {
                            assert_eq!(ours.critical, row.critical_beta(), "{told}");
                        }
                        assert_eq!(ours.resolved, row.resolved_critical_beta(0.69), "{told}");
                        let wanted = (0.7 * ours.resolved.beta).clamp(0.0, 50.0);
                        assert!(
                            (ours.beta - wanted).abs() <= 4e-16 * wanted,
                            "{told}: {} {wanted}",
                            ours.beta
                        );
                    }
                }
            }
        }
    }
    let ladder = [Family::GapProfile, Family::CriticalSoftmax];
    let missed: Vec<&str> = Variant::ALL
        .iter()
        .filter(|v| ladder.contains(&v.family()) && !met.contains(&(**v as u32)))
        .map(|v| v.symbol())
        .collect();
    assert_eq!(missed, [""; 0], "variants that no shape of this test meets");
}

/// One part for each scope, and a width for it.
fn one_of_each(size: usize) -> Vec<(Scope, Arch, usize)> {
    let shapes = shapes(size).into_iter().enumerate();
    let short = |(i, (scope, arch, widths)): (usize, (Scope, Arch, Vec<usize>))| match i {
        0 => (scope, arch, 37),
        _ => (scope, arch, widths[0]),
    };
    let few = |(i, _): &(usize, _)| [0, 1, 3, 5, 7, 8].contains(i);
    shapes.filter(few).map(short).collect()
}

#[test]
fn rows_may_begin_and_end_anywhere() {
    for dtype in DTYPES {
        for (scope, arch, n) in one_of_each(dtype.size_bytes()) {
            let Some(engine) = engine("rows_may_begin_and_end_anywhere", &arch) else { return };
            let rows: Vec<Vec<f32>> = rows_of(n, 5).into_iter().skip(10).step_by(6).collect();
            let rescaling = rescaling("critical:cap=9");
            for offset in 0..16 {
                let other = if offset % 2 == 0 { dtype } else { DType::F32 };
                let outs = [
                    Out::InPlace,
                    Out::Apart(dtype, offset, offset % 5),
                    Out::Apart(other, (offset * 7 + 3) % 16, 3),
                ];
                // Wide scopes are slow here; what an output does at an offset does not depend on the scope.
                let outs = if scope == Scope::Warp { &outs[..] } else { &outs[offset % 3..][..1] };
                for &out in outs {
                    let rows = Rows { offset, gap: offset * 3 % 7, ..Rows::dense(dtype, &rows) };
                    let ask = Ask::new(out, Beta::Rescaling(&rescaling));
                    let told = format!("{scope:?} {n} x {dtype} at {offset} to {out:?}");
                    let done = run(&engine, &rows, &ask).unwrap_or_else(|error| panic!("{told}: {error}"));
                    check(&told, &rows, &ask, &done);
                }
            }
        }
    }
}

#[test]
fn rows_have_their_own_lengths() {
    for dtype in DTYPES {
        for (scope, arch, n) in one_of_each(dtype.size_bytes()) {
            let Some(engine) = engine("rows_have_their_own_lengths", &arch) else { return };
            let lens = [0, 1, 2, 3, n / 2, n / 2 + 1, n - 9, n - 1, n];
            let rows: Vec<Vec<f32>> = rows_of(n, 11)
                .into_iter()
                .zip(lens.iter().cycle())
                .map(|(mut row, &len)| {
                    row.truncate(len);
                    row
                })
                .collect();
            let identity = Rescaling::Identity;
            for (offset, out) in [(0, Out::None), (5, Out::Apart(DType::F32, 0, 1)), (1, Out::InPlace)] {
                let rows = Rows { offset, gap: 1, ..Rows::ragged(dtype, &rows, n) };
                let ask = Ask::new(out, Beta::Rescaling(&identity));
                let told = format!("{scope:?} {n} x {dtype} to {out:?}");
                let done = run(&engine, &rows, &ask).unwrap_or_else(|error| panic!("{told}: {error}"));
                check(&told, &rows, &ask, &done);
            }
        }
    }
}

#[test]
fn every_rule_gives_the_beta_of_the_cpu() {
    let Some(engine) = engine("every_rule_gives_the_beta_of_the_cpu", &Arch::named("sm_90").unwrap()) else {
        return;
    };
    let texts = [
        "identity",
        "fixed:0",
        "fixed:1.3",
        "fixed:1e300",
        "chen:gamma=2",
        "rem:c=1.5",
        "ssmax:s=0.43",
        "ssmax:s=0.4,b=-9",
        "su",
        "qwen-logn:train=64",
        "grok2:train=64",
        "yarn:scale=4",
        "yarn:scale=0.5",
        "llama4:scale=0.1,floor=16",
        "mistral3:train=32,b=0.2",
        "velickovic",
        "asentmax:delta=1,b=0.3,g=1.7",
        "asentmax:delta=1,b=0,g=-1",
        "critical",
        "critical:ratio=0",
        "critical:ratio=2,resolve=3,floor=0.5,cap=4",
        "calibrated:c=2,xi=0.4",
        "calibrated:c=2,xi=-1",
        "calibrated:c=1,xi=2,anchor=100",
    ];
    let mut rules: Vec<Rescaling> = texts.iter().map(|text| rescaling(text)).collect();
    rules.extend([f64::INFINITY, f64::NAN, -1.0].map(Rescaling::Fixed));
    for law in &critbeta::laws::LAWS {
        assert!(
            texts.iter().any(|text| text.split(':').next() == Some(law.name)),
            "{} is not tried",
            law.name
        );
    }
    let scores: Vec<Vec<f32>> = [1, 2, 64, 90, 200]
        .into_iter()
        .flat_map(|n| rows_of(n, 3).into_iter().skip(n % 2).step_by(2))
        .collect();
    let rows = Rows::ragged(DType::F32, &scores, 200);
    for rule in &rules {
        for given in [false, true] {
            let mut ask = Ask::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(rule));
            let position = |row: usize| (row as u32 * 37) % 300;
            if given {
                ask.positions = (0..scores.len()).map(position).collect();
            }
            let done = run(&engine, &rows, &ask).unwrap_or_else(|error| panic!("{rule}: {error}"));
            for (r, row) in scores.iter().enumerate() {
                let visible = row.iter().filter(|&&s| s != f32::NEG_INFINITY).count() as u64;
                let at = if given { position(r).into() } else { visible.saturating_sub(1) };
                let view = Scores::dense(row, 1, row.len()).unwrap();
                let mut out = vec![0.0; row.len()];
                let cpu = cpu::softmax(&view, rule, &[at], &mut out).unwrap()[0];
                let told = format!("{rule}, row {r} of {} scores at {at}", row.len());
                let ours = if done.reports[r].poisoned != 0 { f64::NAN } else { done.reports[r].beta };
                let same = ours == cpu.beta || (ours.is_nan() && cpu.beta.is_nan());
                // The kernels' logarithm is within 0.52 ulp, their power within |y ln x| ulps; velickovic's entropy is of f32 weights.
                let error = if rule.needs_entropy() { 1e-6 } else { 1e-14 };
                assert!(
                    same || (ours - cpu.beta).abs() <= error * cpu.beta,
                    "{told}: {ours}, not {}",
                    cpu.beta
                );
                let ours = if ours.is_infinite() { f64::INFINITY } else { ours };
                assert_probs(&told, row, ours, &done.probs[r][..row.len()], DType::F32);
            }
        }
    }
}

#[test]
fn betas_may_be_given_row_by_row() {
    let Some(engine) = engine("betas_may_be_given_row_by_row", &Arch::named("sm_90").unwrap()) else {
        return;
    };
    let given = [0.0, 1.0, 2.5, f32::INFINITY, -3.0, f32::NAN, 1e-30, 1e30];
    let scores = vec![rows_of(70, 2)[1].clone(); given.len()];
    let rows = Rows::dense(DType::F32, &scores);
    let mut ask = Ask::new(Out::Apart(DType::F32, 0, 0), Beta::Each(0));
    ask.betas = given.to_vec();
    let done = run(&engine, &rows, &ask).unwrap();
    for (r, &beta) in given.iter().enumerate() {
        let expected = if beta < 0.0 { 0.0 } else { f64::from(beta) };
        assert_eq!(done.reports[r].beta.to_string(), expected.to_string());
        assert_probs(&format!("beta {beta}"), &scores[r], expected, &done.probs[r], DType::F32);
    }
}

#[test]
fn the_largest_scores_alone_come_with_their_certificate() {
    let test = "the_largest_scores_alone_come_with_their_certificate";
    for (scope, arch, n) in one_of_each(4) {
        let Some(engine) = engine(test, &arch) else { return };
        let scores = rows_of(n, 8);
        for k in [1, 2, 3, 17, 64, 500, 2048] {
            for resolve in [0.0, 0.69] {
                let measure = Measure { resolve, top_k: Some(k) };
                let block = scores.concat();
                let view = Scores::dense(&block, scores.len(), n).unwrap();
                let ours = engine.row_reports(&view, 1.0, measure).unwrap();
                for (r, cpu) in cpu::row_reports(&view, 1.0, measure).iter().enumerate() {
                    assert_same(
                        &format!("{scope:?} n = {n}, top {k}, r = {resolve}, row {r}"),
                        &ours[r],
                        cpu,
                    );
                }
            }
        }
    }
}

#[test]
fn host_verbs_are_those_of_the_cpu() {
    let Some(engine) = engine("host_verbs_are_those_of_the_cpu", &small(60, 4, 4)) else { return };
    fn verbs<T: critbeta::Element>(engine: &Engine, rows: &[Vec<f32>], cols: usize, of: fn(f32) -> T) {
        let stride = cols + 3;
        let mut data = vec![of(7.0); rows.len() * stride];
        for (row, to) in rows.iter().zip(data.chunks_mut(stride)) {
            to.iter_mut().zip(row).for_each(|(to, &score)| *to = of(score));
        }
        let lens: Vec<usize> = rows.iter().map(Vec::len).collect();
        let view = Scores::strided(&data, rows.len(), cols, stride).unwrap().with_lens(&lens).unwrap();
        let told = format!("{cols} x {}", T::DTYPE);
        for (beta, resolve) in [(1.0, 0.0), (0.2, 3.0), (0.0, 0.69), (f64::INFINITY, 0.0)] {
            let measure = Measure { resolve, top_k: None };
            let ours = engine.row_reports(&view, beta, measure).unwrap();
            for (r, cpu) in cpu::row_reports(&view, beta, measure).iter().enumerate() {
                assert_same(&format!("{told}, beta {beta}, r = {resolve}, row {r}"), &ours[r], cpu);
            }
        }
        let positions: Vec<u64> = (0..rows.len() as u64).collect();
        let rule: Rescaling = "critical:cap=30".parse().unwrap();
        let (mut ours, mut cpus) = (vec![9.0; rows.len() * cols], vec![9.0; rows.len() * cols]);
        let told_by = engine.softmax(&view, &rule, &positions, &mut ours).unwrap();
        let cpu = cpu::softmax(&view, &rule, &positions, &mut cpus).unwrap();
        for (r, (ours_of, cpu)) in told_by.iter().zip(&cpu).enumerate() {
            let told = format!("{told}, row {r}");
            assert_eq!(
                format!("{:?} {}", ours_of.top, ours_of.beta),
                format!("{:?} {}", cpu.top, cpu.beta),
                "{told}"
            );
            let wide: Vec<f32> = view.row(r).iter().map(|s| s.to_f32()).collect();
            assert_probs(&told, &wide, cpu.beta, &ours[r * cols..][..cols], DType::F32);
        }
    }
    for cols in [1, 50, 1200] {
        let rows: Vec<Vec<f32>> = rows_of(cols, 4)
            .into_iter()
            .enumerate()
            .map(|(r, mut row)| {
                row.truncate(cols - r % 2 * (cols / 3));
                row
            })
            .collect();
        verbs(&engine, &rows, cols, |s| s);
        verbs(&engine, &rows, cols, half::f16::from_f32);
        verbs(&engine, &rows, cols, half::bf16::from_f32);
    }
    // Nothing to compute is no launch.
    let nothing = Scores::<f32>::dense(&[], 3, 0).unwrap();
    assert_eq!(engine.row_reports(&nothing, 1.0, PLAIN).unwrap(), cpu::row_reports(&nothing, 1.0, PLAIN));
    assert_eq!(engine.softmax(&nothing, &Rescaling::Identity, &[0; 3], &mut []).unwrap().len(), 3);
    let nothing = Scores::<f32>::dense(&[], 0, 5).unwrap();
    assert_eq!(engine.row_reports(&nothing, 1.0, PLAIN).unwrap(), []);
}

#[test]
fn the_naive_path_comes_to_the_same() {
    let Some(engine) = engine("the_naive_path_comes_to_the_same", &Arch::named("sm_90").unwrap()) else {
        return;
    };
    for dtype in DTYPES {
        for n in [1, 40, 1100] {
            let rows = Rows { offset: 3, ..Rows::dense(dtype, &rows_of(n, 6)) };
            let rule = rescaling("critical:resolve=0.69,cap=20");
            let measure = Measure { resolve: 0.69, top_k: None };
            let out = Out::Apart(DType::F32, 1, 0);
            let ask = Ask { measure, naive: true, ..Ask::new(out, Beta::Rescaling(&rule)) };
            let naive = run(&engine, &rows, &ask).unwrap();
            check(&format!("naive {n} x {dtype}"), &rows, &ask, &naive);
            let fast = run(&engine, &rows, &Ask { naive: false, ..ask }).unwrap();
            for (r, (naive, fast)) in naive.reports.iter().zip(&fast.reports).enumerate() {
                assert_eq!(naive.resolved, fast.resolved, "{n} x {dtype}, row {r}");
                assert_eq!((naive.len, naive.ties, naive.argmax), (fast.len, fast.ties, fast.argmax));
                assert!(naive.beta == fast.beta || naive.poisoned != 0, "{n} x {dtype}, row {r}");
            }
        }
    }
}

#[test]
fn thread_orders_do_not_change_a_bit() {
    for (scope, arch, n) in one_of_each(4) {
        let rows = Rows::dense(DType::F32, &rows_of(n, 9));
        let rule = rescaling("critical:cap=9");
        let measured = |seed| {
            let options = SimtOptions { seed, ..SimtOptions::of(arch.clone()) };
            let engine = engine_of("thread_orders_do_not_change_a_bit", options)?;
            let ask = Ask::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
            let done = run(&engine, &rows, &ask).unwrap();
            let probs: Vec<u32> = done.probs.concat().iter().map(|p| p.to_bits()).collect();
            Some((bytemuck::cast_slice::<_, u8>(&done.reports).to_vec(), probs))
        };
        let Some(first) = measured(1) else { return };
        for seed in 2..5 {
            assert!(
                measured(seed).as_ref() == Some(&first),
                "{scope:?} n = {n}: seed {seed} differs from seed 1"
            );
        }
    }
}

#[test]
fn the_shadow_has_nothing_to_say() {
    for (scope, arch, n) in one_of_each(4) {
        let options = SimtOptions { shadow: true, ..SimtOptions::of(arch) };
        let Some(engine) = engine_of("the_shadow_has_nothing_to_say", options) else { return };
        let rows = Rows { offset: 1, ..Rows::dense(DType::F32, &rows_of(n, 13)) };
        let rule = rescaling("critical:resolve=0.69,cap=9");
        for (out, naive) in [(Out::None, false), (Out::InPlace, false), (Out::Apart(DType::F32, 0, 0), true)]
        {
            let measure = Measure { resolve: 0.69, top_k: None };
            let both = out == Out::None;
            let ask = Ask { measure, both, naive, ..Ask::new(out, Beta::Rescaling(&rule)) };
            let told = format!("{scope:?} n = {n} to {out:?}");
            let done = run(&engine, &rows, &ask).unwrap_or_else(|error| panic!("{told}: {error}"));
            if !naive {
                check(&told, &rows, &ask, &done);
            }
        }
    }
}

/// One read and one write of every score where the row fits on chip, whatever is measured.
#[test]
fn memory_is_read_once_and_written_once() {
    for dtype in DTYPES {
        for (index, (scope, arch, n)) in one_of_each(dtype.size_bytes()).into_iter().enumerate() {
            let Some(engine) = engine("memory_is_read_once_and_written_once", &arch) else { return };
            if !engine.is_simulated() {
                eprintln!("skipped memory_is_read_once_and_written_once: a GPU does not count");
                return;
            }
            let rows = Rows::dense(dtype, &rows_of(n, 21));
            let count = rows.rows.len() as u64;
            let rule = rescaling("critical:resolve=0.69,cap=9");
            let ask = Ask { report: false, ..Ask::new(Out::Apart(dtype, 0, 0), Beta::Rescaling(&rule)) };
            let problem = Problem { rows: count, cols: n as u64, dtype, family: Family::CriticalSoftmax };
            let plan = Plan::choose(&problem, &arch).unwrap();
            let done = run(&engine, &rows, &ask).unwrap();
            let bytes = count * (n * dtype.size_bytes()) as u64;
            let told =
                format!("{} reads {} writes {} of {bytes}", plan.variant, done.load_bytes, done.store_bytes);
            if scope != Scope::Split {
                assert_eq!((done.load_bytes, done.store_bytes), (bytes, bytes), "{told}");
            } else {
                // The split scope counts in its workspace too, an effort that does not grow with the row.
                assert!(done.load_bytes >= bytes && done.store_bytes >= bytes, "{told}");
                assert_eq!(plan.fits_on_chip(), index == 4, "{plan}");
            }
        }
    }
}

/// A million scores over the shared memory of a small GPU, as the issue counts them: one read and one write.
#[test]
fn a_million_scores_are_read_once_by_the_whole_grid() {
    let arch = Arch { sm_count: 20, clusters: false, ..Arch::named("sm_90").unwrap() };
    let Some(engine) = engine("a_million_scores_are_read_once_by_the_whole_grid", &arch) else { return };
    let n = 1 << 20;
    let rows = Rows::dense(DType::F32, &[common::draw(critbeta::families::Family::Gaussian, n, 3)]);
    let rule = rescaling("critical");
    let ask = Ask::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
    let done = run(&engine, &rows, &ask).unwrap();
    assert_probs("a million", &rows.rows[0], done.reports[0].beta, &done.probs[0], DType::F32);
    let cpu = cpu::critical_beta(&rows.rows[0], 0.0);
    assert_eq!(done.reports[0].decode(PLAIN).resolved, cpu);
    if engine.is_simulated() {
        let read = done.load_bytes as f64 / (4 * n) as f64;
        let written = done.store_bytes as f64 / (4 * n) as f64;
        // The rest is the workspace: 20 CTAs x 8 KiB of counts a level.
        assert!(
            (1.0..1.15).contains(&read) && (1.0..1.15).contains(&written),
            "{read} reads, {written} writes"
        );
    }
}

/// The last width of every kernel of the ladder, and the widths beside it, on the limits of real parts.
#[test]
fn the_ladder_has_no_gap_at_its_steps() {
    // One SM: rows are never too few for it, so that all of the ladder is met.
    let parts = [("sm_90", 40_000), ("sm_80", 24_000), ("sm_120", 40_000)];
    for (name, furthest) in parts {
        let arch = Arch { sm_count: 1, ..Arch::named(name).unwrap() };
        let Some(engine) = engine("the_ladder_has_no_gap_at_its_steps", &arch) else { return };
        for dtype in DTYPES {
            let of = |cols: u64| {
                let problem = Problem { rows: 1, cols, dtype, family: Family::CriticalSoftmax };
                let plan = Plan::choose(&problem, &arch).unwrap();
                (plan.variant, plan.ctas, plan.fits_on_chip())
            };
            let mut low = 1;
            let furthest = furthest * 4 / dtype.size_bytes() as u64;
            while of(low) != of(furthest) {
                // The last width that is planned as `low` is.
                let mut beyond = furthest;
                let mut last = low;
                while last + 1 < beyond {
                    let middle = (last + beyond) / 2;
                    if of(middle) == of(low) { last = middle } else { beyond = middle }
                }
                for cols in [last - 1, last, last + 1] {
                    let families = critbeta::families::Family::ALL;
                    let family = families[(cols % families.len() as u64) as usize];
                    let scores = common::draw(family, cols as usize, cols);
                    let rows = Rows { offset: cols as usize % 5, ..Rows::dense(dtype, &[scores]) };
                    let rule = rescaling("critical:cap=12");
                    let ask = Ask::new(Out::Apart(dtype, 0, 0), Beta::Rescaling(&rule));
                    let told = format!("{family} {cols} x {dtype} by {:?}", of(cols));
                    let done = run(&engine, &rows, &ask).unwrap_or_else(|error| panic!("{told}: {error}"));
                    check(&told, &rows, &ask, &done);
                    let resolved = done.reports[0].decode(PLAIN).resolved;
                    assert_eq!(resolved, cpu::critical_beta(&rows.rows[0], 0.0), "{told}");
                }
                low = beyond;
            }
        }
    }
}
