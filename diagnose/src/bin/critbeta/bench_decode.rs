//! `critbeta bench --decode`.

use crate::args::{Bench, BenchRows, Cli};
use crate::report::table;
use critbeta::{DType, Error};
use critbeta_diagnose::Device;
use critbeta_diagnose::bench::decode::{
    DecodeCase, DecodeMeasured, DecodeMethod, DecodeSetup, DecodeShape, measure_decode,
};
use critbeta_diagnose::output::Output;
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, Write};
use std::path::Path;

/// What serves 16-bit outputs: less than what they are rounded by.
const EPS: f64 = 1e-3;

/// Returns whether every result was right.
pub fn run(args: &Bench, cli: &Cli) -> anyhow::Result<bool> {
    let device = Device::open(cli.device)?;
    let cases = cases(args, &device)?;
    if let Some(path) = &args.turns {
        if !matches!(device, Device::Cpu) {
            let detail = format!("{}: --turns is for the CPU, expected --device cpu", device.description());
            return Err(Error::Settings { detail }.into());
        }
        let [case] = &cases[..] else {
            let detail = format!("--turns takes one case, found {}: give --len, or --tensor", cases.len());
            return Err(Error::Settings { detail }.into());
        };
        return turns(case, path, cli.seed);
    }
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let file = args.json.as_deref().filter(|_| !to_stdout).map(Output::create).transpose()?;
    let progress = crate::progress(cli, cases.len() as u64, "cases");
    let rounds = if device.is_simulated() { 1 } else { args.rounds.into() };
    let mut measured = Vec::with_capacity(cases.len());
    for case in cases {
        measured.push(measure_decode(&device, case, rounds, cli.seed)?);
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
            writeln!(
                out,
                "Simulated: the results were checked, the times mean nothing. Loads are the bytes"
            )?;
            writeln!(out, "that all kernels of a call read, beside those of the keys and values.")?;
        }
        writeln!(out, "{}", ratios(&device, &measured))?;
        for of in &measured {
            for (method, wrong) in &of.failed {
                writeln!(
                    out,
                    "WRONG {} {}: {}: {wrong}",
                    of.case.label(),
                    of.case.rows_name(),
                    method.name()
                )?;
            }
        }
        writeln!(out, "{} cases, {failed} wrong results", measured.len())
    })?;
    Ok(failed == 0)
}

fn cases(args: &Bench, device: &Device) -> Result<Vec<DecodeCase>, Error> {
    let of = &args.decode;
    let shape = |seqs| DecodeShape { seqs, page: of.page.unwrap_or(16), eps: of.eps.unwrap_or(EPS) };
    let seqs = of.seqs.unwrap_or(1);
    match (&args.rows, args.len) {
        (Some(BenchRows::Count(rows)), _) => {
            let detail = format!("--rows {rows}: expected a file of queries and keys with --decode");
            Err(Error::Settings { detail })
        }
        (Some(BenchRows::File(path)), len) => {
            let given = [("--heads", of.heads), ("--kv-heads", of.kv_heads), ("--head-dim", of.head_dim)];
            let mut given = given.iter().filter(|(_, given)| given.is_some()).map(|(name, _)| *name);
            if let Some(name) = given.next().or(args.family.as_ref().map(|_| "--family")) {
                let detail = format!("{name}: {} has its own", path.display());
                return Err(Error::Settings { detail });
            }
            let layer = of.tensor.as_deref();
            DecodeCase::of_file(shape(seqs), path, layer, len.map(|len| len as usize), args.dtype)
        }
        (None, Some(len)) => {
            let heads = of.heads.unwrap_or(8);
            let sizes = [heads, of.kv_heads.unwrap_or(heads), len as usize, of.head_dim.unwrap_or(128)];
            let dtype = args.dtype.unwrap_or(DType::Bf16);
            Ok(vec![DecodeCase::of_family(shape(seqs), sizes, dtype, args.family_or_default())?])
        }
        (None, None) => {
            let ladder: &[Rung] = match device {
                _ if args.small || device.is_simulated() => &SMALL_LADDER,
                Device::Cpu => &CPU_LADDER,
                Device::Cuda(_) => &GPU_LADDER,
            };
            let case = |&(rows, sizes, dtype, family): &Rung| {
                let shape = shape(of.seqs.unwrap_or(rows));
                DecodeCase::of_family(shape, sizes, args.dtype.unwrap_or(dtype), family)
            };
            ladder.iter().map(case).collect()
        }
    }
}

/// Sequences, `[heads, kv_heads, len, head_dim]`, dtype and family.
type Rung = (usize, [usize; 4], DType, &'static str);

/// Groups of 8, of 4 and of 1, a batch, other dtypes, and rows that are not Gaussian.
const CPU_LADDER: [Rung; 11] = [
    (1, [8, 1, 32_768, 128], DType::Bf16, "gaussian"),
    (1, [8, 1, 32_768, 128], DType::Bf16, "sink"),
    (1, [8, 1, 32_768, 128], DType::Bf16, "needles"),
    (1, [8, 1, 32_768, 128], DType::F16, "gaussian"),
    (1, [8, 1, 32_768, 128], DType::F32, "gaussian"),
    (1, [8, 2, 32_768, 128], DType::Bf16, "gaussian"),
    (1, [8, 8, 16_384, 128], DType::Bf16, "gaussian"),
    (1, [8, 8, 16_384, 128], DType::Bf16, "sink"),
    (1, [8, 8, 1_024, 128], DType::Bf16, "equal"),
    (8, [32, 8, 4_096, 128], DType::Bf16, "gaussian"),
    (8, [9, 3, 2_048, 64], DType::Bf16, "student-t"),
];

/// The shapes of docs/gpu.md, a batch, groups of 8 and of 1, other dtypes, and rows that are not Gaussian.
const GPU_LADDER: [Rung; 10] = [
    (1, [32, 8, 4_096, 128], DType::Bf16, "gaussian"),
    (1, [32, 8, 32_768, 128], DType::Bf16, "gaussian"),
    (1, [32, 8, 131_072, 128], DType::Bf16, "gaussian"),
    (1, [32, 8, 32_768, 128], DType::Bf16, "sink"),
    (1, [32, 8, 32_768, 128], DType::Bf16, "needles"),
    (1, [32, 8, 32_768, 128], DType::F16, "gaussian"),
    (1, [32, 8, 32_768, 128], DType::F32, "gaussian"),
    (16, [32, 8, 8_192, 128], DType::Bf16, "gaussian"),
    (16, [64, 8, 8_192, 128], DType::Bf16, "student-t"),
    (1, [8, 8, 32_768, 128], DType::Bf16, "gaussian"),
];

/// What the simulator and a memory checker run in seconds.
const SMALL_LADDER: [Rung; 3] = [
    (1, [4, 1, 1_500, 128], DType::Bf16, "sink"),
    (2, [6, 2, 400, 64], DType::F16, "gaussian"),
    (1, [2, 2, 300, 72], DType::F32, "needles"),
];

/// A column of the table: its header, and the number that it computes from a case's times.
type Column = (&'static str, fn(&DecodeMeasured) -> Option<f64>);

/// A read of all bytes is the limit of what reads all, and a read of the keys that of what reads no value.
const CPU: [Column; 10] = {
    use DecodeMethod::*;
    [
        ("read GB/s", |of| of.of(Stream).map(|seconds| of.bytes() as f64 / seconds * 1e-9)),
        ("read / full", |of| of.ratio(Stream, Full)),
        ("read keys / keys", |of| of.ratio(StreamKeys, Keys)),
        ("full / dense", |of| of.ratio(Full, Dense)),
        ("decode / full", |of| of.ratio(Decode, Full)),
        ("keep", |of| Some(of.keep[0])),
        ("critical full / full", |of| of.ratio(FullCritical, Full)),
        ("critical / full", |of| of.ratio(DecodeCritical, Full)),
        ("critical keep", |of| Some(of.keep[1])),
        ("read keys / measure", |of| of.ratio(StreamKeys, Measure)),
    ]
};

/// A copy moves twice the bytes of keys and values: half its time stands for a read of all, and a quarter for
/// one of the keys.
const CUDA: [Column; 9] = {
    use DecodeMethod::*;
    [
        ("copy GB/s", |of| of.of(Copy).map(|seconds| 2.0 * of.bytes() as f64 / seconds * 1e-9)),
        ("half copy / full", |of| of.ratio(Copy, Full).map(|ratio| ratio / 2.0)),
        ("decode / full", |of| of.ratio(Decode, Full)),
        ("unread", |of| Some(1.0 - of.keep[0])),
        ("half copy / critical full", |of| of.ratio(Copy, FullCritical).map(|ratio| ratio / 2.0)),
        ("critical full / full", |of| of.ratio(FullCritical, Full)),
        ("critical / full", |of| of.ratio(DecodeCritical, Full)),
        ("critical unread", |of| Some(1.0 - of.keep[1])),
        ("quarter copy / measure", |of| of.ratio(Copy, Measure).map(|ratio| ratio / 4.0)),
    ]
};

/// What is counted where there is no time.
const SIMULATED: [Column; 7] = {
    use DecodeMethod::*;
    [
        ("full loads", |of| of.loads(Full)),
        ("decode loads", |of| of.loads(Decode)),
        ("unread", |of| Some(1.0 - of.keep[0])),
        ("critical full loads", |of| of.loads(FullCritical)),
        ("critical loads", |of| of.loads(DecodeCritical)),
        ("critical unread", |of| Some(1.0 - of.keep[1])),
        ("measure loads", |of| of.loads(Measure)),
    ]
};

fn ratios(device: &Device, measured: &[DecodeMeasured]) -> impl std::fmt::Display + use<> {
    let columns: &[Column] = match device {
        Device::Cpu => &CPU,
        Device::Cuda(_) if device.is_simulated() => &SIMULATED,
        Device::Cuda(_) => &CUDA,
    };
    let shown = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let case = ["seqs x heads x len x dim", "dtype", "rows"];
    let mut rows =
        table(case.into_iter().chain(columns.iter().map(|(header, _)| *header)).collect::<Vec<_>>());
    for of in measured {
        let DecodeCase { seqs, heads, kv_heads, len, head_dim, dtype, .. } = &of.case;
        let shape = format!("{seqs} x {heads}/{kv_heads} x {len} x {head_dim}");
        let case = [shape, dtype.to_string(), of.case.rows_name()];
        rows.add_row(case.into_iter().chain(columns.iter().map(|(_, value)| shown(value(of)))));
    }
    rows
}

fn document(device: &Device, measured: &[DecodeMeasured]) -> Value {
    let cases = measured.iter().map(|of| {
        let seconds: Map<_, _> =
            of.seconds.iter().map(|&(method, _)| (method.name().into(), json!(of.of(method)))).collect();
        let failed: Map<_, _> =
            of.failed.iter().map(|(method, why)| (method.name().into(), json!(why))).collect();
        let loaded: Map<_, _> =
            of.loaded.iter().map(|&(method, bytes)| (method.name().into(), json!(bytes))).collect();
        let DecodeCase { seqs, heads, kv_heads, len, head_dim, page, dtype, eps, .. } = &of.case;
        json!({ "seqs": seqs, "heads": heads, "kv_heads": kv_heads, "len": len, "head_dim": head_dim,
                "page": page, "dtype": dtype.name(), "eps": eps, "rows": of.case.rows_name(),
                "bytes": of.bytes(), "seconds": seconds, "keep": of.keep[0],
                "keep_critical": of.keep[1], "loaded": loaded, "failed": failed })
    });
    let (device, simulated) = (device.description(), device.is_simulated());
    json!({ "device": device, "simulated": simulated, "cases": cases.collect::<Vec<_>>() })
}

/// Runs one method per line of stdin. Another program can then alternate with it on the same inputs.
fn turns(case: &DecodeCase, path: &Path, seed: u64) -> anyhow::Result<bool> {
    let methods = DecodeMethod::of(&Device::Cpu);
    let mut setup = DecodeSetup::new(&Device::Cpu, case, seed)?;
    for &method in methods {
        if let Some(wrong) = setup.checked(method)? {
            crate::print(|out| writeln!(out, "WRONG {}: {}: {wrong}", case.label(), method.name()))?;
            return Ok(false);
        }
    }
    let mut file = Output::create(path)?;
    file.write_all(&setup.safetensors()).map_err(|source| crate::io_error(path, source))?;
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
