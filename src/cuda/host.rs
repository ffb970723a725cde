//! The verbs of [`cpu`] on host slices. They upload, run and download batches of bounded memory.

use super::call::{Call, DeviceOutput, DeviceRows, Workspace};
use super::decode;
use super::engine::{DeviceMemory, Engine};
use super::params;
use super::rule::Beta;
use crate::cpu::{self, Measure, RowReport, SoftmaxRow};
use crate::{DType, Element, Rescaling, Result, Scores};

/// The most bytes of scores on the device at once, unless one row alone has more.
const BATCH_BYTES: usize = 64 << 20;

/// Device memory of one batch of rows.
struct Batch {
    scores: DeviceMemory,
    /// The lengths of the rows, or `None` where every row is full.
    lens: Option<DeviceMemory>,
    positions: Option<DeviceMemory>,
    report: DeviceMemory,
    out: Option<DeviceMemory>,
    workspace: Option<DeviceMemory>,
}

impl Engine {
    /// [`cpu::row_reports`] on this engine: one report per row, at inverse temperature `beta` >= 0.
    ///
    /// Critical betas and contacts are equal to those of the CPU bit for bit. Log partition, entropy and
    /// weights are within the rounding of f32 exponentials. Errors: [`Error::Launch`](crate::Error::Launch) for more than 2^24
    /// columns; [`Error::Cuda`](crate::Error::Cuda).
    pub fn row_reports<T: Element>(
        &self,
        scores: &Scores<T>,
        beta: f64,
        measure: Measure,
    ) -> Result<Vec<RowReport>> {
        if scores.cols() == 0 {
            return Ok(cpu::row_reports(scores, beta, measure)); // nothing to compute
        }
        let rescaling = Rescaling::Fixed(beta);
        let mut reports = Vec::with_capacity(scores.rows());
        self.batches(BATCH_BYTES, scores, &rescaling, measure, None, None, |rows| {
            reports.extend(rows.iter().map(|row| decode::report(row, beta, measure)));
        })?;
        Ok(reports)
    }

    /// [`cpu::softmax`] on this engine: it writes the softmax of every row under `rescaling` to `out` (dense
    /// rows x cols), and returns the beta of each row.
    ///
    /// The relative error of a probability is at most (4 + z) 2^-23 against f64, with z = beta x gap. Errors:
    /// [`Error::Scores`](crate::Error::Scores) as on the CPU; those of [`Engine::row_reports`]; [`Error::Spec`](crate::Error::Spec).
    pub fn softmax<T: Element>(
        &self,
        scores: &Scores<T>,
        rescaling: &Rescaling,
        positions: Option<&[u32]>,
        out: &mut [f32],
    ) -> Result<Vec<SoftmaxRow>> {
        let (rows, cols) = (scores.rows(), scores.cols());
        let fits = positions.is_none_or(|positions| positions.len() == rows);
        if cols == 0 || rows.checked_mul(cols) != Some(out.len()) || !fits {
            return cpu::softmax(scores, rescaling, positions, out); // nothing to compute, or its error
        }
        // The kernels give a row without a position n - 1. That is its last unmasked key only if no key
        // before it is masked.
        let last = || (0..rows).map(|row| scores.last_visible(row) as u32).collect::<Vec<u32>>();
        let own = (positions.is_none() && matches!(rescaling, Rescaling::Law(_))).then(last);
        let positions = positions.or(own.as_deref());
        let mut softmax = Vec::with_capacity(rows);
        self.batches(BATCH_BYTES, scores, rescaling, Measure::default(), positions, Some(out), |rows| {
            softmax.extend(rows.iter().map(decode::softmax));
        })?;
        Ok(softmax)
    }

    /// Runs all rows, at most `batch_bytes` of scores (or one row) at a time. It passes their reports on in
    /// order, and writes the probabilities to `out`.
    #[allow(clippy::too_many_arguments)] // private, and a struct for two callers would only rename them
    fn batches<T: Element>(
        &self,
        batch_bytes: usize,
        scores: &Scores<T>,
        rescaling: &Rescaling,
        measure: Measure,
        positions: Option<&[u32]>,
        mut out: Option<&mut [f32]>,
        mut sink: impl FnMut(&[params::RowReport]),
    ) -> Result<()> {
        let (rows, cols) = (scores.rows(), scores.cols());
        // Rows of scores and of probabilities begin at 16-byte boundaries, so that vectors need no special
        // first or last part.
        let stride = (cols * size_of::<T>()).next_multiple_of(16) / size_of::<T>();
        let step = (batch_bytes / (stride * size_of::<T>())).clamp(1, rows.max(1));
        let mut packed = Vec::new();
        let (mut reports, mut probs) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            packed.clear();
            packed.resize(range.len() * stride, T::zeroed());
            let mut lens = Vec::with_capacity(range.len());
            for (row, to) in range.clone().zip(packed.chunks_exact_mut(stride)) {
                let from = scores.row(row);
                to[..from.len()].copy_from_slice(from);
                lens.push(from.len() as u32);
            }
            let count = range.len();
            let ragged = lens.iter().any(|&len| len as usize != cols);
            let mut batch = Batch {
                scores: self.uploaded(bytemuck::cast_slice(&packed))?,
                lens: ragged.then(|| self.uploaded(bytemuck::cast_slice(&lens))).transpose()?,
                positions: positions
                    .map(|p| self.uploaded(bytemuck::cast_slice(&p[range.clone()])))
                    .transpose()?,
                report: self.zeroed(count * size_of::<params::RowReport>())?,
                out: out.as_ref().map(|_| self.zeroed(count * stride * size_of::<f32>())).transpose()?,
                workspace: None,
            };
            let call = Call {
                scores: DeviceRows {
                    address: batch.scores.address(),
                    dtype: T::DTYPE,
                    rows: count as u64,
                    cols: cols as u64,
                    stride: stride as u64,
                    lens: batch.lens.as_ref().map(DeviceMemory::address),
                },
                out: (batch.out.as_ref())
                    .map(|out| DeviceOutput::new(out.address(), DType::F32, stride as u64)),
                beta: Beta::Rescaling(rescaling),
                positions: batch.positions.as_ref().map(DeviceMemory::address),
                resolve: (measure.resolve != 0.0).then_some(measure.resolve),
                top_k: measure.top_k,
                both: measure.resolve != 0.0,
                report: Some(batch.report.address()),
                sums: true,
                betas_out: None,
                fills: true,
                by_columns: false,
            };
            self.run(&call, &mut batch)?;
            reports.clear();
            reports.resize(count, bytemuck::Zeroable::zeroed());
            self.download(&batch.report, 0, bytemuck::cast_slice_mut(&mut reports))?;
            if let (Some(out), Some(memory)) = (out.as_mut(), &batch.out) {
                probs.resize(count * stride, 0.0);
                self.download(memory, 0, bytemuck::cast_slice_mut(&mut probs))?;
                let rows = out[range.start * cols..range.end * cols].chunks_exact_mut(cols.max(1));
                for (row, from) in rows.zip(probs.chunks_exact(stride)) {
                    row.copy_from_slice(&from[..cols]);
                }
            }
            sink(&reports);
        }
        Ok(())
    }

    fn run(&self, call: &Call, batch: &mut Batch) -> Result<()> {
        let needed = call.workspace_bytes(self.arch())?;
        if needed > 0 {
            batch.workspace = Some(self.zeroed(needed as usize)?);
        }
        let workspace =
            batch.workspace.as_ref().map(|memory| Workspace { address: memory.address(), bytes: needed });
        let Batch { scores, lens, positions, report, out, workspace: memory } = batch;
        let optional = [lens, positions, out, memory].into_iter().flatten();
        let mut memory: Vec<&mut DeviceMemory> = [scores, report].into_iter().chain(optional).collect();
        self.launch_within(call, workspace, &mut memory)
    }
}

#[cfg(all(test, critbeta_simulator))]
mod tests {
    use super::*;
    use crate::cuda::{Arch, SimtOptions};

    #[test]
    fn batches_come_in_order_and_leave_no_row_out() {
        let engine = Engine::simulated(SimtOptions::of(Arch::named("sm_90").unwrap())).unwrap();
        let (rows, cols) = (11, 33);
        let scores: Vec<f32> =
            (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i / cols) as f32).collect();
        let lens: Vec<u32> = (0..rows).map(|row| (cols - row) as u32).collect();
        let view = Scores::dense(&scores, rows, cols).unwrap().with_lens(&lens).unwrap();
        let rule: Rescaling = "critical:cap=5".parse().unwrap();
        let positions = vec![0u32; rows];
        let run = |bytes| {
            let (mut sizes, mut reports, mut out) = (Vec::new(), Vec::new(), vec![9.0f32; rows * cols]);
            let sink = |batch: &[params::RowReport]| {
                sizes.push(batch.len());
                reports.extend_from_slice(batch);
            };
            let measure = Measure::default();
            engine.batches(bytes, &view, &rule, measure, Some(&positions), Some(&mut out), sink).unwrap();
            (sizes, bytemuck::cast_slice::<_, u8>(&reports).to_vec(), out)
        };
        let whole = run(1 << 20);
        assert_eq!(whole.0, [rows]);
        // Rows of 33 scores begin 144 bytes apart.
        for (bytes, sizes) in [(1, vec![1; rows]), (3 * 144, vec![3, 3, 3, 2]), (5 * 144 + 1, vec![5, 5, 1])]
        {
            let batched = run(bytes);
            assert_eq!(batched.0, sizes);
            assert!(batched.1 == whole.1 && batched.2 == whole.2, "batches of {bytes} bytes");
        }
    }
}
