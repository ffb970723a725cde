//! A record as a file holds it, and what must be true of it.

use super::record::RowRecord;
use critbeta::operating_ratio;
use serde::Deserialize;
use std::sync::Arc;

/// One string for all rows of a layer.
#[derive(Default)]
pub(super) struct Layers(Option<Arc<str>>);

impl Layers {
    fn named(&mut self, name: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if **last == *name => last.clone(),
            _ => self.0.insert(name.into()).clone(),
        }
    }
}

/// A record as a file holds it, before any check.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawRecord {
    pub layer: String,
    pub head: u64,
    pub row: u64,
    pub position: u64,
    pub n: u64,
    pub max: Option<f64>,
    pub argmax: u64,
    pub ties: u64,
    pub critical_beta: Option<f64>,
    pub contact_gap: Option<f64>,
    pub contact_rank: u64,
    pub alpha: Option<f64>,
    pub resolved_beta: Option<f64>,
    pub beta: Option<f64>,
    pub ratio: Option<f64>,
    pub log_partition: Option<f64>,
    pub entropy: Option<f64>,
    pub top_two: Option<f64>,
    pub max_weight: Option<f64>,
    pub poisoned: bool,
    #[serde(default)]
    pub certified: Option<bool>,
    #[serde(default)]
    pub resolved_certified: Option<bool>,
}

impl RawRecord {
    /// Errors: the column that is wrong, and what was expected.
    pub(super) fn checked(self, layers: &mut Layers) -> Result<RowRecord, String> {
        let poisoned = self.poisoned;
        let finite = |name: &str, value: Option<f64>, low: f64, high: f64| match value {
            // Sums of f32 weights differ from 1 and 0 by a rounding.
            Some(value) if (low - 1e-6..=high + 1e-6).contains(&value) => Ok(value),
            value if poisoned => Ok(value.unwrap_or(f64::NAN)),
            Some(value) => Err(format!("column {name}: {value}, expected {low} to {high}")),
            None => Err(format!("column {name}: null, expected a number in a row that is not poisoned")),
        };
        let beta_like = |name: &str, value: Option<f64>| match value {
            Some(value) if value >= 0.0 => Ok(value),
            value if poisoned => Ok(value.unwrap_or(f64::NAN)),
            None => Ok(f64::INFINITY),
            Some(value) => Err(format!("column {name}: {value}, expected a number >= 0")),
        };
        let (any, log_n) = (f64::MAX, (self.n.max(1) as f64).ln());
        let (rank, n) = (self.contact_rank, self.n);
        if rank > n && !poisoned {
            return Err(format!("column contact_rank: {rank}, expected at most n = {n}"));
        }
        let record = RowRecord {
            layer: layers.named(&self.layer),
            head: self.head,
            row: self.row,
            position: self.position,
            n: self.n,
            max: finite("max", self.max, -any, any)?,
            argmax: self.argmax,
            ties: self.ties,
            critical_beta: beta_like("critical_beta", self.critical_beta)?,
            contact_gap: finite("contact_gap", self.contact_gap, 0.0, any)?,
            contact_rank: self.contact_rank,
            alpha: finite("alpha", self.alpha, 0.0, 1.0)?,
            resolved_beta: beta_like("resolved_beta", self.resolved_beta)?,
            beta: finite("beta", self.beta, 0.0, any)?,
            ratio: beta_like("ratio", self.ratio)?,
            log_partition: finite("log_partition", self.log_partition, 0.0, log_n)?,
            entropy: finite("entropy", self.entropy, 0.0, log_n)?,
            top_two: finite("top_two", self.top_two, 0.0, 1.0)?,
            max_weight: finite("max_weight", self.max_weight, 0.0, 1.0)?,
            poisoned,
            certified: self.certified,
            resolved_certified: self.resolved_certified,
        };
        consistent(&record)?;
        Ok(record)
    }
}

/// Columns that hold the same fact must agree: bounds use one of them, and plots the other.
fn consistent(record: &RowRecord) -> Result<(), String> {
    if record.poisoned || record.n == 0 {
        return Ok(());
    }
    if record.contact_rank == 0 {
        return Err("column contact_rank: 0, expected 1 or more in a row with scores".into());
    }
    let (found, expected) = (record.ratio, operating_ratio(record.beta, record.critical_beta));
    let same = match expected {
        // 0 / 0 is null in a file, as infinity is.
        _ if expected.is_nan() => true,
        f64::INFINITY => found == f64::INFINITY,
        _ => (found - expected).abs() <= 1e-6 * expected,
    };
    match same {
        true => Ok(()),
        false => Err(format!("column ratio: {found}, expected beta / critical_beta = {expected}")),
    }
}
