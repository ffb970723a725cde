//! From inputs to row records, in input order, blocks of rows in parallel.

use super::qk::{self, QkBlock, block_rows};
use super::record::{RowPlace, RowRecord};
use crate::batches::{check_memory, in_order};
use crate::cpu::{Measure, Workspace};
use crate::input::{Input, QkPair, ScoreTensor, Source};
use crate::{Error, Result};
use std::ops::Range;

/// How rows are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The inverse temperature that the rows are run at; 1 is the model as it is.
    pub beta: f64,
    /// Resolve and top-k.
    pub measure: Measure,
    /// Leave the first this many keys out of every row.
    pub exclude_sink: usize,
    /// L of the published laws that depend on the training length, in keys.
    pub train_length: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { beta: 1.0, measure: Measure::default(), exclude_sink: 0, train_length: 8192.0 }
    }
}

impl Settings {
    /// Largest top-k: beyond it a full count is cheaper.
    pub const MAX_TOP_K: usize = 2048;

    /// Errors: [`Error::Settings`] for a beta or resolve that is negative or not finite, a training length that is not above 1, a top-k of 0 or above [`Settings::MAX_TOP_K`].
    pub fn check(&self) -> Result<()> {
        let fail = |detail: String| Err(Error::Settings { detail });
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            return fail(format!("beta must be finite and at least 0, found {}", self.beta));
        }
        let resolve = self.measure.resolve;
        if !(resolve.is_finite() && resolve >= 0.0) {
            return fail(format!("resolve must be finite and at least 0 nats, found {resolve}"));
        }
        if !(self.train_length.is_finite() && self.train_length > 1.0) {
            return fail(format!(
                "the training length must be finite and above 1, found {}",
                self.train_length
            ));
        }
        match self.measure.top_k {
            Some(k) if !(1..=Self::MAX_TOP_K).contains(&k) => {
                fail(format!("top-k must be 1 to {}, found {k}", Self::MAX_TOP_K))
            }
            _ => Ok(()),
        }
    }
}

/// Rows of one head of one source that a thread takes at once.
struct Job<'a> {
    source: &'a Source,
    head: usize,
    rows: Range<usize>,
}

/// Jobs per thread between two deliveries: enough that no thread waits long for the others, few
/// enough that the records in flight stay below a megabyte a thread.
const JOBS_PER_THREAD: usize = 8;
/// Rows of a score tensor per job, and the scores that make a job worth its hand-over.
const JOB_ROWS: usize = 256;
const JOB_SCORES: usize = 1 << 18;

/// Measures every row of `inputs` and hands the records to `sink` in input order, a batch at a time.
///
/// Memory is O(threads x keys): no source is read whole. Errors: [`Settings::check`]'s, the sink's, and
/// [`Error::File`] for rows too long for the memory there is.
pub fn scan(
    inputs: &[Input],
    settings: &Settings,
    mut sink: impl FnMut(&[RowRecord]) -> Result<()>,
) -> Result<()> {
    settings.check()?;
    for input in inputs {
        for source in &input.sources {
            check_memory(&input.path, source.layer(), scratch_bytes(source))?;
        }
    }
    let jobs = inputs.iter().flat_map(|input| &input.sources).flat_map(jobs_of);
    let measure = |scratch: &mut Scratch, job: &Job| scratch.measure(job, settings);
    in_order(jobs, JOBS_PER_THREAD, measure, |records| sink(&records))
}

/// Bytes that one thread needs: the scores themselves, and twice 4 bytes each to refine their gaps.
fn scratch_bytes(source: &Source) -> u128 {
    match source {
        Source::Scores(tensor) => 12 * tensor.cols() as u128,
        Source::Pair(pair) => qk::scratch_bytes(pair) + 8 * pair.keys() as u128,
    }
}

fn jobs_of(source: &Source) -> impl Iterator<Item = Job<'_>> {
    let step = match source {
        Source::Scores(tensor) => (JOB_SCORES / tensor.cols().max(1)).clamp(1, JOB_ROWS),
        Source::Pair(pair) => block_rows(pair),
    };
    let rows = source.rows();
    (0..source.heads()).flat_map(move |head| {
        (0..rows).step_by(step).map(move |start| Job { source, head, rows: start..(start + step).min(rows) })
    })
}

/// What one thread needs, reused from job to job.
#[derive(Default)]
struct Scratch {
    workspace: Workspace,
    row: Vec<f32>,
    block: QkBlock,
}

impl Scratch {
    fn measure(&mut self, job: &Job, settings: &Settings) -> Vec<RowRecord> {
        match job.source {
            Source::Scores(tensor) => {
                job.rows.clone().map(|row| self.score_row(tensor, job.head, row, settings)).collect()
            }
            Source::Pair(pair) => self.pair_rows(pair, job, settings),
        }
    }

    fn score_row(&mut self, tensor: &ScoreTensor, head: usize, row: usize, settings: &Settings) -> RowRecord {
        let shift = tensor.read_row(head, row, settings.exclude_sink, &mut self.row);
        let position = tensor.position(row).unwrap_or_else(|| last_visible(&self.row));
        let place = RowPlace { layer: tensor.layer().clone(), head: head as u64, row: row as u64, position };
        record(&mut self.workspace, &mut self.row, place, shift, settings)
    }

    fn pair_rows(&mut self, pair: &QkPair, job: &Job, settings: &Settings) -> Vec<RowRecord> {
        let Scratch { workspace, block, .. } = self;
        block.fill(pair, job.head, job.rows.clone());
        let one = |(index, row): (usize, usize)| {
            let position = pair.position(row);
            let layer = pair.layer().clone();
            let place = RowPlace { layer, head: job.head as u64, row: row as u64, position };
            record(workspace, block.row(index, position), place, 0.0, settings)
        };
        job.rows.clone().enumerate().map(one).collect()
    }
}

/// The position of a score row that its file does not give: its last unmasked key.
pub(crate) fn last_visible(scores: &[f32]) -> u64 {
    scores.iter().rposition(|&s| s != f32::NEG_INFINITY).unwrap_or(0) as u64
}

fn record(
    workspace: &mut Workspace,
    scores: &mut [f32],
    place: RowPlace,
    shift: f64,
    settings: &Settings,
) -> RowRecord {
    let excluded = settings.exclude_sink.min(scores.len());
    scores[..excluded].fill(f32::NEG_INFINITY);
    let report = workspace.report(scores, settings.beta, settings.measure);
    RowRecord::new(place, &report, shift, settings.measure.top_k.is_some())
}
