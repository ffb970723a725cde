//! One row on one thread, in five verbs: row max, count gaps, critical beta, partition, write probs.

use super::refine::Refiner;
use crate::Element;
use crate::critical::CriticalBeta;
use crate::rescaling::{Rescaling, RowFacts};
use crate::stats::{GapProfile, Partition, RowMax, weight};

/// What to measure of a row besides its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measure {
    /// r of the resolved critical beta, nats, finite and >= 0.
    pub resolve: f64,
    /// Count gaps among this many largest scores only; the report then says how far that can be trusted.
    pub top_k: Option<usize>,
}

impl Default for Measure {
    fn default() -> Self {
        Measure { resolve: 0.0, top_k: None }
    }
}

/// What is known of one row. NaN throughout in a poisoned row; an empty row has only zeros, but for
/// its log partition of -inf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowReport {
    /// The maximum, who attains it, and n.
    pub top: RowMax,
    /// Lambda with its contact.
    pub critical: CriticalBeta,
    /// Lambda(r) with its contact, r from [`Measure::resolve`].
    pub resolved: CriticalBeta,
    /// The inverse temperature of the weights below.
    pub beta: f64,
    /// F = log Z(beta), nats, relative to the maximum: log-sum-exp = beta * max + F.
    pub log_partition: f64,
    /// Entropy of the weights, nats.
    pub entropy: f64,
    /// Largest minus second largest weight.
    pub top_two: f64,
    /// Largest weight.
    pub max_weight: f64,
}

impl RowReport {
    /// From the top of a row, Lambda and Lambda(r), and its partition at `beta`.
    pub(crate) fn of(
        top: RowMax,
        [critical, resolved]: [CriticalBeta; 2],
        beta: f64,
        part: Partition,
    ) -> RowReport {
        let (log_partition, entropy, top_two, max_weight) = if top.poisoned {
            (f64::NAN, f64::NAN, f64::NAN, f64::NAN)
        } else if top.len == 0 {
            (f64::NEG_INFINITY, 0.0, 0.0, 0.0)
        } else {
            let second = if top.len < 2 { 0.0 } else { weight((top.max - top.second).into(), beta) };
            (part.log(), part.entropy(beta), (1.0 - second) / part.sum, 1.0 / part.sum)
        };
        RowReport { top, critical, resolved, beta, log_partition, entropy, top_two, max_weight }
    }

    /// alpha = log(contact rank) / log n, in 0..=1.
    pub fn alpha(&self) -> f64 {
        if self.top.poisoned { f64::NAN } else { self.critical.alpha(self.top.len) }
    }

    /// The operating ratio beta / Lambda.
    pub fn ratio(&self) -> f64 {
        crate::critical::operating_ratio(self.beta, self.critical.beta)
    }
}

/// The rescaled softmax of one row, but for its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftmaxRow {
    /// The maximum, who attains it, and n.
    pub top: RowMax,
    /// The inverse temperature that the rescaling chose; NaN for a poisoned row.
    pub beta: f64,
    /// F = log Z(beta), nats, relative to the maximum; -inf for an empty row, NaN for a poisoned one.
    pub log_partition: f64,
}

/// Scratch of one thread, reused from row to row: at most 8 bytes per score of the longest row.
pub(crate) struct Workspace {
    profile: GapProfile,
    refiner: Refiner,
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace { profile: GapProfile::of(&[], 0.0), refiner: Refiner::default() }
    }
}

impl Workspace {
    /// Lambda and Lambda(r): equal and computed once for r = 0.
    pub(super) fn critical_betas(
        &mut self,
        scores: &[f32],
        top: &RowMax,
        measure: Measure,
    ) -> [CriticalBeta; 2] {
        if top.poisoned {
            return [CriticalBeta::UNKNOWN; 2];
        }
        if measure.top_k.is_none() {
            self.profile.recount(scores, top.max);
        }
        let mut at = |resolve| match measure.top_k {
            Some(k) => Refiner::critical_beta_of_top(scores, top, k, resolve),
            None => self.refiner.critical_beta(scores, top, &self.profile, resolve),
        };
        let critical = at(0.0);
        let resolved = if measure.resolve == 0.0 { critical } else { at(measure.resolve) };
        [critical, resolved]
    }

    /// The report on a row at inverse temperature `beta` >= 0.
    pub(crate) fn report(&mut self, scores: &[f32], beta: f64, measure: Measure) -> RowReport {
        let top = RowMax::of(scores, 0);
        let betas = self.critical_betas(scores, &top, measure);
        let part = if top.poisoned { Partition::EMPTY } else { Partition::of(scores, top.max, beta) };
        RowReport::of(top, betas, beta, part)
    }

    /// Writes the probabilities of a row under `rescaling` to `out` (f64, one per score).
    ///
    /// The row sits at query `position` (0-based). A poisoned row is NaN, an empty one 0.
    pub(crate) fn softmax(
        &mut self,
        scores: &[f32],
        rescaling: &Rescaling,
        position: u64,
        out: &mut Vec<f64>,
    ) -> SoftmaxRow {
        let top = RowMax::of(scores, 0);
        let critical = match rescaling.resolve() {
            Some(resolve) => self.critical_betas(scores, &top, Measure { resolve, top_k: None })[1].beta,
            None => f64::NAN,
        };
        let entropy = match rescaling.needs_entropy() {
            true => Partition::of(scores, top.max, 1.0).entropy(1.0),
            false => f64::NAN,
        };
        let beta = match top.poisoned {
            true => f64::NAN,
            false => rescaling.beta(&RowFacts { n: top.len, position, critical, entropy }),
        };
        let log_partition = if top.poisoned { f64::NAN } else { Partition::of(scores, top.max, beta).log() };
        write_probs(scores, &top, beta, log_partition, out);
        SoftmaxRow { top, beta, log_partition }
    }
}

fn write_probs(scores: &[f32], top: &RowMax, beta: f64, log_partition: f64, out: &mut Vec<f64>) {
    let largest = (-log_partition).exp();
    out.clear();
    out.extend(scores.iter().map(|&s| match s {
        _ if top.poisoned => f64::NAN,
        f32::NEG_INFINITY => 0.0,
        s => weight((top.max - s).into(), beta) * largest,
    }));
}

/// Replaces `out` by `row` in the working f32.
pub(crate) fn widen<T: Element>(row: &[T], out: &mut Vec<f32>) {
    out.clear();
    out.extend(row.iter().map(|s| s.to_f32()));
}
