//! Seeded generators of score rows whose critical beta is known, or hard to compute.
//!
//! Theory gives the critical beta of the first nine families, and `critbeta families` compares it with
//! measured ones. The others are hard cases: far needles, heavy tails, ties, masks, 16-bit scores, even
//! spacing.
//!
//! ```
//! use critbeta::families::{Family, median_critical_beta};
//! let family: Family = "simplex:gap=4".parse().unwrap();
//! assert_eq!(median_critical_beta(&family, 1000, 1, 7), 1000f64.ln() / 4.0);
//! ```

mod draw;
pub mod order;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;
use std::fmt;

/// A distribution that rows of scores are drawn from.
///
/// Parameters from text are finite and positive (d is above 1). Another value gives rows of the same formula,
/// and a row is poisoned if the formula has no value.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Family {
    /// One score `gap` above n - 1 equal ones, at a random place.
    Simplex {
        /// q - p.
        gap: f64,
    },
    /// Independent standard normal scores: the random energy model.
    Gaussian,
    /// Independent scores with P(s > x) = exp(-x).
    Exponential,
    /// Independent scores with P(s > x) = exp(-x^p).
    Stretched {
        /// p: 1 is exponential, 2 has a Gaussian's tail.
        p: f64,
    },
    /// Independent scores below the edge s* = 0 with P(s > s* - u) = exp(-u^-c).
    Edge {
        /// c.
        c: f64,
    },
    /// Gaps D_(k) = log k / L for every k, best first.
    LogGrid {
        /// L, the critical beta.
        beta: f64,
    },
    /// Dot products of a unit query with keys that are uniform on the sphere S^(d-1), minus 1. No weight
    /// depends on this shift, and it keeps the small gaps at the edge exact in f32.
    Sphere {
        /// d, the dimension of a key.
        d: f64,
    },
    /// Independent scores with P(s > x) = x^-a.
    Pareto {
        /// a.
        a: f64,
    },
    /// One score at `height` above a standard normal bulk, at a random place.
    Sink {
        /// The sink's score.
        height: f64,
    },
    /// Up to four scores around `height`, at random places of a standard normal bulk.
    Needles {
        /// The needles' mean score.
        height: f64,
    },
    /// Independent scores with Student's t distribution.
    StudentT {
        /// Degrees of freedom.
        nu: f64,
    },
    /// All scores tied.
    Equal,
    /// Standard normal scores, each masked with probability `share`. All of them may be masked.
    Masked {
        /// Probability of -inf.
        share: f64,
    },
    /// Standard normal scores rounded to bfloat16. Long rows tie at the top.
    Bf16,
    /// Evenly spaced scores, worst first.
    Ascending {
        /// Distance of neighbours.
        step: f64,
    },
}

/// How the critical beta of a family grows: factor * (log n)^log_power * n^power. If the factor is given,
/// this is exact for every n >= 2. Otherwise it holds up to a random factor of order 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Growth {
    /// The exact factor, if there is one.
    pub factor: Option<f64>,
    /// xi, the exponent of log n.
    pub log_power: f64,
    /// The exponent of n.
    pub power: f64,
}

impl Family {
    /// Every family at its default parameter, in the order of the table that `critbeta families` prints.
    pub const ALL: [Family; 15] = [
        Family::Simplex { gap: 4.0 },
        Family::Gaussian,
        Family::Exponential,
        Family::Stretched { p: 3.0 },
        Family::Edge { c: 1.0 },
        Family::LogGrid { beta: 2.5 },
        Family::Sphere { d: 5.0 },
        Family::Pareto { a: 2.0 },
        Family::Sink { height: 20.0 },
        Family::Needles { height: 30.0 },
        Family::StudentT { nu: 2.0 },
        Family::Equal,
        Family::Masked { share: 0.5 },
        Family::Bf16,
        Family::Ascending { step: 0.125 },
    ];

    /// The family's name in its text form.
    pub fn name(&self) -> &'static str {
        match self {
            Family::Simplex { .. } => "simplex",
            Family::Gaussian => "gaussian",
            Family::Exponential => "exponential",
            Family::Stretched { .. } => "stretched",
            Family::Edge { .. } => "edge",
            Family::LogGrid { .. } => "log-grid",
            Family::Sphere { .. } => "sphere",
            Family::Pareto { .. } => "pareto",
            Family::Sink { .. } => "sink",
            Family::Needles { .. } => "needles",
            Family::StudentT { .. } => "student-t",
            Family::Equal => "equal",
            Family::Masked { .. } => "masked",
            Family::Bf16 => "bf16",
            Family::Ascending { .. } => "ascending",
        }
    }

    fn parameter(&mut self) -> Option<(&'static str, &mut f64)> {
        match self {
            Family::Gaussian | Family::Exponential | Family::Equal | Family::Bf16 => None,
            Family::Simplex { gap } => Some(("gap", gap)),
            Family::Stretched { p } => Some(("p", p)),
            Family::Edge { c } => Some(("c", c)),
            Family::LogGrid { beta } => Some(("beta", beta)),
            Family::Sphere { d } => Some(("d", d)),
            Family::Pareto { a } => Some(("a", a)),
            Family::Sink { height } | Family::Needles { height } => Some(("height", height)),
            Family::StudentT { nu } => Some(("nu", nu)),
            Family::Masked { share } => Some(("share", share)),
            Family::Ascending { step } => Some(("step", step)),
        }
    }

    /// How the critical beta grows with n, if theory (section 3 of `docs/how-it-works.md`) gives it.
    ///
    /// A Pareto or Student tail has Lambda ~ log n / (largest score), because the distance of the bulk is the
    /// maximum.
    pub fn known(&self) -> Option<Growth> {
        let exactly = |factor, log_power| Some(Growth { factor: Some(factor), log_power, power: 0.0 });
        let roughly = |log_power, power| Some(Growth { factor: None, log_power, power });
        match *self {
            Family::Simplex { gap } => exactly(1.0 / gap, 1.0),
            Family::Gaussian | Family::Masked { .. } => roughly(0.5, 0.0),
            Family::Exponential => roughly(0.0, 0.0),
            Family::Stretched { p } => roughly(1.0 - 1.0 / p, 0.0),
            Family::Edge { c } => roughly(1.0 + 1.0 / c, 0.0),
            Family::LogGrid { beta } => exactly(beta, 0.0),
            Family::Sphere { d } => roughly(0.0, 2.0 / (d - 1.0)),
            Family::Pareto { a } | Family::StudentT { nu: a } => roughly(1.0, -1.0 / a),
            Family::Equal => exactly(f64::INFINITY, 0.0),
            Family::Ascending { step } => exactly(std::f64::consts::LN_2 / step, 0.0),
            Family::Sink { .. } | Family::Needles { .. } | Family::Bf16 => None,
        }
    }
}

/// Prints `name` or `name:parameter=value`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match { *self }.parameter() {
            None => f.write_str(self.name()),
            Some((key, value)) => write!(f, "{}:{key}={value}", self.name()),
        }
    }
}

/// Reads `name` (its default parameter) or `name:parameter=value`.
impl std::str::FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, given) = text.split_once(':').map_or((text, None), |(name, given)| (name, Some(given)));
        let mut family = Family::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| {
            let names = Family::ALL.map(|family| family.name()).join(", ");
            format!("family {text:?}: unknown name {name:?}; expected {names}")
        })?;
        let Some(given) = given else { return Ok(family) };
        let Some((key, value)) = family.parameter() else {
            return Err(format!("family {text:?}: {name} has no parameter"));
        };
        let above = if key == "d" { 1.0 } else { 0.0 };
        match given.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')).map(str::parse::<f64>) {
            Some(Ok(number)) if number > above && number.is_finite() => *value = number,
            _ => return Err(format!("family {text:?}: expected {key}= and a finite number above {above}")),
        }
        Ok(family)
    }
}

/// The median critical beta of `rows` rows of `n` scores. It is the upper of two middle ones, and NaN for no
/// rows.
///
/// It is no mean, because P(Lambda > w) falls like 1 / w. It is the same on every number of threads.
pub fn median_critical_beta(family: &Family, n: usize, rows: usize, seed: u64) -> f64 {
    let one = |scores: &mut Vec<f32>, seed| {
        family.draw(n, &mut Xoshiro256PlusPlus::seed_from_u64(seed), scores);
        crate::cpu::critical_beta(scores, 0.0).beta
    };
    median(row_seeds(rows, seed).into_par_iter().map_init(Vec::new, one).collect())
}

/// A seed for each of `rows` rows, all derived from one seed.
pub fn row_seeds(rows: usize, seed: u64) -> Vec<u64> {
    Xoshiro256PlusPlus::seed_from_u64(seed).random_iter().take(rows).collect()
}

/// The upper median; NaN for no values.
pub fn median(mut values: Vec<f64>) -> f64 {
    let middle = values.len() / 2;
    if values.is_empty() { f64::NAN } else { *values.select_nth_unstable_by(middle, f64::total_cmp).1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip_and_nonsense_is_refused_by_name() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse(), Ok(family));
            assert_eq!(family.name().parse(), Ok(family));
        }
        assert_eq!("edge:c=0.5".parse(), Ok(Family::Edge { c: 0.5 }));
        assert_eq!(Family::Edge { c: 0.5 }.to_string(), "edge:c=0.5");
        for (text, message) in [
            ("", "expected simplex, gaussian"),
            ("edges", "unknown name \"edges\""),
            ("gaussian:c=1", "no parameter"),
            ("edge:", "expected c="),
            ("edge:d=1", "expected c="),
            ("edge:c=0", "above 0"),
            ("edge:c=inf", "finite"),
            ("edge:c=nan", "finite"),
            ("edge:c=1,c=2", "expected c="),
            ("sphere:d=1", "above 1"),
        ] {
            let error = text.parse::<Family>().unwrap_err();
            assert!(error.contains(message) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn exact_growth_is_what_the_reference_measures() {
        for family in Family::ALL {
            let Some(Growth { factor: Some(factor), log_power, power: 0.0 }) = family.known() else {
                continue;
            };
            for n in [2, 3, 100, 4096] {
                let measured = median_critical_beta(&family, n, 3, 5);
                let expected = factor * (n as f64).ln().powf(log_power);
                // A gap has one f32 rounding, 2^-24. It has none if the scores are on a binary grid.
                let error = (measured / expected - 1.0).abs();
                assert!(measured == expected || error <= 2f64.powi(-24) * 1.001, "{family} {n}: {measured}");
            }
        }
    }

    #[test]
    fn rows_of_every_family_have_their_length_at_any_size() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut out = vec![0.0; 9];
        for family in Family::ALL {
            for n in [0, 1, 2, 5, 1000] {
                family.draw(n, &mut rng, &mut out);
                assert_eq!(out.len(), n, "{family}");
                assert!(out.iter().all(|s| !s.is_nan() && *s < f32::INFINITY), "{family}");
            }
        }
    }

    #[test]
    fn medians_depend_on_their_seed_alone() {
        let (a, b) = (Family::Gaussian, Family::Sphere { d: 5.0 });
        assert_eq!(median_critical_beta(&a, 100, 9, 1), median_critical_beta(&a, 100, 9, 1));
        assert_ne!(median_critical_beta(&a, 100, 9, 1), median_critical_beta(&a, 100, 9, 2));
        assert_ne!(median_critical_beta(&a, 100, 9, 1), median_critical_beta(&b, 100, 9, 1));
        assert!(median_critical_beta(&a, 100, 0, 1).is_nan());
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let alone = pool.install(|| median_critical_beta(&a, 100, 9, 1));
            assert_eq!(alone, median_critical_beta(&a, 100, 9, 1), "{threads} threads");
        }
    }
}
