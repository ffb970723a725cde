//! Which length law the critical beta of a head follows, in numbers and in words.

use super::fit::{Bin, Exponent, Form, FormFit, bins, compare_forms, exponent};
use super::quantile::median;
use super::scan::Settings;
use super::summary::RowSample;
use super::yardsticks::{Yardstick, Yardsticks};
use crate::laws::LAWS;
use crate::rescaling::{Law, Rescaling, RowFacts};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// Narrowest range of n, longest over shortest bin, that a law can be read off.
const MIN_RANGE: f64 = 8.0;
const MIN_BINS: usize = 4;
/// Widest 95 % interval of xi: a wider one cannot tell sqrt(log n) from (log n)^(3/2).
const MAX_INTERVAL: f64 = 1.0;
/// Smallest share of rows whose value must be proven under a top-k count: the others are lower bounds,
/// and so few of them move a median by no more than 5 % of the rows.
const MIN_CERTIFIED: f64 = 0.95;
/// Forms whose held-out error is this close to the best are as good.
const AS_GOOD: f64 = 1.05;

/// How the medians of a head's rows grow with n.
#[derive(Debug, Clone, Serialize)]
pub struct LengthLaw {
    /// The medians that everything below is fitted to.
    pub bins: Vec<BinMedians>,
    /// Of Lambda. By theory xi = xi of alpha - xi of the contact gap + 1.
    pub critical_beta: Option<Exponent>,
    /// Of Lambda(r).
    pub resolved_beta: Option<Exponent>,
    /// Of alpha.
    pub alpha: Option<Exponent>,
    /// Of the contact gap.
    pub contact_gap: Option<Exponent>,
    /// Forms of Lambda(n) by held-out error, best first.
    pub forms: Vec<FormFit>,
    /// The finding about Lambda.
    pub verdict: Verdict,
    /// The finding about Lambda(r); `None` at r = 0, where it is the same.
    pub resolved_verdict: Option<Verdict>,
    /// The published law under which beta / Lambda varies least over the bins.
    pub closest_published: Option<ClosestLaw>,
    /// What the same fit gives for families whose exponent is known; empty beyond the first 32 different
    /// sets of bins of a diagnosis.
    pub yardsticks: Arc<Vec<Yardstick>>,
}

/// A finding in words; where the rows do not tell, `inconclusive: ` and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Verdict(String);

impl Verdict {
    fn of(found: Result<String, String>) -> Self {
        Verdict(found.unwrap_or_else(|why| format!("{INCONCLUSIVE}{why}")))
    }

    /// Whether the rows tell anything.
    pub fn is_conclusive(&self) -> bool {
        !self.0.starts_with(INCONCLUSIVE)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const INCONCLUSIVE: &str = "inconclusive: ";

/// The medians of one bin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BinMedians {
    /// Median n.
    pub n: f64,
    /// Rows in the bin.
    pub rows: usize,
    /// Median Lambda.
    pub critical_beta: f64,
    /// Median Lambda(r).
    pub resolved_beta: f64,
    /// Median alpha.
    pub alpha: f64,
    /// Median contact gap.
    pub contact_gap: f64,
}

/// The published law that comes closest to holding the operating ratio constant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClosestLaw {
    /// Its text form with the parameters used; several where they have the same shape on these rows.
    pub laws: Vec<String>,
    /// Root mean square of ln(factor / median Lambda) about its mean over the bins: 0.1 is 10 %.
    pub spread: f64,
    /// The same for beta = 1 at every length.
    pub spread_of_identity: f64,
}

impl LengthLaw {
    /// `certified` are the shares of rows whose Lambda and Lambda(r) are proven exact: 1 in a full count.
    pub(super) fn of(
        rows: &[RowSample],
        settings: &Settings,
        certified: [f64; 2],
        seed: u64,
        yardsticks: &mut Yardsticks,
    ) -> Self {
        let bins = bins(rows);
        let values =
            |of: fn(&RowSample) -> f64| -> Vec<Vec<f64>> { bins.iter().map(|b| b.values(of)).collect() };
        let critical = values(|row| row.critical);
        let resolved = values(|row| row.resolved);
        let alpha = values(|row| row.alpha.into());
        let contact_gap = values(|row| row.contact_gap.into());
        let medians = bins.iter().enumerate().map(|(i, bin)| BinMedians {
            n: bin.n,
            rows: bin.rows.len(),
            critical_beta: median(&critical[i]),
            resolved_beta: median(&resolved[i]),
            alpha: median(&alpha[i]),
            contact_gap: median(&contact_gap[i]),
        });
        let medians: Vec<BinMedians> = medians.collect();
        let fitted = exponent(&bins, &critical, seed);
        let forms = compare_forms(&bins, &critical, seed);
        let fitted_resolved = exponent(&bins, &resolved, seed);
        let found = verdict(&medians, |bin| bin.critical_beta, certified[0], fitted.as_ref(), &forms);
        let resolved_verdict = (settings.measure.resolve > 0.0)
            .then(|| verdict(&medians, |bin| bin.resolved_beta, certified[1], fitted_resolved.as_ref(), &[]));
        LengthLaw {
            verdict: Verdict::of(found),
            resolved_verdict: resolved_verdict.map(Verdict::of),
            closest_published: closest_law(&bins, &medians, settings.beta),
            yardsticks: yardsticks.over(&medians),
            critical_beta: fitted,
            resolved_beta: fitted_resolved,
            alpha: exponent(&bins, &alpha, seed),
            contact_gap: exponent(&bins, &contact_gap, seed),
            forms,
            bins: medians,
        }
    }

    /// The form that predicts held-out medians best.
    pub fn best(&self) -> Option<&FormFit> {
        self.forms.first()
    }
}

/// What the numbers say, or why they say nothing.
fn verdict(
    bins: &[BinMedians],
    beta: fn(&BinMedians) -> f64,
    certified: f64,
    fit: Option<&Exponent>,
    forms: &[FormFit],
) -> Result<String, String> {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else {
        return Err("no row has 3 visible keys".into());
    };
    if certified < MIN_CERTIFIED {
        return Err(format!("only {:.0} % of the rows are certified: count them in full", 100.0 * certified));
    }
    let range = last.n / first.n;
    if range < MIN_RANGE {
        return Err(format!("n spans a factor of {range:.1}, a law needs {MIN_RANGE}"));
    }
    let tied = bins.iter().filter(|bin| beta(bin) == f64::INFINITY).count();
    if tied > 0 && bins.len() - tied < MIN_BINS {
        return Err(format!(
            "ties make {tied} of {} bins infinite; a higher --resolve tames them",
            bins.len()
        ));
    }
    if bins.len() < MIN_BINS {
        return Err(format!("only {} bins of rows, a law needs {MIN_BINS}", bins.len()));
    }
    let Some(&Exponent { xi, interval: [low, high], .. }) = fit else {
        return Err("the median critical beta is 0".into());
    };
    if high - low > MAX_INTERVAL {
        let direction = match (low > 0.0, high < 0.0) {
            (true, _) => "grows, but the ",
            (_, true) => "falls, but the ",
            _ => "",
        };
        return Err(format!("{direction}interval of xi is {:.1} wide", high - low));
    }
    let named = [(0.5, "sqrt(log n)"), (1.0, "log n"), (2.0, "(log n)^2")];
    let compatible: Vec<&str> =
        named.into_iter().filter(|(xi, _)| (low..=high).contains(xi)).map(|(_, name)| name).collect();
    let mut text = match (low > 0.0, high < 0.0) {
        (true, _) => format!("grows as (log n)^{xi:.2}"),
        (_, true) => format!("falls as (log n)^{xi:.2}"),
        _ => "constant in n within the interval".to_owned(),
    };
    if low > 0.0 && !compatible.is_empty() {
        text += &format!(", compatible with {}", compatible.join(" and "));
    }
    if let Some(best) = forms.first() {
        let log_power = forms.iter().find(|fit| fit.form == Form::LogPower);
        if log_power.is_some_and(|fit| fit.error > best.error * AS_GOOD) {
            text += &format!("; {} predicts better", best.form.formula());
        }
    }
    Ok(text)
}

/// The law of the registry, with its example parameters, under which the operating ratio varies
/// least. ASEntmax is a form with three free parameters, so it is left out; Velickovic's law reads
/// the entropy at beta = 1, so it takes part only in a diagnosis at 1.
fn closest_law(bins: &[Bin], medians: &[BinMedians], beta: f64) -> Option<ClosestLaw> {
    let facts: Vec<RowFacts> = bins
        .iter()
        .map(|bin| RowFacts {
            n: bin.n as u64,
            position: median(&bin.values(|row| row.position as f64)) as u64,
            critical: f64::NAN,
            entropy: median(&bin.values(|row| row.entropy.into())),
        })
        .collect();
    let usable = |bin: &BinMedians| bin.critical_beta > 0.0 && bin.critical_beta.is_finite();
    if medians.iter().filter(|bin| usable(bin)).count() < 2 {
        return None;
    }
    let spread = |rescaling: &Rescaling| {
        let (mut rows, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for (facts, bin) in facts.iter().zip(medians).filter(|(_, bin)| usable(bin)) {
            let (weight, ratio) = (bin.rows as f64, (rescaling.beta(facts) / bin.critical_beta).ln());
            rows += weight;
            sum += weight * ratio;
            squares += weight * ratio * ratio;
        }
        let mean: f64 = sum / rows;
        (squares / rows - mean * mean).max(0.0).sqrt()
    };
    let published = LAWS.iter().filter(|law| law.name != "asentmax" && (!law.needs_entropy || beta == 1.0));
    let published = published.map(|entry| {
        let values = entry.parameters.iter().map(|p| p.example).collect();
        Rescaling::Law(Law { entry, values })
    });
    let all: Vec<(String, f64)> = std::iter::once(Rescaling::Identity)
        .chain(published)
        .map(|rescaling| (rescaling.to_string(), spread(&rescaling)))
        .filter(|(_, spread)| spread.is_finite())
        .collect();
    let spread_of_identity = all.first()?.1;
    let spread = all.iter().map(|&(_, spread)| spread).min_by(f64::total_cmp)?;
    let same = all.into_iter().filter(|&(_, other)| other <= spread + 1e-9);
    Some(ClosestLaw { laws: same.map(|(law, _)| law).collect(), spread, spread_of_identity })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(lengths: impl Iterator<Item = u64>, critical: impl Fn(f64, usize) -> f64) -> LengthLaw {
        let rows: Vec<RowSample> = lengths
            .flat_map(|n| (0..9).map(move |i| (n, i)))
            .map(|(n, i)| RowSample::with(n, critical(n as f64, i)))
            .collect();
        LengthLaw::of(&rows, &Settings::default(), [1.0; 2], 7, &mut Yardsticks::new(7))
    }

    fn doubling() -> impl Iterator<Item = u64> {
        (6..16).map(|i| 1 << i)
    }

    #[test]
    fn a_law_is_named_with_the_published_one_that_holds_its_ratio() {
        let spread = |i: usize| 1.0 + 0.01 * i as f64;
        let found = law(doubling(), |n, i| 0.5 * n.ln() * spread(i));
        assert!(
            found.verdict.is_conclusive() && found.verdict.0.starts_with("grows as (log n)^"),
            "{}",
            found.verdict
        );
        assert!((found.critical_beta.unwrap().xi - 1.0).abs() < 0.05);
        assert!(found.verdict.0.contains("compatible with log n"), "{}", found.verdict);
        let closest = found.closest_published.unwrap();
        assert_eq!(closest.laws, ["chen:gamma=1", "ssmax:s=0.43", "su:base=512"]);
        assert!(closest.spread < 0.05 && closest.spread_of_identity > 0.2);

        let found = law(doubling(), |_, i| 2.0 * spread(i));
        assert!(
            found.verdict.is_conclusive() && found.verdict.0.starts_with("constant in n"),
            "{}",
            found.verdict
        );
        assert_eq!(found.closest_published.unwrap().laws[0], "identity");

        let found = law(doubling(), |n, i| n.ln().powf(-0.8) * spread(i));
        assert!(found.verdict.0.starts_with("falls as (log n)^-0.8"), "{}", found.verdict);

        let found = law(doubling(), |n, i| n.powf(0.5) * spread(i));
        assert!(found.verdict.0.ends_with("n^p predicts better"), "{}", found.verdict);
    }

    #[test]
    fn what_the_rows_cannot_tell_is_inconclusive_with_its_reason() {
        let reason = |law: LengthLaw| {
            assert!(
                !law.verdict.is_conclusive() && law.verdict.0.starts_with("inconclusive: "),
                "{}",
                law.verdict
            );
            law.verdict.0
        };
        assert!(reason(law(std::iter::empty(), |n, _| n)).contains("3 visible keys"));
        assert!(reason(law(1000..1050, |n, _| n.ln())).contains("factor of 1.0, a law needs 8"));
        assert!(reason(law([64, 4096].into_iter(), |n, _| n.ln())).contains("only 2 bins"));
        let wild = |_: f64, i: usize| [1e-3, 1.0, 1e3][i % 3] * (1.0 + i as f64);
        assert!(reason(law(doubling(), wild)).contains("interval of xi is"));
        assert!(reason(law(doubling(), |_, _| f64::INFINITY)).contains("--resolve"));
        assert!(reason(law(doubling(), |_, _| 0.0)).contains("is 0"));
    }
}
