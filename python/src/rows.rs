//! Row records and their columns.

use crate::block::{Block, Work, indices};
use crate::errors::raised;
use crate::measure::settings;
use crate::numbers::{Whole, top_k as checked};
use crate::threads::without_lock;
use critbeta::cpu::{self, Measure};
use critbeta::{Element, Scores};
use critbeta_diagnose::input::note_on_scores;
use critbeta_diagnose::output::Output;
use critbeta_diagnose::{COLUMNS, Column, Diagnosis, Remark, write_calibration};
use critbeta_diagnose::{RowFormat, RowPlace, RowRecord, RowWriter, Settings, Summary};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// The records of rows, in order.
#[pyclass(frozen, module = "critbeta._core")]
pub struct Rows {
    pub records: Arc<Vec<RowRecord>>,
    /// The settings of the measurement.
    pub settings: Settings,
    /// What the shapes of the scores show.
    pub notes: Vec<String>,
}

#[pymethods]
impl Rows {
    fn __len__(&self) -> usize {
        self.records.len()
    }

    /// Names of the columns, in the order that files have.
    #[getter]
    fn names(&self) -> Vec<&'static str> {
        self.columns().iter().map(|(name, _)| *name).collect()
    }

    /// One column as a new array, or as a list if it is text; `None` if no column has that name.
    fn column<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some((_, column)) = self.columns().iter().find(|(known, _)| *known == name) else {
            return Ok(None);
        };
        let records = self.records.iter();
        let column = match *column {
            Column::Text(of) => PyList::new(py, records.map(of))?.into_any(),
            Column::Count(of) => PyArray1::from_iter(py, records.map(|r| of(r) as i64)).into_any(),
            Column::Real(of) => PyArray1::from_iter(py, records.map(of)).into_any(),
            Column::Flag(of) => PyArray1::from_iter(py, records.map(of)).into_any(),
        };
        Ok(Some(column))
    }

    /// What to say of rows with scores far below their largest one, if there are any.
    fn far_below(&self) -> Option<String> {
        far_note(self.records.iter().map(|record| record.remark))
    }

    /// The summary of the records as JSON.
    fn summary(&self, py: Python<'_>, train_length: f64, seed: Whole) -> PyResult<String> {
        let seed = seed.named("seed")?;
        let summary = without_lock(py, || self.summed_up(train_length, seed))?.map_err(raised)?;
        serde_json::to_string(&summary).map_err(|e| PyRuntimeError::new_err(e.to_string()))
    }

    /// Writes the records as Parquet.
    fn write_parquet(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let failed = |source| critbeta::Error::Io { path: path.clone(), source };
        py.detach(|| {
            let out = Output::create(&path)?;
            let mut writer = RowWriter::new(RowFormat::Parquet, out, self.has_top_k()).map_err(failed)?;
            writer.write(&self.records).map_err(failed)?;
            writer.finish().map_err(failed)?.commit()
        })
        .map_err(raised)
    }

    /// Writes the length law of every layer and head, fitted to the records, as JSON.
    fn write_calibration(&self, py: Python<'_>, path: PathBuf, seed: Whole) -> PyResult<()> {
        let seed = seed.named("seed")?;
        without_lock(py, || {
            let out = Output::create(&path)?;
            let summary = self.summed_up(self.settings.train_length, seed)?;
            write_calibration(&summary.calibration()?, out)?.commit()
        })?
        .map_err(raised)
    }
}

impl Rows {
    /// The summary of the records. The published laws use `train_length`.
    ///
    /// Errors: [`critbeta::Error::Settings`] for an invalid training length.
    pub fn summed_up(&self, train_length: f64, seed: u64) -> critbeta::Result<Summary> {
        let settings = Settings { train_length, ..self.settings };
        settings.check()?;
        let mut diagnosis = Diagnosis::of_records(Vec::new(), settings, seed);
        diagnosis.add(&self.records);
        let mut summary = diagnosis.summary();
        summary.notes.splice(0..0, self.notes.iter().cloned());
        Ok(summary)
    }

    fn has_top_k(&self) -> bool {
        self.settings.measure.top_k.is_some()
    }

    fn columns(&self) -> &'static [(&'static str, Column)] {
        &COLUMNS[..if self.has_top_k() { COLUMNS.len() } else { COLUMNS.len() - 2 }]
    }
}

/// The records of rows of scores.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn record_scores(
    py: Python<'_>,
    scores: Block<'_>,
    lens: Option<PyReadonlyArray1<'_, i64>>,
    positions: Option<PyReadonlyArray1<'_, i64>>,
    rows_per_head: usize,
    layer: &str,
    resolve: f64,
    beta: f64,
    top_k: Option<Whole>,
) -> PyResult<Rows> {
    let settings = settings(resolve, beta, checked(top_k)?)?;
    let rows = scores.rows(lens.as_ref())?;
    let positions = positions.map(|positions| indices("positions", &positions, rows.rows)).transpose()?;
    let (positions, measure) = (positions.as_deref(), settings.measure);
    let record = Record { layer, rows_per_head, positions, beta, measure };
    let heads = rows.rows / rows_per_head.max(1);
    // Positions of rows show which dimension the rows are.
    let note = positions.is_none().then(|| note_on_scores(layer, heads, rows_per_head, rows.cols));
    let notes = note.flatten().into_iter().collect();
    let records = without_lock(py, || rows.run(record))??;
    Ok(Rows { records: Arc::new(records), settings, notes })
}

/// What the numbers of each row show.
pub fn remarks<T: Element>(scores: &Scores<T>, shifts: &[f64]) -> Vec<Option<Remark>> {
    let remark = |wide: &mut Vec<f32>, row: usize| {
        wide.clear();
        wide.extend(scores.row(row).iter().map(|score| score.score()));
        Remark::of(wide, 0, shifts.get(row).copied().unwrap_or(0.0))
    };
    (0..scores.rows()).into_par_iter().map_init(Vec::new, remark).collect()
}

/// What to say of rows with scores far below their largest one, if there are any.
pub fn far_note(remarks: impl ExactSizeIterator<Item = Option<Remark>>) -> Option<String> {
    let all = remarks.len();
    let far = remarks.filter(|remark| *remark == Some(Remark::FarBelow)).count();
    (far > 0).then(|| format!("{far} of {all} rows {}", Remark::FAR_NOTE))
}

/// Measures rows and makes their records.
pub struct Record<'a> {
    /// The name of the layer of every row.
    pub layer: &'a str,
    /// How many rows make a head.
    pub rows_per_head: usize,
    /// One position per row. Without them, the position of a row is its last visible key.
    pub positions: Option<&'a [u64]>,
    pub beta: f64,
    pub measure: Measure,
}

impl Work for Record<'_> {
    type Output = Vec<RowRecord>;

    fn run<T: Element>(self, scores: &Scores<T>, shifts: &[f64]) -> critbeta::Result<Vec<RowRecord>> {
        let layer: Arc<str> = self.layer.into();
        let reports = cpu::row_reports(scores, self.beta, self.measure);
        let remarks = remarks(scores, shifts);
        let record = |(index, report)| {
            let place = RowPlace {
                layer: Arc::clone(&layer),
                head: (index / self.rows_per_head.max(1)) as u64,
                row: (index % self.rows_per_head.max(1)) as u64,
                position: self.positions.map_or_else(|| scores.last_visible(index), |given| given[index]),
            };
            let shift = shifts.get(index).copied().unwrap_or(0.0);
            let record = RowRecord::new(place, report, shift, self.measure.top_k.is_some());
            RowRecord { remark: remarks[index], ..record }
        };
        Ok(reports.iter().enumerate().map(record).collect())
    }
}
