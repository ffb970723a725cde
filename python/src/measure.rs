//! Measurements of rows of scores.

use crate::block::{Block, Work};
use crate::errors::raised;
use crate::threads::without_lock;
use critbeta::cpu::{self, Measure};
use critbeta::reference::Row;
use critbeta::{CriticalBeta, Element, Scores};
use critbeta_diagnose::Settings;
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The settings of a diagnosis, after their checks.
pub fn settings(resolve: f64, beta: f64, top_k: Option<usize>) -> PyResult<Settings> {
    let settings = Settings { beta, measure: Measure::new(resolve, top_k), ..Settings::default() };
    settings.check().map_err(raised)?;
    Ok(settings)
}

/// Lambda(r) of every row.
struct CriticalBetas {
    resolve: f64,
}

impl Work for CriticalBetas {
    type Output = Vec<CriticalBeta>;

    fn run<T: Element>(self, scores: &Scores<T>, _: &[f64]) -> critbeta::Result<Vec<CriticalBeta>> {
        Ok(cpu::critical_betas(scores, self.resolve))
    }
}

#[pyfunction]
pub fn critical_beta<'py>(
    py: Python<'py>,
    scores: Block<'py>,
    resolve: f64,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    settings(resolve, 1.0, None)?;
    let rows = scores.rows(None)?;
    let betas = without_lock(py, || rows.run(CriticalBetas { resolve }))??;
    Ok(PyArray1::from_iter(py, betas.iter().map(|critical| critical.beta)))
}

/// The gaps of the first row, and the number of scores within each.
struct GapCount;

impl Work for GapCount {
    type Output = Option<(Vec<f64>, Vec<i64>)>;

    fn run<T: Element>(self, scores: &Scores<T>, _: &[f64]) -> critbeta::Result<Self::Output> {
        let wide: Vec<f32> = scores.row(0).iter().map(|score| score.score()).collect();
        let row = Row::from_f32(&wide);
        let counts = row.gaps().iter().map(|&gap| row.gap_count(gap) as i64).collect();
        Ok((!row.is_poisoned()).then(|| (row.gaps().to_vec(), counts)))
    }
}

type Arrays<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<i64>>);

#[pyfunction]
pub fn gap_count<'py>(py: Python<'py>, scores: Block<'py>) -> PyResult<Arrays<'py>> {
    let row = scores.rows(None)?;
    let message = "row: a NaN or +inf score leaves no gaps to count";
    let found = without_lock(py, || row.run(GapCount))??;
    let (gaps, counts) = found.ok_or_else(|| PyValueError::new_err(message))?;
    Ok((PyArray1::from_vec(py, gaps), PyArray1::from_vec(py, counts)))
}
