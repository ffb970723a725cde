//! Turns the report of a kernel into the report of the CPU path. Ratios are computed again from their
//! contacts, by the one function that rounds them, so critical betas have the same bits as on the CPU path.

use super::params;
use crate::cpu::{Measure, RowReport, SoftmaxRow};
use crate::critical::{CriticalBeta, ratio};
use crate::stats::{Partition, RowMax};

impl params::RowReport {
    /// The report that the CPU path gives of the same row. `measure` is
    /// [`Call::measure`](super::Call::measure) of the launch. Critical betas that the launch did not measure
    /// are NaN. With an output and no critical rescaling, both are NaN. With resolve > 0 and without
    /// [`Call::both`](super::Call::both), Lambda is NaN.
    pub fn decode(&self, measure: Measure) -> RowReport {
        report(self, if self.poisoned != 0 { f64::NAN } else { self.beta }, measure)
    }
}

/// The report of a row, with its sums at `beta`.
pub(super) fn report(row: &params::RowReport, beta: f64, measure: Measure) -> RowReport {
    let top = top(row);
    let resolved = critical(row, &top, row.resolved, measure.resolve);
    let critical = if measure.resolve == 0.0 { resolved } else { critical(row, &top, row.critical, 0.0) };
    RowReport::of(top, [critical, resolved], beta, partition(row, &top))
}

/// What the CPU path returns for the softmax of a row, without the weights.
pub(super) fn softmax(row: &params::RowReport) -> SoftmaxRow {
    let top = top(row);
    let beta = if top.poisoned { f64::NAN } else { row.beta };
    let log_partition = if beta.is_nan() { f64::NAN } else { partition(row, &top).log() };
    SoftmaxRow { top, beta, log_partition }
}

fn top(row: &params::RowReport) -> RowMax {
    let (len, argmax) = (row.len.into(), row.argmax.into());
    match row.poisoned != 0 {
        true => RowMax { max: f32::NAN, second: f32::NAN, len, argmax, ties: 0, poisoned: true },
        false => {
            let (max, second, ties) = (row.max, row.second, row.ties.into());
            RowMax { max, second, len, argmax, ties, poisoned: false }
        }
    }
}

fn partition(row: &params::RowReport, top: &RowMax) -> Partition {
    match top.poisoned {
        true => Partition::EMPTY,
        false => Partition { max: top.max, sum: row.sum, gap_sum: row.gap_sum },
    }
}

fn critical(row: &params::RowReport, top: &RowMax, contact: params::Contact, resolve: f64) -> CriticalBeta {
    if top.poisoned || (contact.rank == 0 && top.len > 0) {
        return CriticalBeta::UNKNOWN;
    }
    let mut best = CriticalBeta::at_top(top.ties, resolve);
    if best.beta == f64::INFINITY {
        return best;
    }
    if contact.gap > 0.0 {
        best.offer(contact.gap.into(), contact.rank.into(), resolve);
    }
    if row.kth_gap >= 0.0 {
        // The certificate: every gap beyond the k-th has a ratio below (log n - r) / D_(k).
        best.upper = best.beta.max(ratio(row.kth_gap.into(), top.len, resolve));
    }
    best
}
