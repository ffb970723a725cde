//! The published law that comes closest to a constant operating ratio of a head's rows.

use super::bins::Bin;
use super::quantile::median;
use super::sample::BinMedians;
use crate::settings::Settings;
use critbeta::laws::LAWS;
use critbeta::rescaling::{Law, Rescaling, RowFacts};
use serde::Serialize;

/// The published law that comes closest to a constant operating ratio.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClosestLaw {
    /// Its text form with the parameters used. All laws within 5 % of the least spread are here.
    pub laws: Vec<String>,
    /// Root mean square of ln(factor / median Lambda) about its mean over the bins: 0.1 is 10 %.
    pub spread: f64,
    /// The same for beta = 1 at every length.
    pub spread_of_identity: f64,
}

/// Laws with a spread this close to the least, or that differ only by rounding, count as equally good. At 150
/// rows of constant critical beta another law than the identity was ahead in 5 of 40 heads (2026-11-24).
const AS_GOOD: f64 = 1.05;
const ROUNDING: f64 = 1e-6;

/// The law of the registry under which the operating ratio varies least over the bins. It has the parameters
/// of its examples and the training length of the settings. A constant factor changes nothing. ASEntmax is a
/// form with three free parameters, so it is left out. Velickovic's law reads the entropy at beta = 1, so it
/// takes part only in a diagnosis at 1.
pub(crate) fn closest_law(bins: &[Bin], medians: &[BinMedians], settings: &Settings) -> Option<ClosestLaw> {
    let facts = |bin: &Bin| {
        let position = median(&bin.values(|row| row.position as f64)) as u64;
        let mut facts = RowFacts::new(bin.n as u64, position);
        facts.entropy = median(&bin.values(|row| row.entropy.into()));
        facts
    };
    let usable = |bin: &BinMedians| bin.critical_beta > 0.0 && bin.critical_beta.is_finite();
    let rows: Vec<(RowFacts, &BinMedians)> =
        bins.iter().map(facts).zip(medians).filter(|(_, bin)| usable(bin)).collect();
    if rows.len() < 2 {
        return None;
    }
    let spread = |rescaling: &Rescaling| {
        let ratios = rows
            .iter()
            .map(|(facts, bin)| (bin.rows as f64, (rescaling.beta(facts) / bin.critical_beta).ln()));
        let weight: f64 = ratios.clone().map(|(w, _)| w).sum();
        let mean = ratios.clone().map(|(w, ratio)| w * ratio).sum::<f64>() / weight;
        (ratios.map(|(w, ratio)| w * (ratio - mean).powi(2)).sum::<f64>() / weight).sqrt()
    };
    let takes_part = |needs_entropy: bool| !needs_entropy || settings.beta == 1.0;
    let published = LAWS.iter().filter(|law| law.name != "asentmax" && takes_part(law.needs_entropy));
    let all: Vec<(String, f64)> = std::iter::once(Rescaling::Identity)
        .chain(published.map(|entry| Rescaling::Law(Law::example(entry, settings.train_length))))
        .map(|rescaling| (rescaling.to_string(), spread(&rescaling)))
        .filter(|(_, spread)| spread.is_finite())
        .collect();
    let spread_of_identity = all.first()?.1;
    let spread = all.iter().map(|&(_, spread)| spread).min_by(f64::total_cmp)?;
    let same = all.into_iter().filter(|&(_, other)| other <= spread * AS_GOOD + ROUNDING);
    Some(ClosestLaw { laws: same.map(|(law, _)| law).collect(), spread, spread_of_identity })
}
