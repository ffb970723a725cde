//! Pages of rows in memory, and of files.

use crate::errors::raised;
use crate::measure::settings;
use crate::numbers::{Whole, top_k as checked};
use crate::rows::Rows;
use crate::threads::without_lock;
use critbeta::cpu::Measure;
use critbeta_diagnose::input::{self, Input, Selection};
use critbeta_diagnose::output::{self, Output};
use critbeta_diagnose::page::{Provenance, write, write_of_inputs, write_of_records};
use critbeta_diagnose::{COLUMNS, Cell, Cells, Diagnosis, RecordSettings, RowFormat, RowRecord, Settings};
use critbeta_diagnose::{read_table, scan, summary_of_table};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;
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

/// Writes the page of row records in a table: the names of its columns, and their values as lists.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn report_table(
    py: Python<'_>,
    columns: Vec<(String, Bound<'_, PyList>)>,
    path: PathBuf,
    command: String,
    resolve: Option<f64>,
    top_k: Option<Whole>,
    train_length: f64,
    seed: Whole,
) -> PyResult<()> {
    let (top_k, seed) = (checked(top_k)?, seed.named("seed")?);
    let records = records_of(&columns)?;
    let settings = RecordSettings { resolve, top_k, exclude_sink: 0, train_length };
    without_lock(py, || {
        let out = Output::create(&path)?;
        let summary = summary_of_table(Path::new(TABLE), &records, &settings, seed)?;
        write(out, &summary, &Provenance { command, files: Vec::new() })?.commit()
    })?
    .map_err(raised)
}

/// What errors call a table in memory.
const TABLE: &str = "rows";

fn records_of(columns: &[(String, Bound<'_, PyList>)]) -> PyResult<Vec<RowRecord>> {
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let length = columns.first().map_or(0, |(_, values)| values.len());
    if let Some((name, values)) = columns.iter().find(|(_, values)| values.len() != length) {
        let found = format!("{TABLE}: column {name} has {} values, {} has {length}", values.len(), names[0]);
        return Err(PyValueError::new_err(found));
    }
    let places = COLUMNS.map(|(name, _)| names.iter().position(|&known| known == name));
    let mut wrong = None;
    let rows = (0..length).map_while(|row| {
        let mut cells = Cells::default();
        for (cell, place) in cells.iter_mut().zip(places) {
            let Some(place) = place else { continue };
            let (name, values) = &columns[place];
            match values.get_item(row).and_then(|value| cell_of(&value)) {
                Ok(found) => *cell = found,
                Err(error) => {
                    wrong = Some(PyValueError::new_err(format!(
                        "{TABLE}: row {}: column {name}: {error}",
                        row + 1
                    )));
                    return None;
                }
            }
        }
        Some(cells)
    });
    let mut records = Vec::with_capacity(length);
    let read = read_table(Path::new(TABLE), &names, rows, |batch| {
        records.extend_from_slice(batch);
        Ok(())
    });
    match wrong {
        Some(error) => Err(error),
        None => read.map(|()| records).map_err(raised),
    }
}

/// A value of a table as pandas and Polars hand it out. pandas.NA has no number.
fn cell_of(value: &Bound<'_, PyAny>) -> PyResult<Cell> {
    if value.is_none() || value.get_type().name()?.to_string().starts_with("NA") {
        Ok(Cell::Null)
    } else if let Ok(text) = value.extract::<String>() {
        Ok(Cell::Text(text))
    } else if let Ok(flag) = value.extract::<bool>() {
        Ok(Cell::Flag(flag))
    } else if let Ok(whole) = value.extract::<u64>() {
        Ok(Cell::Whole(whole))
    } else {
        value.extract::<f64>().map(Cell::Real)
    }
}

/// The rows of a file of attention, their summary as JSON, and their shape: [heads, rows] of the one tensor,
/// or all rows of several.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn record_file(
    py: Python<'_>,
    file: PathBuf,
    scale: Option<f64>,
    resolve: f64,
    beta: f64,
    train_length: f64,
    seed: Whole,
) -> PyResult<(Rows, String, Vec<usize>)> {
    let settings = Settings { train_length, ..settings(resolve, beta, None)? };
    settings.check().map_err(raised)?;
    let seed = seed.named("seed")?;
    let (input, records, summary) = without_lock(py, || {
        let input = [input::open(&file, &Selection { tensor: None, scale })?];
        let mut diagnosis = Diagnosis::new(&input, settings, seed);
        let mut records = Vec::new();
        scan(&input, &settings, |batch| {
            diagnosis.add(batch);
            records.extend_from_slice(batch);
            Ok(())
        })?;
        let [input] = input;
        Ok((input, records, diagnosis.summary()))
    })?
    .map_err(raised)?;
    let shape = match &input.sources[..] {
        [source] => vec![source.heads(), source.rows()],
        _ => vec![records.len()],
    };
    let json = serde_json::to_string(&summary).map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    let notes = input.sources.iter().filter_map(|source| source.note()).collect();
    Ok((Rows { records: records.into(), settings, notes }, json, shape))
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
            let open = |file: &PathBuf| input::open(file, &Selection::default());
            let inputs = files.iter().map(open).collect::<critbeta::Result<Vec<_>>>()?;
            let files = inputs.iter().map(Input::files).collect::<critbeta::Result<Vec<_>>>()?.concat();
            output::distinct(&files.iter().chain([&path]).map(PathBuf::as_path).collect::<Vec<_>>())?;
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
