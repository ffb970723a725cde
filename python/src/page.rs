//! Pages of rows in memory, and of files.

use crate::errors::raised;
use crate::numbers::{Whole, top_k as checked};
use crate::rows::Rows;
use crate::threads::without_lock;
use critbeta::cpu::Measure;
use critbeta_diagnose::input::{self, Selection};
use critbeta_diagnose::output::{self, Output};
use critbeta_diagnose::page::{Provenance, write, write_of_inputs, write_of_records};
use critbeta_diagnose::{Diagnosis, RecordSettings, RowFormat, Settings, scan};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::path::{Path, PathBuf};

/// Writes the page of rows in memory, with the settings of their measurement.
#[pyfunction]
pub fn report_rows(
    py: Python<'_>,
    rows: PyRef<'_, Rows>,
    path: PathBuf,
    command: String,
    train_length: f64,
    seed: Whole,
) -> PyResult<()> {
    let (rows, seed): (&Rows, _) = (&rows, seed.named("seed")?);
    without_lock(py, || {
        let out = Output::create(&path)?;
        let summary = rows.summed_up(train_length, seed)?;
        write(out, &summary, &Provenance { command, files: Vec::new() })?.commit()
    })?
    .map_err(raised)
}

/// Writes the page of files: files of attention, or one file of row records.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn report_files(
    py: Python<'_>,
    files: Vec<PathBuf>,
    path: PathBuf,
    command: String,
    resolve: Option<f64>,
    beta: Option<f64>,
    top_k: Option<Whole>,
    train_length: f64,
    seed: Whole,
) -> PyResult<()> {
    let (top_k, seed) = (checked(top_k)?, seed.named("seed")?);
    let measure = Measure::new(resolve.unwrap_or(0.0), top_k);
    let settings = Settings { beta: beta.unwrap_or(1.0), measure, train_length, ..Settings::default() };
    settings.check().map_err(raised)?;
    let all: Vec<&Path> = files.iter().chain([&path]).map(PathBuf::as_path).collect();
    let is_records = |file: &&PathBuf| RowFormat::of(file).is_ok();
    match (&files[..], files.iter().find(is_records)) {
        ([], _) => Err(PyValueError::new_err("no file is given: expected row records or attention")),
        ([_], Some(rows)) if beta.is_some() => Err(PyTypeError::new_err(format!(
            "{}: row records carry their own beta, so beta must not be given",
            rows.display()
        ))),
        ([_], Some(rows)) => without_lock(py, || {
            output::distinct(&all)?;
            let out = Output::create(&path)?;
            let settings = RecordSettings { resolve, top_k, exclude_sink: 0, train_length };
            write_of_records(out, rows, &settings, seed, command)?.0.commit()
        })?
        .map_err(raised),
        (_, Some(rows)) => {
            let message =
                format!("{}: expected one file of row records, or files of attention", rows.display());
            Err(PyValueError::new_err(message))
        }
        (files, None) => without_lock(py, || {
            output::distinct(&all)?;
            let open = |file: &PathBuf| input::open(file, &Selection::default());
            let inputs = files.iter().map(open).collect::<critbeta::Result<Vec<_>>>()?;
            // A target that cannot be written fails here, before the work.
            let out = Output::create(&path)?;
            let mut diagnosis = Diagnosis::new(&inputs, settings, seed);
            scan(&inputs, &settings, |records| {
                diagnosis.add(records);
                Ok(())
            })?;
            let mut summary = diagnosis.summary();
            write_of_inputs(out, &inputs, &settings, &mut summary, command, |_| ())?.commit()
        })?
        .map_err(raised),
    }
}
