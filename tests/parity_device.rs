//! Compares the CUDA kernels with the reference for every variant, dtype, family, length and alignment. They
//! run on the simulator, or on the first GPU with CRITBETA_REQUIRE_GPU=1.

#[path = "common/agree.rs"]
mod agree;
mod common;
#[path = "common/device.rs"]
mod device;

use agree::{assert_probs, check, one_of_each, rescaling, rows_of, shapes};
use critbeta::cpu::{self, Measure};
use critbeta::cuda::internals::{Family, Scope, Variant};
use critbeta::cuda::{Arch, Beta, Plan, Problem, SimtOptions};
use critbeta::reference::Row;
use critbeta::rescaling::RowFacts;
use critbeta::{DType, Rescaling};
use device::{DTYPES, Out, PLAIN, Request, Rows, engine, engine_of, run, small};
use std::collections::BTreeSet;

#[test]
fn every_variant_agrees_on_every_family_and_edge() {
    let (mut covered, mut sizes, mut largest) = (BTreeSet::new(), BTreeSet::new(), 1);
    for dtype in DTYPES {
        for (scope, arch, widths) in shapes(dtype.size_bytes()) {
            let Some(engine) = engine("every_variant_agrees_on_every_family_and_edge", &arch) else { return };
            largest = largest.max(engine.arch().max_cluster);
            if scope == Scope::Cluster && !engine.arch().clusters {
                continue; // a GPU without clusters
            }
            for &n in &widths {
                let rows = Rows::dense(dtype, &rows_of(n, n as u64));
                let rescaling = rescaling("critical:ratio=0.7,resolve=0.69,cap=50");
                let other = if n % 2 == 0 { dtype } else { DType::F32 };
                for out in [Out::None, Out::Apart(other, 0, 0)] {
                    let problem = if out == Out::None { Problem::statistics } else { Problem::softmax };
                    let count = rows.rows.len() as u64;
                    let plan = Plan::choose(&problem(count, n as u64, dtype), engine.arch()).unwrap();
                    let case = format!("{n} x {dtype} by {}", plan.launch().variant);
                    assert_eq!(plan.launch().variant.scope(), scope, "{case}");
                    covered.insert(plan.launch().variant as u32);
                    sizes.insert(plan.launch().cluster_ctas());
                    let measure = Measure::new(0.69, None);
                    let both = out == Out::None;
                    let request = Request { measure, both, ..Request::new(out, Beta::Rescaling(&rescaling)) };
                    let done =
                        run(&engine, &rows, &request).unwrap_or_else(|error| panic!("{case}: {error}"));
                    check(&case, &rows, &request, &done);
                    for (r, scores) in rows.rows.iter().enumerate() {
                        let case = format!("{case}, row {r}");
                        let row = Row::from_f32(scores);
                        let ours = done.reports[r].decode(measure);
                        if row.is_poisoned() {
                            continue;
                        }
                        if both {
                            assert_eq!(ours.critical, row.critical_beta(), "{case}");
                        }
                        assert_eq!(ours.resolved, row.resolved_critical_beta(0.69), "{case}");
                        let wanted = (0.7 * ours.resolved.beta).clamp(0.0, 50.0);
                        assert!(
                            (ours.beta - wanted).abs() <= 4e-16 * wanted,
                            "{case}: {} {wanted}",
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
        .filter(|v| ladder.contains(&v.family()) && (largest > 1 || v.scope() != Scope::Cluster))
        .filter(|v| !covered.contains(&(**v as u32)))
        .map(|v| v.symbol())
        .collect();
    assert_eq!(missed, [""; 0], "no shape of this test runs these variants");
    let every_size = [1, 2, 4, 8, 16].into_iter().filter(|&ctas| ctas <= largest);
    assert!(sizes.into_iter().eq(every_size), "a size of clusters is missed");
}

#[test]
fn rows_may_begin_and_end_anywhere() {
    for dtype in DTYPES {
        for (scope, arch, n) in one_of_each(dtype.size_bytes()) {
            let Some(engine) = engine("rows_may_begin_and_end_anywhere", &arch) else { return };
            let mut rows: Vec<Vec<f32>> = rows_of(n, 5).into_iter().skip(10).step_by(6).collect();
            if arch.sm_count == 1 && scope == Scope::Block {
                rows = rows.into_iter().cycle().take(13).collect(); // so many are taken in turn
            }
            let rescaling = rescaling("critical:cap=9");
            for offset in 0..16 {
                let other = if offset % 2 == 0 { dtype } else { DType::F32 };
                let outs = [
                    Out::InPlace,
                    Out::Apart(dtype, offset, offset % 5),
                    Out::Apart(other, (offset * 7 + 3) % 16, 3),
                ];
                // Wide scopes are slow here, and the effect of an offset on the output does not depend on the
                // scope.
                let outs = if scope == Scope::Warp { &outs[..] } else { &outs[offset % 3..][..1] };
                for &out in outs {
                    let rows = Rows { offset, gap: offset * 3 % 7, ..Rows::dense(dtype, &rows) };
                    let request = Request::new(out, Beta::Rescaling(&rescaling));
                    let case = format!("{scope:?} {n} x {dtype} at {offset} to {out:?}");
                    let done =
                        run(&engine, &rows, &request).unwrap_or_else(|error| panic!("{case}: {error}"));
                    check(&case, &rows, &request, &done);
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
                let request = Request::new(out, Beta::Rescaling(&identity));
                let case = format!("{scope:?} {n} x {dtype} to {out:?}");
                let done = run(&engine, &rows, &request).unwrap_or_else(|error| panic!("{case}: {error}"));
                check(&case, &rows, &request, &done);
            }
        }
    }
}

/// Space round a row is no mask, a mask at an end is found, and nothing looks behind the length of a row.
#[test]
fn masks_at_the_ends_of_a_row_are_found_and_space_is_none() {
    let identity = Rescaling::Identity;
    for dtype in DTYPES {
        let lowest = match dtype {
            DType::F32 => f32::MIN,
            DType::F16 => half::f16::MIN.to_f32(),
            _ => half::bf16::MIN.to_f32(),
        };
        for (scope, arch, n) in one_of_each(dtype.size_bytes()) {
            let Some(engine) = engine("masks_at_the_ends_of_a_row", &arch) else { return };
            let mut looks_of_all = 0;
            for (offset, len, masked) in
                [(1, n - 2, None), (0, n / 5, None), (3, n - 2, Some(0)), (0, n - 2, Some(n - 3))]
            {
                let mut scores: Vec<f32> = (0..len).map(|i| (i % 61) as f32 * 0.125).collect();
                masked.into_iter().for_each(|column: usize| scores[column] = lowest);
                let rows = Rows { offset, gap: 1, ..Rows::ragged(dtype, &[scores], n) };
                let request = Request::new(Out::Apart(DType::F32, 0, 1), Beta::Rescaling(&identity));
                let before = engine.traffic().map(|traffic| traffic.looks);
                let done = run(&engine, &rows, &request).unwrap();
                check(
                    &format!("{scope:?} {len} of {n} x {dtype}, masked {masked:?}"),
                    &rows,
                    &request,
                    &done,
                );
                let Some((before, after)) = before.zip(engine.traffic()) else { continue };
                let [max, mask] = [0, 1].map(|pass| after.looks[pass] - before[pass]);
                looks_of_all = looks_of_all.max(max);
                // Elsewhere a warp may have no vector to spare.
                let fewer = len > n / 2 || scope != Scope::Block || max < looks_of_all;
                assert!(fewer, "{scope:?}, {len} of {n} x {dtype}: {max} of {looks_of_all} looks");
                assert_eq!(mask > 0, masked.is_some(), "{scope:?}, {len} of {n} x {dtype}: {mask} looks");
            }
        }
    }
}

#[test]
fn thread_orders_do_not_change_a_bit() {
    let all =
        DTYPES.into_iter().flat_map(|of| one_of_each(of.size_bytes()).into_iter().map(move |s| (of, s)));
    for (dtype, (scope, arch, n)) in all {
        let rows = Rows::dense(dtype, &rows_of(n, 9));
        let rule = rescaling("critical:cap=9");
        let measured = |seed| {
            let mut options = SimtOptions::of(arch.clone());
            options.seed = seed;
            let engine = engine_of("thread_orders_do_not_change_a_bit", options)?;
            let request = Request::new(Out::Apart(dtype, 0, 0), Beta::Rescaling(&rule));
            let done = run(&engine, &rows, &request).unwrap();
            let probs: Vec<u32> = done.probs.concat().iter().map(|p| p.to_bits()).collect();
            Some((bytemuck::cast_slice::<_, u8>(&done.reports).to_vec(), probs))
        };
        let Some(first) = measured(1) else { return };
        for seed in 2..=if dtype == DType::F32 { 14 } else { 5 } {
            assert!(
                measured(seed).as_ref() == Some(&first),
                "{scope:?} n = {n} {dtype}: seed {seed} differs from seed 1"
            );
        }
    }
}

#[test]
fn the_shadow_has_nothing_to_say() {
    for dtype in DTYPES {
        // Every variant runs, on one row in three: with the shadow an access costs several times as much.
        for (index, (scope, arch, widths)) in shapes(dtype.size_bytes()).into_iter().enumerate() {
            let mut options = SimtOptions::of(arch);
            options.shadow = true;
            let Some(engine) = engine_of("the_shadow_has_nothing_to_say", options) else { return };
            let n = widths[widths.len() / 2];
            let rows: Vec<Vec<f32>> = rows_of(n, 13).into_iter().skip(index % 3).step_by(3).collect();
            let rows = Rows { offset: 1, ..Rows::dense(dtype, &rows) };
            let rule = rescaling("critical:resolve=0.69,cap=9");
            for out in [Out::None, Out::InPlace] {
                let measure = Measure::new(0.69, None);
                let both = out == Out::None;
                let request = Request { measure, both, ..Request::new(out, Beta::Rescaling(&rule)) };
                let case = format!("{scope:?} {n} x {dtype} to {out:?}");
                let done = run(&engine, &rows, &request).unwrap_or_else(|error| panic!("{case}: {error}"));
                check(&case, &rows, &request, &done);
            }
        }
    }
}

/// A row that fits on chip has one read and one write of every score, whatever is measured.
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
            let request =
                Request { report: false, ..Request::new(Out::Apart(dtype, 0, 0), Beta::Rescaling(&rule)) };
            let problem = Problem::softmax(count, n as u64, dtype);
            let plan = Plan::choose(&problem, engine.arch()).unwrap();
            let done = run(&engine, &rows, &request).unwrap();
            let bytes = count * (n * dtype.size_bytes()) as u64;
            let traffic = format!(
                "{} reads {} writes {} of {bytes}",
                plan.launch().variant,
                done.load_bytes,
                done.store_bytes
            );
            if scope != Scope::Split {
                assert_eq!((done.load_bytes, done.store_bytes), (bytes, bytes), "{traffic}");
                assert_eq!(plan.launch().loads_ahead(count), index >= 6, "{plan}");
            } else {
                // The split scope also counts in its workspace, and that traffic does not grow with the row.
                assert!(done.load_bytes >= bytes && done.store_bytes >= bytes, "{traffic}");
                assert_eq!(plan.fits_on_chip(), index == 4, "{plan}");
            }
        }
    }
}

/// If beta is given, the part of a row that is not on chip is read twice: for the maximum, and for the
/// output.
#[test]
fn beyond_the_chip_there_are_two_reads_at_a_given_beta() {
    let on_chip = 4 * 500 * 4;
    let arch = small(Scope::Split, 500, 4, 1);
    let Some(engine) = engine("beyond_the_chip_there_are_two_reads", &arch) else { return };
    let n = 3 * on_chip;
    let facts = |scores: &[f32]| {
        let visible = Row::from_f32(scores).n();
        RowFacts::new(visible, visible - 1)
    };
    let mut rows = rows_of(n, 33);
    rows.retain(|row| Row::from_f32(row).n() > 0 || Row::from_f32(row).is_poisoned());
    // The powers of these scores leave the range of floats on one side of 0, or lie far above those of the
    // part on chip.
    rows.push((0..n).map(|i| 1e4 + (i % 977) as f32).collect());
    rows.push((0..n).map(|i| -1e7 - (i % 977) as f32).collect());
    rows.push((0..n).map(|i| if i == n - 5 { 900.0 } else { -((i % 7) as f32) }).collect());
    let gaussian = rows[1].clone();
    let dense = Rows::dense(DType::F32, &rows);
    for rule in ["identity", "fixed:0.0625", "fixed:40", "fixed:0", "chen:gamma=0.25"] {
        let rule = rescaling(rule);
        let request =
            Request { report: false, ..Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule)) };
        let done = run(&engine, &dense, &request).unwrap();
        for (r, scores) in rows.iter().enumerate() {
            let case = format!("{rule}, row {r}");
            assert_probs(&case, scores, rule.beta(&facts(scores)), &done.probs[r], DType::F32);
        }
        if engine.is_simulated() && rule.beta(&facts(&gaussian)) > 0.0 {
            let done =
                run(&engine, &Rows::dense(DType::F32, std::slice::from_ref(&gaussian)), &request).unwrap();
            let bytes = (4 * on_chip + 2 * 4 * (n - on_chip)) as f64;
            let (read, written) = (done.load_bytes as f64 / bytes, done.store_bytes as f64 / (4 * n) as f64);
            assert!((1.0..1.01).contains(&read) && (1.0..1.01).contains(&written), "{read}, {written}");
        }
    }
}

/// A reviewer found this row (2026-11-25). All its gaps round the same way, by half an ulp, so Z of the
/// scores differs from Z of the rounded gaps. Such a row is written again.
#[test]
fn beyond_the_chip_gaps_that_round_alike_cost_a_third_read_and_no_accuracy() {
    let on_chip = 4 * 500 * 4;
    let arch = small(Scope::Split, 500, 4, 1);
    let Some(engine) = engine("beyond_the_chip_gaps_that_round_alike", &arch) else { return };
    let n = 250_000;
    let mut scores = vec![-8.000_004_f32; n];
    scores[n / 3] = 4.805_624e-7;
    let rule = Rescaling::Fixed(10.0 / f64::from(scores[n / 3] - scores[0]));
    let rows = Rows::dense(DType::F32, std::slice::from_ref(&scores));
    for out in [Out::Apart(DType::F32, 0, 0), Out::InPlace] {
        let request = Request { report: false, ..Request::new(out, Beta::Rescaling(&rule)) };
        let done = run(&engine, &rows, &request).unwrap();
        let Rescaling::Fixed(beta) = rule else { unreachable!() };
        assert_probs(&format!("{out:?}"), &scores, beta, &done.probs[0], DType::F32);
        if engine.is_simulated() {
            let reads = done.load_bytes as f64 / (4 * on_chip + 3 * 4 * (n - on_chip)) as f64;
            assert!((1.0..1.01).contains(&reads), "{reads} of three reads beyond the chip");
        }
    }
}

/// A million scores lie in the shared memory of a small GPU. They take one read and one write.
#[test]
fn a_million_scores_are_read_once_by_the_whole_grid() {
    let mut arch = Arch::named("sm_90").unwrap();
    (arch.sm_count, arch.clusters) = (20, false);
    let Some(engine) = engine("a_million_scores_are_read_once_by_the_whole_grid", &arch) else { return };
    let n = 1 << 20;
    let rows = Rows::dense(DType::F32, &[common::draw(critbeta::families::Family::Gaussian, n, 3)]);
    let rule = rescaling("critical");
    let request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
    let done = run(&engine, &rows, &request).unwrap();
    assert_probs("a million", &rows.rows[0], done.reports[0].beta, &done.probs[0], DType::F32);
    let cpu = cpu::critical_beta(&rows.rows[0], 0.0);
    assert_eq!(done.reports[0].decode(PLAIN).resolved, cpu);
    if engine.is_simulated() {
        let read = done.load_bytes as f64 / (4 * n) as f64;
        let written = done.store_bytes as f64 / (4 * n) as f64;
        // The rest is traffic of the workspace: 20 CTAs x 8 KiB of counts per level.
        assert!(
            (1.0..1.15).contains(&read) && (1.0..1.15).contains(&written),
            "{read} reads, {written} writes"
        );
    }
}

/// Runs the last width of every kernel of the ladder, and the widths beside it, with the limits of real GPUs.
#[test]
fn the_ladder_has_no_gap_at_its_steps() {
    // Rows are never too few for one SM, so every step of the ladder is used.
    let parts = [("sm_90", 40_000), ("sm_80", 24_000), ("sm_120", 40_000)];
    for (name, furthest) in parts {
        let mut arch = Arch::named(name).unwrap();
        arch.sm_count = 1;
        let Some(engine) = engine("the_ladder_has_no_gap_at_its_steps", &arch) else { return };
        for dtype in DTYPES {
            let of = |cols: u64| {
                let problem = Problem::softmax(1, cols, dtype);
                let plan = Plan::choose(&problem, engine.arch()).unwrap();
                (plan.launch().variant, plan.launch().ctas, plan.fits_on_chip())
            };
            let mut low = 1;
            let furthest = furthest * 4 / dtype.size_bytes() as u64;
            while of(low) != of(furthest) {
                // This finds the last width that has the plan of `low`.
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
                    let request = Request::new(Out::Apart(dtype, 0, 0), Beta::Rescaling(&rule));
                    let case = format!("{family} {cols} x {dtype} by {:?}", of(cols));
                    let done =
                        run(&engine, &rows, &request).unwrap_or_else(|error| panic!("{case}: {error}"));
                    check(&case, &rows, &request, &done);
                    let resolved = done.reports[0].decode(PLAIN).resolved;
                    assert_eq!(resolved, cpu::critical_beta(&rows.rows[0], 0.0), "{case}");
                }
                low = beyond;
            }
        }
    }
}
