//! Fitted length laws per layer and head, as a file: `diagnose --calibration` writes it and the
//! rescaling `calibrated:FILE` reads it.

use super::fit::Exponent;
use super::summary::{HeadSummary, Summary};
use crate::rescaling::{Calibrated, CalibratedOn, RescalingSpec};
use crate::{Error, Rescaling, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;

/// c and xi of every head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Version of the crate that wrote it.
    pub critbeta: String,
    /// r of the `resolved` laws, nats.
    pub resolve: f64,
    /// Keys left out at the front of every row when the laws were fitted.
    pub exclude_sink: usize,
    /// One entry per layer and head.
    pub heads: Vec<HeadCalibration>,
}

/// The laws of one head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadCalibration {
    /// The tensor's name without `.q`.
    pub layer: String,
    /// Query head.
    pub head: u64,
    /// The law of Lambda; null where its median is infinite (ties) or 0.
    pub critical: Option<CalibratedLaw>,
    /// The law of Lambda(r); null likewise.
    pub resolved: Option<CalibratedLaw>,
}

/// betahat(n) = c (ln n)^xi.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibratedLaw {
    /// The factor.
    pub c: f64,
    /// The exponent.
    pub xi: f64,
    /// 95 % interval of xi; null where the rows are all about as long, so that c is their median and xi 0.
    pub interval: Option<[f64; 2]>,
}

impl Calibration {
    /// The calibration that a diagnosis gives.
    pub fn of(summary: &Summary) -> Self {
        let head = |head: &HeadSummary| HeadCalibration {
            layer: head.layer.to_string(),
            head: head.head,
            critical: law(head.length_law.critical_beta.as_ref(), head.critical_beta.q50),
            resolved: law(head.length_law.resolved_beta.as_ref(), head.resolved_beta.q50),
        };
        Calibration {
            critbeta: summary.critbeta.to_owned(),
            resolve: summary.resolve,
            exclude_sink: summary.exclude_sink,
            heads: summary.heads.iter().map(head).collect(),
        }
    }
}

fn law(fit: Option<&Exponent>, median: f64) -> Option<CalibratedLaw> {
    match fit {
        Some(Exponent { c, xi, interval }) => {
            Some(CalibratedLaw { c: *c, xi: *xi, interval: Some(*interval) })
        }
        None if median > 0.0 && median.is_finite() => {
            Some(CalibratedLaw { c: median, xi: 0.0, interval: None })
        }
        None => None,
    }
}

/// A [`RescalingSpec`] with its calibration file read: the rule of every head.
#[derive(Debug, Clone)]
pub struct HeadRescalings {
    spec: RescalingSpec,
    calibration: Option<Calibration>,
}

impl HeadRescalings {
    /// Reads the calibration file that `spec` names, if it names one.
    ///
    /// Errors: [`Error::Io`], and [`Error::File`] for a file that is not a calibration or holds a head twice
    /// or a law that is not finite.
    pub fn load(spec: RescalingSpec) -> Result<Self> {
        let RescalingSpec::PerHead { file, .. } = &spec else {
            return Ok(HeadRescalings { spec, calibration: None });
        };
        let text = fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
        let calibration: Calibration = serde_json::from_str(&text).map_err(|e| {
            Error::file(file, format!("not a calibration as `diagnose --calibration` writes it: {e}"))
        })?;
        let mut seen = HashSet::new();
        for head in &calibration.heads {
            let place = format!("layer {:?} head {}", head.layer, head.head);
            if !seen.insert((&head.layer, head.head)) {
                return Err(Error::file(file, format!("{place} is given twice")));
            }
            for law in [&head.critical, &head.resolved].into_iter().flatten() {
                if !(law.c.is_finite() && law.c > 0.0 && law.xi.is_finite()) {
                    let found = format!("found c = {}, xi = {}", law.c, law.xi);
                    return Err(Error::file(
                        file,
                        format!("{place}: c must be above 0 and xi finite, {found}"),
                    ));
                }
            }
        }
        Ok(HeadRescalings { spec, calibration: Some(calibration) })
    }

    /// The rule of one head.
    ///
    /// Errors: [`Error::File`] if the calibration does not cover it.
    pub fn of(&self, layer: &str, head: u64) -> Result<Rescaling> {
        let (file, of, anchor) = match &self.spec {
            RescalingSpec::Uniform(rescaling) => return Ok(rescaling.clone()),
            RescalingSpec::PerHead { file, of, anchor } => (file, *of, *anchor),
        };
        let heads = self.calibration.as_ref().map_or(&[][..], |calibration| &calibration.heads);
        let fail = |detail| Err(Error::file(file, format!("layer {layer:?} head {head}: {detail}")));
        let Some(found) = heads.iter().find(|entry| entry.layer == layer && entry.head == head) else {
            return fail(format!("not among the {} heads of this calibration", heads.len()));
        };
        let law = match of {
            CalibratedOn::Critical => &found.critical,
            CalibratedOn::Resolved => &found.resolved,
        };
        match law {
            Some(CalibratedLaw { c, xi, .. }) => {
                Ok(Rescaling::Calibrated(Calibrated { c: *c, xi: *xi, anchor }))
            }
            None => fail(format!("has no finite median {} beta to calibrate on", of.name())),
        }
    }
}
