//! `critbeta plan`.

use crate::args::{Cli, Plan as Args};
use critbeta::cuda::{Arch, Plan, Problem};
use critbeta::{DType, Error, cpu};
use critbeta_diagnose::{Device, DeviceSpec};
use std::fmt::Display;

pub fn run(args: &Args, cli: &Cli) -> anyhow::Result<()> {
    match cli.device == DeviceSpec::Cpu && args.arch.is_none() {
        true => print(&on_cpu(args)?),
        false => print(&on_gpu(args, cli)?),
    }
}

fn print(plan: &dyn Display) -> anyhow::Result<()> {
    Ok(crate::print(|out| writeln!(out, "{plan}"))?)
}

fn on_cpu(args: &Args) -> anyhow::Result<cpu::Plan> {
    let fail = |detail| Err(Error::Settings { detail }.into());
    if args.dtype == DType::F64 {
        return fail("a plan of f64: the CPU path takes rows of f32, f16 or bf16".to_owned());
    }
    let (Ok(rows), Ok(cols)) = (args.rows.try_into(), args.len.try_into()) else {
        return fail(format!("a plan of {} rows x {}: too large to address", args.rows, args.len));
    };
    Ok(cpu::Plan::choose(rows, cols, args.dtype, rayon::current_num_threads()))
}

fn on_gpu(args: &Args, cli: &Cli) -> anyhow::Result<Plan> {
    let arch = match &args.arch {
        Some(name) => Arch::named(name)?,
        None => match Device::open(cli.device)? {
            Device::Cuda(engine) => engine.arch().clone(),
            Device::Cpu => Arch::named("sm_90")?,
        },
    };
    let problem = if args.profile { Problem::statistics } else { Problem::softmax };
    Ok(Plan::choose(&problem(args.rows, args.len, args.dtype), &arch)?)
}
