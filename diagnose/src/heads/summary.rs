//! The findings of a diagnosis for every layer and head.

use super::sketch::HeadSketch;
use crate::input::Input;
use crate::law::length_law::LengthLaw;
use crate::law::quantile::{quantile, sorted};
use crate::remarks::Remarks;
use serde::Serialize;
use std::sync::Arc;

/// All findings of a diagnosis, as `--json` writes them. Infinite and NaN values are null there.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Version of this crate.
    pub critbeta: &'static str,
    /// The files.
    pub inputs: Vec<InputNames>,
    /// The inverse temperature of the rows.
    pub beta: f64,
    /// r of the resolved critical beta, nats.
    pub resolve: f64,
    /// Whether only the largest scores were counted.
    pub top_k: Option<usize>,
    /// This many keys at the front of every row were left out.
    pub exclude_sink: usize,
    /// L of the published laws that depend on the training length.
    pub train_length: f64,
    /// Seed of the resampling.
    pub seed: u64,
    /// What to know before trusting the numbers: probabilities in place of scores, masks that are finite
    /// numbers, heads that come last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// One entry per layer and head.
    pub heads: Vec<HeadSummary>,
}

/// A file as it was named, and the tensors in it that were left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InputNames {
    /// Its path.
    pub path: String,
    /// Names of tensors that were not diagnosed: scores beside pairs, what is no float, and tensors
    /// without rows.
    pub skipped: Vec<String>,
}

impl InputNames {
    pub(crate) fn of(input: &Input) -> Self {
        InputNames { path: input.path.display().to_string(), skipped: input.skipped.clone() }
    }
}

/// One head of one layer. Shares are over its measured rows: those with n >= 2 that are not poisoned.
/// Quantiles, medians and the length law are over `sampled` of these rows.
#[derive(Debug, Clone, Serialize)]
pub struct HeadSummary {
    /// The tensor's name without `.q`.
    pub layer: Arc<str>,
    /// Query head.
    pub head: u64,
    /// Tensors or pairs of this name that its rows come from. There are several if files are pooled.
    pub sources: u64,
    /// All rows, measured or not.
    pub rows: u64,
    /// Rows with at least two visible keys and no NaN or +inf.
    pub measured: u64,
    /// Measured rows behind the quantiles: all, or a uniform sample of at most 262,144.
    pub sampled: u64,
    /// Rows with a NaN or +inf score.
    pub poisoned: u64,
    /// Smallest and largest n, or `None` without a measured row.
    pub n: Option<[u64; 2]>,
    /// Lambda.
    pub critical_beta: Quantiles,
    /// Lambda(r).
    pub resolved_beta: Quantiles,
    /// beta / Lambda.
    pub operating_ratio: Quantiles,
    /// How many measured rows run below, near and above their critical beta.
    pub regimes: Regimes,
    /// Share of rows whose beta lies above their critical beta.
    pub share_above_critical: f64,
    /// Share of rows with tied maxima, whose critical beta is infinite.
    pub share_tied: f64,
    /// Median accumulation exponent.
    pub median_alpha: f64,
    /// Median of entropy / log n.
    pub median_relative_entropy: f64,
    /// Median of the largest minus the second largest weight.
    pub median_top_two: f64,
    /// Measured rows that break a proven bound on the top-two difference or entropy. It must be 0.
    pub bound_violations: u64,
    /// Share of rows whose critical beta is proven exact. Only a top-k count has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_certified: Option<f64>,
    /// How the critical beta grows with n.
    pub length_law: LengthLaw,
    /// These rows under other rules, if they were [looked at again](crate::look_again).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what_if: Option<Vec<LawOutcome>>,
    /// How many of its measured rows show that they are no scores.
    #[serde(skip)]
    pub remarks: Remarks,
    /// A few of its rows, for plots.
    #[serde(skip)]
    pub sketch: HeadSketch,
}

/// Rows by operating ratio rho = beta / Lambda. Within a factor of two of 1 they are near: for some families
/// of rows rho = 1 is a sharp border, for others the border is a random factor wide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Regimes {
    /// rho < 1/2.
    pub below: u64,
    /// 1/2 <= rho <= 2.
    pub near: u64,
    /// rho > 2.
    pub above: u64,
}

impl Regimes {
    /// The operating ratios that are near critical, with both ends.
    pub const NEAR: [f64; 2] = [0.5, 2.0];

    pub(crate) fn count(&mut self, ratio: f64) {
        let [low, high] = Self::NEAR;
        // A row with beta = 0 and Lambda = 0 has no ratio. It counts as below: nothing separates its keys.
        if ratio > high {
            self.above += 1;
        } else if ratio >= low {
            self.near += 1;
        } else {
            self.below += 1;
        }
    }

    /// The sum of two counts.
    pub fn and(self, other: Regimes) -> Regimes {
        let Regimes { below, near, above } = other;
        Regimes { below: self.below + below, near: self.near + near, above: self.above + above }
    }
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
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let sorted = sorted(values);
        let [q05, q25, q50, q75, q95] = [0.05, 0.25, 0.5, 0.75, 0.95].map(|p| quantile(&sorted, p));
        Quantiles { q05, q25, q50, q75, q95 }
    }
}

/// The rows of a head under one rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LawOutcome {
    /// The rule in its text form.
    pub spec: String,
    /// Rows behind these numbers: all measured rows of a head of up to 4,096 rows, else those of some 4,096
    /// drawn.
    pub rows: u64,
    /// Inverse temperature.
    pub beta: Quantiles,
    /// Entropy / log n.
    pub relative_entropy: Quantiles,
    /// Largest minus second largest weight.
    pub top_two: Quantiles,
}
