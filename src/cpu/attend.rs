//! What attention needs of a row of scores that it has computed: beta, reports, and the weights in place of
//! the scores. A score of such a row is never masked, because a row holds the keys that its query sees.

use super::InstructionSet;
use super::exponent::{Exponent, WEIGHT_ONE};
use super::lanes::{Lanes, Work};
use super::plan::CHUNK;
use super::row::{Measure, RowReport, Rule, SoftmaxRow, Workspace};
use super::top::{Chunks, Progress};
use super::weights::ReplaceByWeights;
use crate::Rescaling;
use rayon::prelude::*;
use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Who works on a row: one thread, or all threads if it is `split`.
#[derive(Clone, Copy)]
pub(crate) struct Hands {
    pub set: InstructionSet,
    pub split: bool,
}

/// The calling thread spins this often for the others, about 0.05 ms. Then it sleeps.
const SPINS: usize = 2000;

impl Hands {
    /// Calls `of` with each part and its number, on this thread or on all.
    ///
    /// This thread begins at once, while others wake up: with loops inside the thread pool, two threads took
    /// 1.17 times as long as one for 8,192 keys of 128 elements after a pause (2026-11-29).
    pub(crate) fn each<P: Send>(self, parts: Vec<P>, of: impl Fn(usize, P) + Sync) {
        let others =
            if self.split { parts.len().min(rayon::current_num_threads()).saturating_sub(1) } else { 0 };
        let parts = Mutex::new(parts.into_iter().enumerate());
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((at, part)) = next() {
                of(at, part);
            }
        };
        if others == 0 {
            return work();
        }
        let done = AtomicUsize::new(0);
        rayon::in_place_scope(|scope| {
            for _ in 0..others {
                scope.spawn(|_| {
                    work();
                    done.fetch_add(1, Ordering::Release);
                });
            }
            work();
            // The scope puts this thread to sleep at once, and to wake it takes long. A thread of the pool
            // does what nobody began instead.
            let spins = if rayon::current_thread_index().is_none() { SPINS } else { 0 };
            (0..spins).take_while(|_| done.load(Ordering::Acquire) < others).for_each(|_| hint::spin_loop());
        });
    }
}

/// A row whose probabilities stand in place of its scores.
pub(crate) struct Weighed {
    pub row: SoftmaxRow,
    pub report: Option<RowReport>,
    /// The factor near 1 that the rounded 1 / Z of the probabilities lacks. It is `None` if the row has no
    /// probabilities, because it is empty or has no beta.
    pub rest: Option<f64>,
}

/// A smaller probability counts as 0. It is 2^-100.
const SMALLEST: f32 = 7.888609e-31;

/// Replaces scores by 2^25 exp(-beta (max - score)), and returns the sum of these.
pub(crate) fn weights_at(set: InstructionSet, row: &mut [f32], max: f32, beta: f64) -> f64 {
    set.run(ReplaceByWeights { row, max, exponent: Exponent::new(beta) })
}

/// Multiplies weights by 1 / Z.
struct Scale<'a> {
    row: &'a mut [f32],
    factor: f32,
}

impl Work for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        // Subnormal numbers take a hundred times as long: decode at a high beta took 1.8 times as long
        // (2026-11-29). Zeros go in before the product, which would be subnormal too.
        let least = SMALLEST / self.factor;
        // The compiler vectorises this plain loop.
        self.row.iter_mut().for_each(|weight| {
            let kept = if *weight >= least { *weight } else { 0.0 };
            *weight = kept * self.factor;
        });
    }
}

impl Workspace {
    /// Replaces the scores of a row at query `position` by their probabilities, at the beta that `rescaling`
    /// chooses. A row without probabilities keeps its scores.
    pub(crate) fn weigh(
        &mut self,
        scores: &mut [f32],
        rescaling: &Rescaling,
        position: u64,
        measure: Option<Measure>,
        hands: Hands,
    ) -> Weighed {
        let Hands { set, split } = hands;
        let row = Chunks { scores: &*scores, ahead: &[], set, split };
        let found = row.top(Progress::NONE);
        let top = found.0;
        let known = measure.map(|measure| (measure, self.critical_betas(&row, &found, measure)));
        let beta = self.beta_knowing(&row, &found, Rule::Rescaling(rescaling, position), known);
        let report =
            known.map(|(_, betas)| RowReport::of(top, betas, beta, self.partition(&row, &top, beta)));
        let log_partition = if beta.is_nan() { f64::NAN } else { f64::NEG_INFINITY };
        if beta.is_nan() || top.len == 0 {
            return Weighed { row: SoftmaxRow { top, beta, log_partition }, report, rest: None };
        }
        let exponent = Exponent::new(beta);
        let replace = |row| set.run(ReplaceByWeights { row, max: top.max, exponent });
        let sum: f64 = match split {
            true => scores.par_chunks_mut(CHUNK).map(replace).collect::<Vec<f64>>().into_iter().sum(),
            false => scores.chunks_mut(CHUNK).map(replace).sum(),
        };
        let log_partition = (sum / f64::from(WEIGHT_ONE)).ln();
        let factor = (1.0 / sum) as f32;
        let scale = |row| set.run(Scale { row, factor });
        match split {
            true => scores.par_chunks_mut(CHUNK).for_each(scale),
            false => scale(scores),
        }
        let rest = Some(1.0 / (sum * f64::from(factor)));
        Weighed { row: SoftmaxRow { top, beta, log_partition }, report, rest }
    }

    /// The report on a row at query `position`, at the beta that `rescaling` chooses.
    pub(crate) fn report_by(
        &mut self,
        scores: &[f32],
        rescaling: &Rescaling,
        position: u64,
        measure: Measure,
        hands: Hands,
    ) -> RowReport {
        let row = Chunks { scores, ahead: &[], set: hands.set, split: hands.split };
        let found = row.top(Progress::NONE);
        let betas = self.critical_betas(&row, &found, measure);
        let beta =
            self.beta_knowing(&row, &found, Rule::Rescaling(rescaling, position), Some((measure, betas)));
        RowReport::of(found.0, betas, beta, self.partition(&row, &found.0, beta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_probability_is_a_power_of_two() {
        assert_eq!(SMALLEST, 2f32.powi(-100));
    }

    #[test]
    fn every_part_is_done_once_and_a_panic_reaches_the_caller() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let hands = Hands { set: InstructionSet::chosen().unwrap(), split: true };
        let each = |fails: usize| {
            let done = Mutex::new(vec![0; 50]);
            let of = |at: usize, part: usize| {
                assert!(at == part && at != fails, "part {at}");
                done.lock().unwrap_or_else(PoisonError::into_inner)[at] += 1;
            };
            hands.each((0..50).collect(), of);
            done.into_inner().unwrap()
        };
        assert_eq!(pool.install(|| each(99)), [1; 50]);
        assert_eq!(each(99), [1; 50]);
        assert!(std::panic::catch_unwind(|| each(7)).is_err());
        assert_eq!(each(99), [1; 50]);
    }
}
