//! Row records gathered per layer and head, and what is said of each.

use super::length_law::{LengthLaw, Yardsticks};
use super::quantile::{median, quantile, sorted};
use super::record::RowRecord;
use super::scan::Settings;
use crate::input::Input;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// What is kept of a row for its head's summary: 48 bytes, so that a million rows take 48 MB.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowSample {
    pub n: u64,
    pub position: u64,
    pub critical: f64,
    pub resolved: f64,
    pub contact_gap: f32,
    pub alpha: f32,
    pub entropy: f32,
    certified: bool,
    tied: bool,
    above_critical: bool,
}

#[cfg(test)]
impl RowSample {
    /// A row of n keys that only its lengths and critical beta matter of.
    pub(super) fn with(n: u64, critical: f64) -> Self {
        let (contact_gap, alpha, entropy) = (1.0, 0.5, (n as f32).ln() / 2.0);
        let (tied, above_critical) = (critical == f64::INFINITY, critical < 1.0);
        let position = n - 1;
        RowSample {
            n,
            position,
            critical,
            resolved: critical.min(9.0),
            contact_gap,
            alpha,
            entropy,
            certified: false,
            tied,
            above_critical,
        }
    }
}

/// Gathers records per layer and head, over all files, in order of first appearance.
pub struct Diagnosis {
    settings: Settings,
    inputs: Vec<String>,
    heads: Vec<HeadRows>,
    by_name: HashMap<(Arc<str>, u64), usize>,
}

struct HeadRows {
    layer: Arc<str>,
    head: u64,
    rows: u64,
    poisoned: u64,
    /// Rows with n >= 2 that are not poisoned: those that have anything to separate.
    measured: Vec<RowSample>,
}

impl Diagnosis {
    /// Of the rows that `inputs` hold, none of them measured yet.
    pub fn new(inputs: &[Input], settings: Settings) -> Self {
        let names = inputs.iter().map(|input| input.path.display().to_string()).collect();
        let mut diagnosis = Diagnosis { settings, inputs: names, heads: Vec::new(), by_name: HashMap::new() };
        for source in inputs.iter().flat_map(|input| &input.sources) {
            for head in 0..source.heads() {
                diagnosis.head(source.layer(), head as u64).measured.reserve_exact(source.rows());
            }
        }
        diagnosis
    }

    fn head(&mut self, layer: &Arc<str>, head: u64) -> &mut HeadRows {
        let heads = &mut self.heads;
        let at = *self.by_name.entry((layer.clone(), head)).or_insert_with(|| {
            let layer = layer.clone();
            heads.push(HeadRows { layer, head, rows: 0, poisoned: 0, measured: Vec::new() });
            heads.len() - 1
        });
        &mut self.heads[at]
    }

    /// Takes records in.
    pub fn add(&mut self, records: &[RowRecord]) {
        for record in records {
            let head = self.head(&record.layer, record.head);
            head.rows += 1;
            head.poisoned += u64::from(record.poisoned);
            if record.n >= 2 && !record.poisoned {
                head.measured.push(RowSample {
                    n: record.n,
                    position: record.position,
                    critical: record.critical_beta,
                    resolved: record.resolved_beta,
                    contact_gap: record.contact_gap as f32,
                    alpha: record.alpha as f32,
                    entropy: record.entropy as f32,
                    certified: record.certified == Some(true),
                    tied: record.ties >= 2,
                    above_critical: record.beta > record.critical_beta,
                });
            }
        }
    }

    /// The summary of all rows so far. `seed` decides the resampling, nothing else.
    pub fn summary(&self, seed: u64) -> Summary {
        let mut yardsticks = Yardsticks::new(seed);
        let heads =
            self.heads.iter().map(|head| head.summary(&self.settings, seed, &mut yardsticks)).collect();
        let Settings { beta, measure, exclude_sink } = self.settings;
        Summary {
            critbeta: env!("CARGO_PKG_VERSION"),
            inputs: self.inputs.clone(),
            beta,
            resolve: measure.resolve,
            top_k: measure.top_k,
            exclude_sink,
            seed,
            heads,
        }
    }
}

/// Everything that a diagnosis says, as `--json` writes it; infinite and NaN values are null there.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Version of this crate.
    pub critbeta: &'static str,
    /// The files, as they were named.
    pub inputs: Vec<String>,
    /// The inverse temperature that the rows were run at.
    pub beta: f64,
    /// r of the resolved critical beta, nats.
    pub resolve: f64,
    /// Whether only the largest scores were counted.
    pub top_k: Option<usize>,
    /// Keys left out at the front of every row.
    pub exclude_sink: usize,
    /// Seed of the resampling.
    pub seed: u64,
    /// One entry per layer and head.
    pub heads: Vec<HeadSummary>,
}

/// One head of one layer. Quantiles, medians and shares are over its measured rows: those with
/// n >= 2 that are not poisoned.
#[derive(Debug, Clone, Serialize)]
pub struct HeadSummary {
    /// The tensor's name without `.q`.
    pub layer: Arc<str>,
    /// Query head.
    pub head: u64,
    /// All rows, measured or not.
    pub rows: u64,
    /// Rows with at least two visible keys and no NaN or +inf.
    pub measured: u64,
    /// Rows with a NaN or +inf score.
    pub poisoned: u64,
    /// Smallest and largest n; `None` without a measured row.
    pub n: Option<[u64; 2]>,
    /// Lambda.
    pub critical_beta: Quantiles,
    /// Lambda(r).
    pub resolved_beta: Quantiles,
    /// Share of rows whose beta lies above their critical beta.
    pub share_above_critical: f64,
    /// Share of rows with tied maxima, whose critical beta is infinite.
    pub share_tied: f64,
    /// Median accumulation exponent.
    pub median_alpha: f64,
    /// Median of entropy / log n.
    pub median_relative_entropy: f64,
    /// Only with a top-k count: share of rows whose critical beta is proven exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_certified: Option<f64>,
    /// How the critical beta grows with n.
    pub length_law: LengthLaw,
}

/// Five quantiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// 5 %.
    pub q05: f64,
    /// 25 %.
    pub q25: f64,
    /// Median.
    pub q50: f64,
    /// 75 %.
    pub q75: f64,
    /// 95 %.
    pub q95: f64,
}

impl Quantiles {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let sorted = sorted(values);
        let [q05, q25, q50, q75, q95] = [0.05, 0.25, 0.5, 0.75, 0.95].map(|p| quantile(&sorted, p));
        Quantiles { q05, q25, q50, q75, q95 }
    }
}

impl HeadRows {
    fn summary(&self, settings: &Settings, seed: u64, yardsticks: &mut Yardsticks) -> HeadSummary {
        let rows = &self.measured;
        let share =
            |of: fn(&RowSample) -> bool| rows.iter().filter(|row| of(row)).count() as f64 / rows.len() as f64;
        let median_of = |of: fn(&RowSample) -> f64| median(&sorted(rows.iter().map(of)));
        let n = rows.iter().map(|row| row.n);
        HeadSummary {
            layer: self.layer.clone(),
            head: self.head,
            rows: self.rows,
            measured: rows.len() as u64,
            poisoned: self.poisoned,
            n: n.clone().min().zip(n.max()).map(Into::into),
            critical_beta: Quantiles::of(rows.iter().map(|row| row.critical)),
            resolved_beta: Quantiles::of(rows.iter().map(|row| row.resolved)),
            share_above_critical: share(|row| row.above_critical),
            share_tied: share(|row| row.tied),
            median_alpha: median_of(|row| row.alpha.into()),
            median_relative_entropy: median_of(|row| f64::from(row.entropy) / (row.n as f64).ln()),
            share_certified: settings.measure.top_k.map(|_| share(|row| row.certified)),
            length_law: LengthLaw::of(rows, settings, seed, yardsticks),
        }
    }
}
