//! `critbeta softmax`.

use crate::args::{Cli, Softmax};
use crate::report::figure;
use anyhow::Result;
use critbeta::calibration::{HeadRescalings, RescalingSpec};
use critbeta_diagnose::Device;
use critbeta_diagnose::input::{self, Selection};
use critbeta_diagnose::output::{self, Output};
use critbeta_diagnose::probabilities::Probabilities;
use std::path::Path;

pub fn run(args: &Softmax, cli: &Cli) -> Result<()> {
    let input = input::open(&args.file, &Selection { tensor: args.tensor.as_deref(), scale: None })?;
    let rescalings = HeadRescalings::load(args.rescaling.clone())?;
    let plan = Probabilities::plan(&input, &rescalings, args.dtype, &args.out)?;
    let calibration = match &args.rescaling {
        RescalingSpec::PerHead { file, .. } => Some(file),
        RescalingSpec::Uniform(_) => None,
    };
    let files = input.files()?;
    let paths = files.iter().chain(calibration).chain([&args.out]);
    let paths: Vec<&Path> = paths.map(|path| path.as_path()).collect();
    output::distinct(&paths)?;
    let device = Device::open(cli.device)?;
    let mut out = Output::create(&args.out)?;
    let bar = crate::progress(cli, input.rows(), "rows");
    let (inconclusive, laws) = rescalings.inconclusive();
    if inconclusive > 0 && !cli.quiet {
        eprintln!("note: {inconclusive} of the {laws} laws of this calibration are inconclusive");
    }
    let (mut rows, mut empty, mut poisoned, mut senseless, mut betas) = (0u64, 0u64, 0u64, 0u64, None);
    let notes = plan.write_on(&device, &mut out, |batch| {
        for row in batch {
            rows += 1;
            poisoned += u64::from(row.top.poisoned);
            empty += u64::from(row.top.len == 0);
            let is_nan = row.beta.is_nan() && !row.top.poisoned;
            senseless += u64::from(is_nan);
            if row.top.len > 0 && !row.beta.is_nan() {
                let (low, high) = betas.unwrap_or((row.beta, row.beta));
                betas = Some((row.beta.min(low), row.beta.max(high)));
            }
        }
        bar.inc(batch.len() as u64);
    })?;
    bar.finish_and_clear();
    out.commit()?;
    if !cli.quiet {
        notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    let mut message = format!("{}: {rows} rows", args.out.display());
    if let Some((low, high)) = betas {
        message += &format!(", beta {}..{}", figure(low), figure(high));
    }
    let counts = [
        (empty, "empty"),
        (poisoned, "poisoned by NaN or +inf"),
        (senseless, "NaN: the rescaling has no beta for them"),
    ];
    for (count, what) in counts {
        if count > 0 {
            message += &format!(", {count} {what}");
        }
    }
    crate::print(|out| writeln!(out, "{message}"))?;
    Ok(())
}
