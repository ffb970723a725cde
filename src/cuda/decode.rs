//! From what a kernel says of a row to what the CPU path says of it. Ratios are computed again from their contacts by
//! the one function that rounds them, so critical betas are the CPU path's bit for bit.

use super::params;
use crate::cpu::{Measure, RowReport, SoftmaxRow};
use crate::critical::{CriticalBeta, ratio};
use crate::stats::{Partition, RowMax};

impl params::RowReport {
    /// What the CPU path says of the same row. `measure` is what the launch was asked for, with the resolve of a critical
    /// rescaling. Betas that the launch did not measure are NaN: both where it had an output but no critical
    /// rescaling, and Lambda where resolve > 0 and not [`Call::both`](super::Call::both).
    pub fn decode(&self, measure: Measure) -> RowReport {
        report(self, if self.poisoned != 0 { f64::NAN } else { self.beta }, measure)
    }
}

/// The report of a row that was run at `beta`.
pub(super) fn report(row: &params::RowReport, beta: f64, measure: Measure) -> RowReport {
    let top = top(row);
    let resolved = critical(row, &top, row.resolved, measure.resolve);
    let critical = if measure.resolve == 0.0 { resolved } else { critical(row, &top, row.critical, 0.0) };
    RowReport::of(top, [critical, resolved], beta, partition(row, &top))
}

/// The softmax of a row, but for its weights.
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
        // The certificate: whatever lies beyond the k-th gap has a ratio below (log n - r) / D_(k).
        best.upper = best.beta.max(ratio(row.kth_gap.into(), top.len, resolve));
    }
    best
}
