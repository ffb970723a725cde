//! How the inverse temperature of a row is chosen, as plain data.
//!
//! A [`Rescaling`] is the rule for one row, with a text form (see `spec.rs`). A
//! [`RescalingSpec`](crate::calibration::RescalingSpec) may also point to a file that holds a rule per layer and head.

pub use crate::laws::RowFacts;
use crate::laws::{LawEntry, Parameter};
use crate::{Error, Result};

/// The inverse temperature beta that multiplies a row's scores.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Rescaling {
    /// beta = 1: the model as it is.
    Identity,
    /// The same beta for every row.
    Fixed(f64),
    /// A published length law.
    Law(Law),
    /// The row's own measured critical beta.
    Critical(Critical),
    /// A fitted length law of one head.
    Calibrated(Calibrated),
}

/// A law of the registry with its parameters filled in.
#[derive(Debug, Clone)]
pub struct Law {
    entry: &'static LawEntry,
    values: Vec<f64>,
}

impl Law {
    /// `values` in the order of [`LawEntry::parameters`].
    ///
    /// Errors: [`Error::Spec`] unless there is a finite value for each, lengths above 1.
    pub fn new(entry: &'static LawEntry, values: Vec<f64>) -> Result<Self> {
        let fail = |detail: String| Err(Error::spec(entry.name, detail));
        if values.len() != entry.parameters.len() {
            return fail(format!("{} values given for {} parameters", values.len(), entry.parameters.len()));
        }
        for (parameter, value) in entry.parameters.iter().zip(&values) {
            let least = if parameter.is_length { 1.0 } else { f64::NEG_INFINITY };
            if !(value.is_finite() && *value > least) {
                let wanted = if parameter.is_length { "a finite length above 1" } else { "finite" };
                return fail(format!("{} must be {wanted}, found {value}", parameter.name));
            }
        }
        Ok(Law { entry, values })
    }

    /// The law with its examples' parameters, and `train` for a training length that has no default.
    pub fn example(entry: &'static LawEntry, train: f64) -> Self {
        let value = |p: &Parameter| if p.is_length && p.default.is_none() { train } else { p.example };
        Law { entry, values: entry.parameters.iter().map(value).collect() }
    }

    /// The registry's row.
    pub fn entry(&self) -> &'static LawEntry {
        self.entry
    }

    /// Values in the order of [`LawEntry::parameters`].
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

impl PartialEq for Law {
    fn eq(&self, other: &Law) -> bool {
        self.entry.name == other.entry.name && self.values == other.values
    }
}

/// beta = ratio * Lambda(resolve), clamped to floor..=cap.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Critical {
    /// The operating ratio to hold.
    pub ratio: f64,
    /// r in nats.
    pub resolve: f64,
    /// Smallest beta.
    pub floor: f64,
    /// Largest beta; +inf lets tied rows reach the hard maximum.
    pub cap: f64,
}

impl Critical {
    /// The critical beta itself: ratio 1, resolve 0, no floor and no cap.
    pub const fn new() -> Critical {
        Critical { ratio: 1.0, resolve: 0.0, floor: 0.0, cap: f64::INFINITY }
    }
}

impl Default for Critical {
    fn default() -> Self {
        Critical::new()
    }
}

/// betahat(n) = c (ln n)^xi; with an anchor length N0 the factor is betahat(n) / betahat(N0), which
/// is 1 at N0 and keeps the operating ratio that the model has there.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Calibrated {
    /// Critical beta at ln n = 1.
    pub c: f64,
    /// Exponent of ln n.
    pub xi: f64,
    /// N0, the length at which the model keeps its trained behaviour.
    pub anchor: Option<f64>,
}

impl Calibrated {
    /// c (ln n)^xi, divided by its own value at the anchor where there is one.
    pub fn new(c: f64, xi: f64, anchor: Option<f64>) -> Calibrated {
        Calibrated { c, xi, anchor }
    }
}

impl Rescaling {
    /// beta of a row, >= 0; NaN if the rule or the facts hold one that matters. Rows with n <= 1 have
    /// weight 1 or nothing at any beta; where a law has no value for them it is 0.
    pub fn beta(&self, row: &RowFacts) -> f64 {
        let beta = match self {
            Rescaling::Identity => 1.0,
            Rescaling::Fixed(beta) => *beta,
            Rescaling::Law(law) => (law.entry.factor)(&law.values, row),
            Rescaling::Critical(rule) => {
                // 0 * inf: a ratio of 0 asks for no separation, tied or not.
                let wanted = if rule.ratio == 0.0 { 0.0 } else { rule.ratio * row.critical };
                // Maxima and minima would drop a NaN.
                match [wanted, rule.floor, rule.cap].iter().any(|v| v.is_nan()) {
                    true => f64::NAN,
                    // A floor above the cap gives the cap; clamp would panic.
                    false => wanted.max(rule.floor).min(rule.cap),
                }
            }
            Rescaling::Calibrated(Calibrated { c, xi, anchor }) => match anchor {
                Some(length) => (row.ln_n() / length.ln()).powf(*xi),
                None => c * row.ln_n().powf(*xi),
            },
        };
        if beta.is_nan() && row.n > 1 { beta } else { beta.max(0.0) }
    }

    /// The r of the Lambda(r) that this rule needs of the row, if it needs one.
    pub fn resolve(&self) -> Option<f64> {
        match self {
            Rescaling::Critical(rule) => Some(rule.resolve),
            _ => None,
        }
    }

    /// Whether this rule needs the row's entropy at beta = 1.
    pub fn needs_entropy(&self) -> bool {
        matches!(self, Rescaling::Law(law) if law.entry.needs_entropy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beta(spec: &str, n: u64, position: u64, critical: f64) -> f64 {
        let rescaling: Rescaling = spec.parse().unwrap();
        rescaling.beta(&RowFacts { n, position, critical, entropy: 1.0 })
    }

    #[test]
    fn published_laws_have_their_published_values() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let at = |spec: &str, n: u64| beta(spec, n, n - 1, f64::NAN);
        close(at("identity", 9), 1.0);
        close(at("fixed:1.3", 9), 1.3);
        close(at("chen:gamma=2", 1000), 2.0 * 1000f64.ln());
        close(at("rem:c=1.5", 1000), 1.5 * 1000f64.ln().sqrt());
        close(at("ssmax:s=0.43", 1024), 0.43 * 1024f64.ln());
        close(at("ssmax:s=0.43,b=-9", 2), 0.0);
        close(at("su", 512), 1.0);
        close(at("su", 512 * 512), 2.0);
        close(at("qwen-logn:train=8192", 8192), 1.0);
        close(at("qwen-logn:train=8192", 8192 * 8192), 2.0);
        close(at("qwen-logn:train=8192", 5), 1.0);
        // Grok-2 counts positions from 0 and compares with >: position L itself is still 1.
        close(beta("grok2:train=1024", 1025, 1024, 0.0), 1.0);
        close(beta("grok2:train=1024", 2049, 2048, 0.0), 1.1);
        close(at("yarn:scale=4", 9), (0.1 * 4f64.ln() + 1.0).powi(2));
        close(at("yarn:scale=0.5", 9), 1.0);
        close(at("llama4", 8191), 1.0);
        close(at("llama4", 8192), 1.0 + 0.1 * 2f64.ln());
        close(beta("mistral3:train=8192", 8193, 8191, 0.0), 1.0);
        close(beta("mistral3:train=8192", 8193, 8192, 0.0), 1.0 + 0.1 * 2f64.ln());
        close(at("velickovic", 9), 1.27);
        close(at("asentmax:delta=1,b=2,g=2", 100), 1.0 + 2.0 * 100f64.ln().powi(2));
    }

    #[test]
    fn measured_rules_follow_the_row() {
        assert_eq!(beta("critical", 9, 8, 2.5), 2.5);
        assert_eq!(beta("critical:ratio=2,cap=4", 9, 8, 2.5), 4.0);
        assert_eq!(beta("critical:ratio=2,floor=6", 9, 8, 2.5), 6.0);
        assert_eq!(beta("critical", 9, 8, f64::INFINITY), f64::INFINITY);
        assert_eq!(beta("critical:ratio=0", 9, 8, f64::INFINITY), 0.0);
        assert!(beta("critical:floor=1,cap=2", 9, 8, f64::NAN).is_nan());
        let plain = Critical::default();
        let bad = [
            Critical { ratio: f64::NAN, ..plain },
            Critical { floor: f64::NAN, ..plain },
            Critical { cap: f64::NAN, ..plain },
        ];
        for rule in bad {
            let row = RowFacts { n: 9, position: 8, critical: 2.5, entropy: 1.0 };
            assert!(Rescaling::Critical(rule).beta(&row).is_nan(), "{rule:?}");
        }
        assert_eq!(beta("calibrated:c=2,xi=0.5", 100, 99, 0.0), 2.0 * 100f64.ln().sqrt());
        assert_eq!(beta("calibrated:c=2,xi=0.5,anchor=100", 100, 99, 0.0), 1.0);
        assert!((beta("calibrated:c=2,xi=0.5,anchor=100", 10_000, 0, 0.0) - 2f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn rows_of_nothing_get_a_usable_beta() {
        for spec in
            ["chen:gamma=1", "su", "grok2:train=2", "calibrated:c=1,xi=-2", "asentmax:delta=1,b=0,g=-1"]
        {
            for n in [0, 1] {
                assert!(beta(spec, n, 0, 0.0) >= 0.0, "{spec} at n = {n}");
            }
        }
    }
}
