//! Rules that choose the inverse temperature of a row, as plain data.
//!
//! A [`Rescaling`] is the rule for one row, and has a text form (see `spec.rs`). The type
//! `calibration::RescalingSpec` may also name a file that holds a rule per layer and head.

pub use crate::laws::RowFacts;
use crate::laws::{LawEntry, Parameter};
use crate::{Error, Result};

/// A rule for beta, the inverse temperature that multiplies the scores of a row.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Rescaling {
    /// beta = 1, which leaves the model as it is.
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
    /// The law `entry` with `values`, in the order of [`LawEntry::parameters`].
    ///
    /// Errors: [`Error::Spec`] unless each parameter has a finite value, and each length is above 1.
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

    /// The law with the example values of its parameters, and `train` for a training length that has no
    /// default.
    pub fn example(entry: &'static LawEntry, train: f64) -> Self {
        let value = |p: &Parameter| if p.is_length && p.default.is_none() { train } else { p.example };
        Law { entry, values: entry.parameters.iter().map(value).collect() }
    }

    /// The row of the registry.
    pub fn entry(&self) -> &'static LawEntry {
        self.entry
    }

    /// The values, in the order of [`LawEntry::parameters`].
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

impl PartialEq for Law {
    fn eq(&self, other: &Law) -> bool {
        self.entry.name == other.entry.name && self.values == other.values
    }
}

/// The rule beta = ratio * Lambda(resolve), clamped to floor..=cap.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Critical {
    /// The operating ratio beta / Lambda(resolve).
    pub ratio: f64,
    /// The resolve r, in nats.
    pub resolve: f64,
    /// The smallest beta.
    pub floor: f64,
    /// The largest beta. With +inf, tied rows reach the hard maximum.
    pub cap: f64,
}

impl Critical {
    /// The critical beta itself: ratio 1, resolve 0, floor 0, and no cap.
    pub const fn new() -> Critical {
        Critical { ratio: 1.0, resolve: 0.0, floor: 0.0, cap: f64::INFINITY }
    }
}

impl Default for Critical {
    fn default() -> Self {
        Critical::new()
    }
}

/// The fitted law betahat(n) = c (ln n)^xi. With an anchor length N0 the factor is betahat(n) / betahat(N0).
/// That is 1 at N0, and it keeps the operating ratio that the model has there.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Calibrated {
    /// The critical beta at ln n = 1.
    pub c: f64,
    /// The exponent of ln n.
    pub xi: f64,
    /// N0, the length at which the model keeps its trained behaviour.
    pub anchor: Option<f64>,
}

impl Calibrated {
    /// The factor c (ln n)^xi. If there is an anchor, it is divided by its value there.
    pub fn new(c: f64, xi: f64, anchor: Option<f64>) -> Calibrated {
        Calibrated { c, xi, anchor }
    }
}

impl Rescaling {
    /// The beta of a row, >= 0. It is NaN if the rule depends on a NaN in itself or in the facts. A row with
    /// n <= 1 has weight 1, or none, at any beta. If a law has no value for such a row, its beta is 0.
    pub fn beta(&self, row: &RowFacts) -> f64 {
        let beta = match self {
            Rescaling::Identity => 1.0,
            Rescaling::Fixed(beta) => *beta,
            Rescaling::Law(law) => (law.entry.factor)(&law.values, row),
            Rescaling::Critical(rule) => {
                // This avoids 0 * inf: a ratio of 0 separates nothing, tied or not.
                let wanted = if rule.ratio == 0.0 { 0.0 } else { rule.ratio * row.critical };
                // Maxima and minima would drop a NaN.
                match [wanted, rule.floor, rule.cap].iter().any(|v| v.is_nan()) {
                    true => f64::NAN,
                    // A floor above the cap gives the cap, where clamp would panic.
                    false => wanted.max(rule.floor).min(rule.cap),
                }
            }
            Rescaling::Calibrated(Calibrated { c, xi, anchor }) => match anchor {
                Some(length) => (row.ln_n() / length.ln()).powf(*xi),
                None => c * row.ln_n().powf(*xi),
            },
        };
        // One key has ln n = 0, which a falling law takes to a power below 0.
        let of_length = matches!(self, Rescaling::Law(_) | Rescaling::Calibrated(_));
        if row.n <= 1 && (beta.is_nan() || of_length && beta.is_infinite()) {
            return 0.0;
        }
        if beta.is_nan() { beta } else { beta.max(0.0) }
    }

    /// The r of the Lambda(r) that this rule measures in each row, if it measures one.
    pub fn resolve(&self) -> Option<f64> {
        match self {
            Rescaling::Critical(rule) => Some(rule.resolve),
            _ => None,
        }
    }

    /// Whether this rule needs the entropy of the row at beta = 1.
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
        // Grok-2 counts positions from 0 and compares with >, so position L itself still has factor 1.
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
                let beta = beta(spec, n, 0, 0.0);
                assert!(beta >= 0.0 && beta.is_finite(), "{spec} at n = {n}: {beta}");
            }
        }
        for falling in ["calibrated:c=1,xi=-2", "calibrated:c=1,xi=-2,anchor=9", "asentmax:delta=1,b=1,g=-1"]
        {
            assert_eq!(beta(falling, 1, 0, 0.0), 0.0, "{falling}");
        }
    }
}
