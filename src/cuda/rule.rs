//! The source of a row's beta, and a rescaling as the fields that kernels/rule.cuh reads.

use super::params::*;
use crate::laws::LAWS;
use crate::rescaling::{Calibrated, Critical};
use crate::{Error, Rescaling, Result};

/// The source of the inverse temperature of each row.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Beta<'a> {
    /// A rule gives the beta of every row.
    Rescaling(&'a Rescaling),
    /// Device address of one f32 per row. A beta below 0 counts as 0, and a NaN makes the whole row NaN.
    Each(u64),
}

impl<'a> From<&'a Rescaling> for Beta<'a> {
    fn from(rescaling: &'a Rescaling) -> Beta<'a> {
        Beta::Rescaling(rescaling)
    }
}

pub(super) struct Rule {
    /// One of the `RULE_` constants.
    pub kind: u32,
    /// Index in [`LAWS`].
    pub law: u32,
    pub p: [f64; 3],
    /// Device address of one beta per row, or 0.
    pub betas: u64,
    /// r of the critical beta that the rule needs, if it needs one.
    pub resolve: Option<f64>,
}

impl Rule {
    /// Errors: [`Error::Spec`] for a calibration whose anchor has no positive logarithm, for a resolve that
    /// is negative or not finite, and for a ratio, floor or cap that is NaN.
    pub fn of(beta: Beta) -> Result<Rule> {
        let plain = Rule { kind: RULE_FIXED, law: 0, p: [0.0; 3], betas: 0, resolve: None };
        let rescaling = match beta {
            Beta::Each(betas) => return Ok(Rule { kind: RULE_ARRAY, betas, ..plain }),
            Beta::Rescaling(rescaling) => rescaling,
        };
        let fail = |detail: String| Err(Error::spec(&rescaling.to_string(), detail));
        Ok(match rescaling {
            Rescaling::Identity => Rule { p: [1.0, 0.0, 0.0], ..plain },
            Rescaling::Fixed(beta) => Rule { p: [*beta, 0.0, 0.0], ..plain },
            Rescaling::Law(law) => {
                let index = LAWS.iter().position(|entry| entry.name == law.entry().name);
                let mut p = [0.0; 3];
                p.iter_mut().zip(law.values()).for_each(|(p, &value)| *p = value);
                // Every entry is in the registry: nobody else can make one, because its fields are private.
                Rule { kind: RULE_LAW, law: index.unwrap_or(LAWS.len()) as u32, p, ..plain }
            }
            Rescaling::Critical(Critical { ratio, resolve, floor, cap }) => {
                if !(resolve.is_finite() && *resolve >= 0.0) {
                    return fail(format!("resolve must be finite and at least 0 nats, found {resolve}"));
                }
                // The maxima and minima of the device drop a NaN.
                if [ratio, floor, cap].iter().any(|v| v.is_nan()) {
                    return fail(format!("expected numbers, found ratio {ratio}, floor {floor}, cap {cap}"));
                }
                Rule { kind: RULE_CRITICAL, p: [*ratio, *floor, *cap], resolve: Some(*resolve), ..plain }
            }
            Rescaling::Calibrated(Calibrated { c, xi, anchor }) => {
                let ln_anchor = anchor.map_or(0.0, f64::ln);
                if anchor.is_some() && !(ln_anchor > 0.0 && ln_anchor.is_finite()) {
                    return fail("the anchor must be a finite length above 1".into());
                }
                Rule { kind: RULE_CALIBRATED, p: [*c, *xi, ln_anchor], ..plain }
            }
        })
    }
}
