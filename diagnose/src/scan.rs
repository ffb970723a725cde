//! Makes row records from inputs, in input order, with blocks of rows in parallel.

use crate::Device;
use crate::batches::{check_memory, in_order};
use crate::input::{Input, Source};
use crate::qk::{self, QkBlock, block_rows, blocks};
use crate::records::record::{RowPlace, RowRecord};
use crate::remarks::Remark;
use crate::settings::Settings;
use critbeta::cpu::{InstructionSet, RowReport, Workspace};
use critbeta::cuda::Engine;
use critbeta::{Result, Scores};
use std::ops::Range;

/// A thread takes these rows of one source at once: of one head, or all rows of heads that share keys.
struct Job<'a> {
    source: &'a Source,
    heads: Range<usize>,
    rows: Range<usize>,
}

/// Jobs per thread between two deliveries. With this many no thread waits long for the others, and the
/// records in flight stay below a megabyte a thread.
const JOBS_PER_THREAD: usize = 8;
/// Rows of a score tensor per job, and the scores that make a job worth the hand-over.
const JOB_ROWS: usize = 256;
const JOB_SCORES: usize = 1 << 18;

impl Job<'_> {
    /// Rows of all its heads.
    fn rows(&self) -> usize {
        self.heads.len() * self.rows.len()
    }
}

/// This many jobs per thread wait for a device. Their scores take up to 8 MiB each (or two rows).
const DEVICE_JOBS_PER_THREAD: usize = 2;

/// [`scan_on`] this CPU.
pub fn scan(
    inputs: &[Input],
    settings: &Settings,
    sink: impl FnMut(&[RowRecord]) -> Result<()>,
) -> Result<()> {
    scan_on(&Device::Cpu, inputs, settings, sink)
}

/// Measures every row of `inputs` on `device` and hands batches of records to `sink` in input order.
///
/// Memory is O(threads x keys): no source is read whole. Errors: those of [`Settings::check`], of
/// [`InstructionSet::chosen`] and of the sink, and [`Error::File`](critbeta::Error::File) for rows too long for the memory.
///
/// For a GPU, this CPU computes the scores of queries and keys, and turns f64 scores into f32 as always.
pub fn scan_on(
    device: &Device,
    inputs: &[Input],
    settings: &Settings,
    mut sink: impl FnMut(&[RowRecord]) -> Result<()>,
) -> Result<()> {
    settings.check()?;
    InstructionSet::chosen()?;
    for input in inputs {
        for source in &input.sources {
            let waiting = match device {
                Device::Cpu => 0,
                // They are held twice: as rows, and packed for the copy.
                Device::Cuda(_) => {
                    2 * 4 * (DEVICE_JOBS_PER_THREAD * job_rows(source) * width(source)) as u128
                }
            };
            check_memory(&input.path, source.layer(), scratch_bytes(source) + waiting)?;
        }
    }
    let jobs = inputs.iter().flat_map(|input| &input.sources).flat_map(jobs_of);
    match device {
        Device::Cpu => {
            let measure = |scratch: &mut Scratch, job: &Job| scratch.measure(job, settings);
            in_order(jobs, JOBS_PER_THREAD, measure, |records| sink(&records))
        }
        Device::Cuda(engine) => {
            let read = |scratch: &mut Scratch, job: &Job| scratch.read(job, settings);
            in_order(jobs, DEVICE_JOBS_PER_THREAD, read, |block| sink(&block.measure(engine, settings)?))
        }
    }
}

/// Calls `work` with a workspace and each row of one head of `source`: row, position, and scores without the
/// keys that are left out. Its results come back in order. `progress` gets the number of rows that are done.
/// [`Settings::check`] must have passed.
pub(crate) fn visit<R: Send>(
    source: &Source,
    head: usize,
    settings: &Settings,
    work: impl Fn(&mut Workspace, usize, u64, &[f32]) -> Option<R> + Sync,
    mut progress: impl FnMut(u64),
) -> Vec<R> {
    let jobs = jobs_of_head(source, head);
    let visit = |scratch: &mut Scratch, job: &Job| {
        let mut found = Vec::new();
        scratch.each_row(job, settings, |workspace, scores, Row { place, .. }| {
            found.extend(work(workspace, place.row as usize, place.position, scores));
        });
        (job.rows() as u64, found)
    };
    let mut all = Vec::new();
    let sink = |(rows, found): (u64, Vec<R>)| {
        all.extend(found);
        progress(rows);
        Ok(())
    };
    // The sink cannot fail.
    let _never = in_order(jobs, JOBS_PER_THREAD, visit, sink);
    all
}

/// Widest row of a source, in scores.
fn width(source: &Source) -> usize {
    match source {
        Source::Scores(tensor) => tensor.cols(),
        Source::Pair(pair) => pair.keys(),
    }
}

/// Rows of a source that one job takes.
fn job_rows(source: &Source) -> usize {
    match source {
        Source::Scores(tensor) => (JOB_SCORES / tensor.cols().max(1)).clamp(1, JOB_ROWS),
        Source::Pair(pair) => block_rows(pair),
    }
}

/// Bytes that one thread needs: the scores themselves, and the workspace of a row.
fn scratch_bytes(source: &Source) -> u128 {
    match source {
        Source::Scores(tensor) => (4 + Workspace::BYTES_PER_SCORE) * tensor.cols() as u128,
        Source::Pair(pair) => qk::scratch_bytes(pair) + Workspace::BYTES_PER_SCORE * pair.keys() as u128,
    }
}

fn jobs_of(source: &Source) -> Box<dyn Iterator<Item = Job<'_>> + '_> {
    match source {
        Source::Scores(tensor) => {
            Box::new((0..tensor.heads()).flat_map(move |head| jobs_of_head(source, head)))
        }
        Source::Pair(pair) => Box::new(blocks(pair).map(move |(heads, rows)| Job { source, heads, rows })),
    }
}

fn jobs_of_head(source: &Source, head: usize) -> impl Iterator<Item = Job<'_>> {
    let (step, rows) = (job_rows(source), source.rows());
    let job = move |start| Job { source, heads: head..head + 1, rows: start..(start + step).min(rows) };
    (0..rows).step_by(step).map(job)
}

/// What is known of a row beside its scores.
struct Row {
    place: RowPlace,
    /// The scores were this much lower before.
    shift: f64,
    remark: Option<Remark>,
}

impl Row {
    fn record(self, report: &RowReport, settings: &Settings) -> RowRecord {
        let Row { place, shift, remark } = self;
        RowRecord { remark, ..RowRecord::new(place, report, shift, settings.measure.top_k.is_some()) }
    }
}

/// The memory of one thread, which its jobs reuse.
#[derive(Default)]
struct Scratch {
    workspace: Workspace,
    row: Vec<f32>,
    block: QkBlock,
}

impl Scratch {
    fn measure(&mut self, job: &Job, settings: &Settings) -> Vec<RowRecord> {
        let mut records = Vec::with_capacity(job.rows());
        self.each_row(job, settings, |workspace, scores, row| {
            let report = workspace.report(scores, settings.beta, settings.measure);
            records.push(row.record(&report, settings));
        });
        records
    }

    fn read(&mut self, job: &Job, settings: &Settings) -> Block {
        let cols = width(job.source);
        let mut block = Block { cols, ..Block::default() };
        self.each_row(job, settings, |_, scores, row| {
            block.scores.extend_from_slice(scores);
            block.scores.resize((block.lens.len() + 1) * cols, 0.0);
            block.lens.push(scores.len() as u32);
            block.rows.push(row);
        });
        block
    }

    /// Every row of a job, without the keys that are left out.
    fn each_row(
        &mut self,
        job: &Job,
        settings: &Settings,
        mut take: impl FnMut(&mut Workspace, &[f32], Row),
    ) {
        let Scratch { workspace, row: scores, block } = self;
        let place = |head: usize, row: usize, position| {
            let layer = job.source.layer().clone();
            RowPlace { layer, head: head as u64, row: row as u64, position }
        };
        let rows = || job.heads.clone().flat_map(|head| job.rows.clone().map(move |row| (head, row)));
        let exclude = |scores: &mut [f32]| {
            let excluded = settings.exclude_sink.min(scores.len());
            scores[..excluded].fill(f32::NEG_INFINITY);
        };
        match job.source {
            Source::Scores(tensor) => {
                for (head, row) in rows() {
                    let shift = tensor.read_row(head, row, settings.exclude_sink, scores);
                    let position = tensor.position_or_last(row, scores);
                    let remark = Remark::of(scores, settings.exclude_sink, shift);
                    exclude(scores);
                    take(workspace, scores, Row { place: place(head, row, position), shift, remark });
                }
            }
            Source::Pair(pair) => {
                block.fill(pair, job.heads.clone(), job.rows.clone());
                for (index, (head, row)) in rows().enumerate() {
                    let position = pair.position(row);
                    let scores = block.row(index, position);
                    exclude(scores);
                    // Products of queries and keys hold no mask.
                    take(
                        workspace,
                        scores,
                        Row { place: place(head, row, position), shift: 0.0, remark: None },
                    );
                }
            }
        }
    }
}

/// Rows of one job on their way to a device, `cols` apart.
#[derive(Default)]
struct Block {
    scores: Vec<f32>,
    cols: usize,
    lens: Vec<u32>,
    rows: Vec<Row>,
}

impl Block {
    fn measure(self, engine: &Engine, settings: &Settings) -> Result<Vec<RowRecord>> {
        let view = Scores::dense(&self.scores, self.lens.len(), self.cols)?.with_lens(&self.lens)?;
        let reports = engine.row_reports(&view, settings.beta, settings.measure)?;
        Ok(self.rows.into_iter().zip(&reports).map(|(row, report)| row.record(report, settings)).collect())
    }
}
