//! A rule for each layer and head, which the rescaling `calibrated:FILE` names. The rules are the fitted
//! length laws of a calibration file, and `critbeta diagnose --calibration` writes that file.

mod spec;

pub use spec::{CalibratedOn, RescalingSpec};

use crate::rescaling::Calibrated;
use crate::{Error, Rescaling, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;

/// A calibration file: c and xi of every head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Version of the crate that wrote the file.
    pub critbeta: String,
    /// r of the `resolved` laws, nats.
    pub resolve: f64,
    /// Keys that were left out at the front of every row when the laws were fitted.
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
    /// The law of Lambda. It is null if no law can be fitted, because medians are infinite (ties) or 0.
    pub critical: Option<CalibratedLaw>,
    /// The law of Lambda(r). It is null for the same reasons.
    pub resolved: Option<CalibratedLaw>,
}

impl HeadCalibration {
    fn law(&self, of: CalibratedOn) -> Option<&CalibratedLaw> {
        match of {
            CalibratedOn::Critical => self.critical.as_ref(),
            CalibratedOn::Resolved => self.resolved.as_ref(),
        }
    }
}

/// betahat(n) = c (ln n)^xi.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibratedLaw {
    /// The factor.
    pub c: f64,
    /// The exponent.
    pub xi: f64,
    /// The verdict of the diagnosis: whether the rows were enough to identify the law.
    pub conclusive: bool,
    /// The 95 % interval of xi. It is null if n spans less than a factor of 8. An exponent from such rows
    /// means nothing at other lengths, so c is then their median and xi is 0.
    pub interval: Option<[f64; 2]>,
}

/// A [`RescalingSpec`] whose calibration file was read. It holds the rule of every head.
#[derive(Debug, Clone)]
pub struct HeadRescalings {
    spec: RescalingSpec,
    calibration: Option<Calibration>,
}

impl HeadRescalings {
    /// Reads the calibration file that `spec` names, if it names one.
    ///
    /// Errors: [`Error::Io`]; [`Error::File`] for a file that is not a calibration, that has a head twice or
    /// a law that is not finite, or whose n leaves out keys that a softmax sees.
    pub fn load(spec: RescalingSpec) -> Result<Self> {
        let RescalingSpec::PerHead { file, .. } = &spec else {
            return Ok(HeadRescalings { spec, calibration: None });
        };
        let text = fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
        let calibration: Calibration = serde_json::from_str(&text).map_err(|e| {
            Error::file(file, format!("not a calibration as `diagnose --calibration` writes it: {e}"))
        })?;
        if calibration.exclude_sink > 0 {
            let detail = format!(
                "was made with --exclude-sink {}: its n counts fewer keys than the rows of a softmax have; \
                 calibrate without, or give a law as calibrated:c=,xi=",
                calibration.exclude_sink
            );
            return Err(Error::file(file, detail));
        }
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

    /// How many of the calibrated laws are inconclusive, and how many laws there are.
    pub fn inconclusive(&self) -> (usize, usize) {
        let RescalingSpec::PerHead { of, .. } = self.spec else { return (0, 0) };
        let heads = self.calibration.iter().flat_map(|calibration| &calibration.heads);
        let laws = heads.filter_map(|head| head.law(of));
        (laws.clone().filter(|law| !law.conclusive).count(), laws.count())
    }

    /// Layer and head of every entry of the calibration file, in its order. There are none without a file.
    pub fn heads(&self) -> impl Iterator<Item = (&str, u64)> {
        let heads = self.calibration.iter().flat_map(|calibration| &calibration.heads);
        heads.map(|entry| (entry.layer.as_str(), entry.head))
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
        match found.law(of) {
            Some(CalibratedLaw { c, xi, .. }) => {
                Ok(Rescaling::Calibrated(Calibrated { c: *c, xi: *xi, anchor }))
            }
            None => fail(format!("has no finite median {} beta to calibrate on", of.name())),
        }
    }
}
