//! Bins of rows of about the same length, and the medians that curves go through.

use super::quantile::{median, sorted};
use super::sample::RowSample;

/// A bin has at least this many rows. The median of fewer is not worth a fit.
const BIN_ROWS: usize = 3;
const MAX_BINS: usize = 16;
/// A row needs this many keys to take part, because ln ln n must be positive and away from -inf.
const MIN_KEYS: u64 = 3;

/// Rows of about the same length.
#[derive(Debug)]
pub(crate) struct Bin<'a> {
    pub rows: Vec<&'a RowSample>,
    /// Median n of the rows.
    pub n: f64,
}

impl Bin<'_> {
    pub(crate) fn ln_n(&self) -> f64 {
        self.n.ln()
    }

    /// Ascending values of one quantity over the bin's rows.
    pub(crate) fn values(&self, of: impl Fn(&RowSample) -> f64) -> Vec<f64> {
        sorted(self.rows.iter().map(|row| of(row)))
    }
}

/// Bins of rows evenly spaced in log n, in ascending order. A bin with too few rows joins the next.
pub(crate) fn bins(samples: &[RowSample]) -> Vec<Bin<'_>> {
    let mut rows: Vec<&RowSample> = samples.iter().filter(|row| row.n >= MIN_KEYS).collect();
    rows.sort_by_key(|row| row.n);
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Vec::new();
    };
    let (low, high) = ((first.n as f64).ln(), (last.n as f64).ln());
    let wanted = (rows.len() / 10).clamp(BIN_ROWS, MAX_BINS);
    let step = (high - low) / wanted as f64;
    let bin_of = |row: &RowSample| {
        let at = if step > 0.0 { ((row.n as f64).ln() - low) / step } else { 0.0 };
        (at as usize).min(wanted - 1)
    };
    let mut groups: Vec<Vec<&RowSample>> = Vec::new();
    for group in rows.chunk_by(|a, b| bin_of(a) == bin_of(b)) {
        match groups.last_mut() {
            Some(short) if short.len() < BIN_ROWS => short.extend(group),
            _ => groups.push(group.to_vec()),
        }
    }
    if groups.len() > 1 && groups.last().is_some_and(|last| last.len() < BIN_ROWS) {
        let rest = groups.pop().unwrap_or_default();
        groups.last_mut().into_iter().for_each(|last| last.extend(&rest));
    }
    let with_length = |rows: Vec<_>| Bin { n: 0.0, rows };
    let mut bins: Vec<Bin> = groups.into_iter().map(with_length).collect();
    bins.iter_mut().for_each(|bin| bin.n = median(&bin.values(|row| row.n as f64)));
    bins
}

/// The median of one bin, its ln n, and its number of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub ln_n: f64,
    pub value: f64,
    pub rows: f64,
}

impl Point {
    pub(crate) fn of(bin: &Bin, values: &[f64]) -> Point {
        Point { ln_n: bin.ln_n(), value: median(values), rows: values.len() as f64 }
    }

    /// Whether its logarithm exists. No fit goes through 0 or infinity.
    pub(crate) fn usable(&self) -> bool {
        self.value > 0.0 && self.value.is_finite()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Ten rows at each of 16 lengths, 64 to about two million.
    pub(in super::super) fn rows(critical: impl Fn(f64, usize) -> f64) -> Vec<RowSample> {
        let lengths = (0..16).flat_map(|i| std::iter::repeat_n(64u64 << i, 10));
        lengths.enumerate().map(|(i, n)| RowSample::with(n, critical(n as f64, i % 10))).collect()
    }

    #[test]
    fn bins_hold_every_row_of_three_keys_once_and_enough_of_them() {
        let mut samples = rows(|_, _| 1.0);
        samples.extend([RowSample::with(2, 1.0), RowSample::with(1 << 40, 1.0)]);
        let bins = bins(&samples);
        assert_eq!(bins.iter().map(|bin| bin.rows.len()).sum::<usize>(), 161);
        assert!(bins.iter().all(|bin| bin.rows.len() >= BIN_ROWS) && bins.len() >= 4, "{}", bins.len());
        assert!(bins.windows(2).all(|pair| pair[0].n < pair[1].n));
        assert!(super::bins(&[]).is_empty());
        assert_eq!(super::bins(&[RowSample::with(9, 1.0), RowSample::with(9, 1.0)]).len(), 1);
    }
}
