//! Writes the rescaled softmax of every row of a score file in the file's own format.

use crate::Device;
use crate::batches::{check_memory, in_order};
use crate::input::elements;
use crate::input::safetensors::{Tensor, stored};
use crate::input::{Input, NamedTensors, ScoreTensor, Source, open_named, positions_of};
use crate::output::Output;
use crate::remarks::{LayerRows, Remark, Remarks, notes};
use critbeta::calibration::HeadRescalings;
use critbeta::cpu::{InstructionSet, SoftmaxRow, Workspace};
use critbeta::{DType, Error, Rescaling, Result, Scores};
use npyz::WriterBuilder;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Scores per job. Its results wait in memory, up to 8 bytes each.
const JOB_SCORES: usize = 1 << 17;
const JOBS_PER_THREAD: usize = 4;

/// The plan of a file of probabilities.
pub struct Probabilities<'a> {
    input: &'a Input,
    tensors: Vec<Planned<'a>>,
}

/// One score tensor with the dtype of its probabilities and a rule for each of its heads.
struct Planned<'a> {
    path: &'a Path,
    scores: &'a ScoreTensor,
    dtype: DType,
    rescalings: Vec<Rescaling>,
}

impl<'a> Probabilities<'a> {
    /// Plans the probabilities of all score tensors of `input` at `out`, in `dtype` or the scores' own.
    ///
    /// Errors: [`Error::File`] for queries and keys, for another extension than the input's (.safetensors
    /// for .npz and shards), for bf16 in .npy, for rows too long for the memory, and for heads that a
    /// calibration does not cover.
    pub fn plan(
        input: &'a Input,
        rescalings: &HeadRescalings,
        dtype: Option<DType>,
        out: &Path,
    ) -> Result<Self> {
        let wanted = if is_npy(&input.path) { "npy" } else { "safetensors" };
        if !out.extension().is_some_and(|found| found.eq_ignore_ascii_case(wanted)) {
            let wanted = format!("expected the extension .{wanted} for the input {}", input.path.display());
            return Err(Error::file(out, wanted));
        }
        let plan = |source: &'a Source| {
            let Source::Scores(scores) = source else {
                let pair = format!("tensor {:?} is queries and keys, expected scores", source.layer());
                return Err(Error::file(&input.path, pair));
            };
            let dtype = dtype.unwrap_or(scores.dtype());
            if dtype == DType::Bf16 && is_npy(&input.path) {
                return Err(Error::file(out, "the .npy format has no bf16, expected f64, f32 or f16"));
            }
            // A row needs scores, workspace and f64 weights. Rows wait to be written (on a GPU as f32).
            let waiting = JOBS_PER_THREAD * dtype.size_bytes().max(4);
            check_memory(
                &input.path,
                scores.layer(),
                (12 + Workspace::BYTES_PER_SCORE + waiting as u128) * scores.cols() as u128,
            )?;
            let heads = 0..scores.heads() as u64;
            let rescalings = heads.map(|head| rescalings.of(scores.layer(), head)).collect::<Result<_>>()?;
            Ok(Planned { path: &input.path, scores, dtype, rescalings })
        };
        Ok(Probabilities { input, tensors: input.sources.iter().map(plan).collect::<Result<_>>()? })
    }

    /// [`Probabilities::write_on`] this CPU.
    pub fn write(self, out: &mut Output, sink: impl FnMut(&[SoftmaxRow])) -> Result<Vec<String>> {
        self.write_on(&Device::Cpu, out, sink)
    }

    /// Computes on `device` and writes everything. `sink` sees every row, in order. Returns what to know
    /// before trusting the result, as in [`Summary::notes`](crate::Summary::notes).
    ///
    /// A safetensors file keeps its metadata, the positions of written tensors, tensors without rows, and
    /// what is no score. A CPU computes probabilities in f64 from f32 scores and rounds once. A GPU computes
    /// them in f32, within (4 + z) 2^-23 relative (z = beta x gap), then rounds to another dtype. Errors:
    /// [`Error::Io`] for the target, those of the input, and those of the device.
    pub fn write_on(
        self,
        device: &Device,
        out: &mut Output,
        mut sink: impl FnMut(&[SoftmaxRow]),
    ) -> Result<Vec<String>> {
        InstructionSet::chosen()?;
        if is_npy(&self.input.path) {
            let mut layers = Vec::new();
            for tensor in &self.tensors {
                let header = npy_header(tensor).map_err(|e| Error::io(out.path(), e))?;
                write_all(out, &header)?;
                layers.push(tensor.write(device, out, &mut sink)?);
            }
            return Ok(self.notes(&layers));
        }
        let file = open_named(&self.input.path)?;
        let mut parts: Vec<Part> = self.tensors.iter().map(Part::Scores).collect();
        parts.extend(file.tensors().iter().filter(|tensor| self.keeps(tensor)).map(Part::Kept));
        // Wide elements come first, as in the format's library: every tensor is then aligned to its element.
        parts.sort_by_key(|part| std::cmp::Reverse(part.entry().1.bitsize()));
        let entries = parts.iter().map(Part::entry);
        let header = safetensors_header(&file, entries).map_err(|e| Error::file(out.path(), e))?;
        write_all(out, &header)?;
        let mut layers = Vec::new();
        for part in &parts {
            match part {
                Part::Kept(tensor) => write_all(out, &tensor.bytes)?,
                Part::Scores(tensor) => layers.push(tensor.write(device, out, &mut sink)?),
            }
        }
        Ok(self.notes(&layers))
    }

    fn notes(&self, layers: &[LayerRows]) -> Vec<String> {
        self.input.sources.iter().filter_map(Source::note).chain(notes(layers)).collect()
    }

    /// Whether a tensor is copied: positions of written tensors are, and so are scores without rows and what
    /// is no score.
    fn keeps(&self, tensor: &Tensor) -> bool {
        let written = |name: &str| self.tensors.iter().any(|tensor| &**tensor.scores.layer() == name);
        match positions_of(&tensor.name) {
            Some(owner) => owner.is_none_or(written),
            None => self.input.skipped.iter().any(|name| **name == *tensor.name),
        }
    }
}

/// One tensor of the safetensors file to write.
enum Part<'a> {
    Scores(&'a Planned<'a>),
    Kept(&'a Tensor),
}

impl Part<'_> {
    /// Name, dtype and shape.
    fn entry(&self) -> (String, Dtype, Vec<usize>) {
        match self {
            Part::Scores(t) => (t.scores.layer().to_string(), stored(t.dtype), t.scores.shape().to_vec()),
            Part::Kept(t) => (t.name.to_string(), t.dtype, t.shape.clone()),
        }
    }
}

impl Planned<'_> {
    /// Writes all rows and returns what they show.
    fn write(
        &self,
        device: &Device,
        out: &mut Output,
        sink: &mut impl FnMut(&[SoftmaxRow]),
    ) -> Result<LayerRows<'_>> {
        let (heads, rows) = (self.scores.heads(), self.scores.rows());
        let step = (JOB_SCORES / self.scores.cols().max(1)).clamp(1, JOB_SCORES);
        let blocks = (0..heads).flat_map(|head| {
            (0..rows).step_by(step).map(move |start| (head, start..(start + step).min(rows)))
        });
        let mut layer = LayerRows { name: self.scores.layer(), measured: 0, remarks: Remarks::default() };
        let mut deliver = |reports: &[SoftmaxRow], remarks: &[Option<Remark>], bytes: &[u8]| {
            for (report, &remark) in reports.iter().zip(remarks) {
                if report.top.len > 1 && !report.top.poisoned {
                    layer.measured += 1;
                    layer.remarks.count(remark);
                }
            }
            sink(reports);
            write_all(out, bytes)
        };
        match device {
            Device::Cpu => {
                let work = |scratch: &mut Scratch, (head, rows): &(usize, Range<usize>)| {
                    let (mut bytes, mut remarks) = (Vec::new(), Vec::with_capacity(rows.len()));
                    let one = |row| {
                        let (position, remark) = self.read(*head, row, &mut scratch.row);
                        remarks.push(remark);
                        let rule = &self.rescalings[*head];
                        let report =
                            scratch.workspace.softmax_f64(&scratch.row, rule, position, &mut scratch.probs);
                        elements::write(self.dtype, &scratch.probs, &mut bytes);
                        report
                    };
                    let reports: Vec<SoftmaxRow> = rows.clone().map(one).collect();
                    (reports, remarks, bytes)
                };
                in_order(blocks, JOBS_PER_THREAD, work, |(reports, remarks, bytes)| {
                    deliver(&reports, &remarks, &bytes)
                })?;
            }
            Device::Cuda(engine) => {
                let read = |scratch: &mut Scratch, (head, rows): &(usize, Range<usize>)| {
                    let (mut scores, mut positions, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
                    for row in rows.clone() {
                        let (position, remark) = self.read(*head, row, &mut scratch.row);
                        remarks.push(remark);
                        positions.push(position);
                        scores.extend_from_slice(&scratch.row);
                    }
                    (*head, scores, positions, remarks)
                };
                in_order(blocks, JOBS_PER_THREAD, read, |(head, scores, positions, remarks)| {
                    let view = Scores::dense(&scores, positions.len(), self.scores.cols())?;
                    let narrow = |position: u64| u32::try_from(position).map_err(|_| self.beyond(position));
                    let positions = positions.into_iter().map(narrow).collect::<Result<Vec<u32>>>()?;
                    let mut probs = vec![0.0f32; scores.len()];
                    let reports =
                        engine.softmax(&view, &self.rescalings[head], Some(&positions), &mut probs)?;
                    let mut bytes = Vec::new();
                    elements::write(self.dtype, &probs, &mut bytes);
                    deliver(&reports, &remarks, &bytes)
                })?;
            }
        }
        Ok(layer)
    }

    /// The error for a position that a GPU cannot take, because it has 32 bits for it.
    fn beyond(&self, position: u64) -> Error {
        let detail =
            format!("tensor {:?}: position {position} is beyond the 32 bits of a GPU", self.scores.layer());
        Error::file(self.path, detail)
    }

    /// Reads a row and returns its position, and what its numbers show.
    fn read(&self, head: usize, row: usize, scores: &mut Vec<f32>) -> (u64, Option<Remark>) {
        let shift = self.scores.read_row(head, row, 0, scores);
        (self.scores.position_or_last(row, scores), Remark::of(scores, 0, shift))
    }
}

/// The memory of one thread, which its jobs reuse.
#[derive(Default)]
struct Scratch {
    workspace: Workspace,
    row: Vec<f32>,
    probs: Vec<f64>,
}

fn is_npy(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"))
}

fn write_all(out: &mut Output, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|e| Error::io(out.path(), e))
}

fn npy_header(tensor: &Planned) -> std::io::Result<Vec<u8>> {
    let descr = format!("<f{}", tensor.dtype.size_bytes());
    let descr: npyz::TypeStr = descr.parse().map_err(std::io::Error::other)?;
    let shape: Vec<u64> = tensor.scores.shape().iter().map(|&d| d as u64).collect();
    let mut header = Vec::new();
    npyz::WriteOptions::new_header_only()
        .dtype(npyz::DType::Plain(descr))
        .shape(&shape)
        .writer(&mut header)
        .write_header_only()?;
    Ok(header)
}

/// The header of a file of `tensors`, behind its length.
fn safetensors_header(
    file: &NamedTensors,
    tensors: impl Iterator<Item = (String, Dtype, Vec<usize>)>,
) -> Result<Vec<u8>, String> {
    let mut end = 0;
    let tensors = tensors.map(|(name, dtype, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let tensors: Vec<_> = tensors.collect();
    let metadata = file.metadata().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let header = Metadata::new(Some(metadata), tensors).map_err(|e| e.to_string())?;
    let mut text = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}
