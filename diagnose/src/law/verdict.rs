//! Says in words what the numbers of a length law mean, or why they mean nothing.

use super::fit::{Exponent, Form, FormFit, best_form};
use super::sample::BinMedians;
use super::yardsticks::{KNOWN, Yardstick};
use serde::Serialize;
use std::fmt;

/// A law needs this range of n, longest over shortest bin.
pub(crate) const MIN_RANGE: f64 = 8.0;
const MIN_BINS: usize = 4;
/// Widest 95 % interval of xi: a wider one cannot tell sqrt(log n) from (log n)^(3/2).
const MAX_INTERVAL: f64 = 1.0;
/// Largest resolve over log n of the shortest rows. Beyond it log N - r grows with n because of r alone: at
/// r = 4 all twelve heads of the example gave (log n)^2 or more.
const MAX_RESOLVE: f64 = 0.5;
/// Under a top-k count this share of the rows must have a proven value. The others are lower bounds, and they
/// move a median by at most 5 % of the rows.
const MIN_CERTIFIED: f64 = 0.95;

/// Exponents are printed in hundredths. Those that look the same there count as the same in words.
const HUNDREDTH: f64 = 0.01;

const INCONCLUSIVE: &str = "inconclusive: ";

/// A finding in words, or `inconclusive: ` and the reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Verdict(String);

impl Verdict {
    /// Whether there is a finding.
    pub fn is_conclusive(&self) -> bool {
        !self.0.starts_with(INCONCLUSIVE)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The evidence about one quantity.
pub(crate) struct Evidence<'a> {
    /// n and median of every bin, in ascending order of n.
    pub medians: Vec<(f64, f64)>,
    /// r in nats.
    pub resolve: f64,
    /// Share of rows whose value is proven exact. It is 1 in a full count.
    pub certified: f64,
    pub fit: Option<&'a Exponent>,
    pub forms: &'a [FormFit],
    pub yardsticks: &'a [Yardstick],
}

impl Evidence<'_> {
    pub(crate) fn of(bins: &[BinMedians], beta: impl Fn(&BinMedians) -> f64) -> Vec<(f64, f64)> {
        bins.iter().map(|bin| (bin.n, beta(bin))).collect()
    }

    pub(crate) fn verdict(&self) -> Verdict {
        Verdict(self.finding().unwrap_or_else(|why| format!("{INCONCLUSIVE}{why}")))
    }

    fn finding(&self) -> Result<String, String> {
        if self.medians.is_empty() {
            return Err("no row has 3 visible keys and no NaN or +inf".into());
        }
        if self.certified < MIN_CERTIFIED {
            let percent = 100.0 * self.certified;
            return Err(format!("only {percent:.0} % of the rows are certified: count them in full"));
        }
        let bins = self.medians.len();
        let count = |is: fn(f64) -> bool| self.medians.iter().filter(|(_, beta)| is(*beta)).count();
        // A fit through the other bins would say nothing about the lengths that are lost.
        match (count(|beta| beta == f64::INFINITY), count(|beta| beta == 0.0)) {
            (0, 0) => {}
            (0, lost) => return Err(format!("the median is 0 in {lost} of {bins} bins")),
            (tied, _) => {
                return Err(format!(
                    "ties make {tied} of {bins} bins infinite; a higher --resolve tames them"
                ));
            }
        }
        let (first, last) = (self.medians[0].0, self.medians[bins - 1].0);
        if last / first < MIN_RANGE {
            return Err(format!("n spans a factor of {:.1}, a law needs {MIN_RANGE}", last / first));
        }
        if bins < MIN_BINS {
            return Err(format!("only {bins} bins of rows, a law needs {MIN_BINS}"));
        }
        if self.resolve > MAX_RESOLVE * first.ln() {
            return Err(format!("r = {} is more than half of log n at n = {first:.0}", self.resolve));
        }
        let Some(&Exponent { xi, interval: [low, high], .. }) = self.fit else {
            return Err("no curve goes through the medians".into());
        };
        if high - low > MAX_INTERVAL {
            let direction = match (low > 0.0, high < 0.0) {
                (true, _) => "grows, but the ",
                (_, true) => "falls, but the ",
                _ => "",
            };
            return Err(format!("{direction}interval of xi is {:.1} wide", high - low));
        }
        let (low, high) = (low - HUNDREDTH / 2.0, high + HUNDREDTH / 2.0);
        let laws = self.laws_within(low, high);
        let mut text = match (low > 0.0, high < 0.0) {
            (true, _) => format!("grows as (log n)^{xi:.2}"),
            (_, true) => format!("falls as (log n)^{xi:.2}"),
            _ => "0 is within the interval".to_owned(),
        };
        if !laws.is_empty() {
            text += &format!(", compatible with {}", laws.join(" and "));
        }
        if let Some(best) = best_form(self.forms).filter(|best| best.form != Form::LogPower)
            && self.forms.iter().any(|fit| fit.form == Form::LogPower && !fit.as_good_as(self.forms))
        {
            text += &format!("; {} predicts better", best.form.formula());
        }
        Ok(text)
    }

    /// The laws whose exponent lies in the interval. It may be the exponent as n goes to infinity, the one
    /// that the same fit gives over these lengths, or anything between them.
    fn laws_within(&self, low: f64, high: f64) -> Vec<&'static str> {
        let here = |family: &str| self.yardsticks.iter().find(|y| y.family == family).map(|y| y.xi);
        let overlaps = |&&(family, limit, _): &&(&str, f64, &str)| {
            let here = here(family).unwrap_or(limit);
            low <= limit.max(here) && limit.min(here) <= high
        };
        KNOWN.iter().filter(overlaps).map(|(_, _, law)| *law).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(count: i32, factor: f64) -> Vec<(f64, f64)> {
        (0..count).map(|i| (100.0 * factor.powi(i), 1.0)).collect()
    }

    fn said(medians: Vec<(f64, f64)>, xi: f64, interval: [f64; 2], resolve: f64) -> String {
        let fit = Exponent { xi, interval, c: 1.0 };
        let evidence =
            Evidence { medians, resolve, certified: 1.0, fit: Some(&fit), forms: &[], yardsticks: &[] };
        evidence.verdict().to_string()
    }

    #[test]
    fn laws_are_named_by_what_the_interval_holds() {
        let said = |xi, interval| said(bins(8, 2.0), xi, interval, 0.0);
        assert_eq!(said(0.9, [0.6, 1.1]), "grows as (log n)^0.90, compatible with log n");
        assert_eq!(said(0.9, [0.4, 1.1]), "grows as (log n)^0.90, compatible with sqrt(log n) and log n");
        assert_eq!(said(1.5, [1.2, 1.8]), "grows as (log n)^1.50");
        assert_eq!(said(-0.5, [-0.9, -0.1]), "falls as (log n)^-0.50");
        assert_eq!(said(0.1, [-0.2, 0.4]), "0 is within the interval, compatible with a constant");
        let both = "0 is within the interval, compatible with a constant and sqrt(log n)";
        assert_eq!(said(0.3, [-0.1, 0.8]), both);
    }

    #[test]
    fn a_law_is_met_at_its_limit_and_at_these_lengths() {
        let yardsticks = [("gaussian", 0.5, 0.64), ("simplex", 1.0, 1.0)]
            .map(|(family, asymptotic, xi)| Yardstick { family, asymptotic, xi });
        let said = |xi: f64, interval: [f64; 2]| {
            let fit = Exponent { xi, interval, c: 1.0 };
            let evidence = Evidence {
                medians: bins(8, 2.0),
                resolve: 0.0,
                certified: 1.0,
                fit: Some(&fit),
                forms: &[],
                yardsticks: &yardsticks,
            };
            evidence.verdict().to_string()
        };
        assert_eq!(said(0.5, [0.49, 0.51]), "grows as (log n)^0.50, compatible with sqrt(log n)");
        assert_eq!(said(0.63, [0.60, 0.66]), "grows as (log n)^0.63, compatible with sqrt(log n)");
        assert_eq!(said(0.75, [0.70, 0.80]), "grows as (log n)^0.75");
        // A difference by rounding only is not growth.
        assert_eq!(said(1e-16, [1e-16, 1e-16]), "0 is within the interval, compatible with a constant");
        assert_eq!(said(1.0, [1.0 - 1e-9, 1.0 - 1e-9]), "grows as (log n)^1.00, compatible with log n");
    }

    #[test]
    fn every_limit_is_where_it_is_said_to_be() {
        let fine = |text: String| assert!(!text.starts_with(INCONCLUSIVE), "{text}");
        let not =
            |text: String, why: &str| assert!(text.starts_with(INCONCLUSIVE) && text.contains(why), "{text}");
        let narrow = [0.0, 0.5];
        fine(said(bins(4, 2.01), 0.2, narrow, 0.0));
        not(said(bins(4, 1.99), 0.2, narrow, 0.0), "factor of 7.9");
        not(said(bins(3, 4.0), 0.2, narrow, 0.0), "only 3 bins");
        fine(said(bins(8, 2.0), 0.2, [0.0, 1.0], 0.0));
        not(said(bins(8, 2.0), 0.2, [-0.05, 1.0], 0.0), "1.1 wide");
        fine(said(bins(8, 2.0), 0.2, narrow, 2.3));
        not(said(bins(8, 2.0), 0.2, narrow, 2.31), "more than half of log n at n = 100");
        not(said(Vec::new(), 0.2, narrow, 0.0), "3 visible keys");
        let with = |at: usize, value: f64| {
            let mut medians = bins(8, 2.0);
            medians[at].1 = value;
            said(medians, 0.2, narrow, 0.0)
        };
        not(with(7, f64::INFINITY), "ties make 1 of 8 bins infinite");
        not(with(0, 0.0), "the median is 0 in 1 of 8 bins");
    }
}
