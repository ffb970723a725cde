//! The CUDA kernels on memory that torch owns. Python passes addresses as integers, and its stream. Only this
//! file and `block.rs` have unsafe code.
#![allow(unsafe_code)]

use crate::attention;
use crate::errors::raised;
use crate::numbers::{Whole, top_k as checked};
use crate::rows::Rows;
use crate::rules::Rescaling;
use critbeta::DType;
use critbeta::attention::Strides;
use critbeta::cpu::{self, Measure};
use critbeta::cuda::{
    self, Arch, Call, DecodeCall, DecodePlan, DecodeShape, DeviceAttention, DeviceOutput, DevicePages,
    DeviceQueries, DeviceRows, DeviceSequences, MeasureCall, Plan, Prediction, Problem, RowReport,
    SimtOptions, SkipReport, Workspace,
};
use critbeta_diagnose::{RowPlace, RowRecord};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::mem::offset_of;
use std::sync::Arc;

/// The address of queries, `[tokens, heads, most tokens of a sequence]`, the strides of tokens and heads, and
/// the address of where the tokens of each sequence begin.
type Queries = (u64, [u64; 3], [u64; 2], Option<u64>);
/// The address and dtype of keys or values, `[pages, page, kv_heads, head_dim]`, and their strides.
type Pages<'a> = (u64, &'a str, [u64; 4], [usize; 4]);
/// The address of page numbers, `[seqs, blocks, distance of rows]`, the address of lengths, and the most keys
/// of a sequence.
type Sequences = (u64, [u64; 3], u64, u64);
/// The scale, the softcap and the window.
type Scores = (Option<f64>, Option<f64>, Option<Whole>);
/// The values, and the share of a row's probabilities whose values may stay unread.
type Values<'a> = (Pages<'a>, f64);
/// The address and dtype of an output, `[tokens, heads, head_dim]`, and the strides of tokens and heads.
type Attention<'a> = (u64, &'a str, [u64; 2]);

/// A GPU whose kernels are loaded, or their simulator.
#[pyclass(frozen, module = "critbeta._core")]
pub struct Engine {
    /// The engine is never dropped. At exit the driver may be gone before it, and a forked child must not use
    /// it.
    engine: &'static cuda::Engine,
    process: u32,
}

impl Engine {
    fn of(engine: critbeta::Result<cuda::Engine>) -> PyResult<Self> {
        let engine = Box::leak(Box::new(engine.map_err(raised)?));
        Ok(Engine { engine, process: std::process::id() })
    }

    /// Errors: RuntimeError in a forked child of the process that opened it. There, every call of the driver
    /// would fail or wait for ever.
    fn alive(&self) -> PyResult<&'static cuda::Engine> {
        match self.process == std::process::id() {
            true => Ok(self.engine),
            false => Err(PyRuntimeError::new_err(format!(
                "CUDA was opened in process {} and does not survive its fork to {}: \
                 use the start method 'spawn'",
                self.process,
                std::process::id()
            ))),
        }
    }
}

#[pymethods]
impl Engine {
    /// Opens the GPU of this number. The first launch of each kernel takes seconds where NVRTC compiles it,
    /// and says so on stderr. A cache on disk keeps it.
    #[staticmethod]
    fn cuda(py: Python<'_>, ordinal: usize) -> PyResult<Self> {
        Engine::of(py.detach(|| cuda::Engine::cuda(ordinal)))
    }

    /// Opens the simulator of a GPU of this architecture (`sm_90`), for tests. The build needs the feature
    /// `simt`.
    #[staticmethod]
    fn simulated(arch: &str) -> PyResult<Self> {
        let arch = Arch::named(arch).map_err(raised)?;
        Engine::of(cuda::Engine::simulated(SimtOptions::of(arch)))
    }

    /// The device, its capability, and the origin of its kernels.
    #[getter]
    fn description(&self) -> String {
        self.engine.description()
    }

    /// Bytes of workspace that a launch over these rows needs; 0 for none.
    fn workspace_bytes(&self, rows: u64, cols: u64, dtype: &str, has_out: bool) -> PyResult<u64> {
        let problem = if has_out { Problem::softmax } else { Problem::statistics };
        let plan = Plan::choose(&problem(rows, cols, element(dtype)?), self.engine.arch());
        Ok(plan.map_err(raised)?.workspace_bytes())
    }

    /// What a launch over these rows should take: for each kind of rows its name and the expected, fastest
    /// and slowest seconds (`critbeta::cuda::Prediction`). The list is empty for other GPUs than an H200.
    fn predictions(
        &self,
        rows: u64,
        cols: u64,
        dtype: &str,
        has_out: bool,
    ) -> PyResult<Vec<(&'static str, f64, f64, f64)>> {
        let problem = if has_out { Problem::softmax } else { Problem::statistics };
        let plan = Plan::choose(&problem(rows, cols, element(dtype)?), self.engine.arch()).map_err(raised)?;
        let of = |of: Prediction| (of.path, of.seconds, of.fastest, of.slowest);
        Ok(plan.predictions().into_iter().map(of).collect())
    }

    /// What a decode step should take: seconds at a given beta, and at a critical one near the top
    /// (`critbeta::cuda::DecodePlan`); None for other GPUs than an H200. The shape is `[seqs, heads,
    /// kv_heads, head_dim, keys, page]`, and `keep` the share of the values that is read.
    fn decode_predictions(
        &self,
        shape: [u64; 6],
        dtype: &str,
        eps: f64,
        keep: f64,
    ) -> PyResult<Option<[f64; 2]>> {
        let ([seqs, heads, kv_heads, dim, len, page], dtype) = (shape, element(dtype)?);
        let shape = DecodeShape { seqs, query_len: 1, heads, kv_heads, dim, len, page, dtype, eps, keep };
        Ok(DecodePlan::choose(&shape, self.engine.arch()).map_err(raised)?.seconds())
    }

    /// Enqueues a launch on `stream` and returns. All numbers except shapes and `stream` are addresses of
    /// device memory.
    #[allow(clippy::too_many_arguments)]
    fn launch(
        &self,
        py: Python<'_>,
        stream: u64,
        scores: (u64, &str),
        shape: [u64; 3],
        lens: Option<u64>,
        positions: Option<u64>,
        rescaling: &Rescaling,
        out: Option<(u64, &str, u64)>,
        report: Option<u64>,
        workspace: Option<[u64; 2]>,
        resolve: f64,
        top_k: Option<Whole>,
        sums: bool,
        both: bool,
    ) -> PyResult<()> {
        let (engine, top_k) = (self.alive()?, checked(top_k)?);
        let ((address, dtype), [rows, cols, stride]) = (scores, shape);
        let mut rows = DeviceRows::dense(address, element(dtype)?, rows, cols);
        (rows.stride, rows.lens) = (stride, lens);
        let mut call = match out {
            None => Call::statistics(rows, report.unwrap_or(0), &rescaling.0),
            Some((address, dtype, stride)) => {
                Call::softmax(rows, DeviceOutput::new(address, element(dtype)?, stride), &rescaling.0)
            }
        };
        (call.positions, call.report, call.top_k, call.sums) = (positions, report, top_k, sums);
        call.resolve = (resolve != 0.0).then_some(resolve);
        call.both = both && resolve != 0.0;
        let workspace = workspace.map(|[address, bytes]| Workspace { address, bytes });
        // SAFETY: `critbeta/_cuda.py` is the one caller. It takes every address and size from a torch tensor
        // on this engine's device. The tensor is an argument of the call or is made for it. Torch's allocator
        // gives its memory to others only in the order of `stream`, which is torch's current stream. By the
        // contract of every torch operation, nobody else writes what the launch reads, or touches what it
        // writes, before then. The launch checks alignment, strides and overlaps.
        py.detach(|| unsafe { engine.launch(&call, workspace, stream) }).map_err(raised)
    }

    /// Bytes of workspace that launches over these pages need, and how many from the begin must be 0 before
    /// the first. Without values they only measure.
    fn pages_workspace_bytes(
        &self,
        queries: Queries,
        keys: Pages<'_>,
        sequences: Sequences,
        scores: Scores,
        values: Option<Values<'_>>,
    ) -> PyResult<[u64; 2]> {
        let rows = measuring(queries, keys, sequences, scores, &critbeta::Rescaling::Identity)?;
        let bytes = match values {
            None => rows.workspace_bytes(),
            Some(values) => decoding(rows, values)?.workspace_bytes(),
        };
        Ok([bytes.map_err(raised)?, MeasureCall::ZEROED_BYTES])
    }

    /// Enqueues the launches that measure rows over pages of keys on `stream`, and returns. `betas` and
    /// `report` are addresses of device memory, and so is the first number of `workspace`.
    #[allow(clippy::too_many_arguments)]
    fn launch_measure(
        &self,
        py: Python<'_>,
        stream: u64,
        queries: Queries,
        keys: Pages<'_>,
        sequences: Sequences,
        scores: Scores,
        workspace: [u64; 2],
        rescaling: &Rescaling,
        betas: u64,
        report: Option<u64>,
        resolve: Option<f64>,
        both: bool,
        sums: bool,
    ) -> PyResult<()> {
        let engine = self.alive()?;
        let mut call = measuring(queries, keys, sequences, scores, &rescaling.0)?;
        (call.betas, call.report, call.resolve, call.both, call.sums) =
            (Some(betas), report, resolve, both, sums);
        let [address, bytes] = workspace;
        // SAFETY: `critbeta/_cuda_pages.py` is the one caller. As for `launch`, every address, size and
        // stride is that of a torch tensor on this engine's device, which is an argument of the call or is
        // made for it. The launch checks alignment, strides and overlaps, and its kernels read no page and no
        // token that these sizes do not have, whatever the lengths and page numbers in device memory are.
        py.detach(|| unsafe { engine.launch_measure(&call, Workspace { address, bytes }, stream) })
            .map_err(raised)
    }

    /// Enqueues the launches that write the attention of rows to `out` on `stream`, and returns. `report` and
    /// `skips` are addresses of device memory, and so is the first number of `workspace`.
    #[allow(clippy::too_many_arguments)]
    fn launch_decode(
        &self,
        py: Python<'_>,
        stream: u64,
        queries: Queries,
        keys: Pages<'_>,
        sequences: Sequences,
        scores: Scores,
        workspace: [u64; 2],
        values: Values<'_>,
        out: Attention<'_>,
        rescaling: &Rescaling,
        report: Option<u64>,
        skips: Option<u64>,
    ) -> PyResult<()> {
        let engine = self.alive()?;
        let mut rows = measuring(queries, keys, sequences, scores, &rescaling.0)?;
        // A report has Z, which the output needs, and nobody asks for the entropy.
        (rows.report, rows.sums) = (report, false);
        let mut call = decoding(rows, values)?;
        let (address, dtype, strides) = out;
        (call.out.address, call.out.dtype, call.out.strides) = (address, element(dtype)?, strides);
        call.skips = skips;
        let [address, bytes] = workspace;
        // SAFETY: `critbeta/_cuda_decode.py` is the one caller, as `launch_measure` says of its own. The
        // launch checks that the output overlaps nothing that it reads.
        py.detach(|| unsafe { engine.launch_decode(&call, Workspace { address, bytes }, stream) })
            .map_err(raised)
    }
}

/// A call that writes nothing yet.
fn measuring<'a>(
    (address, [tokens, heads, query_len], strides, starts): Queries,
    keys: Pages<'_>,
    (table, [seqs, blocks, stride], lens, max_len): Sequences,
    (scale, softcap, window): Scores,
    rescaling: &'a critbeta::Rescaling,
) -> PyResult<MeasureCall<'a>> {
    let pages = pages(keys)?;
    let mut queries = DeviceQueries::dense(address, [tokens, heads, pages.dim]);
    (queries.strides, queries.query_len, queries.starts) = (strides, query_len, starts);
    let mut sequences = DeviceSequences::dense(table, [seqs, blocks], lens, max_len);
    sequences.stride = stride;
    let mut call = MeasureCall::new(queries, pages, sequences, rescaling, 0);
    (call.betas, call.scale, call.softcap) = (None, scale, softcap);
    call.window = window.map(|window| window.named("window")).transpose()?;
    Ok(call)
}

/// A call that reads the values of the rows of another. It writes to address 0, which the caller replaces.
fn decoding<'a>(rows: MeasureCall<'a>, (values, eps): Values<'_>) -> PyResult<DecodeCall<'a>> {
    let MeasureCall { queries, keys, sequences, rescaling, .. } = rows;
    let values = pages(values)?;
    let out = DeviceAttention::dense(0, values.dtype, [queries.heads, values.dim]);
    let mut call = DecodeCall::new(queries, keys, values, sequences, rescaling, out);
    (call.rows, call.eps) = (rows, eps);
    Ok(call)
}

fn pages((address, dtype, sizes, [page, slot, head, element]): Pages<'_>) -> PyResult<DevicePages> {
    let pages = DevicePages::nhd(address, self::element(dtype)?, sizes);
    Ok(pages.with_strides(Strides { page, slot, head, element }))
}

fn element(name: &str) -> PyResult<DType> {
    name.parse().map_err(PyValueError::new_err)
}

/// The size of the report of a launch on one row, and the offset of each field.
#[pyfunction]
pub fn report_layout() -> [(&'static str, usize); 10] {
    [
        ("bytes", size_of::<RowReport>()),
        ("max", offset_of!(RowReport, max)),
        ("n", offset_of!(RowReport, len)),
        ("ties", offset_of!(RowReport, ties)),
        ("argmax", offset_of!(RowReport, argmax)),
        ("poisoned", offset_of!(RowReport, poisoned)),
        ("critical", offset_of!(RowReport, critical)),
        ("resolved", offset_of!(RowReport, resolved)),
        ("beta", offset_of!(RowReport, beta)),
        ("sum", offset_of!(RowReport, sum)),
    ]
}

/// As `report_layout`, of what a launch says of a key head of a sequence.
#[pyfunction]
pub fn skip_layout() -> [(&'static str, usize); 4] {
    [
        ("bytes", size_of::<SkipReport>()),
        ("dropped", offset_of!(SkipReport, dropped)),
        ("keys", offset_of!(SkipReport, keys)),
        ("unread", offset_of!(SkipReport, unread)),
    ]
}

/// The records of the reports [rows, bytes of a report] of a launch without an output.
#[pyfunction]
pub fn rows_of_reports(
    reports: PyReadonlyArray2<'_, u8>,
    positions: PyReadonlyArray1<'_, i64>,
    rows_per_head: usize,
    resolve: f64,
    beta: f64,
    top_k: Option<Whole>,
) -> PyResult<Rows> {
    let settings = crate::measure::settings(resolve, beta, checked(top_k)?)?;
    let top_k = settings.measure.top_k;
    let (positions, layer): (_, Arc<str>) = (positions.as_array(), "scores".into());
    let reports = decoded(&reports, positions.len(), settings.measure)?;
    let record = |(index, (mut report, &position)): (usize, (cpu::RowReport, &i64))| {
        let (head, row) = (index / rows_per_head.max(1), index % rows_per_head.max(1));
        let layer = Arc::clone(&layer);
        let place = RowPlace { layer, head: head as u64, row: row as u64, position: position as u64 };
        // All rows were measured at this beta, poisoned ones too.
        report.beta = beta;
        RowRecord::new(place, &report, 0.0, top_k.is_some())
    };
    let records = reports.into_iter().zip(positions).enumerate().map(record).collect();
    Ok(Rows { records: Arc::new(records), settings, notes: Vec::new() })
}

/// The records of the reports [tokens x heads, bytes of a report] of launches over pages. The resolve of the
/// reports is `resolve`.
#[pyfunction]
pub fn rows_of_pages(
    reports: PyReadonlyArray2<'_, u8>,
    positions: PyReadonlyArray1<'_, i64>,
    heads: usize,
    rules: Vec<PyRef<'_, Rescaling>>,
    resolve: f64,
) -> PyResult<Rows> {
    let rules: Vec<_> = rules.iter().map(|rule| rule.0.clone()).collect();
    let (settings, notes) = attention::settings_of(&rules, resolve, None)?;
    let positions: Vec<u64> = positions.as_array().iter().map(|&position| position as u64).collect();
    let reports = decoded(&reports, positions.len() * heads, settings.measure)?;
    let records = attention::records(&reports, heads, &positions, false);
    Ok(Rows { records: Arc::new(records), settings, notes })
}

/// Errors: ValueError unless there is a report for each of `rows`.
fn decoded(
    reports: &PyReadonlyArray2<'_, u8>,
    rows: usize,
    measure: Measure,
) -> PyResult<Vec<cpu::RowReport>> {
    let (shape, bytes) = (reports.shape(), size_of::<RowReport>());
    if shape != [rows, bytes] {
        let message =
            format!("reports of shape {shape:?}: expected [{rows}, {bytes}], one report for every position");
        return Err(PyValueError::new_err(message));
    }
    let reports = reports.as_slice()?.chunks_exact(bytes);
    Ok(reports.map(|report| bytemuck::pod_read_unaligned::<RowReport>(report).decode(measure)).collect())
}
