//! `critbeta bench`.

use crate::args::{Bench, BenchRows, Cli};
use crate::bench_decode;
use crate::report::table;
use critbeta::{DType, Error};
use critbeta_diagnose::Device;
use critbeta_diagnose::bench::{self, Case, Measured, Method, Setup, cases};
use critbeta_diagnose::output::Output;
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, Write};
use std::path::Path;

/// Returns whether every result was right.
pub fn run(args: &Bench, cli: &Cli) -> anyhow::Result<bool> {
    if args.decode.decode {
        return bench_decode::run(args, cli);
    }
    let device = Device::open(cli.device)?;
    let dtype = args.dtype.unwrap_or(DType::F32);
    let family = args.family_or_default();
    let cases = match (args.len, &args.rows) {
        (_, Some(BenchRows::File(path))) => {
            let detail = format!("--rows {}: a file is for --decode, expected a number", path.display());
            return Err(Error::Settings { detail }.into());
        }
        (Some(n), Some(BenchRows::Count(rows))) => vec![Case::new(*rows, n, dtype, family)?],
        (Some(n), None) => vec![Case::many_on(&device, n, dtype, family)?],
        _ if args.small => cases::small()?,
        _ => cases::of(&device)?,
    };
    let cases = match args.shuffled {
        true => cases.into_iter().map(Case::shuffled).collect(),
        false => cases,
    };
    if let (Some(path), [case]) = (&args.turns, &cases[..]) {
        return turns(&device, *case, path, cli.seed);
    }
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let file = args.json.as_deref().filter(|_| !to_stdout).map(Output::create).transpose()?;
    let progress = crate::progress(cli, cases.len() as u64, "cases");
    let rounds = if device.is_simulated() { 1 } else { args.rounds.into() };
    let mut measured = Vec::with_capacity(cases.len());
    for case in cases {
        measured.push(bench::measure(&device, case, rounds, cli.seed)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if let Some(file) = file {
        crate::json_output(file, &document(&device, &measured))?.commit()?;
    }
    let failed = measured.iter().map(|of| of.failed.len()).sum::<usize>();
    if to_stdout {
        crate::print(|out| crate::write_json(out, &document(&device, &measured)))?;
        return Ok(failed == 0);
    }
    crate::print(|out| {
        writeln!(out, "{}", device.description())?;
        if device.is_simulated() {
            writeln!(out, "Simulated: the results were checked, the times mean nothing.")?;
        }
        writeln!(out, "{}", ratios(&device, &measured))?;
        for of in &measured {
            for (method, wrong) in &of.failed {
                writeln!(out, "WRONG {}: {}: {wrong}", name(&of.case), method.name())?;
            }
        }
        writeln!(out, "{} cases, {failed} wrong results", measured.len())
    })?;
    Ok(failed == 0)
}

fn name(case: &Case) -> String {
    format!("{} x {} {} {}", case.rows, case.n, case.dtype, case.family_label())
}

/// A column of the table: its header, and the number that it computes from a case's times.
type Column = (&'static str, fn(&Measured) -> Option<f64>);

/// A copy moves the bytes that a softmax must move, so its time over ours is the share of the limit that we
/// reach. Half of its bytes are read, so half its time stands for reading alone.
const CUDA: [Column; 6] = [
    ("copy GB/s", |of| bandwidth(of, Method::Copy)),
    ("copy / softmax", |of| of.ratio(Method::Copy, Method::Softmax)),
    ("copy / critical", |of| of.ratio(Method::Copy, Method::CriticalSoftmax)),
    ("critical / softmax", |of| of.ratio(Method::CriticalSoftmax, Method::Softmax)),
    ("half copy / stats", |of| of.ratio(Method::Copy, Method::Stats).map(|ratio| ratio / 2.0)),
    ("top-k / critical", |of| of.ratio(Method::TopK, Method::CriticalSoftmax)),
];

/// Our times against the limit and each other, then other methods' against ours.
const CPU: [Column; 8] = [
    ("copy GB/s", |of| bandwidth(of, Method::Copy)),
    ("copy_nt GB/s", |of| bandwidth(of, Method::CopyNt)),
    ("softmax GB/s", |of| bandwidth(of, Method::Softmax)),
    ("softmax / copy_nt", |of| of.ratio(Method::Softmax, Method::CopyNt)),
    ("critical / softmax", |of| of.ratio(Method::CriticalSoftmax, Method::Softmax)),
    ("stats / softmax", |of| of.ratio(Method::Stats, Method::Softmax)),
    ("top-k / critical", |of| of.ratio(Method::TopK, Method::CriticalSoftmax)),
    ("sort / critical", |of| of.ratio(Method::NaiveSort, Method::CriticalSoftmax)),
];

fn bandwidth(of: &Measured, method: Method) -> Option<f64> {
    of.of(method).map(|seconds| of.case.moved_bytes() as f64 / seconds * 1e-9)
}

fn ratios(device: &Device, measured: &[Measured]) -> impl std::fmt::Display + use<> {
    let columns: &[Column] = match device {
        Device::Cpu => &CPU,
        Device::Cuda(_) => &CUDA,
    };
    let shown = |value: Option<f64>| match value {
        Some(value) if value < 10.0 => format!("{value:.3}"),
        Some(value) => format!("{value:.1}"),
        None => "-".into(),
    };
    let case = ["rows x n", "dtype", "family"];
    let mut rows =
        table(case.into_iter().chain(columns.iter().map(|(header, _)| *header)).collect::<Vec<_>>());
    for of in measured {
        let Case { rows: count, n, dtype, .. } = of.case;
        let case = [format!("{count} x {n}"), dtype.to_string(), of.case.family_label()];
        rows.add_row(case.into_iter().chain(columns.iter().map(|(_, value)| shown(value(of)))));
    }
    rows
}

fn document(device: &Device, measured: &[Measured]) -> Value {
    let cases = measured.iter().map(|of| {
        let seconds: Map<_, _> =
            of.seconds.iter().map(|&(method, _)| (method.name().into(), json!(of.of(method)))).collect();
        let failed = of.failed.iter().map(|(method, why)| (method.name().into(), json!(why)));
        let failed: Map<_, _> = failed.collect();
        let Case { rows, n, dtype, is_shuffled, .. } = of.case;
        let (family, dtype) = (of.case.family_name(), dtype.name());
        json!({ "rows": rows, "n": n, "dtype": dtype, "family": family, "shuffled": is_shuffled, "seconds": seconds,
                "failed": failed })
    });
    let (device, simulated) = (device.description(), device.is_simulated());
    json!({ "device": device, "simulated": simulated, "cases": cases.collect::<Vec<_>>() })
}

/// Runs one method per line of stdin. Another program can then alternate with it on the same scores.
fn turns(device: &Device, case: Case, path: &Path, seed: u64) -> anyhow::Result<bool> {
    let mut setup = Setup::new(device, case, seed)?;
    let methods = Method::of(device);
    for &method in methods {
        if let Some(wrong) = setup.checked(method)? {
            crate::print(|out| writeln!(out, "WRONG {}: {}: {wrong}", name(&case), method.name()))?;
            return Ok(false);
        }
    }
    let Some(scores) = setup.score_bytes() else {
        let detail = format!("{}: --turns is for the CPU, expected --device cpu", device.description());
        return Err(Error::Settings { detail }.into());
    };
    let mut file = Output::create(path)?;
    file.write_all(scores).map_err(|source| crate::io_error(path, source))?;
    file.commit()?;
    let names = methods.iter().map(|method| method.name()).collect::<Vec<_>>().join(" ");
    crate::print(|out| writeln!(out, "ready: {names}"))?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|source| crate::io_error("stdin".as_ref(), source))?;
        let Some(&method) = methods.iter().find(|method| method.name() == line) else {
            let detail = format!("no method {line:?}: expected one of {names}");
            return Err(Error::Settings { detail }.into());
        };
        let seconds = setup.seconds(method)?;
        crate::print(|out| writeln!(out, "{seconds}"))?;
    }
    Ok(true)
}
