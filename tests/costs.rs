//! The costs that the model of `critbeta plan` starts from are those of the newest record and of the
//! simulator.

#[path = "common/agree.rs"]
mod agree;
mod common;
#[path = "common/device.rs"]
mod device;

use agree::rescaling;
use common::draw;
use critbeta::DType;
use critbeta::cuda::internals::{Costs, Scope, slots_in};
use critbeta::cuda::{Arch, Beta, Plan, Problem};
use critbeta::families::Family;
use device::{Out, Request, Rows, engine, run};
use std::fmt::Write;

const ROWS: usize = 2;
const PATH: &str = "src/cuda/costs.rs";
const ATTENTION: &str = "src/cuda/attention/slots.rs";
const SCOPES: [(Scope, usize); 4] =
    [(Scope::Warp, 1024), (Scope::Block, 4096), (Scope::Cluster, 65_536), (Scope::Split, 65_536)];

/// The newest record with slots: names are dates.
fn record() -> String {
    let folder = std::fs::read_dir("benches/record/sass").unwrap();
    let mut names: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let newest = names.pop().unwrap();
    std::fs::read_to_string(&newest).unwrap()
}

/// Waits of a row: collectives of a warp, by shuffles and of one step, barriers of a CTA, a cluster, a group;
/// the mean of two f32 rows.
fn waits() -> Option<Vec<(&'static str, Scope, [f64; 5])>> {
    let student = Family::StudentT { nu: 2.0 };
    let (gaussian, sink) = (Family::Gaussian, Family::Sink { height: 20.0 });
    let paths = [
        ("plain", gaussian, "identity", true),
        ("near the top", gaussian, "critical:cap=9", true),
        ("sink", sink, "critical:cap=9", true),
        ("student t", student, "critical:cap=9", true),
        ("critical beta", gaussian, "critical:cap=9", false),
        ("critical beta of a sink", sink, "critical:cap=9", false),
        ("statistics", gaussian, "identity", false),
        ("statistics of a sink", sink, "identity", false),
    ];
    let mut found = Vec::new();
    for (path, family, rule, writes) in paths {
        for (scope, n) in SCOPES {
            // One SM has no long row split over it; without clusters, four SMs share one.
            let mut arch = Arch::named("sm_90").unwrap();
            arch.sm_count = if scope == Scope::Split { 4 } else { 1 };
            arch.clusters = scope != Scope::Split;
            let engine = engine("costs", &arch)?;
            if !engine.is_simulated() {
                eprintln!("skipped costs: a GPU does not count");
                return None;
            }
            let scores: Vec<Vec<f32>> = (0..ROWS as u64).map(|seed| draw(family, n, seed)).collect();
            let (rule, rows) = (rescaling(rule), Rows::dense(DType::F32, &scores));
            let out = if writes { Out::Apart(DType::F32, 0, 0) } else { Out::None };
            let mut request = Request::new(out, Beta::Rescaling(&rule));
            request.report = path.starts_with("statistics");
            request.betas_out = path.starts_with("critical beta");
            let problem = if writes { Problem::softmax } else { Problem::statistics };
            let plan = Plan::choose(&problem(ROWS as u64, n as u64, DType::F32), engine.arch()).unwrap();
            let launch = plan.launch();
            assert_eq!(launch.variant.scope(), scope, "{plan}");
            run(&engine, &rows, &request).unwrap();
            let [shuffles, steps, cta, cluster, group] = engine.traffic().unwrap().waits;
            let warps = if scope == Scope::Warp { 1 } else { launch.ctas * launch.variant.threads() / 32 };
            let of_row = |waits: u64, each: u32| {
                let mean = waits as f64 / (ROWS as u32 * each) as f64;
                (mean * 10.0).round() / 10.0
            };
            found.push((
                path,
                scope,
                [
                    of_row(shuffles, warps),
                    of_row(steps, warps),
                    of_row(cta, launch.ctas),
                    of_row(cluster, 1),
                    of_row(group, 1),
                ],
            ));
        }
    }
    Some(found)
}

#[test]
fn costs_are_those_of_the_record_and_the_simulator() {
    let Some(waits) = waits() else { return };
    let record = record();
    let mut table = format!("const COSTS: [Row; {}] = [\n", waits.len());
    for (path, scope, waits) in waits {
        let slots = Costs::slots_in(&record, path, scope).unwrap();
        writeln!(table, "    ({path:?}, Scope::{scope:?}, {slots:?}, {waits:?}),").unwrap();
    }
    table.push_str("];\n");
    compare(PATH, "const COSTS", &table);
}

#[test]
fn slots_of_attention_are_those_of_the_record() {
    let (record, mut table, mut kernels) = (record(), String::new(), 0);
    for (name, family, dtypes) in [
        ("scores", "AttentionScores", &[DType::F32, DType::F16, DType::Bf16][..]),
        ("masses", "AttentionMasses", &[DType::F32]),
        ("values", "AttentionValues", &[DType::F32, DType::F16, DType::Bf16]),
        ("one_pass", "AttentionOnePass", &[DType::F32, DType::F16, DType::Bf16]),
    ] {
        for dtype in dtypes {
            let slots = slots_in(&record, &format!("attention_{name}_{}", dtype.name())).unwrap();
            writeln!(table, "    (\n        Family::{family},\n        DType::{dtype:?},\n        [")
                .unwrap();
            slots.iter().for_each(|of_dim| writeln!(table, "            {of_dim:?},").unwrap());
            table.push_str("        ],\n    ),\n");
            kernels += 1;
        }
    }
    compare(
        ATTENTION,
        "const SLOTS",
        &format!("const SLOTS: [(Family, DType, Slots); {kernels}] = [\n{table}];\n"),
    );
}

/// The file ends with this table, or does so now if CRITBETA_COSTS=write is set.
fn compare(path: &str, begin: &str, table: &str) {
    let kept = std::fs::read_to_string(path).unwrap();
    let at = kept.find(begin).unwrap();
    if std::env::var_os("CRITBETA_COSTS").is_some_and(|value| value == "write") {
        std::fs::write(path, format!("{}{table}", &kept[..at])).unwrap();
        return;
    }
    for (kept, found) in kept[at..].lines().zip(table.lines()) {
        assert_eq!(kept, found, "CRITBETA_COSTS=write cargo test --test costs writes what is there now");
    }
    assert_eq!(kept[at..].len(), table.len());
}

#[test]
fn a_record_without_a_path_is_refused() {
    let refused = |record: &str| Costs::with_slots_of(record).err().unwrap().to_string();
    assert!(refused("").contains("no slots of critical_softmax_f32_warp, path \"plain\""), "{}", refused(""));
    let without = record().replace("sink  ", "sank  ");
    assert!(refused(&without).contains("path \"sink\""), "{}", refused(&without));
    let without = record().replace("  16 rows of 64 ", "  15 rows of 64 ");
    let error = slots_in(&without, "attention_scores_bf16").unwrap_err().to_string();
    assert!(error.contains("attention_scores_bf16, path \"16 rows of 64\""), "{error}");
    assert!(slots_in(&record().replace(", chunks ", " "), "attention_values_f16").is_err());
}
