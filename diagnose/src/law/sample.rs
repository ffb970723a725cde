//! The data of a length law: rows of a head, and the medians of rows of similar length.

use serde::Serialize;

/// The 56 bytes of a row that are kept until its head is complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowSample {
    /// The index of the row in its head, over all sources in input order.
    pub ordinal: u64,
    pub n: u64,
    pub position: u64,
    pub critical: f64,
    pub resolved: f64,
    pub contact_gap: f32,
    pub alpha: f32,
    pub entropy: f32,
    pub top_two: f32,
}

#[cfg(test)]
impl RowSample {
    /// A row of n keys for a test that needs only its length and critical beta.
    pub(crate) fn with(n: u64, critical: f64) -> Self {
        let (contact_gap, alpha, entropy) = (1.0, 0.5, (n as f32).ln() / 2.0);
        let (position, resolved) = (n - 1, critical.min(9.0));
        RowSample { ordinal: 0, n, position, critical, resolved, contact_gap, alpha, entropy, top_two: 0.5 }
    }
}

/// The medians of one bin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BinMedians {
    /// Median n.
    pub n: f64,
    /// Rows in the bin.
    pub rows: usize,
    /// Median Lambda.
    pub critical_beta: f64,
    /// Median Lambda(r).
    pub resolved_beta: f64,
    /// 5 % and 95 % quantile of Lambda.
    pub critical_band: [f64; 2],
    /// 5 % and 95 % quantile of Lambda(r).
    pub resolved_band: [f64; 2],
    /// Median alpha.
    pub alpha: f64,
    /// Median contact gap.
    pub contact_gap: f64,
}
