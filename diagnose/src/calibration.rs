//! Makes the calibration file that `calibrated:FILE` reads from the fits of a diagnosis.

use crate::heads::summary::{HeadSummary, Summary};
use crate::law::fit::Exponent;
use crate::law::length_law::LengthLaw;
use crate::law::verdict::{MIN_RANGE, Verdict};
use crate::output::Output;
use critbeta::calibration::{CalibratedLaw, Calibration, HeadCalibration};
use critbeta::{Error, Result};
use std::io::{self, Write};

impl Summary {
    /// The calibration of a diagnosis: c and xi of every head.
    ///
    /// Errors: [`Error::Settings`] for a top-k count, whose values are only lower bounds.
    pub fn calibration(&self) -> Result<Calibration> {
        if let Some(k) = self.top_k {
            let detail = format!("a calibration needs every score counted, not the {k} largest");
            return Err(Error::Settings { detail });
        }
        let head = |head: &HeadSummary| {
            let law = &head.length_law;
            let resolved_verdict = law.resolved_verdict.as_ref().unwrap_or(&law.verdict);
            HeadCalibration {
                layer: head.layer.to_string(),
                head: head.head,
                critical: calibrated(law, &law.critical_beta, head.critical_beta.q50, &law.verdict),
                resolved: calibrated(law, &law.resolved_beta, head.resolved_beta.q50, resolved_verdict),
            }
        };
        Ok(Calibration {
            critbeta: self.critbeta.to_owned(),
            resolve: self.resolve,
            exclude_sink: self.exclude_sink,
            heads: self.heads.iter().map(head).collect(),
        })
    }
}

/// Writes the calibration to `out`, which the caller commits. Errors: [`Error::Io`].
pub fn write_calibration(calibration: &Calibration, mut out: Output) -> Result<Output> {
    let written = serde_json::to_writer_pretty(&mut out, calibration).map_err(io::Error::from);
    written.and_then(|()| out.write_all(b"\n")).map_err(|source| Error::io(out.path(), source))?;
    Ok(out)
}

fn calibrated(
    law: &LengthLaw,
    fit: &Option<Exponent>,
    median: f64,
    verdict: &Verdict,
) -> Option<CalibratedLaw> {
    let lengths = law.bins.first().zip(law.bins.last());
    let narrow = lengths.is_none_or(|(first, last)| last.n / first.n < MIN_RANGE);
    let (c, xi, interval) = match fit {
        _ if narrow && median > 0.0 && median.is_finite() => (median, 0.0, None),
        Some(fit) if !narrow => (fit.c, fit.xi, Some(fit.interval)),
        _ => return None,
    };
    Some(CalibratedLaw { c, xi, conclusive: verdict.is_conclusive(), interval })
}
