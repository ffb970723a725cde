//! Row records of queries and keys in memory.

use crate::block::{Block, Data, indices};
use crate::errors::raised;
use crate::measure::settings;
use crate::rows::Rows;
use crate::threads::without_lock;
use critbeta::DType;
use critbeta_diagnose::input::{Input, QkPair, Source, Values};
use critbeta_diagnose::{RowRecord, Settings, scan};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// The records of queries and keys. Heads may be those of several texts, `texts` times as many.
#[pyfunction]
#[pyo3(signature = (q, k, shapes, positions, scale, layer, resolve, beta, texts = 1))]
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
    beta: f64,
    texts: usize,
) -> PyResult<Rows> {
    let settings = settings(resolve, beta, None)?;
    let positions = positions.map(|positions| indices("positions", &positions, shapes[0][1])).transpose()?;
    let [q, k] = [values(&q, shapes[0])?, values(&k, shapes[1])?];
    let pair = QkPair::new(layer, q, k, positions, scale).map_err(raised)?;
    let source = Source::Pair(pair);
    // A batch has more key heads than keys for a good reason.
    let notes = source.note().filter(|_| texts == 1).into_iter().collect();
    let records = without_lock(py, || scanned(source, &settings))??;
    Ok(Rows { records: Arc::new(records), settings, notes })
}

fn scanned(source: Source, settings: &Settings) -> PyResult<Vec<RowRecord>> {
    let input = Input { path: PathBuf::new(), sources: vec![source], skipped: Vec::new() };
    let mut records = Vec::new();
    let keep = |more: &[RowRecord]| {
        records.extend_from_slice(more);
        Ok(())
    };
    scan(&[input], settings, keep).map_err(raised)?;
    Ok(records)
}

/// Copies queries or keys. The copy is cheap: a row of scores takes thousands of products for each of their
/// elements.
fn values(block: &Block, shape: [usize; 3]) -> PyResult<Values> {
    let (dtype, bytes): (DType, &[u8]) = match block.rows(None)?.data {
        Data::F64(data) => (DType::F64, bytemuck::cast_slice(data)),
        Data::F32(data) => (DType::F32, bytemuck::cast_slice(data)),
        Data::F16(data) => (DType::F16, bytemuck::cast_slice(data)),
        Data::Bf16(data) => (DType::Bf16, bytemuck::cast_slice(data)),
    };
    Ok(Values { dtype, shape, bytes: bytes.to_vec() })
}
