//! How often warps look at a score, pass by pass, in the simulator: scripts/cuda/looks.txt, with which
//! scripts/cuda/slots.py weighs the loops of the compiled kernels.

#[path = "common/agree.rs"]
mod agree;
mod common;
#[path = "common/device.rs"]
mod device;

use agree::rescaling;
use common::draw;
use critbeta::DType;
use critbeta::cuda::{Arch, Beta, Plan, Problem};
use critbeta::families::Family;
use device::{Out, Request, Rows, engine, run};
use std::fmt::Write;

/// In the order of `enum Pass` (kernels/stats.cuh).
const PASSES: [&str; 10] =
    ["MAX", "MASK", "COUNT", "RANK", "LIST", "Z", "WRITE", "MAXIMA", "GROUPS", "PAIRS"];
const PATH: &str = "scripts/cuda/looks.txt";
const ROWS: usize = 4;

#[test]
fn looks_at_a_score_are_those_of_the_file() {
    // Of few SMs, so that few rows are not split over all of them.
    let mut arch = Arch::named("sm_90").unwrap();
    arch.sm_count = 1;
    let Some(engine) = engine("looks_at_a_score_are_those_of_the_file", &arch) else { return };
    if !engine.is_simulated() {
        eprintln!("skipped looks_at_a_score_are_those_of_the_file: a GPU does not count");
        return;
    }
    let student = Family::StudentT { nu: 2.0 };
    let (gaussian, sink) = (Family::Gaussian, Family::Sink { height: 20.0 });
    let paths = [
        ("plain", gaussian, "identity", Out::Apart(DType::F32, 0, 0)),
        ("near the top", gaussian, "critical:cap=9", Out::Apart(DType::F32, 0, 0)),
        ("sink", sink, "critical:cap=9", Out::Apart(DType::F32, 0, 0)),
        ("student t", student, "critical:cap=9", Out::Apart(DType::F32, 0, 0)),
        ("critical beta", gaussian, "critical:cap=9", Out::None),
        ("critical beta of a sink", sink, "critical:cap=9", Out::None),
        ("statistics", gaussian, "identity", Out::None),
        ("statistics of a sink", sink, "identity", Out::None),
    ];
    let mut found = String::from(
        "# Looks at a score, pass by pass: the mean of 4 rows in the simulator. tests/looks.rs compares\n\
         # them, and writes them if CRITBETA_LOOKS=write is set. A warp looks as long as one of its\n\
         # threads does.\n",
    );
    // With too little shared memory for CTAs of 128 threads, so that a row of a block has 256.
    let mut narrow = arch.clone();
    narrow.shared_per_sm_bytes = 96 << 10;
    // Without clusters, four SMs share a row.
    arch.sm_count = 4;
    arch.clusters = false;
    let Some(shared) = device::engine("looks_at_a_score_are_those_of_the_file", &arch) else { return };
    let (narrow, wide) = (engine.limited_to(&narrow), engine);
    for (name, family, rule, out) in paths {
        for (scope, what, n) in [
            ("warp", "warp", 1024),
            ("block", "block", 4096),
            ("cluster", "cluster", 65_536),
            ("split", "split", 65_536),
            // These two show what the gate and the predictions do not know.
            ("block", "block of 4,095 scores", 4095),
            ("block", "block of 16,384 scores", 16_384),
        ] {
            for dtype in [DType::F32, DType::Bf16] {
                // A CTA alone holds 65,536 scores of 16 bits.
                let n = if scope == "split" && dtype == DType::Bf16 { 2 * n } else { n };
                let scores: Vec<Vec<f32>> = (0..ROWS as u64).map(|seed| draw(family, n, seed)).collect();
                let (rule, rows) = (rescaling(rule), Rows::dense(dtype, &scores));
                let out = if out == Out::None { out } else { Out::Apart(dtype, 0, 0) };
                let mut request = Request::new(out, Beta::Rescaling(&rule));
                request.report = name.starts_with("statistics");
                request.betas_out = name.starts_with("critical beta");
                let problem = Problem::softmax(ROWS as u64, n as u64, dtype);
                let engine = match scope {
                    "block" if n < 16_384 => &narrow,
                    "split" => &shared,
                    _ => &wide,
                };
                let plan = Plan::choose(&problem, engine.arch()).unwrap();
                assert!(!(2000..5000).contains(&n) || plan.launch().variant.threads() == 256, "{plan}");
                assert!(plan.launch().variant.symbol().contains(scope), "{plan}");
                let before = engine.traffic().unwrap().looks;
                run(engine, &rows, &request).unwrap();
                let after = engine.traffic().unwrap().looks;
                let size = if dtype == DType::F32 { "f32" } else { "16-bit" };
                write!(found, "{name} | {what} | {size}:").unwrap();
                for (pass, (after, before)) in PASSES.iter().zip(after.iter().zip(before)) {
                    let each = match *pass {
                        "PAIRS" => 4,
                        "MAXIMA" | "GROUPS" => 1,
                        _ => 16 / dtype.size_bytes() as u64,
                    };
                    let looks = ((after - before) * 32 * each) as f64 / (ROWS * n) as f64;
                    if looks > 0.0 {
                        write!(found, " {pass} {looks:.3}").unwrap();
                    }
                }
                found.push('\n');
            }
        }
    }
    if std::env::var_os("CRITBETA_LOOKS").is_some_and(|value| value == "write") {
        std::fs::write(PATH, &found).unwrap();
    }
    assert_eq!(std::fs::read_to_string(PATH).unwrap(), found);
}
