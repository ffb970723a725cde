//! `critbeta doctor`.

use crate::args::Cli;
use crate::report::table;
use critbeta::cpu::{self, InstructionSet, Measure};
use critbeta::{Scores, cuda, reference};
use critbeta_diagnose::Device;
use std::fs;
use std::thread::available_parallelism;

pub fn run(cli: &Cli) -> anyhow::Result<()> {
    let mut facts = table(["this machine", ""]);
    let mut fact = |name: &str, value: String| {
        facts.add_row([name, &value]);
    };
    fact("critbeta", env!("CARGO_PKG_VERSION").into());
    fact("target", format!("{} {}", std::env::consts::ARCH, std::env::consts::OS));
    fact("processor", processor().unwrap_or_else(|| "unknown".into()));
    fact("instruction sets", instruction_sets().join(" "));
    let (lanes, variable) = (InstructionSet::chosen()?, InstructionSet::VARIABLE);
    fact("lanes", format!("{lanes}; {variable} chooses among {}", supported()));
    fact("cores", available_parallelism().map_or_else(|e| e.to_string(), |n| n.to_string()));
    fact("threads used", rayon::current_num_threads().to_string());
    fact("memory", memory().unwrap_or_else(|| "unknown".into()));
    fact("row records", if cfg!(feature = "parquet") { "jsonl, csv, parquet" } else { "jsonl, csv" }.into());
    for (name, found) in cuda::facts() {
        fact(name, found);
    }
    let device = Device::open(cli.device);
    match &device {
        Ok(device) => fact("device", device.description()),
        Err(error) => fact("device", error.to_string()),
    }
    fact("exact path against reference", self_check(&Device::Cpu));
    if let Ok(device @ Device::Cuda(_)) = &device {
        fact("device against reference", self_check(device));
    }
    crate::print(|out| writeln!(out, "{facts}"))?;
    device.map(|_| ()).map_err(Into::into)
}

fn supported() -> String {
    InstructionSet::supported().iter().map(InstructionSet::to_string).collect::<Vec<_>>().join(", ")
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn instruction_sets() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            ("sse4.2", is_x86_feature_detected!("sse4.2")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        found.extend(sets.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    found.push("neon");
    found
}

fn memory() -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let gib = |name: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib / (1024.0 * 1024.0))
    };
    Some(format!("{:.1} GiB, {:.1} GiB available", gib("MemTotal:")?, gib("MemAvailable:")?))
}

/// Measures a row with its contact at rank n / 2 by both paths.
fn self_check(device: &Device) -> String {
    let row: Vec<f32> = std::iter::once(40.0).chain((0..4095).map(|i| (i as f32 * 0.37).sin())).collect();
    let exact = reference::Row::from_f32(&row).critical_beta();
    let measured = match device {
        Device::Cpu => Ok(cpu::critical_beta(&row, 0.0)),
        device => Scores::dense(&row, 1, row.len())
            .and_then(|view| device.row_reports(&view, 1.0, Measure::default()))
            .map(|reports| reports[0].critical),
    };
    match measured {
        Ok(critical) if critical == exact => {
            format!("equal (critical beta {:.6}, contact rank {})", exact.beta, exact.contact_rank)
        }
        Ok(critical) => format!("DIFFERENT: {critical:?}, expected {exact:?}"),
        Err(error) => format!("FAILED: {error}"),
    }
}
