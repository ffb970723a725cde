//! `critbeta diagnose`.

use crate::args::{Cli, Diagnose};
use crate::report;
use anyhow::Result;
use critbeta::Error;
use critbeta::cpu::Measure;
use critbeta::diagnose::{Calibration, Diagnosis, RowWriter, Settings, scan};
use critbeta::input::{self, Input, Selection};
use critbeta::output::{self, Output};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

pub fn run(args: &Diagnose, cli: &Cli) -> Result<()> {
    let settings = Settings {
        beta: args.beta,
        measure: Measure { resolve: args.resolve, top_k: args.top_k.map(usize::from) },
        exclude_sink: args.exclude_sink,
    };
    let selection = Selection { tensor: args.tensor.as_deref(), scale: args.scale };
    let inputs =
        args.files.iter().map(|file| input::open(file, &selection)).collect::<Result<Vec<_>, _>>()?;
    let json_file = args.json.as_deref().filter(|path| *path != Path::new("-"));
    let row_file = args.rows.as_ref().map(|(_, path)| path.as_path());
    let outputs = [row_file, json_file, args.calibration.as_deref()].into_iter().flatten();
    let paths: Vec<&Path> = args.files.iter().map(|file| file.as_path()).chain(outputs).collect();
    output::distinct(&paths)?;
    // Targets that cannot be written are found out before the work, not after it.
    let create = |path: Option<&Path>| path.map(Output::create).transpose();
    let (json, calibration) = (create(json_file)?, create(args.calibration.as_deref())?);
    let mut rows = match &args.rows {
        None => None,
        Some((format, path)) => {
            let writer = RowWriter::new(*format, Output::create(path)?, settings.measure.top_k.is_some());
            Some((writer.map_err(|source| io_error(path, source))?, path))
        }
    };

    let mut diagnosis = Diagnosis::new(&inputs, settings, cli.seed);
    let bar = crate::progress(cli, inputs.iter().map(Input::rows).sum(), "rows");
    scan(&inputs, &settings, |records| {
        diagnosis.add(records);
        bar.inc(records.len() as u64);
        match &mut rows {
            Some((writer, path)) => writer.write(records).map_err(|source| io_error(path, source)),
            None => Ok(()),
        }
    })?;
    bar.finish_and_clear();
    let summary = diagnosis.summary();

    let mut outputs = Vec::new();
    if let Some((writer, path)) = rows {
        outputs.push(writer.finish().map_err(|source| io_error(path, source))?);
    }
    if let Some(out) = json {
        outputs.push(write_json(out, &summary)?);
    }
    if let Some(out) = calibration {
        outputs.push(write_json(out, &Calibration::of(&summary))?);
    }
    output::commit_all(outputs)?;
    if args.json.is_some() && json_file.is_none() {
        crate::print(&(serde_json::to_string_pretty(&summary)? + "\n"))?;
    } else {
        crate::print(&report::summary(&summary, &inputs))?;
    }
    Ok(())
}

pub fn write_json(mut out: Output, value: &impl Serialize) -> Result<Output> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    out.write_all(text.as_bytes()).map_err(|source| io_error(out.path(), source))?;
    Ok(out)
}

pub fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
