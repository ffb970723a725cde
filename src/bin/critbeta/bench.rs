//! `critbeta bench`.

use crate::args::Cli;
use crate::report::table;
use clap::Args;
use critbeta::bench::{self, Case, Measured, Way, cases};
use critbeta::cuda::Engine;
use critbeta::output::Output;
use critbeta::{DType, Device};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct Bench {
    /// Rows of the one case to measure [default: as many as make 256 MiB of scores]
    #[arg(long, value_name = "R", requires = "len", value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: Option<u64>,
    /// Columns of the one case to measure [default: a ladder of shapes and laws]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub len: Option<u64>,
    /// f32, f16 or bf16
    #[arg(long, value_name = "DTYPE", requires = "len", default_value = "f32")]
    pub dtype: DType,
    /// gaussian, sink, needles, student-t, log-grid, equal, masked, bf16 or ascending
    #[arg(long, value_name = "LAW", requires = "len", default_value = "gaussian")]
    pub law: String,
    /// A few tiny cases of every scope instead of the ladder, for a memory checker; their times mean nothing
    #[arg(long, conflicts_with = "len")]
    pub small: bool,
    /// Times each way of a case is run; the median counts
    #[arg(long, value_name = "K", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Write the seconds as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Whether every result was right.
pub fn run(args: &Bench, cli: &Cli) -> anyhow::Result<bool> {
    let device = crate::device(cli)?;
    let Device::Cuda(engine) = &device else {
        let detail = format!(
            "{}: bench times the CUDA kernels, expected --device cuda:N or simt",
            device.description()
        );
        return Err(critbeta::Error::Settings { detail }.into());
    };
    let cases = match args.len {
        Some(n) => {
            let case = Case::many(n, args.dtype, &args.law)?;
            vec![Case { rows: args.rows.unwrap_or(case.rows), ..case }]
        }
        // The ladder would take the simulator days.
        None if args.small || engine.is_simulated() => cases::small()?,
        None => cases::ladder()?,
    };
    let file = args.json.as_deref().map(Output::create).transpose()?;
    let progress = crate::progress(cli, cases.len() as u64, "cases");
    let rounds = if engine.is_simulated() { 1 } else { args.rounds.into() };
    let mut measured = Vec::with_capacity(cases.len());
    for case in cases {
        measured.push(bench::measure(engine, case, rounds, cli.seed)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if let Some(file) = file {
        crate::json_output(file, &document(engine, &measured))?.commit()?;
    }
    let failed = measured.iter().map(|of| of.failed.len()).sum::<usize>();
    crate::print(|out| {
        writeln!(out, "{}", engine.description())?;
        if engine.is_simulated() {
            writeln!(out, "Simulated: the results were checked, the times mean nothing.")?;
        }
        writeln!(out, "{}", ratios(&measured))?;
        for of in &measured {
            for (way, wrong) in &of.failed {
                writeln!(out, "WRONG {}: {}: {wrong}", name(&of.case), way.name())?;
            }
        }
        writeln!(out, "{} cases, {failed} wrong results", measured.len())
    })?;
    Ok(failed == 0)
}

fn name(case: &Case) -> String {
    format!("{} x {} {} {}", case.rows, case.n, case.dtype, case.law.name())
}

/// A copy moves what a softmax must, so its time over ours is the share of the limit that is reached. It reads half of it:
/// half its time stands for reading alone.
fn ratios(measured: &[Measured]) -> impl std::fmt::Display + use<> {
    let mut rows = table([
        "rows x n",
        "dtype",
        "law",
        "copy GB/s",
        "copy / softmax",
        "copy / critical",
        "critical / softmax",
        "half copy / stats",
        "top-k / critical",
        "naive / critical",
    ]);
    for of in measured {
        let over = |a: Way, b: Way| Some(of.of(a)? / of.of(b)?);
        let told = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
        let bandwidth = of.of(Way::Copy).map(|seconds| of.case.moved_bytes() as f64 / seconds * 1e-9);
        rows.add_row([
            format!("{} x {}", of.case.rows, of.case.n),
            of.case.dtype.to_string(),
            of.case.law.name().into(),
            bandwidth.map_or("-".into(), |bandwidth| format!("{bandwidth:.1}")),
            told(over(Way::Copy, Way::Softmax)),
            told(over(Way::Copy, Way::CriticalSoftmax)),
            told(over(Way::CriticalSoftmax, Way::Softmax)),
            told(over(Way::Copy, Way::Stats).map(|ratio| ratio / 2.0)),
            told(over(Way::TopK, Way::CriticalSoftmax)),
            told(over(Way::Naive, Way::CriticalSoftmax)),
        ]);
    }
    rows
}

fn document(engine: &Engine, measured: &[Measured]) -> Value {
    let cases = measured.iter().map(|of| {
        let seconds: Map<_, _> = of.seconds.iter().map(|(way, s)| (way.name().into(), json!(s))).collect();
        let failed: Map<_, _> = of.failed.iter().map(|(way, why)| (way.name().into(), json!(why))).collect();
        let Case { rows, n, dtype, law } = of.case;
        json!({ "rows": rows, "n": n, "dtype": dtype.name(), "law": law.name(), "seconds": seconds, "failed": failed })
    });
    let (device, simulated) = (engine.description(), engine.is_simulated());
    json!({ "device": device, "simulated": simulated, "cases": cases.collect::<Vec<_>>() })
}
