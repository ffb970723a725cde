//! The settings of a diagnosis.

use critbeta::cpu::Measure;
use critbeta::{Error, Result};

/// How rows are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The inverse temperature of the rows. The model itself has 1.
    pub beta: f64,
    /// Resolve and top-k.
    pub measure: Measure,
    /// This many keys at the front of every row are left out.
    pub exclude_sink: usize,
    /// L of the published laws that depend on the training length, in keys.
    pub train_length: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { beta: 1.0, measure: Measure::default(), exclude_sink: 0, train_length: 8192.0 }
    }
}

impl Settings {
    /// Largest top-k. Beyond it a full count is cheaper.
    pub const MAX_TOP_K: usize = 2048;

    /// Errors: [`Error::Settings`] for a beta or resolve that is negative or not finite, a training length
    /// that is not above 1, and a top-k of 0 or above [`Settings::MAX_TOP_K`].
    pub fn check(&self) -> Result<()> {
        let fail = |detail: String| Err(Error::Settings { detail });
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            return fail(format!("beta must be finite and at least 0, found {}", self.beta));
        }
        let resolve = self.measure.resolve;
        if !(resolve.is_finite() && resolve >= 0.0) {
            return fail(format!("resolve must be finite and at least 0 nats, found {resolve}"));
        }
        if !(self.train_length.is_finite() && self.train_length > 1.0) {
            return fail(format!(
                "the training length must be finite and above 1, found {}",
                self.train_length
            ));
        }
        match self.measure.top_k {
            Some(k) if !(1..=Self::MAX_TOP_K).contains(&k) => {
                fail(format!("top-k must be 1 to {}, found {k}", Self::MAX_TOP_K))
            }
            _ => Ok(()),
        }
    }
}
