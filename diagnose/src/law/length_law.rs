//! The length law that the critical beta of a head follows, in numbers and in words.

use super::bins::bins;
use super::fit::{Exponent, FormFit, best_form, compare_forms, exponent};
use super::published::{ClosestLaw, closest_law};
use super::quantile::{median, quantile};
use super::sample::{BinMedians, RowSample};
use super::verdict::{Evidence, Verdict};
use super::yardsticks::{Yardstick, Yardsticks};
use crate::settings::Settings;
use serde::Serialize;

/// How the medians of a head's rows grow with n.
#[derive(Debug, Clone, Serialize)]
pub struct LengthLaw {
    /// The medians behind all fits below.
    pub bins: Vec<BinMedians>,
    /// The exponent of Lambda. By theory xi = xi of alpha - xi of the contact gap + 1.
    pub critical_beta: Option<Exponent>,
    /// The exponent of Lambda(r).
    pub resolved_beta: Option<Exponent>,
    /// The exponent of alpha.
    pub alpha: Option<Exponent>,
    /// The exponent of the contact gap.
    pub contact_gap: Option<Exponent>,
    /// Forms of Lambda(n) by held-out error, the best first.
    pub forms: Vec<FormFit>,
    /// The finding about Lambda.
    pub verdict: Verdict,
    /// The finding about Lambda(r), or `None` at r = 0, where it is the same.
    pub resolved_verdict: Option<Verdict>,
    /// The published law under which beta / Lambda varies least over the bins.
    pub closest_published: Option<ClosestLaw>,
    /// The results of the same fit for families whose exponent is known.
    pub yardsticks: Vec<Yardstick>,
    /// The same for their Lambda(r), or `None` at r = 0.
    pub resolved_yardsticks: Option<Vec<Yardstick>>,
}

fn band(sorted: &[f64]) -> [f64; 2] {
    [0.05, 0.95].map(|p| quantile(sorted, p))
}

impl LengthLaw {
    /// `certified` are the shares of rows with a proven Lambda and Lambda(r). They are 1 in a full count.
    pub(crate) fn of(
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
            critical_band: band(&critical[i]),
            resolved_band: band(&resolved[i]),
            alpha: median(&alpha[i]),
            contact_gap: median(&contact_gap[i]),
        });
        let medians: Vec<BinMedians> = medians.collect();
        let fitted = exponent(&bins, &critical, seed);
        let forms = compare_forms(&bins, &critical, seed);
        let fitted_resolved = exponent(&bins, &resolved, seed);
        let resolve = settings.measure.resolve;
        let known = yardsticks.over(&medians, 0.0);
        let known_resolved = (resolve > 0.0).then(|| yardsticks.over(&medians, resolve));
        let verdict = Evidence {
            medians: Evidence::of(&medians, |bin| bin.critical_beta),
            resolve: 0.0,
            certified: certified[0],
            fit: fitted.as_ref(),
            forms: &forms,
            yardsticks: &known,
        }
        .verdict();
        let resolved_verdict = known_resolved.as_ref().map(|known| {
            Evidence {
                medians: Evidence::of(&medians, |bin| bin.resolved_beta),
                resolve,
                certified: certified[1],
                fit: fitted_resolved.as_ref(),
                forms: &[],
                yardsticks: known,
            }
            .verdict()
        });
        LengthLaw {
            verdict,
            resolved_verdict,
            yardsticks: known,
            resolved_yardsticks: known_resolved,
            closest_published: closest_law(&bins, &medians, settings),
            critical_beta: fitted,
            resolved_beta: fitted_resolved,
            alpha: exponent(&bins, &alpha, seed),
            contact_gap: exponent(&bins, &contact_gap, seed),
            forms,
            bins: medians,
        }
    }

    /// The simplest form that predicts held-out medians as well as the best, within 5 %.
    pub fn best(&self) -> Option<&FormFit> {
        best_form(&self.forms)
    }
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
            found.verdict.is_conclusive() && found.verdict.to_string().starts_with("grows as (log n)^"),
            "{}",
            found.verdict
        );
        assert!((found.critical_beta.unwrap().xi - 1.0).abs() < 0.05);
        assert!(found.verdict.to_string().contains("compatible with log n"), "{}", found.verdict);
        let closest = found.closest_published.unwrap();
        assert_eq!(closest.laws, ["chen:gamma=1", "ssmax:s=0.43", "su:base=512"]);
        assert!(closest.spread < 0.05 && closest.spread_of_identity > 0.2);

        let found = law(doubling(), |_, i| 2.0 * spread(i));
        assert!(
            found.verdict.is_conclusive()
                && found
                    .verdict
                    .to_string()
                    .starts_with("0 is within the interval, compatible with a constant"),
            "{}",
            found.verdict
        );
        assert_eq!(found.closest_published.unwrap().laws[0], "identity");

        let found = law(doubling(), |n, i| n.ln().powf(-0.8) * spread(i));
        assert!(found.verdict.to_string().starts_with("falls as (log n)^-0.8"), "{}", found.verdict);

        let found = law(doubling(), |n, i| n.powf(0.5) * spread(i));
        assert!(found.verdict.to_string().ends_with("n^p predicts better"), "{}", found.verdict);
    }

    #[test]
    fn what_the_rows_cannot_tell_is_inconclusive_with_its_reason() {
        let reason = |law: LengthLaw| {
            assert!(
                !law.verdict.is_conclusive() && law.verdict.to_string().starts_with("inconclusive: "),
                "{}",
                law.verdict
            );
            law.verdict.to_string()
        };
        assert!(reason(law(std::iter::empty(), |n, _| n)).contains("3 visible keys"));
        assert!(reason(law(1000..1050, |n, _| n.ln())).contains("factor of 1.0, a law needs 8"));
        assert!(reason(law([64, 4096].into_iter(), |n, _| n.ln())).contains("only 2 bins"));
        let wild = |_: f64, i: usize| [1e-3, 1.0, 1e3][i % 3] * (1.0 + i as f64);
        assert!(reason(law(doubling(), wild)).contains("interval of xi is"));
        assert!(reason(law(doubling(), |_, _| f64::INFINITY)).contains("--resolve"));
        assert!(reason(law(doubling(), |_, _| 0.0)).contains("is 0 in"));
    }

    #[test]
    fn laws_of_position_read_positions() {
        // These are rows of few keys far along a text. Only a law of position holds their ratio constant.
        let rows: Vec<RowSample> = (1..200u64)
            .map(|i| {
                let position = 10_000 * i;
                let critical = ((position + 1) as f64).ln() / 4096f64.ln();
                RowSample { position, ..RowSample::with(8 + i, critical) }
            })
            .collect();
        let settings = Settings { train_length: 4096.0, ..Settings::default() };
        let found = LengthLaw::of(&rows, &settings, [1.0; 2], 7, &mut Yardsticks::new(7));
        let closest = found.closest_published.unwrap();
        assert!(closest.laws.iter().all(|law| law.ends_with(":train=4096")), "{closest:?}");
        assert!(closest.spread < 0.01 && closest.spread_of_identity > 0.05, "{closest:?}");
    }
}
