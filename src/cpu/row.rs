//! One row in five verbs: row max, count gaps, critical beta, partition, write probs; by one thread, or by all of them in parts.

use super::lanes::{CHUNK, Exponent, Isa, LANES, WEIGHT_ONE, Worst};
use super::report::{Measure, RowReport, SoftmaxRow};
use super::search::Search;
use crate::Element;
use crate::critical::CriticalBeta;
use crate::rescaling::{Rescaling, RowFacts};
use crate::stats::{Partition, RowMax, weight};
use rayon::prelude::*;
use std::cell::Cell;

/// Scratch for one row at a time, reused from row to row. Per score: 4 bytes of its gap and 4 more to sort them, an eighth of block
/// maxima; 4 of its weight for a softmax; and 4 to gather it in parts.
pub(crate) struct Workspace {
    isa: Isa,
    parts: Vec<Part>,
    maxima: Vec<f32>,
    search: Search,
    wide: Vec<f32>,
}

/// Scratch of what one thread has of a row.
#[derive(Default)]
struct Part {
    /// The maxima of its blocks, lane by lane.
    maxima: Vec<f32>,
    /// Scores that may matter to the search.
    largest: Vec<f32>,
    /// 2^25 exp(-beta gap) of its scores.
    weights: Vec<f32>,
    /// Z of its chunks.
    sums: Vec<f64>,
    worst: Option<Worst>,
}

/// Where beta comes from.
#[derive(Clone, Copy)]
pub(super) enum Beta<'a> {
    /// A rule, for a row at this position.
    Rule(&'a Rescaling, u64),
    /// It is given.
    Given(f64),
}

/// What becomes of the scores of a row.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    /// All the same: NaN in poisoned rows, 0 in empty ones.
    With(f32),
    /// The weights that the workspace keeps, times this.
    Weights { factor: f32 },
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace::new(Isa::chosen_or_widest(), 1)
    }
}

thread_local! {
    /// What this thread used last: the pages of new memory cost a tenth of a call (2026-11-25).
    static LAST: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

/// A workspace on loan from its thread.
pub(super) struct Loan(Option<Box<Workspace>>);

impl Loan {
    /// For rows that `parts` threads share.
    pub(super) fn of(parts: usize) -> Self {
        let last =
            LAST.take().filter(|last| last.parts.len() == parts && last.isa == Isa::chosen_or_widest());
        Loan(Some(last.unwrap_or_else(|| Box::new(Workspace::new(Isa::chosen_or_widest(), parts)))))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        LAST.set(self.0.take());
    }
}

impl std::ops::Deref for Loan {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        self.0.as_ref().expect("lent until it is dropped")
    }
}

impl std::ops::DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Workspace {
        self.0.as_mut().expect("lent until it is dropped")
    }
}

impl Workspace {
    /// For rows that `parts` threads share.
    pub(super) fn new(isa: Isa, parts: usize) -> Self {
        let parts = (0..parts.max(1)).map(|_| Part::default()).collect();
        Workspace { isa, parts, maxima: Vec::new(), search: Search::default(), wide: Vec::new() }
    }

    /// Runs `pass` on every part of `row`.
    fn each<T: Element>(&mut self, row: &[T], pass: impl Fn(Isa, &mut Part, &[T]) + Sync) {
        let isa = self.isa;
        match &mut self.parts[..] {
            [part] => pass(isa, part, row),
            parts => {
                let len = part_len(row.len(), parts.len());
                let slice = |i: usize| &row[(i * len).min(row.len())..((i + 1) * len).min(row.len())];
                parts.par_iter_mut().enumerate().for_each(|(i, part)| pass(isa, part, slice(i)));
            }
        }
    }

    /// The top of a row, and the maxima of its blocks with it.
    fn top<T: Element>(&mut self, row: &[T]) -> RowMax {
        self.each(row, |isa, part, scores| part.worst = Some(isa.block_maxima(scores, &mut part.maxima)));
        let isa = self.isa;
        let worst = self.parts.iter().filter_map(|part| part.worst).max().unwrap_or(Worst::Finite);
        if worst == Worst::Nan {
            return poisoned(row);
        }
        let len = part_len(row.len(), self.parts.len());
        let mut top = RowMax { len: row.len() as u64, ..RowMax::EMPTY };
        let mut start = 0;
        for part in &self.parts {
            let (scores, _) = row[start..].split_at(len.min(row.len() - start));
            let (max, next) = isa.largest_two(&part.maxima);
            // A part that attains less than those before it, or nothing.
            if max < top.max || max == f32::NEG_INFINITY {
                top.second = top.second.max(max);
            } else {
                let places = isa.places(scores, &part.maxima, max, next);
                let first = (start + places.first) as u64;
                top = match max > top.max {
                    true => RowMax {
                        max,
                        second: places.second.max(top.max),
                        argmax: first,
                        ties: places.ties,
                        ..top
                    },
                    false => RowMax { second: max, ties: top.ties + places.ties, ..top },
                };
            }
            start += scores.len();
        }
        if top.max == f32::INFINITY {
            return poisoned(row);
        }
        if top.ties == 0 {
            return RowMax::EMPTY;
        }
        if worst == Worst::Infinite {
            top.len = isa.count_finite(row);
        }
        // -0 and 0 are one score.
        RowMax { max: top.max + 0.0, second: top.second + 0.0, ..top }
    }

    /// Lambda(resolve), once the top is known.
    fn critical_beta<T: Element>(&mut self, row: &[T], top: &RowMax, resolve: f64) -> CriticalBeta {
        let (isa, mut search) = (self.isa, std::mem::take(&mut self.search));
        let maxima = match &mut self.parts[..] {
            [part] => std::mem::take(&mut part.maxima),
            parts => {
                self.maxima.clear();
                parts.iter().for_each(|part| self.maxima.extend_from_slice(&part.maxima));
                std::mem::take(&mut self.maxima)
            }
        };
        let best = search.critical_beta(isa, top, resolve, &maxima, |least, scores| match self.parts.len() {
            1 => isa.gather(row, &maxima, least, scores),
            _ => {
                self.each(row, |isa, part, row| isa.gather(row, &part.maxima, least, &mut part.largest));
                scores.clear();
                self.parts.iter().for_each(|part| scores.extend_from_slice(&part.largest));
            }
        });
        match &mut self.parts[..] {
            [part] => part.maxima = maxima,
            _ => self.maxima = maxima,
        }
        self.search = search;
        best
    }

    /// Lambda and Lambda(r): equal and computed once for r = 0.
    fn critical_betas(&mut self, scores: &[f32], top: &RowMax, measure: Measure) -> [CriticalBeta; 2] {
        if top.poisoned {
            return [CriticalBeta::UNKNOWN; 2];
        }
        let mut at = |resolve| match measure.top_k {
            Some(k) => Search::critical_beta_of_top(self.isa, scores, top, k, resolve),
            None => self.critical_beta(scores, top, resolve),
        };
        let critical = at(0.0);
        let resolved = if measure.resolve == 0.0 { critical } else { at(measure.resolve) };
        [critical, resolved]
    }

    /// Lambda(r) of a row, `resolve` r.
    pub(super) fn resolved(&mut self, scores: &[f32], resolve: f64) -> CriticalBeta {
        let top = self.top(scores);
        if top.poisoned { CriticalBeta::UNKNOWN } else { self.critical_beta(scores, &top, resolve) }
    }

    /// The report on a row at inverse temperature `beta` >= 0.
    pub(crate) fn report(&mut self, scores: &[f32], beta: f64, measure: Measure) -> RowReport {
        let top = self.top(scores);
        let betas = self.critical_betas(scores, &top, measure);
        let part = if top.poisoned { Partition::EMPTY } else { Partition::of(scores, top.max, beta) };
        RowReport::of(top, betas, beta, part)
    }

    /// The beta of a row with this top; NaN for a poisoned one.
    fn beta<T: Element>(&mut self, row: &[T], top: &RowMax, beta: Beta) -> f64 {
        let (rescaling, position) = match beta {
            _ if top.poisoned => return f64::NAN,
            Beta::Given(beta) => return if beta < 0.0 { 0.0 } else { beta },
            Beta::Rule(rescaling, position) => (rescaling, position),
        };
        let critical = match rescaling.resolve() {
            Some(resolve) => self.critical_beta(row, top, resolve).beta,
            None => f64::NAN,
        };
        let entropy = match rescaling.needs_entropy() {
            true => {
                widen(row, &mut self.wide);
                Partition::of(&self.wide, top.max, 1.0).entropy(1.0)
            }
            false => f64::NAN,
        };
        rescaling.beta(&RowFacts { n: top.len, position, critical, entropy })
    }

    /// What is told of a row, and what becomes of its scores. The row that comes `next` is fetched meanwhile.
    pub(super) fn softmax<T: Element>(&mut self, row: &[T], next: &[T], beta: Beta) -> (SoftmaxRow, Fill) {
        let top = self.top(row);
        let beta = self.beta(row, &top, beta);
        let (log_partition, fill) = match () {
            _ if beta.is_nan() => (f64::NAN, Fill::With(f32::NAN)),
            _ if top.len == 0 => (f64::NEG_INFINITY, Fill::With(0.0)),
            _ => {
                let (max, exponent) = (top.max, Exponent::of(beta));
                self.each(row, |isa, part, scores| {
                    isa.weigh(scores, next, max, exponent, &mut part.weights, &mut part.sums);
                });
                let sum: f64 = self.parts.iter().flat_map(|part| &part.sums).sum();
                (sum.ln(), Fill::Weights { factor: (1.0 / (sum * f64::from(WEIGHT_ONE))) as f32 })
            }
        };
        (SoftmaxRow { top, beta, log_partition }, fill)
    }

    /// Writes the probabilities of the row that has just been weighed.
    pub(super) fn write<O: Element>(&self, out: &mut [O], fill: Fill, stream: bool) {
        let isa = self.isa;
        match (fill, &self.parts[..]) {
            (Fill::With(value), _) => out.fill(O::from_f32(value)),
            (Fill::Weights { factor }, [part]) => isa.scale(&part.weights, factor, out, stream),
            (Fill::Weights { factor }, parts) => {
                let outs = out.par_chunks_mut(part_len(out.len(), parts.len()));
                outs.zip(parts).for_each(|(out, part)| isa.scale(&part.weights, factor, out, stream));
            }
        }
    }

    /// Writes the probabilities of a row under `rescaling` to `out` in f64, one per score; a file command's, which rounds them once.
    ///
    /// The row sits at query `position` (0-based). A poisoned row is NaN, as is one whose beta is; an empty one 0.
    pub(crate) fn exact_softmax(
        &mut self,
        scores: &[f32],
        rescaling: &Rescaling,
        position: u64,
        out: &mut Vec<f64>,
    ) -> SoftmaxRow {
        let top = self.top(scores);
        let beta = self.beta(scores, &top, Beta::Rule(rescaling, position));
        let log_partition = if top.poisoned { f64::NAN } else { Partition::of(scores, top.max, beta).log() };
        let largest = (-log_partition).exp();
        out.clear();
        out.extend(scores.iter().map(|&s| match s {
            _ if beta.is_nan() => f64::NAN,
            f32::NEG_INFINITY => 0.0,
            s => weight((top.max - s).into(), beta) * largest,
        }));
        SoftmaxRow { top, beta, log_partition }
    }
}

/// Scores of each but the last of `parts` parts: whole chunks, so that sums are the same in any number of parts.
fn part_len(len: usize, parts: usize) -> usize {
    const _: () = assert!(CHUNK.is_multiple_of(LANES));
    len.div_ceil(parts).next_multiple_of(CHUNK).max(CHUNK)
}

/// The top of a row with a NaN or +inf.
fn poisoned<T: Element>(row: &[T]) -> RowMax {
    let is_poison = |s: &T| s.to_f32().is_nan() || s.to_f32() == f32::INFINITY;
    let argmax = row.iter().position(is_poison).unwrap_or(0) as u64;
    let len = row.iter().filter(|s| s.to_f32() != f32::NEG_INFINITY).count() as u64;
    RowMax { max: f32::NAN, second: f32::NAN, len, argmax, ties: 0, poisoned: true }
}

/// Replaces `out` by `row` in the working f32.
pub(crate) fn widen<T: Element>(row: &[T], out: &mut Vec<f32>) {
    out.clear();
    out.extend(row.iter().map(|s| s.to_f32()));
}
