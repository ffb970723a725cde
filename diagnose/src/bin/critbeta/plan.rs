//! `critbeta plan`.

use crate::args::{Cli, Plan as Args};
use critbeta::cuda::internals::Costs;
use critbeta::cuda::{Arch, DecodePlan, DecodeShape, Plan, Prediction, Problem};
use critbeta::{DType, Error, cpu};
use critbeta_diagnose::{Device, DeviceSpec};
use std::fmt::{Display, Write as _};

pub fn run(args: &Args, cli: &Cli) -> anyhow::Result<()> {
    if args.table {
        let costs = match &args.slots {
            None => Costs::committed(),
            Some(path) => {
                let named = |e: &dyn Display| anyhow::anyhow!("{path:?}: {e}");
                let record = std::fs::read_to_string(path).map_err(|e| named(&e))?;
                Costs::with_slots_of(&record).map_err(|e| named(&e))?
            }
        };
        return print(&table(&costs)?);
    }
    anyhow::ensure!(args.slots.is_none(), "--slots is for --table alone");
    if args.decode.decode {
        return print(&of_decode(args, cli)?);
    }
    match cli.device == DeviceSpec::Cpu && args.arch.is_none() {
        true => print(&on_cpu(args)?),
        false => print(&on_gpu(args, cli)?),
    }
}

fn print(plan: &dyn Display) -> anyhow::Result<()> {
    Ok(crate::print(|out| writeln!(out, "{plan}"))?)
}

/// Rows and columns, which the command line requires of every plan.
fn shape(args: &Args) -> (u64, u64) {
    (args.rows.unwrap_or(0), args.len.unwrap_or(0))
}

fn on_cpu(args: &Args) -> anyhow::Result<cpu::Plan> {
    let fail = |detail| Err(Error::Settings { detail }.into());
    let dtype = args.dtype.unwrap_or(DType::F32);
    if dtype == DType::F64 {
        return fail("a plan of f64: the CPU path takes rows of f32, f16 or bf16".to_owned());
    }
    let (rows, cols) = shape(args);
    let (Ok(height), Ok(width)) = (rows.try_into(), cols.try_into()) else {
        return fail(format!("a plan of {rows} rows x {cols}: too large to address"));
    };
    Ok(cpu::Plan::choose(height, width, dtype, rayon::current_num_threads()))
}

fn arch(args: &Args, cli: &Cli) -> anyhow::Result<Arch> {
    Ok(match &args.arch {
        Some(name) => Arch::named(name)?,
        None => match Device::open(cli.device)? {
            Device::Cuda(engine) => engine.arch().clone(),
            Device::Cpu => Arch::named("sm_90")?,
        },
    })
}

fn of_decode(args: &Args, cli: &Cli) -> anyhow::Result<DecodePlan> {
    let of = &args.decode;
    let shape = DecodeShape {
        seqs: of.seqs as u64,
        query_len: of.query_len as u64,
        heads: of.heads as u64,
        kv_heads: of.kv_heads as u64,
        dim: of.head_dim as u64,
        len: args.len.unwrap_or(0),
        page: of.page as u64,
        dtype: args.dtype.unwrap_or(DType::Bf16),
        eps: of.eps,
        keep: of.keep,
    };
    Ok(DecodePlan::choose(&shape, &arch(args, cli)?)?)
}

/// A plan and what it should take.
fn on_gpu(args: &Args, cli: &Cli) -> anyhow::Result<String> {
    let arch = arch(args, cli)?;
    let problem = if args.profile { Problem::statistics } else { Problem::softmax };
    let (rows, cols) = shape(args);
    let plan = Plan::choose(&problem(rows, cols, args.dtype.unwrap_or(DType::F32)), &arch)?;
    let mut text = plan.to_string();
    let predictions = plan.predictions();
    match predictions.is_empty() {
        true => text += "\n  predicted  nothing: the model knows an H200, and rows that fit on chip",
        false => text += "\n  predicted  by a model that no GPU has confirmed",
    }
    for prediction in predictions {
        write!(text, "\n             {prediction}")?;
    }
    Ok(text)
}

/// Scores of one launch for the goals of many rows: 256 MiB.
const MANY_BYTES: u64 = 256 << 20;
const LENGTHS: [(&str, u64); 5] =
    [("4K", 1 << 12), ("16K", 1 << 14), ("64K", 1 << 16), ("256K", 1 << 18), ("1M", 1 << 20)];
/// Rows, and columns in units of 1,024.
const FEW: [(u64, u64); 8] =
    [(1, 64), (1, 128), (1, 256), (1, 1024), (4, 128), (4, 256), (4, 1024), (8, 1024)];
/// What launches and barriers of the grid may take beside the bytes, by goal G4.
const FLOOR_SECONDS: f64 = 2.5e-6;

/// The predictions for the goals G1 to G4 on an H200, as Markdown.
fn table(costs: &Costs) -> anyhow::Result<String> {
    let h200 = Arch::named("sm_90")?;
    let paths_of = |problem: Problem| -> anyhow::Result<Vec<Prediction>> {
        Ok(Plan::choose(&problem, &h200)?.predictions_by(costs))
    };
    let mut text = String::from("| 256 MiB of scores, share of a copy | dtype |");
    LENGTHS.iter().for_each(|(name, _)| text += &format!(" {name} |"));
    text += "\n| --- | --- |";
    LENGTHS.iter().for_each(|_| text += " --- |");
    for problem in [Problem::softmax, Problem::statistics] {
        let names: Vec<&str> = paths_of(problem(64, 4096, DType::F32))?.iter().map(|of| of.path).collect();
        for (at, path) in names.into_iter().enumerate() {
            let goal = match path {
                "plain" => "G1 ",
                "near the top" => "G2 ",
                "statistics" => "G3 ",
                _ => "",
            };
            for dtype in [DType::F32, DType::Bf16] {
                write!(text, "\n| {goal}{path} | {dtype} |")?;
                for (_, n) in LENGTHS {
                    let rows = MANY_BYTES / n / dtype.size_bytes() as u64;
                    match paths_of(problem(rows, n, dtype))?.get(at) {
                        Some(of) => write!(text, " {:.2} |", of.share())?,
                        None => text += " |",
                    }
                }
            }
        }
    }
    text += "\n\n| G4, us | goal f32 | plain f32 | near the top f32 | goal bf16 | plain bf16 | near the top bf16 |";
    text += "\n| --- | --- | --- | --- | --- | --- | --- |";
    for (rows, kilo) in FEW {
        let n = kilo << 10;
        write!(text, "\n| {rows} x {kilo}K |")?;
        for dtype in [DType::F32, DType::Bf16] {
            let found = paths_of(Problem::softmax(rows, n, dtype))?;
            if let [plain, near, ..] = found[..] {
                let goal = 2.0 * (plain.copy + FLOOR_SECONDS);
                write!(
                    text,
                    " {:.1} | {:.1} | {:.1} |",
                    goal * 1e6,
                    plain.seconds * 1e6,
                    near.seconds * 1e6
                )?;
            }
        }
    }
    Ok(text)
}
