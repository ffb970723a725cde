//! The rescaled softmax of rows.

use crate::block::{Block, Out, Target, Work, lengths, places};
use crate::errors::raised;
use crate::rows::{far_note, remarks};
use crate::rules::Rescaling;
use crate::threads::without_lock;
use critbeta::cpu::{self, SoftmaxRow};
use critbeta::{Element, Scores, ScoresMut};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyUserWarning;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::CString;

struct Softmax<'a> {
    rule: &'a critbeta::Rescaling,
    positions: Option<&'a [u32]>,
    out: Out<'a>,
}

/// The rows, the shifts of their scores, and what to say of the scores.
type Found = (Vec<SoftmaxRow>, Vec<f64>, Option<String>);

impl Work for Softmax<'_> {
    type Output = Found;

    fn run<T: Element>(self, scores: &Scores<T>, shifts: &[f64]) -> critbeta::Result<Found> {
        let note = note(scores, shifts, self.rule);
        let rows = match self.out {
            Out::F32(out) => cpu::softmax(scores, self.rule, self.positions, out),
            Out::F16(out) => cpu::softmax(scores, self.rule, self.positions, out),
            Out::Bf16(out) => cpu::softmax(scores, self.rule, self.positions, out),
        }?;
        Ok((rows, shifts.to_vec(), note))
    }
}

/// What to say of scores far below their largest one. They count in n, which these rules read.
fn note<T: Element>(scores: &Scores<T>, shifts: &[f64], rule: &critbeta::Rescaling) -> Option<String> {
    let reads_n = matches!(rule, critbeta::Rescaling::Law(_) | critbeta::Rescaling::Calibrated(_));
    reads_n.then(|| far_note(remarks(scores, shifts).into_iter())).flatten()
}

#[pyfunction]
pub fn softmax<'py>(
    py: Python<'py>,
    scores: Block<'py>,
    lens: Option<PyReadonlyArray1<'py, i64>>,
    rescaling: &Rescaling,
    positions: Option<PyReadonlyArray1<'py, i64>>,
    mut out: Target<'py>,
) -> PyResult<Bound<'py, PyDict>> {
    let rows = scores.rows(lens.as_ref())?;
    let positions = positions.map(|positions| places(&positions, rows.rows)).transpose()?;
    let (rule, positions, out) = (&rescaling.0, positions.as_deref(), out.elements()?);
    let found = without_lock(py, || rows.run(Softmax { rule, positions, out }))??;
    columns(py, &found)
}

#[pyfunction]
pub fn softmax_in_place<'py>(
    py: Python<'py>,
    mut scores: Target<'py>,
    lens: Option<PyReadonlyArray1<'py, i64>>,
    rescaling: &Rescaling,
    positions: Option<PyReadonlyArray1<'py, i64>>,
) -> PyResult<Bound<'py, PyDict>> {
    let [rows, cols] = scores.shape();
    let lens = lens.map(|lens| lengths(&lens, rows, cols)).transpose()?;
    let positions = positions.map(|positions| places(&positions, rows)).transpose()?;
    let (rule, positions) = (&rescaling.0, positions.as_deref());
    let elements = scores.elements()?;
    let rows = without_lock(py, || match elements {
        Out::F32(data) => replace(ScoresMut::dense(data, rows, cols), lens.as_deref(), rule, positions),
        Out::F16(data) => replace(ScoresMut::dense(data, rows, cols), lens.as_deref(), rule, positions),
        Out::Bf16(data) => replace(ScoresMut::dense(data, rows, cols), lens.as_deref(), rule, positions),
    })?;
    columns(py, &rows.map_err(raised)?)
}

fn replace<T: Element>(
    scores: critbeta::Result<ScoresMut<T>>,
    lens: Option<&[u32]>,
    rule: &critbeta::Rescaling,
    positions: Option<&[u32]>,
) -> critbeta::Result<Found> {
    let scores = scores?;
    let mut scores = match lens {
        Some(lens) => scores.with_lens(lens)?,
        None => scores,
    };
    let note = note(&scores.as_scores(), &[], rule);
    Ok((cpu::softmax_in_place(&mut scores, rule, positions)?, Vec::new(), note))
}

fn columns<'py>(py: Python<'py>, (rows, shifts, note): &Found) -> PyResult<Bound<'py, PyDict>> {
    if let Some(note) = note {
        // The frames between are two functions of this package.
        let note = CString::new(format!("scores: {note}"))?;
        PyErr::warn(py, &py.get_type::<PyUserWarning>(), &note, 3)?;
    }
    let columns = PyDict::new(py);
    let tops = || rows.iter().map(|row| row.top);
    let shift = |row: usize| shifts.get(row).copied().unwrap_or(0.0);
    let max = tops().enumerate().map(|(row, top)| f64::from(top.max) + shift(row));
    columns.set_item("beta", PyArray1::from_iter(py, rows.iter().map(|row| row.beta)))?;
    columns.set_item("log_partition", PyArray1::from_iter(py, rows.iter().map(|row| row.log_partition)))?;
    columns.set_item("n", PyArray1::from_iter(py, tops().map(|top| top.len as i64)))?;
    columns.set_item("max", PyArray1::from_iter(py, max))?;
    columns.set_item("argmax", PyArray1::from_iter(py, tops().map(|top| top.argmax as i64)))?;
    columns.set_item("ties", PyArray1::from_iter(py, tops().map(|top| top.ties as i64)))?;
    columns.set_item("poisoned", PyArray1::from_iter(py, tops().map(|top| top.poisoned)))?;
    Ok(columns)
}
