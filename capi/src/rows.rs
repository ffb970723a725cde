//! Calls on rows of scores: their softmax, and reports on them.
#![allow(unsafe_code)]

use crate::args::Versioned;
use crate::engine::Device;
use crate::reports::{CRITBETA_DEVICE_REPORT_BYTES, Reports, measure};
use crate::rules::{self, Rule, Rules};
use crate::status::{Result, invalid};
use crate::tensor::{DLTensor, Held, Numbers, Tensor, Tensors};
use critbeta::cpu::{self, SoftmaxRow};
use critbeta::cuda::{Beta, Call, DeviceOutput, DeviceRows, Engine as Gpu, Workspace};
use critbeta::{Element, Rescaling, Scores, ScoresMut};
use half::{bf16, f16};
use std::ffi::c_void;

/// What critbeta_softmax reads and writes. Zeros in a field leave it out.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SoftmaxArgs {
    /// sizeof(critbeta_softmax_args).
    pub size: usize,
    /// [rows, cols] float32, float16 or bfloat16. Columns lie side by side; rows may be further apart. A
    /// score of
    /// -inf, or below half of the lowest finite number of its type, is masked.
    pub scores: *const DLTensor,
    /// [rows, cols], dense: the probabilities, float32 or the type of the scores (on a CPU any of the three).
    /// The tensor of the scores itself computes in place. It is 0 behind the length of a row.
    pub out: *const DLTensor,
    /// The rule, which must be one for all heads; NULL is beta = 1.
    pub rule: *const Rule,
    /// [rows] float32: the beta of each row, in place of a rule. On a CPU one below 0 makes its row NaN; on a
    /// GPU it counts as 0.
    pub betas: *const DLTensor,
    /// [rows] int32 or uint32: how many scores each row has; NULL is all columns.
    pub lens: *const DLTensor,
    /// [rows] int32 or uint32: the position of each row's query, from 0 on, for laws of the position. NULL is
    /// the last unmasked column.
    pub positions: *const DLTensor,
    /// On a CPU [rows, columns] float64: the doubles of a critbeta_row_report, without a critical beta. On a
    /// GPU [rows, CRITBETA_DEVICE_REPORT_BYTES] uint8, for critbeta_decode_reports.
    pub reports: *const DLTensor,
    /// The CUDA stream (CUstream, cudaStream_t) of the launch; NULL is the legacy default stream.
    pub stream: *mut c_void,
    /// Device memory of critbeta_workspace_bytes, aligned to 256 bytes, for this launch alone until it has
    /// run. Fill it with zeros once. Each launch leaves it ready for the next one, of any shape; after a
    /// kernel that failed fill it again.
    pub workspace: *mut c_void,
    /// Bytes of the workspace.
    pub workspace_bytes: u64,
}

// SAFETY: repr(C), the first field is a usize, and every field is a number or a raw pointer.
unsafe impl Versioned for SoftmaxArgs {
    const NAME: &'static str = "critbeta_softmax_args";
}

/// What critbeta_row_reports reads and writes. Zeros in a field leave it out.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ReportsArgs {
    /// sizeof(critbeta_reports_args).
    pub size: usize,
    /// As in critbeta_softmax_args.
    pub scores: *const DLTensor,
    /// As in critbeta_softmax_args.
    pub lens: *const DLTensor,
    /// As in critbeta_softmax_args, with the critical beta.
    pub reports: *const DLTensor,
    /// The inverse temperature of the weights that are reported, above 0; 0 stands for 1.
    pub beta: f64,
    /// r of Lambda(r), nats, at least 0.
    pub resolve: f64,
    /// Counts gaps among this many largest scores only; 0 is all.
    pub top_k: u64,
    /// As in critbeta_softmax_args.
    pub stream: *mut c_void,
    /// As in critbeta_softmax_args; the problem has reports_only set.
    pub workspace: *mut c_void,
    /// Bytes of the workspace.
    pub workspace_bytes: u64,
}

// SAFETY: as for SoftmaxArgs.
unsafe impl Versioned for ReportsArgs {
    const NAME: &'static str = "critbeta_reports_args";
}

/// Where a GPU works: the caller's stream and workspace.
struct Place {
    stream: u64,
    workspace: Option<Workspace>,
}

impl Place {
    fn new(stream: *mut c_void, workspace: *mut c_void, bytes: u64) -> Place {
        let workspace = Workspace { address: workspace as u64, bytes };
        Place { stream: stream as u64, workspace: (workspace.address != 0).then_some(workspace) }
    }
}

/// A tensor of rows: its sizes, and elements from row to row.
fn block(tensor: &Tensor) -> Result<([usize; 2], usize)> {
    let [rows, cols] = tensor.sizes("[rows, columns]")?;
    tensor.numbers.scores(tensor.name)?;
    if cols == 0 && rows > 0 {
        return tensor.refused("expected at least one column");
    }
    if tensor.strides[1] != 1 {
        return tensor.refused("expected columns side by side");
    }
    if tensor.strides[0] < cols {
        return tensor.refused("its rows would overlap");
    }
    Ok(([rows, cols], tensor.strides[0]))
}

/// A tensor of one number for each row, dense.
fn per_row<'a>(tensor: Option<Tensor<'a>>, rows: usize, numbers: &[Numbers]) -> Result<Option<Tensor<'a>>> {
    if let Some(tensor) = &tensor {
        tensor.expect(&[rows], "[rows]")?;
        if !numbers.contains(&tensor.numbers) {
            let names: Vec<String> = numbers.iter().map(Numbers::to_string).collect();
            return tensor.refused(format!("expected {}", names.join(" or ")));
        }
    }
    Ok(tensor)
}

const COUNTS: &[Numbers] = &[Numbers::U32, Numbers::I32];

/// Counts as the library has them.
fn counts<'a>(tensor: &Option<Tensor<'a>>) -> Result<Option<&'a [u32]>> {
    let Some(tensor) = tensor else { return Ok(None) };
    if tensor.numbers == Numbers::U32 {
        return tensor.slice().map(Some);
    }
    let counts = tensor.slice::<i32>()?;
    match counts.iter().position(|&count| count < 0) {
        Some(row) => tensor.refused(format!("{} of row {row}, expected at least 0", counts[row])),
        None => Ok(Some(bytemuck::cast_slice(counts))),
    }
}

/// What a call on rows of one softmax has, checked.
struct Softmax<'a, 'r> {
    rows: usize,
    cols: usize,
    stride: usize,
    rule: &'r Rescaling,
    betas: Option<Tensor<'a>>,
    lens: Option<Tensor<'a>>,
    positions: Option<Tensor<'a>>,
}

/// The softmax of every row.
pub fn softmax(
    device: &Device,
    mut tensors: Tensors,
    args: &SoftmaxArgs,
    rule: Option<&Rules>,
) -> Result<()> {
    // In place, the scores are the memory that is written.
    let in_place = tensors.are_same(args.scores, args.out)?;
    let out = tensors.written("out", args.out)?;
    let own = (!in_place).then(|| tensors.read("scores", args.scores)).transpose()?;
    let scores = own.as_ref().unwrap_or(&out);
    let betas = tensors.optional("betas", args.betas)?;
    let lens = tensors.optional("lens", args.lens)?;
    let positions = tensors.optional("positions", args.positions)?;
    let reports = (!args.reports.is_null()).then(|| tensors.written("reports", args.reports)).transpose()?;
    let given =
        [Some(scores), Some(&out), betas.as_ref(), lens.as_ref(), positions.as_ref(), reports.as_ref()];
    given.into_iter().flatten().try_for_each(|tensor| device.holds(tensor))?;
    let ([rows, cols], stride) = block(scores)?;
    let ([out_rows, out_cols], out_stride) = block(&out)?;
    if [out_rows, out_cols] != [rows, cols] {
        return out.refused(format!("expected the shape of the scores, [{rows}, {cols}]"));
    }
    if betas.is_some() && rule.is_some() {
        return invalid("betas beside a rule: expected one of them");
    }
    let call = Softmax {
        rows,
        cols,
        stride,
        rule: rules::only(rule)?,
        betas: per_row(betas, rows, &[Numbers::F32])?,
        lens: per_row(lens, rows, COUNTS)?,
        positions: per_row(positions, rows, COUNTS)?,
    };
    match device {
        Device::Cpu => {
            let reports = reports.map(|reports| Reports::new(reports, &[rows])).transpose()?;
            let found = call.on_cpu(own, out)?;
            if let Some(reports) = reports {
                reports.write(&found);
            }
            Ok(())
        }
        Device::Gpu { engine, .. } => {
            let raw = reports.as_ref().map(|reports| device_reports(reports, rows)).transpose()?;
            let (from, to) = (scores.numbers.scores("scores")?, out.numbers.scores("out")?);
            let beta = match &call.betas {
                Some(betas) => Beta::Each(betas.address()),
                None => Beta::Rescaling(call.rule),
            };
            let out = DeviceOutput::new(out.address(), to, out_stride as u64);
            let mut launch = Call::softmax(call.device_rows(scores, from), out, beta);
            launch.positions = call.positions.as_ref().map(Tensor::address);
            launch.report = raw;
            begin(engine, &launch, Place::new(args.stream, args.workspace, args.workspace_bytes))
        }
    }
}

impl Softmax<'_, '_> {
    fn device_rows(&self, scores: &Tensor, dtype: critbeta::DType) -> DeviceRows {
        let mut found = DeviceRows::dense(scores.address(), dtype, self.rows as u64, self.cols as u64);
        found.stride = self.stride as u64;
        found.lens = self.lens.as_ref().map(Tensor::address);
        found
    }

    /// Without scores, the output has them, and they are replaced.
    fn on_cpu(&self, scores: Option<Tensor>, out: Tensor) -> Result<Vec<SoftmaxRow>> {
        let Some(scores) = scores else {
            if self.betas.is_some() {
                return out.refused(
                    "betas are not computed in place on a CPU: expected other memory than the scores",
                );
            }
            return match out.numbers {
                Numbers::F16 => self.replace::<f16>(out),
                Numbers::Bf16 => self.replace::<bf16>(out),
                _ => self.replace::<f32>(out),
            };
        };
        if !out.is_dense() {
            return out.refused("expected rows without a space between them on a CPU");
        }
        match scores.numbers {
            Numbers::F16 => self.write_to::<f16>(scores, out),
            Numbers::Bf16 => self.write_to::<bf16>(scores, out),
            _ => self.write_to::<f32>(scores, out),
        }
    }

    fn replace<T: Element + Held>(&self, out: Tensor) -> Result<Vec<SoftmaxRow>> {
        let (lens, positions) = (counts(&self.lens)?, counts(&self.positions)?);
        let mut rows = ScoresMut::strided(out.into_slice_mut::<T>()?, self.rows, self.cols, self.stride)?;
        if let Some(lens) = lens {
            rows = rows.with_lens(lens)?;
        }
        Ok(cpu::softmax_in_place(&mut rows, self.rule, positions)?)
    }

    fn write_to<T: Element + Held>(&self, scores: Tensor, out: Tensor) -> Result<Vec<SoftmaxRow>> {
        match out.numbers {
            Numbers::F16 => self.write::<T, f16>(scores, out),
            Numbers::Bf16 => self.write::<T, bf16>(scores, out),
            _ => self.write::<T, f32>(scores, out),
        }
    }

    fn write<T: Element + Held, O: Element + Held>(
        &self,
        scores: Tensor,
        out: Tensor,
    ) -> Result<Vec<SoftmaxRow>> {
        let rows = view(scores.slice::<T>()?, [self.rows, self.cols], self.stride, counts(&self.lens)?)?;
        let positions = counts(&self.positions)?;
        let out = out.into_slice_mut::<O>()?;
        Ok(match &self.betas {
            Some(betas) => cpu::softmax_at(&rows, betas.slice()?, out)?,
            None => cpu::softmax(&rows, self.rule, positions, out)?,
        })
    }
}

fn view<'a, T: Element>(
    data: &'a [T],
    [rows, cols]: [usize; 2],
    stride: usize,
    lens: Option<&'a [u32]>,
) -> Result<Scores<'a, T>> {
    let rows = Scores::strided(data, rows, cols, stride)?;
    Ok(match lens {
        Some(lens) => rows.with_lens(lens)?,
        None => rows,
    })
}

/// A report on every row.
pub fn row_reports(device: &Device, mut tensors: Tensors, args: &ReportsArgs) -> Result<()> {
    let scores = tensors.read("scores", args.scores)?;
    let lens = tensors.optional("lens", args.lens)?;
    let reports = tensors.written("reports", args.reports)?;
    let given = [Some(&scores), lens.as_ref(), Some(&reports)];
    given.into_iter().flatten().try_for_each(|tensor| device.holds(tensor))?;
    let ([rows, cols], stride) = block(&scores)?;
    let lens = per_row(lens, rows, COUNTS)?;
    let measure = measure(args.resolve, args.top_k)?;
    let beta = if args.beta == 0.0 { 1.0 } else { args.beta };
    if beta.is_nan() || beta < 0.0 {
        return invalid(format!("beta {beta}: expected above 0, or 0 for 1"));
    }
    match device {
        Device::Cpu => {
            let reports = Reports::new(reports, &[rows])?;
            let (sizes, lens) = ([rows, cols], counts(&lens)?);
            let found = match scores.numbers {
                Numbers::F16 => {
                    cpu::row_reports(&view(scores.slice::<f16>()?, sizes, stride, lens)?, beta, measure)
                }
                Numbers::Bf16 => {
                    cpu::row_reports(&view(scores.slice::<bf16>()?, sizes, stride, lens)?, beta, measure)
                }
                _ => cpu::row_reports(&view(scores.slice::<f32>()?, sizes, stride, lens)?, beta, measure),
            };
            reports.write(&found);
            Ok(())
        }
        Device::Gpu { engine, .. } => {
            let raw = device_reports(&reports, rows)?;
            let dtype = scores.numbers.scores("scores")?;
            let mut from = DeviceRows::dense(scores.address(), dtype, rows as u64, cols as u64);
            from.stride = stride as u64;
            from.lens = lens.as_ref().map(Tensor::address);
            let rule = Rescaling::Fixed(beta);
            let mut launch = Call::statistics(from, raw, &rule);
            launch.resolve = (measure.resolve != 0.0).then_some(measure.resolve);
            launch.both = measure.resolve != 0.0;
            launch.top_k = measure.top_k;
            begin(engine, &launch, Place::new(args.stream, args.workspace, args.workspace_bytes))
        }
    }
}

fn device_reports(reports: &Tensor, rows: usize) -> Result<u64> {
    reports.expect(&[rows, CRITBETA_DEVICE_REPORT_BYTES], "[rows, CRITBETA_DEVICE_REPORT_BYTES]")?;
    match reports.numbers {
        Numbers::U8 => Ok(reports.address()),
        _ => reports.refused("expected uint8 on a GPU"),
    }
}

fn begin(engine: &Gpu, call: &Call, place: Place) -> Result<()> {
    // SAFETY: the caller of the entry promises what `Tensors::new` says of all tensors, and the header says
    // the same of the stream and the workspace. `Device::holds` compared the tensors' device with the
    // engine's.
    Ok(unsafe { engine.launch(call, place.workspace, place.stream) }?)
}
