//! What the numbers of a length law say in words, or why they say nothing.

use super::fit::{Exponent, Form, FormFit, best_form};
use super::length_law::BinMedians;
use super::yardsticks::{KNOWN, Yardstick};
use serde::Serialize;
use std::fmt;

/// Narrowest range of n, longest over shortest bin, that a law can be read off.
pub(super) const MIN_RANGE: f64 = 8.0;
const MIN_BINS: usize = 4;
/// Widest 95 % interval of xi: a wider one cannot tell sqrt(log n) from (log n)^(3/2).
const MAX_INTERVAL: f64 = 1.0;
/// Largest resolve in terms of log n of the shortest rows. Beyond it log N - r grows with n for the
/// sake of r alone: at r = 4 the nine heads of the example all came out at (log n)^2 and more.
const MAX_RESOLVE: f64 = 0.5;
/// Smallest share of rows whose value must be proven under a top-k count: the others are lower bounds,
/// and so few of them move a median by no more than 5 % of the rows.
const MIN_CERTIFIED: f64 = 0.95;

const INCONCLUSIVE: &str = "inconclusive: ";

/// A finding in words; where the rows do not tell, `inconclusive: ` and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Verdict(String);

impl Verdict {
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

/// What there is to judge one quantity by.
pub(super) struct Evidence<'a> {
    /// n and median of every bin, ascending n.
    pub medians: Vec<(f64, f64)>,
    /// r in nats.
    pub resolve: f64,
    /// Share of rows whose value is proven exact: 1 in a full count.
    pub certified: f64,
    pub fit: Option<&'a Exponent>,
    pub forms: &'a [FormFit],
    pub yardsticks: &'a [Yardstick],
}

impl Evidence<'_> {
    pub(super) fn of(bins: &[BinMedians], beta: impl Fn(&BinMedians) -> f64) -> Vec<(f64, f64)> {
        bins.iter().map(|bin| (bin.n, beta(bin))).collect()
    }

    pub(super) fn verdict(&self) -> Verdict {
        Verdict(self.finding().unwrap_or_else(|why| format!("{INCONCLUSIVE}{why}")))
    }

    fn finding(&self) -> Result<String, String> {
        if self.medians.is_empty() {
            return Err("no row has 3 visible keys".into());
        }
        if self.certified < MIN_CERTIFIED {
            let percent = 100.0 * self.certified;
            return Err(format!("only {percent:.0} % of the rows are certified: count them in full"));
        }
        // Only these have a logarithm, so only these are fitted.
        let usable: Vec<f64> = self
            .medians
            .iter()
            .filter(|(_, beta)| *beta > 0.0 && beta.is_finite())
            .map(|(n, _)| *n)
            .collect();
        if usable.len() < self.medians.len() && usable.len() < MIN_BINS {
            let lost = self.medians.len() - usable.len();
            return Err(match self.medians.iter().any(|(_, beta)| *beta == f64::INFINITY) {
                true => format!(
                    "ties make {lost} of {} bins infinite; a higher --resolve tames them",
                    self.medians.len()
                ),
                false => format!("the median is 0 in {lost} of {} bins", self.medians.len()),
            });
        }
        let (first, last) = (usable[0], usable[usable.len() - 1]);
        if last / first < MIN_RANGE {
            return Err(format!("n spans a factor of {:.1}, a law needs {MIN_RANGE}", last / first));
        }
        if usable.len() < MIN_BINS {
            return Err(format!("only {} bins of rows, a law needs {MIN_BINS}", usable.len()));
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

    /// The laws whose exponent over these lengths, by the same fit, lies in the interval.
    fn laws_within(&self, low: f64, high: f64) -> Vec<&'static str> {
        let within = |xi: f64| (low..=high).contains(&xi);
        let here = |family: &str| self.yardsticks.iter().find(|y| y.family == family).map(|y| y.xi);
        let known = KNOWN.iter().filter(|(family, limit, _)| within(here(family).unwrap_or(*limit)));
        known.map(|(_, _, law)| *law).collect()
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
    fn families_at_these_lengths_go_before_their_limits() {
        let fit = Exponent { xi: 0.96, interval: [0.7, 1.1], c: 1.0 };
        let yardsticks = [("gaussian", 0.5, 0.95), ("simplex", 1.0, 1.4)]
            .map(|(family, asymptotic, xi)| Yardstick { family, asymptotic, xi });
        let evidence = Evidence {
            medians: bins(8, 2.0),
            resolve: 0.0,
            certified: 1.0,
            fit: Some(&fit),
            forms: &[],
            yardsticks: &yardsticks,
        };
        assert_eq!(evidence.verdict().to_string(), "grows as (log n)^0.96, compatible with sqrt(log n)");
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
        // The range is that of the bins that are fitted, whatever the others span.
        let with = |lost: usize, value: f64| {
            let mut medians = bins(8, 2.0);
            medians[..lost].iter_mut().for_each(|(_, beta)| *beta = value);
            said(medians, 0.2, narrow, 0.0)
        };
        fine(with(4, f64::INFINITY));
        not(with(5, f64::INFINITY), "ties make 5 of 8 bins infinite");
        not(with(5, 0.0), "0 in 5 of 8 bins");
        let mut medians = bins(12, 1.4);
        medians[..8].iter_mut().for_each(|(_, beta)| *beta = f64::INFINITY);
        not(said(medians, 0.2, narrow, 0.0), "factor of 2.7");
    }
}
