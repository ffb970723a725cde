//! What is measured of a row, and what is told of it.

use crate::critical::CriticalBeta;
use crate::stats::{Partition, RowMax, weight};

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
