//! `critbeta diagnose`.

use crate::args::{Cli, Diagnose};
use crate::{io_error, json_output, print, report, write_json};
use anyhow::Result;
use critbeta::cpu::Measure;
use critbeta_diagnose::input::{self, Input, Selection};
use critbeta_diagnose::output::{self, Output};
#[cfg(feature = "html")]
use critbeta_diagnose::page::write_of_inputs;
use critbeta_diagnose::{Device, Diagnosis, RowWriter, Settings, scan_on, write_calibration};
use std::path::Path;

pub fn run(args: &Diagnose, cli: &Cli) -> Result<()> {
    let settings = Settings {
        beta: args.beta,
        measure: Measure::new(args.resolve, args.top_k.map(usize::from)),
        exclude_sink: args.exclude_sink,
        train_length: args.train_length as f64,
    };
    let selection = Selection { tensor: args.tensor.as_deref(), scale: args.scale };
    let inputs =
        args.files.iter().map(|file| input::open(file, &selection)).collect::<Result<Vec<_>, _>>()?;
    let json_file = args.json.as_deref().filter(|path| *path != Path::new("-"));
    let row_file = args.rows.as_ref().map(|(_, path)| path.as_path());
    let json_target = args.json.as_ref().map(|_| json_file.unwrap_or(Path::new("/dev/stdout")));
    #[cfg(feature = "html")]
    let html = args.html.as_deref();
    #[cfg(not(feature = "html"))]
    let html = None;
    let files = inputs.iter().map(Input::files).collect::<Result<Vec<_>, _>>()?.concat();
    let outputs = [row_file, json_target, args.calibration.as_deref(), html].into_iter().flatten();
    let paths: Vec<&Path> = files.iter().map(|file| file.as_path()).chain(outputs).collect();
    output::distinct(&paths)?;
    let device = Device::open(cli.device)?;
    // The targets are opened before the work, so that one that cannot be written is an error at once.
    let create = |path: Option<&Path>| path.map(Output::create).transpose();
    let (json, calibration_file) = (create(json_file)?, create(args.calibration.as_deref())?);
    #[cfg(feature = "html")]
    let html = create(html)?;
    let mut rows = match &args.rows {
        None => None,
        Some((format, path)) => {
            let writer = RowWriter::new(*format, Output::create(path)?, settings.measure.top_k.is_some());
            Some((writer.map_err(|source| io_error(path, source))?, path))
        }
    };

    let mut diagnosis = Diagnosis::new(&inputs, settings, cli.seed);
    let bar = crate::progress(cli, inputs.iter().map(Input::rows).sum(), "rows");
    scan_on(&device, &inputs, &settings, |records| {
        diagnosis.add(records);
        bar.inc(records.len() as u64);
        match &mut rows {
            Some((writer, path)) => writer.write(records).map_err(|source| io_error(path, source)),
            None => Ok(()),
        }
    })?;
    bar.finish_and_clear();
    #[cfg_attr(not(feature = "html"), allow(unused_mut))]
    let mut summary = diagnosis.summary();

    let mut outputs = Vec::new();
    #[cfg(feature = "html")]
    if let Some(out) = html {
        let bar = crate::progress(cli, inputs.iter().map(Input::rows).sum(), "rows again");
        let command = crate::page::command();
        outputs.push(write_of_inputs(out, &inputs, &settings, &mut summary, command, |rows| bar.inc(rows))?);
        bar.finish_and_clear();
    }
    if let Some((writer, path)) = rows {
        outputs.push(writer.finish().map_err(|source| io_error(path, source))?);
    }
    if let Some(out) = json {
        outputs.push(json_output(out, &summary)?);
    }
    if let Some(out) = calibration_file {
        outputs.push(write_calibration(&summary.calibration()?, out)?);
    }
    output::commit_all(outputs)?;
    if args.json.is_some() && json_file.is_none() {
        print(|out| write_json(out, &summary))?;
    } else {
        print(|out| out.write_all(report::summary(&summary).as_bytes()))?;
    }
    Ok(())
}
