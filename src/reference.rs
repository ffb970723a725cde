//! The definition in executable form: in f64, sorted, obvious and slow.
//!
//! Tests compare everything else in this crate with it. It is public so that anyone can check one row by
//! hand. The definitions and the main theorem are in arXiv:2605.12697. `docs/how-it-works.md` derives the
//! resolved critical beta and the finite-n bounds.
//!
//! ```
//! use critbeta::reference::Row;
//! // One key 3 nats above seven equal ones: the critical beta is log n / 3.
//! let row = Row::new(&[3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
//! let critical = row.critical_beta();
//! assert_eq!(critical.beta, 8f64.ln() / 3.0);
//! assert_eq!((critical.contact_gap, critical.contact_rank), (3.0, 8));
//! ```

use crate::DType;
use crate::critical::{CriticalBeta, operating_ratio};
use crate::stats::weight;
use std::f64::consts::E;

/// One row of attention scores, reduced to what the softmax depends on: its sorted gaps.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The gaps in ascending order. The first is 0 unless the row is empty or poisoned.
    gaps: Vec<f64>,
    n: u64,
    max: f64,
}

impl Row {
    /// A row of f64 scores. A score of -inf, or below half of f32's lowest, is masked. A NaN or +inf poisons
    /// the row.
    pub fn new(scores: &[f64]) -> Self {
        Row::with_gaps(scores.iter().copied(), DType::F64, |max, s| max - s)
    }

    /// A row of f32 scores. A score of -inf, or below half of f32's lowest, is masked. Each gap is one
    /// rounded f32 subtraction, as in every fast path.
    pub fn from_f32(scores: &[f32]) -> Self {
        let gap = |max, s| f64::from(max as f32 - s as f32);
        Row::with_gaps(scores.iter().map(|&s| f64::from(s)), DType::F32, gap)
    }

    fn with_gaps(
        scores: impl Iterator<Item = f64> + Clone,
        dtype: DType,
        gap: impl Fn(f64, f64) -> f64,
    ) -> Self {
        let visible = scores.filter(|&s| s.is_nan() || s >= dtype.masked_below());
        let n = visible.clone().count() as u64;
        if visible.clone().any(|s| s.is_nan() || s == f64::INFINITY) {
            return Row { gaps: Vec::new(), n, max: f64::NAN };
        }
        let max = visible.clone().fold(f64::NEG_INFINITY, f64::max) + 0.0;
        let mut gaps: Vec<f64> = visible.map(|s| gap(max, s)).collect();
        gaps.sort_by(f64::total_cmp);
        Row { gaps, n, max }
    }

    /// Number of unmasked scores.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// The largest score; -inf for an empty row, NaN for a poisoned one.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// Whether a NaN or +inf score makes every quantity of this row NaN.
    pub fn is_poisoned(&self) -> bool {
        self.max.is_nan()
    }

    /// The gaps D_j = max - s_j, ascending; empty for an empty or poisoned row.
    pub fn gaps(&self) -> &[f64] {
        &self.gaps
    }

    /// N(t): how many scores lie within `t` of the maximum, the maximum included.
    pub fn gap_count(&self, t: f64) -> u64 {
        self.gaps.partition_point(|&gap| gap <= t) as u64
    }

    /// Lambda = sup over t > 0 of log N(t) / t, with its contact.
    ///
    /// With ties it is +inf with contact gap 0. It is 0 with contact gap 0 for n <= 1, and for rows whose
    /// other gaps all overflow to +inf. It is NaN for a poisoned row.
    pub fn critical_beta(&self) -> CriticalBeta {
        self.resolved_critical_beta(0.0)
    }

    /// Lambda(r) = sup over t > 0 with log N(t) > r of (log N(t) - r) / t. The empty supremum is 0.
    ///
    /// `resolve` is r >= 0 in nats. Up to e^r scores at the top need not be separated, so Lambda(r) is finite
    /// with ties once r >= log N(0).
    pub fn resolved_critical_beta(&self, resolve: f64) -> CriticalBeta {
        let mut best = CriticalBeta::at_top(self.gap_count(0.0), resolve);
        if self.is_poisoned() {
            return CriticalBeta { beta: f64::NAN, upper: f64::NAN, contact_gap: f64::NAN, ..best };
        }
        for (i, &gap) in self.gaps.iter().enumerate() {
            let last_of_its_block = self.gaps.get(i + 1) != Some(&gap);
            if gap > 0.0 && gap.is_finite() && last_of_its_block {
                best.offer(gap, i as u64 + 1, resolve);
            }
        }
        best
    }

    /// alpha = log(contact rank) / log n, in 0..=1.
    pub fn alpha(&self) -> f64 {
        self.or_nan(self.critical_beta().alpha(self.n))
    }

    /// Z(beta) = sum of exp(-beta D_j), between N(0) and n, for `beta` in 0..=inf. It is 0 for an empty row.
    pub fn partition(&self, beta: f64) -> f64 {
        // The smallest terms come first, so that a large partial sum does not absorb them.
        self.or_nan(self.gaps.iter().rev().map(|&gap| weight(gap, beta)).sum())
    }

    /// F(beta) = log Z(beta) in nats; -inf for an empty row.
    pub fn log_partition(&self, beta: f64) -> f64 {
        self.partition(beta).ln()
    }

    /// The softmax weights at `beta`, largest first.
    pub fn weights(&self, beta: f64) -> Vec<f64> {
        let z = self.partition(beta);
        self.gaps.iter().map(|&gap| weight(gap, beta) / z).collect()
    }

    /// H(beta) = -sum of a log a over the weights, in nats, between 0 and log n. It is 0 for an empty row.
    pub fn entropy(&self, beta: f64) -> f64 {
        let plogp = |a: f64| if a > 0.0 { -a * a.ln() } else { 0.0 };
        self.or_nan(self.weights(beta).into_iter().rev().map(plogp).sum())
    }

    /// The largest weight, exp(-F(beta)); 0 for an empty row.
    pub fn max_weight(&self, beta: f64) -> f64 {
        self.or_nan(self.weights(beta).first().copied().unwrap_or(0.0))
    }

    /// The top-two difference a_(1) - a_(2). It is 1 for a single score, and 0 for an empty row.
    pub fn top_two(&self, beta: f64) -> f64 {
        let weights = self.weights(beta);
        self.or_nan(match weights[..] {
            [] => 0.0,
            [only] => only,
            [first, second, ..] => first - second,
        })
    }

    /// B(r) = sup { beta : Z(beta) >= e^r }: the largest beta that leaves e^r scores' worth of weight.
    ///
    /// It is +inf if log N(0) >= r. It is `None` unless 0 <= r <= log n, and for an empty or poisoned row.
    pub fn rank_boundary(&self, r: f64) -> Option<f64> {
        if self.gaps.is_empty() || !(0.0..=(self.n as f64).ln()).contains(&r) {
            return None;
        }
        if (self.gap_count(0.0) as f64).ln() >= r {
            return Some(f64::INFINITY);
        }
        // log Z falls from log n to log N(0) < r. Bracket the crossing, then halve to the last bit.
        let (mut low, mut high) = (0.0, 1.0);
        while self.log_partition(high) >= r {
            (low, high) = (high, high * 2.0);
        }
        loop {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                return Some(low);
            }
            if self.log_partition(middle) >= r { low = middle } else { high = middle }
        }
    }

    /// S(beta) = sup over t > 0 of (log N(t) - beta t), in nats; -inf for an empty row.
    pub fn laplace_envelope(&self, beta: f64) -> f64 {
        let at = |(i, &gap): (usize, &f64)| {
            ((i + 1) as f64).ln() - if gap == 0.0 || beta == 0.0 { 0.0 } else { beta * gap }
        };
        self.or_nan(self.gaps.iter().enumerate().map(at).fold(f64::NEG_INFINITY, f64::max))
    }

    fn or_nan(&self, value: f64) -> f64 {
        if self.is_poisoned() { f64::NAN } else { value }
    }

    /// rho = beta / Lambda, or `None` if the row has no bound to check.
    fn ratio(&self, beta: f64) -> Option<f64> {
        let rho = operating_ratio(beta, self.critical_beta().beta);
        (self.n > 0 && !rho.is_nan()).then_some(rho)
    }
}

/// A finite-n bound as its slack at inverse temperature beta, in the units of the bounded quantity. The slack
/// is >= 0 where the bound holds. It is `None` where the bound says nothing: on the other side of rho = 1,
/// and for an empty or poisoned row. If a bound holds with equality, rounding can put the slack some 1e-15
/// below 0.
pub type Slack = fn(&Row, f64) -> Option<f64>;

/// Every bound at one beta, by name. [`tail_mass_slack`] and [`certificate_slack`] take one more argument.
pub const BOUNDS: [(&str, Slack); 8] = [
    ("rho < 1: top-two difference <= rho / (e (1 - rho))", top_two_slack),
    ("rho < 1: log Z >= alpha (1 - rho) log n", blurred_partition_slack),
    ("rho < 1: largest weight <= n^(-alpha (1 - rho))", blurred_weight_slack),
    ("rho > 1: Z <= rho / (rho - 1)", collapsed_partition_slack),
    ("rho > 1: largest weight >= 1 - 1 / rho", collapsed_weight_slack),
    (
        "rho > 1: entropy <= log(rho / (rho - 1)) + exp(-c) / c^2 - 1 / e, c = 1 - 1 / rho",
        collapsed_entropy_slack,
    ),
    ("log Z >= S", envelope_below_slack),
    ("log Z <= S + log(1 + log n)", envelope_above_slack),
];

/// rho < 1: the top-two difference is at most rho / (e (1 - rho)).
pub fn top_two_bound(rho: f64) -> Option<f64> {
    (rho < 1.0).then(|| rho / (E * (1.0 - rho)))
}

/// rho > 1: the entropy is at most log(rho / (rho - 1)) + exp(-c) / c^2 - 1 / e nats, with c = 1 - 1 / rho.
pub fn entropy_bound(rho: f64) -> Option<f64> {
    let c = 1.0 - 1.0 / rho;
    (rho > 1.0).then(|| -c.ln() + (-c).exp() / (c * c) - 1.0 / E)
}

/// rho < 1: the top-two difference is at most [`top_two_bound`].
pub fn top_two_slack(row: &Row, beta: f64) -> Option<f64> {
    Some(top_two_bound(row.ratio(beta)?)? - row.top_two(beta))
}

/// rho < 1: Z >= n^(alpha (1 - rho)). The slack is log Z - alpha (1 - rho) log n, in nats.
pub fn blurred_partition_slack(row: &Row, beta: f64) -> Option<f64> {
    let rho = row.ratio(beta).filter(|&rho| rho < 1.0)?;
    Some(row.log_partition(beta) - row.alpha() * (1.0 - rho) * (row.n() as f64).ln())
}

/// rho < 1: the largest weight is at most n^(-alpha (1 - rho)).
pub fn blurred_weight_slack(row: &Row, beta: f64) -> Option<f64> {
    let rho = row.ratio(beta).filter(|&rho| rho < 1.0)?;
    Some((row.n() as f64).powf(-row.alpha() * (1.0 - rho)) - row.max_weight(beta))
}

/// 1 - 1 / rho if rho > 1.
fn excess(row: &Row, beta: f64) -> Option<f64> {
    row.ratio(beta).filter(|&rho| rho > 1.0).map(|rho| 1.0 - 1.0 / rho)
}

/// rho > 1: Z <= rho / (rho - 1).
pub fn collapsed_partition_slack(row: &Row, beta: f64) -> Option<f64> {
    Some(1.0 / excess(row, beta)? - row.partition(beta))
}

/// rho > 1: the largest weight is at least 1 - 1 / rho.
pub fn collapsed_weight_slack(row: &Row, beta: f64) -> Option<f64> {
    Some(row.max_weight(beta) - excess(row, beta)?)
}

/// rho > 1: H <= [`entropy_bound`].
pub fn collapsed_entropy_slack(row: &Row, beta: f64) -> Option<f64> {
    Some(entropy_bound(row.ratio(beta)?)? - row.entropy(beta))
}

/// Any beta: log Z >= S, the Laplace envelope.
pub fn envelope_below_slack(row: &Row, beta: f64) -> Option<f64> {
    row.ratio(beta)?;
    Some(row.log_partition(beta) - row.laplace_envelope(beta))
}

/// Any beta: log Z <= S + log(1 + log n).
pub fn envelope_above_slack(row: &Row, beta: f64) -> Option<f64> {
    row.ratio(beta)?;
    Some(row.laplace_envelope(beta) + (row.n() as f64).ln().ln_1p() - row.log_partition(beta))
}

/// rho > 1: the unnormalised mass of the gaps beyond `t` >= 0 is at most rho / (rho - 1) exp(-(beta - Lambda)
/// t).
pub fn tail_mass_slack(row: &Row, beta: f64, t: f64) -> Option<f64> {
    let bound = weight(t, beta - row.critical_beta().beta) / excess(row, beta)?;
    let beyond = &row.gaps()[row.gap_count(t) as usize..];
    Some(bound - beyond.iter().rev().map(|&gap| weight(gap, beta)).sum::<f64>())
}

/// The exactness certificate from the `k` largest scores: their best ratio minus (log n - r) / D_(k).
///
/// If it is >= 0, that best ratio is Lambda(r) of the whole row. It is `None` unless 1 <= k <= n and D_(k) >
/// 0.
pub fn certificate_slack(row: &Row, k: usize, resolve: f64) -> Option<f64> {
    let last = *row.gaps().get(k.checked_sub(1)?)?;
    let seen = Row { gaps: row.gaps()[..k].to_vec(), n: k as u64, max: row.max };
    let best = seen.resolved_critical_beta(resolve).beta;
    (last > 0.0).then(|| best - ((row.n() as f64).ln() - resolve) / last)
}
