//! One case on a GPU or its simulator.

use super::{Case, Method, RULES, RowResult};
use crate::input::elements;
use critbeta::cuda::{Call, DeviceMemory, DeviceOutput, DeviceRows, Engine, RowReport, Workspace};
use critbeta::{Error, Rescaling, Result};

/// Larger than the L2 cache of any GPU.
const FLUSH_BYTES: usize = 256 << 20;

/// One case in device memory, ready to be run with any method and any number of times.
pub(super) struct EngineRows<'e> {
    engine: &'e Engine,
    case: Case,
    scores: DeviceMemory,
    out: DeviceMemory,
    report: DeviceMemory,
    workspace: DeviceMemory,
    flush: DeviceMemory,
}

impl<'e> EngineRows<'e> {
    /// Uploads `bytes`, which are whole rows, until the case has its scores.
    pub(super) fn new(engine: &'e Engine, case: Case, bytes: &[u8]) -> Result<Self> {
        let Case { rows, n, dtype, .. } = case;
        let total = (rows * n) as usize * dtype.size_bytes();
        let mut scores = engine.zeroed(total)?;
        for at in (0..total).step_by(bytes.len()) {
            engine.upload(&mut scores, at, &bytes[..bytes.len().min(total - at)])?;
        }
        let mut placed = EngineRows {
            engine,
            case,
            scores,
            out: engine.zeroed(total)?,
            report: engine.zeroed(rows as usize * size_of::<RowReport>())?,
            workspace: engine.zeroed(1)?,
            flush: engine.zeroed(if engine.is_simulated() { 1 } else { FLUSH_BYTES })?,
        };
        let needs = |method| placed.call(method, &RULES).workspace_bytes(engine.arch());
        let needed = [Method::Softmax, Method::Stats].map(needs).into_iter().collect::<Result<Vec<u64>>>()?;
        placed.workspace = engine.zeroed(needed.into_iter().max().unwrap_or(0).max(1) as usize)?;
        Ok(placed)
    }

    /// Device seconds of one run. The L2 cache is overwritten before it.
    pub(super) fn seconds(&mut self, method: Method) -> Result<f64> {
        let call = self.call(method, &RULES);
        let workspace = Workspace { address: self.workspace.address(), bytes: self.workspace.bytes() as u64 };
        let EngineRows { engine, scores, out, report, workspace: memory, flush, .. } = self;
        match method {
            Method::Copy => engine.time_copy(scores, out, flush),
            Method::CopyNt | Method::NaiveSort => {
                Err(Error::Settings { detail: format!("{} is a method of CPUs", method.name()) })
            }
            _ => {
                let memory = &mut [scores, out, report, memory];
                engine.time_within(&call, Some(workspace), memory, flush)
            }
        }
    }

    fn call<'r>(&self, method: Method, (fixed, critical): &'r (Rescaling, Rescaling)) -> Call<'r> {
        let Case { rows, n, dtype, .. } = self.case;
        let plain = matches!(method, Method::Softmax | Method::Stats);
        let scores = DeviceRows::dense(self.scores.address(), dtype, rows, n);
        let out = DeviceOutput::new(self.out.address(), dtype, n);
        let mut call = match method {
            Method::Stats => Call::statistics(scores, self.report.address(), fixed),
            _ => Call::softmax(scores, out, if plain { fixed } else { critical }),
        };
        call.top_k = method.measure().top_k;
        // A plain softmax reports nothing.
        call.report = (method != Method::Softmax).then_some(self.report.address());
        call
    }

    /// The result of `row` in the last run, which was `method`.
    pub(super) fn result(&self, method: Method, row: u64) -> Result<RowResult> {
        let slack = 2f64.powi(-22);
        if method.is_copy() || method == Method::Softmax {
            return Ok(RowResult { critical: None, beta: 1.0, slack });
        }
        let mut report: RowReport = bytemuck::Zeroable::zeroed();
        let at = row as usize * size_of_val(&report);
        self.engine.download(&self.report, at, bytemuck::bytes_of_mut(&mut report))?;
        Ok(RowResult { critical: Some(report.decode(method.measure()).critical), beta: report.beta, slack })
    }

    /// The output of the last run for `row`.
    pub(super) fn out(&self, row: u64) -> Result<Vec<f64>> {
        let Case { n, dtype, .. } = self.case;
        let size = dtype.size_bytes();
        let mut bytes = vec![0; n as usize * size];
        self.engine.download(&self.out, row as usize * bytes.len(), &mut bytes)?;
        Ok((0..n as usize).map(|i| elements::read(dtype, &bytes, i * size)).collect())
    }
}
