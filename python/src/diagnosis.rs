//! Diagnoses of what is in memory.

use crate::block::{Block, Data, indices};
use crate::measure::settings;
use crate::raised;
use crate::rows::{Record, Rows};
use crate::threads::without_lock;
use critbeta::DType;
use critbeta::diagnose::{Diagnosis, RowRecord, Settings, scan};
use critbeta::input::{Input, QkPair, Source, Values};
use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::path::PathBuf;

/// The summary of records as the JSON that the command writes, and the records.
fn summed_up(records: Vec<RowRecord>, settings: &Settings, seed: u64) -> PyResult<(String, Rows)> {
    let mut diagnosis = Diagnosis::new(&[], *settings, seed);
    diagnosis.add(&records);
    let summary = serde_json::to_string(&diagnosis.summary());
    let summary = summary.map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    Ok((summary, Rows { records, settings: *settings }))
}

#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn diagnose_scores(
    py: Python<'_>,
    scores: Block<'_>,
    lens: Option<PyReadonlyArray1<'_, i64>>,
    positions: Option<PyReadonlyArray1<'_, i64>>,
    rows_per_head: usize,
    layer: &str,
    resolve: f64,
    beta: f64,
    train_length: f64,
    seed: u64,
) -> PyResult<(String, Rows)> {
    let settings = Settings { train_length, ..settings(resolve, beta, None)? };
    settings.check().map_err(raised)?;
    let rows = scores.rows(lens.as_ref())?;
    let positions = positions.map(|positions| indices(&positions, rows.rows)).transpose()?;
    let (positions, measure) = (positions.as_deref(), settings.measure);
    let record = Record { layer, rows_per_head, positions, beta, measure };
    without_lock(py, || rows.run(record).and_then(|records| summed_up(records, &settings, seed)))?
}

#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn diagnose_pair(
    py: Python<'_>,
    q: Block<'_>,
    k: Block<'_>,
    shapes: [[usize; 3]; 2],
    positions: Option<PyReadonlyArray1<'_, i64>>,
    scale: Option<f64>,
    layer: &str,
    resolve: f64,
    beta: f64,
    train_length: f64,
    seed: u64,
) -> PyResult<(String, Rows)> {
    let settings = Settings { train_length, ..settings(resolve, beta, None)? };
    settings.check().map_err(raised)?;
    let pair = pair(&q, &k, shapes, positions, scale, layer)?;
    without_lock(py, || summed_up(scanned(pair, &settings)?, &settings, seed))?
}

/// The records of queries and keys, without a summary of them.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn record_pair(
    py: Python<'_>,
    q: Block<'_>,
    k: Block<'_>,
    shapes: [[usize; 3]; 2],
    positions: Option<PyReadonlyArray1<'_, i64>>,
    scale: Option<f64>,
    layer: &str,
    resolve: f64,
) -> PyResult<Rows> {
    let settings = settings(resolve, 1.0, None)?;
    let pair = pair(&q, &k, shapes, positions, scale, layer)?;
    let records = without_lock(py, || scanned(pair, &settings))??;
    Ok(Rows { records, settings })
}

fn pair(
    q: &Block,
    k: &Block,
    shapes: [[usize; 3]; 2],
    positions: Option<PyReadonlyArray1<'_, i64>>,
    scale: Option<f64>,
    layer: &str,
) -> PyResult<QkPair> {
    let positions = positions.map(|positions| indices(&positions, shapes[0][1])).transpose()?;
    let [q, k] = [values(q, shapes[0])?, values(k, shapes[1])?];
    QkPair::new(layer, q, k, positions, scale).map_err(raised)
}

fn scanned(pair: QkPair, settings: &Settings) -> PyResult<Vec<RowRecord>> {
    let input = Input { path: PathBuf::new(), sources: vec![Source::Pair(pair)], skipped: Vec::new() };
    let mut records = Vec::new();
    let keep = |more: &[RowRecord]| {
        records.extend_from_slice(more);
        Ok(())
    };
    scan(&[input], settings, keep).map_err(raised)?;
    Ok(records)
}

/// A copy of queries or keys: a row of scores takes thousands of products for each of their elements.
fn values(block: &Block, shape: [usize; 3]) -> PyResult<Values> {
    let (dtype, bytes): (DType, &[u8]) = match block.rows(None)?.data {
        Data::F64(data) => (DType::F64, bytemuck::cast_slice(data)),
        Data::F32(data) => (DType::F32, bytemuck::cast_slice(data)),
        Data::F16(data) => (DType::F16, bytemuck::cast_slice(data)),
        Data::Bf16(data) => (DType::Bf16, bytemuck::cast_slice(data)),
    };
    Ok(Values { dtype, shape, bytes: bytes.to_vec() })
}
