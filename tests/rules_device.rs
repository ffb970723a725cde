//! Tests of features that do not depend on the kernel: rules, given betas, top-k, the host verbs. They run on
//! the simulator, or on the first GPU with CRITBETA_REQUIRE_GPU=1.

#[path = "common/agree.rs"]
mod agree;
mod common;
#[path = "common/device.rs"]
mod device;

use agree::{assert_probs, assert_same, one_of_each, rescaling, rows_of};
use critbeta::cpu::{self, Measure};
use critbeta::cuda::internals::Scope;
use critbeta::cuda::{Arch, Beta, Engine, RowReport};
use critbeta::{DType, Element, Rescaling, Scores};
use device::{Out, PLAIN, Request, Rows, engine, run, small};

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
            let mut request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(rule));
            let position = |row: usize| (row as u32 * 37) % 300;
            if given {
                request.positions = (0..scores.len()).map(position).collect();
            }
            let done = run(&engine, &rows, &request).unwrap_or_else(|error| panic!("{rule}: {error}"));
            for (r, row) in scores.iter().enumerate() {
                let visible = row.iter().filter(|s| s.score() != f32::NEG_INFINITY).count() as u64;
                let at = if given { position(r).into() } else { visible.saturating_sub(1) };
                let view = Scores::dense(row, 1, row.len()).unwrap();
                let mut out = vec![0.0; row.len()];
                let cpu = cpu::softmax(&view, rule, Some(&[at as u32]), &mut out).unwrap()[0];
                let case = format!("{rule}, row {r} of {} scores at {at}", row.len());
                let ours = if done.reports[r].poisoned != 0 { f64::NAN } else { done.reports[r].beta };
                let same = ours == cpu.beta || (ours.is_nan() && cpu.beta.is_nan());
                // The logarithm of the kernels is within 0.52 ulp, and their power within |y ln x| ulps. The
                // entropy of velickovic comes from f32 weights.
                let error = if rule.needs_entropy() { 1e-6 } else { 1e-14 };
                assert!(
                    same || (ours - cpu.beta).abs() <= error * cpu.beta,
                    "{case}: {ours}, not {}",
                    cpu.beta
                );
                let ours = if ours.is_infinite() { f64::INFINITY } else { ours };
                assert_probs(&case, row, ours, &done.probs[r][..row.len()], DType::F32);
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
    let mut request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Each(0));
    request.betas = given.to_vec();
    let done = run(&engine, &rows, &request).unwrap();
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
                let measure = Measure::new(resolve, Some(k));
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
    let Some(engine) = engine("host_verbs_are_those_of_the_cpu", &small(Scope::Cluster, 60, 4, 4)) else {
        return;
    };
    fn verbs<T: critbeta::Element>(engine: &Engine, rows: &[Vec<f32>], cols: usize, of: fn(f32) -> T) {
        let stride = cols + 3;
        let mut data = vec![of(7.0); rows.len() * stride];
        for (row, to) in rows.iter().zip(data.chunks_mut(stride)) {
            to.iter_mut().zip(row).for_each(|(to, &score)| *to = of(score));
        }
        let lens: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
        let view = Scores::strided(&data, rows.len(), cols, stride).unwrap().with_lens(&lens).unwrap();
        let case = format!("{cols} x {}", T::DTYPE);
        for (beta, resolve) in [(1.0, 0.0), (0.2, 3.0), (0.0, 0.69), (f64::INFINITY, 0.0)] {
            let measure = Measure::new(resolve, None);
            let ours = engine.row_reports(&view, beta, measure).unwrap();
            for (r, cpu) in cpu::row_reports(&view, beta, measure).iter().enumerate() {
                assert_same(&format!("{case}, beta {beta}, r = {resolve}, row {r}"), &ours[r], cpu);
            }
        }
        let positions: Vec<u32> = (0..rows.len() as u32).collect();
        let rule: Rescaling = "critical:cap=30".parse().unwrap();
        let (mut ours, mut cpus) = (vec![9.0; rows.len() * cols], vec![9.0; rows.len() * cols]);
        let told_by = engine.softmax(&view, &rule, Some(&positions), &mut ours).unwrap();
        let cpu = cpu::softmax(&view, &rule, Some(&positions), &mut cpus).unwrap();
        for (r, (ours_of, cpu)) in told_by.iter().zip(&cpu).enumerate() {
            let case = format!("{case}, row {r}");
            assert_eq!(
                format!("{:?} {}", ours_of.top, ours_of.beta),
                format!("{:?} {}", cpu.top, cpu.beta),
                "{case}"
            );
            let wide: Vec<f32> = view.row(r).iter().map(|s| s.score()).collect();
            assert_probs(&case, &wide, cpu.beta, &ours[r * cols..][..cols], DType::F32);
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
    // If there is nothing to compute, there is no launch.
    let nothing = Scores::<f32>::dense(&[], 3, 0).unwrap();
    assert_eq!(engine.row_reports(&nothing, 1.0, PLAIN).unwrap(), cpu::row_reports(&nothing, 1.0, PLAIN));
    assert_eq!(engine.softmax(&nothing, &Rescaling::Identity, Some(&[0; 3]), &mut []).unwrap().len(), 3);
    let nothing = Scores::<f32>::dense(&[], 0, 5).unwrap();
    assert_eq!(engine.row_reports(&nothing, 1.0, PLAIN).unwrap(), []);
}

/// The kernels round the logarithm of these counts differently than the host (2026-11-25). A resolve of
/// exactly that logarithm ignores the tie, and a resolve below it does not.
#[test]
fn a_resolve_that_is_the_logarithm_of_a_count_is_decided_as_on_the_cpu() {
    let Some(engine) = engine("a_resolve_that_is_the_logarithm", &Arch::named("sm_90").unwrap()) else {
        return;
    };
    for count in [2, 3, 9_170, 48_893] {
        let tied = |at: f32| [vec![at; count - 1], vec![0.0, -2.0]].concat();
        for scores in [tied(0.0), tied(-1.0)] {
            let log = (count as f64).ln();
            for resolve in [log.next_down(), log, log.next_up()] {
                let measure = Measure::new(resolve, None);
                let view = Scores::dense(&scores, 1, scores.len()).unwrap();
                let ours = &engine.row_reports(&view, 1.0, measure).unwrap()[0];
                let case = format!("{count} tied at {}, r = {resolve}", scores[0]);
                assert_same(&case, ours, &cpu::row_report(&scores, 1.0, measure));
            }
        }
    }
    // A reviewer's case (2026-11-25): one count is within an ulp of the resolve at a tiny gap, and the next
    // is far away.
    for (count, far) in [(9_170, 0.153_468), (48_893, 0.008_224_14)] {
        let scores = [vec![-1e-12; count - 1], vec![0.0, -far]].concat();
        let measure = Measure::new((count as f64).ln().next_down(), None);
        let view = Scores::dense(&scores, 1, scores.len()).unwrap();
        let ours = &engine.row_reports(&view, 1.0, measure).unwrap()[0];
        assert_same(&format!("{count} at 1e-12"), ours, &cpu::row_report(&scores, 1.0, measure));
    }
}

/// A reviewer's fuzzer found these (2026-11-25): scores, betas and resolves at the ends of the range of
/// floats.
#[test]
fn floats_at_the_ends_of_their_range_are_rows_like_any_other() {
    let Some(engine) = engine("floats_at_the_ends_of_their_range", &small(Scope::Block, 600, 4, 1)) else {
        return;
    };
    let rows: [&[f32]; 4] = [
        // A gap overflows, so the score is infinitely far at every beta except 0.
        &[3e38, -1.5e38],
        // Sums of gaps exceed the range of f32, and gaps lie below its normal range.
        &[3e38, 1e38, 1e38, 0.0, 0.0, 0.0],
        &[0.0, -1e-38, -3e-38, -2e-37, -5e-37],
        &[3.0, 2.0, 0.0],
    ];
    for scores in rows {
        let view = Scores::dense(scores, 1, scores.len()).unwrap();
        for beta in [0.0, 1e-300, 1e-64, 1e-39, 1e-38, 1e-20, 1.0, 1e20, 1e37, 1e300, f64::INFINITY] {
            // The last rank of the row is exactly the resolve ln 3, so no ratio is above 0.
            for resolve in [0.0, 3f64.ln()] {
                let measure = Measure::new(resolve, None);
                let ours = &engine.row_reports(&view, beta, measure).unwrap()[0];
                let cpu = cpu::row_report(scores, beta, measure);
                assert_same(&format!("{scores:?}, beta {beta:e}, r = {resolve}"), ours, &cpu);
            }
            let mut probs = vec![9.0; scores.len()];
            engine.softmax(&view, &Rescaling::Fixed(beta), Some(&[0]), &mut probs).unwrap();
            assert_probs(&format!("{scores:?}, beta {beta:e}"), scores, beta, &probs, DType::F32);
        }
    }
}

#[test]
fn a_launch_writes_what_is_asked_for_and_no_more() {
    let test = "a_launch_writes_what_is_asked_for_and_no_more";
    let Some(engine) = engine(test, &Arch::named("sm_90").unwrap()) else { return };
    for (dtype, spec) in
        [(DType::F32, "critical:cap=9"), (DType::Bf16, "critical:resolve=1"), (DType::F16, "su")]
    {
        let rule = rescaling(spec);
        let mut scores = rows_of(700, 5);
        scores.push(vec![f32::NAN; 700]);
        let rows = Rows::dense(dtype, &scores);
        let whole = Request::new(Out::None, Beta::Rescaling(&rule));
        let all = run(&engine, &rows, &whole).unwrap();
        let beta = |report: &RowReport| if report.poisoned != 0 { f32::NAN } else { report.beta as f32 };
        let betas: Vec<u32> = all.reports.iter().map(|report| beta(report).to_bits()).collect();
        for out in [Out::None, Out::Apart(dtype, 0, 0)] {
            // Betas alone.
            let request = Request { out, report: false, betas_out: true, ..whole.clone() };
            let done = run(&engine, &rows, &request).unwrap();
            assert_eq!(
                done.betas.iter().map(|beta| beta.to_bits()).collect::<Vec<_>>(),
                betas,
                "{spec} {dtype}"
            );
            // A report without Z is otherwise the same.
            let request = Request { out, sums: false, ..whole.clone() };
            let done = run(&engine, &rows, &request).unwrap();
            for (lean, full) in done.reports.iter().zip(&all.reports) {
                assert_eq!(lean.gap_sum, 0.0);
                let both = [lean, full].map(|report| {
                    let mut report = *report;
                    (report.sum, report.gap_sum) = (0.0, 0.0);
                    if out != Out::None && !spec.starts_with("critical") {
                        // With an output only a critical rescaling measures Lambda.
                        (report.critical, report.resolved) = (full.critical, full.resolved);
                    }
                    bytemuck::bytes_of(&report).to_vec()
                });
                assert_eq!(both[0], both[1], "{spec} {dtype} {out:?}");
            }
        }
    }
}
