//! One case on this CPU.

use super::{Case, Method, RULES, RowResult, TOP_K, peers};
use crate::input::elements;
use critbeta::cpu::{self, Measure, RowReport};
use critbeta::{CriticalBeta, DType, Element, Error, Result, Scores};
use half::{bf16, f16};
use rayon::prelude::*;
use std::time::Instant;

/// A thread copies this many bytes at a time. That is as fast as one stretch per thread (57 and 56 GB/s by
/// streaming stores on a quiet machine, 2026-11-25), and nobody waits for a thread whose core is shared.
const COPY_BYTES: usize = 1 << 20;

/// A row needs this much memory for its report, the pieces that threads collect, and the fields that are
/// kept.
const RESULT_BYTES: usize = 4 * size_of::<RowReport>();

/// A cache line. Buffers begin at one, as the large ones of PyTorch and NumPy do.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// One case in memory, ready to be run with any method and any number of times.
pub(super) struct HostRows {
    case: Case,
    scores: Vec<Line>,
    out: Vec<Line>,
    logs: Vec<f64>,
    /// One per row, from the last run that reported them.
    betas: Vec<f64>,
    criticals: Vec<CriticalBeta>,
}

impl HostRows {
    /// Repeats `bytes`, which are whole rows, until the case has its scores.
    pub(super) fn new(case: Case, bytes: &[u8]) -> Result<Self> {
        let total = case.moved_bytes() as usize / 2;
        let lines = |what| {
            let mut lines: Vec<Line> = Vec::new();
            let count = total.div_ceil(size_of::<Line>());
            let Case { rows, n, dtype, .. } = case;
            let detail = || format!("no memory for {total} bytes of {what}: {rows} rows x {n} {dtype}");
            lines.try_reserve_exact(count).map_err(|_| Error::Settings { detail: detail() })?;
            lines.resize(count, bytemuck::Zeroable::zeroed());
            Ok(lines)
        };
        let (mut scores, out) = (lines("scores")?, lines("probabilities")?);
        let all = &mut bytemuck::cast_slice_mut::<Line, u8>(&mut scores)[..total];
        for part in all.chunks_mut(bytes.len()) {
            part.copy_from_slice(&bytes[..part.len()]);
        }
        // This reserves and frees the memory for the reports: a collect that finds none ends the program.
        let mut room: Vec<[u8; RESULT_BYTES]> = Vec::new();
        let rows = case.rows as usize;
        if room.try_reserve_exact(rows).is_err() {
            let detail = format!("no memory for the reports of {rows} rows");
            return Err(Error::Settings { detail });
        }
        let logs = peers::log_ranks(case.n as usize);
        Ok(HostRows { case, scores, out, logs, betas: Vec::new(), criticals: Vec::new() })
    }

    fn bytes(&self) -> usize {
        self.case.moved_bytes() as usize / 2
    }

    /// The scores, rows one after another.
    pub(super) fn scores(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.scores)[..self.bytes()]
    }

    /// Wall seconds of one run.
    pub(super) fn seconds(&mut self, method: Method) -> Result<f64> {
        match (method, self.case.dtype) {
            (Method::Copy, _) => Ok(self.copied(<[u8]>::copy_from_slice)),
            (Method::CopyNt, _) => match cpu::streaming_copy() {
                Some(copy) => Ok(self.copied(|to, from| copy(from, to))),
                None => Err(Error::Settings { detail: "copy_nt: this CPU has no streaming stores".into() }),
            },
            (_, DType::F32) => self.run::<f32>(method),
            (_, DType::F16) => self.run::<f16>(method),
            (_, DType::Bf16) => self.run::<bf16>(method),
            (_, DType::F64) => {
                Err(Error::Settings { detail: "a bench of f64: expected f32, f16 or bf16".into() })
            }
        }
    }

    fn copied(&mut self, copy: impl Fn(&mut [u8], &[u8]) + Sync) -> f64 {
        let bytes = self.bytes();
        let from = &bytemuck::cast_slice::<Line, u8>(&self.scores)[..bytes];
        let to = &mut bytemuck::cast_slice_mut::<Line, u8>(&mut self.out)[..bytes];
        let start = Instant::now();
        to.par_chunks_mut(COPY_BYTES).zip(from.par_chunks(COPY_BYTES)).for_each(|(to, from)| copy(to, from));
        start.elapsed().as_secs_f64()
    }

    fn run<T: Element>(&mut self, method: Method) -> Result<f64> {
        let (rows, n) = (self.case.rows as usize, self.case.n as usize);
        let data = &bytemuck::cast_slice::<Line, T>(&self.scores)[..rows * n];
        let out = &mut bytemuck::cast_slice_mut::<Line, T>(&mut self.out)[..rows * n];
        let (scores, logs) = (Scores::dense(data, rows, n)?, &self.logs);
        let start = Instant::now();
        let taken = || start.elapsed().as_secs_f64();
        match method {
            Method::Softmax | Method::CriticalSoftmax => {
                let rescaling = if method == Method::Softmax { &RULES.0 } else { &RULES.1 };
                let rows = cpu::softmax(&scores, rescaling, None, out)?;
                let seconds = taken();
                self.betas = rows.iter().map(|row| row.beta).collect();
                Ok(seconds)
            }
            Method::Stats => {
                let reports = cpu::row_reports(&scores, 1.0, Measure::default());
                let seconds = taken();
                self.betas = reports.iter().map(|row| row.beta).collect();
                self.criticals = reports.iter().map(|row| row.critical).collect();
                Ok(seconds)
            }
            Method::NaiveSort | Method::TopK => {
                let is_alone = rows < rayon::current_num_threads();
                let beta = |(wide, gaps): &mut (Vec<f32>, Vec<u32>), row| {
                    let row = widened(scores.row(row), wide);
                    let beta = match method {
                        Method::TopK => peers::of_largest(row, TOP_K, logs),
                        _ => peers::sorted(row, logs, is_alone, gaps),
                    };
                    beta as f32
                };
                let betas: Vec<f32> = (0..rows).into_par_iter().map_init(Default::default, beta).collect();
                cpu::softmax_at(&scores, &betas, out)?;
                let seconds = taken();
                self.betas = betas.into_iter().map(f64::from).collect();
                Ok(seconds)
            }
            Method::Copy | Method::CopyNt => {
                Err(Error::Settings { detail: format!("this CPU has no method {}", method.name()) })
            }
        }
    }

    /// The result of `row` in the last run, which was `method`.
    pub(super) fn result(&self, method: Method, row: u64) -> RowResult {
        let row = row as usize;
        let critical = (method == Method::Stats).then(|| self.criticals[row]);
        // Betas that are passed in are f32.
        let slack = if matches!(method, Method::NaiveSort | Method::TopK) { 2f64.powi(-23) } else { 0.0 };
        RowResult { critical, beta: if method.is_copy() { 1.0 } else { self.betas[row] }, slack }
    }

    /// The output of the last run for `row`.
    pub(super) fn out(&self, row: u64) -> Vec<f64> {
        let Case { n, dtype, .. } = self.case;
        let (row, n, size) = (row as usize, n as usize, dtype.size_bytes());
        let bytes = &bytemuck::cast_slice::<Line, u8>(&self.out)[row * n * size..][..n * size];
        (0..n).map(|i| elements::read(dtype, bytes, i * size)).collect()
    }
}

/// The row in f32: the row itself, or a copy in `wide`.
fn widened<'a, T: Element>(row: &'a [T], wide: &'a mut Vec<f32>) -> &'a [f32] {
    match bytemuck::try_cast_slice(row) {
        Ok(row) if T::DTYPE == DType::F32 => row,
        _ => {
            wide.clear();
            wide.extend(row.iter().map(|score| score.score()));
            wide
        }
    }
}
