//! Attention of query tokens over pages of keys and values.

use crate::block::{Block, Data, Out, Target};
use crate::errors::raised;
use crate::measure::settings;
use crate::numbers::{Whole, top_k as checked};
use crate::rows::Rows;
use crate::rules::Rescaling;
use crate::threads::without_lock_if_small;
use critbeta::attention::{self, BlockTable, DecodeCall, DecodeRow, PagedKv, Pages, Queries, Sequences};
use critbeta::cpu::{Measure, RowReport};
use critbeta::{Element, Result};
use critbeta_diagnose::{RowPlace, RowRecord, Settings};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// The memory of a pool as one row, from its first element to its last. Then the sizes and the strides of
/// page, slot, head and element.
type Pool<'py> = (Block<'py>, [usize; 4], [usize; 4]);
/// A block of dense queries [tokens x heads, head_dim], their shape, and how many each sequence has.
type Tokens<'py> = (Block<'py>, [usize; 3], Option<PyReadonlyArray1<'py, i32>>);
type Indices<'py> = PyReadonlyArray1<'py, i32>;
type Reals<'py> = PyReadonlyArray1<'py, f32>;

/// Block tables: [sequences, blocks], or indptr and indices.
#[derive(FromPyObject)]
pub enum Tables<'py> {
    Rows(PyReadonlyArray2<'py, i32>),
    Ragged(PyReadonlyArray1<'py, i32>, PyReadonlyArray1<'py, i32>),
}

impl Tables<'_> {
    fn view(&self) -> PyResult<BlockTable<'_>> {
        match self {
            Tables::Rows(table) => {
                let [seqs, blocks] = [table.shape()[0], table.shape()[1]];
                BlockTable::rows(table.as_slice()?, [seqs, blocks], blocks)
            }
            Tables::Ragged(indptr, indices) => BlockTable::ragged(indptr.as_slice()?, indices.as_slice()?),
        }
        .map_err(raised)
    }
}

/// The scale, the rescalings, the softcap and the window.
type Rules<'py> = (Option<f64>, Vec<PyRef<'py, Rescaling>>, Option<f64>, Option<Whole>);
/// eps, the radii and the centre.
type Skip<'py> = (f64, Option<Reals<'py>>, Option<Reals<'py>>);

/// What every call on pages needs, usable without the interpreter lock.
struct Given<'a> {
    queries: &'a [f32],
    shape: [usize; 3],
    query_lens: Option<&'a [i32]>,
    sequences: Sequences<'a>,
    call: DecodeCall<'a>,
}

impl Given<'_> {
    fn queries(&self) -> Result<Queries<'_, f32>> {
        let queries = Queries::dense(self.queries, self.shape)?;
        Ok(match self.query_lens {
            Some(lens) => queries.with_lens(lens),
            None => queries,
        })
    }

    fn decode<T: Element>(
        &self,
        k: Result<Pages<T>>,
        v: Result<Pages<T>>,
        out: Out,
    ) -> Result<Vec<DecodeRow>> {
        let (queries, kv) = (self.queries()?, PagedKv::new(k?, v?)?);
        match out {
            Out::F32(out) => attention::decode(&queries, &kv, &self.sequences, &self.call, out),
            Out::F16(out) => attention::decode(&queries, &kv, &self.sequences, &self.call, out),
            Out::Bf16(out) => attention::decode(&queries, &kv, &self.sequences, &self.call, out),
        }
    }

    fn measure<T: Element>(&self, k: Result<Pages<T>>) -> Result<Vec<RowReport>> {
        attention::measure(&self.queries()?, &k?, &self.sequences, &self.call)
    }

    /// The position of every query token.
    fn positions(&self, lens: &[i32]) -> Vec<u64> {
        let of_sequence = |(seq, &len): (usize, &i32)| {
            let query_len = self.query_lens.map_or(1, |lens| i64::from(lens[seq]));
            (0..query_len).map(move |token| (i64::from(len) - query_len + token).max(0) as u64)
        };
        lens.iter().enumerate().flat_map(of_sequence).collect()
    }
}

/// The queries as f32. Every element has that value exactly.
fn widened(queries: &Block) -> PyResult<Vec<f32>> {
    match queries.rows(None)?.data {
        Data::F32(data) => Ok(data.to_vec()),
        Data::F16(data) => Ok(data.iter().map(|q| q.to_f32()).collect()),
        Data::Bf16(data) => Ok(data.iter().map(|q| q.to_f32()).collect()),
        Data::F64(_) => Err(PyTypeError::new_err("queries of float64")),
    }
}

fn pool<T: Element>(data: &[T], [sizes, strides]: [[usize; 4]; 2]) -> Result<Pages<'_, T>> {
    let [page, slot, head, element] = strides;
    Pages::strided(data, sizes, attention::Strides { page, slot, head, element })
}

fn refused<T>(detail: &str) -> Result<T> {
    Err(critbeta::Error::Settings { detail: detail.to_owned() })
}

/// Writes the output of every query token and head, and returns what is known about each row. With `measured`
/// there is also the critical beta of every row.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn decode<'py>(
    py: Python<'py>,
    queries: Tokens<'py>,
    keys: Pool<'py>,
    values: Pool<'py>,
    tables: Tables<'py>,
    lens: Indices<'py>,
    rules: Rules<'py>,
    skip: Skip<'py>,
    mut out: Target<'py>,
    measured: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let (eps, radii, centre) = &skip;
    let rescaling: Vec<_> = rules.1.iter().map(|rule| rule.0.clone()).collect();
    let mut call = DecodeCall::new(&rescaling);
    call.eps = *eps;
    call.v_radius = radii.as_ref().map(|radii| radii.as_slice()).transpose()?;
    call.centre = centre.as_ref().map(|centre| centre.as_slice()).transpose()?;
    call.measure = measured.then(Measure::default);
    let wide = widened(&queries.0)?;
    let given = given(&wide, &queries, &tables, &lens, rules, call)?;
    let (k, v, out) = (keys.0.rows(None)?.data, values.0.rows(None)?.data, out.elements()?);
    let (of_k, of_v) = ([keys.1, keys.2], [values.1, values.2]);
    let small = attention::is_small(&given.sequences, keys.1[2], keys.1[3]);
    let rows = without_lock_if_small(py, small, || match (k, v) {
        (Data::F32(k), Data::F32(v)) => given.decode(pool(k, of_k), pool(v, of_v), out),
        (Data::F16(k), Data::F16(v)) => given.decode(pool(k, of_k), pool(v, of_v), out),
        (Data::Bf16(k), Data::Bf16(v)) => given.decode(pool(k, of_k), pool(v, of_v), out),
        _ => refused("keys and values of two types, or of float64"),
    })?
    .map_err(raised)?;
    let columns = PyDict::new(py);
    let share = |row: &DecodeRow| row.dropped as f64 / 4_294_967_296.0;
    columns.set_item("beta", PyArray1::from_iter(py, rows.iter().map(|row| row.row.beta)))?;
    if measured {
        let critical = rows.iter().map(|row| row.report.map_or(f64::NAN, |report| report.critical.beta));
        columns.set_item("critical_beta", PyArray1::from_iter(py, critical))?;
    }
    columns.set_item("lse", PyArray1::from_iter(py, rows.iter().map(DecodeRow::lse)))?;
    columns.set_item("dropped", PyArray1::from_iter(py, rows.iter().map(share)))?;
    columns.set_item("kept", PyArray1::from_iter(py, rows.iter().map(|row| row.kept as i64)))?;
    columns.set_item("bound", PyArray1::from_iter(py, rows.iter().map(|row| row.bound)))?;
    Ok(columns)
}

/// The records of the rows of query tokens and heads over pages of keys, in the order [tokens, heads].
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn measure<'py>(
    py: Python<'py>,
    queries: Tokens<'py>,
    keys: Pool<'py>,
    tables: Tables<'py>,
    lens: Indices<'py>,
    rules: Rules<'py>,
    resolve: f64,
    top_k: Option<Whole>,
) -> PyResult<Rows> {
    let rescaling: Vec<_> = rules.1.iter().map(|rule| rule.0.clone()).collect();
    let (settings, notes) = settings_of(&rescaling, resolve, checked(top_k)?)?;
    let mut call = DecodeCall::new(&rescaling);
    call.measure = Some(settings.measure);
    let wide = widened(&queries.0)?;
    let given = given(&wide, &queries, &tables, &lens, rules, call)?;
    let (data, of_k) = (keys.0.rows(None)?.data, [keys.1, keys.2]);
    let small = attention::is_small(&given.sequences, keys.1[2], keys.1[3]);
    let reports = without_lock_if_small(py, small, || match data {
        Data::F32(data) => given.measure(pool(data, of_k)),
        Data::F16(data) => given.measure(pool(data, of_k)),
        Data::Bf16(data) => given.measure(pool(data, of_k)),
        Data::F64(_) => refused("keys of float64"),
    })?
    .map_err(raised)?;
    let (heads, positions) = (given.shape[1], given.positions(lens.as_slice()?));
    let records = records(&reports, heads, &positions, settings.measure.top_k.is_some());
    Ok(Rows { records: Arc::new(records), settings, notes })
}

/// The settings of rows that run at the betas of `rules`, and what to say of them.
pub fn settings_of(
    rules: &[critbeta::Rescaling],
    resolve: f64,
    top_k: Option<usize>,
) -> PyResult<(Settings, Vec<String>)> {
    let (beta, note) = match rules {
        [critbeta::Rescaling::Identity] => (1.0, None),
        [critbeta::Rescaling::Fixed(beta)] => (*beta, None),
        _ => (1.0, Some("each row runs at the beta that its rescaling chose".to_owned())),
    };
    Ok((settings(resolve, beta, top_k)?, note.into_iter().collect()))
}

fn given<'a>(
    wide: &'a [f32],
    queries: &'a Tokens,
    tables: &'a Tables,
    lens: &'a Indices,
    rules: Rules,
    mut call: DecodeCall<'a>,
) -> PyResult<Given<'a>> {
    let (scale, _, softcap, window) = rules;
    (call.scale, call.softcap) = (scale, softcap);
    call.window = window.map(|window| window.count("window")).transpose()?;
    let sequences = Sequences::new(tables.view()?, lens.as_slice()?).map_err(raised)?;
    let query_lens = queries.2.as_ref().map(|lens| lens.as_slice()).transpose()?;
    Ok(Given { queries: wide, shape: queries.1, query_lens, sequences, call })
}

/// The records of `reports` [tokens x heads], with the position of every token. A query token is a row of
/// each head.
pub fn records(reports: &[RowReport], heads: usize, positions: &[u64], has_top_k: bool) -> Vec<RowRecord> {
    let (layer, heads): (Arc<str>, _) = ("attention".into(), heads.max(1));
    let record = |(index, report): (usize, &RowReport)| {
        let (token, head) = (index / heads, index % heads);
        let (layer, position) = (Arc::clone(&layer), positions[token]);
        let place = RowPlace { layer, head: head as u64, row: token as u64, position };
        RowRecord::new(place, report, 0.0, has_top_k)
    };
    reports.iter().enumerate().map(record).collect()
}
