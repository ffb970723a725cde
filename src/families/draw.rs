//! Draws one row of each family. Scores are drawn in f64 and rounded to f32 once.

use super::Family;
use half::bf16;
use rand::{Rng, RngExt};
use rand_distr::{ChiSquared, Exp1, StandardNormal, StudentT};

impl Family {
    /// Replaces `out` by a row of `n` scores drawn with `rng`.
    pub fn draw(&self, n: usize, rng: &mut impl Rng, out: &mut Vec<f32>) {
        out.clear();
        match *self {
            Family::Simplex { gap } => {
                out.resize(n, 0.0);
                replace_one(out, gap, rng);
            }
            Family::Gaussian => fill(out, n, || normal(rng)),
            Family::Exponential => fill(out, n, || exponential(rng)),
            Family::Stretched { p } => fill(out, n, || exponential(rng).powf(1.0 / p)),
            Family::Edge { c } => fill(out, n, || -exponential(rng).powf(-1.0 / c)),
            Family::LogGrid { beta } => out.extend((1..=n).map(|k| (-(k as f64).ln() / beta) as f32)),
            Family::Sphere { d } => match ChiSquared::new(d - 1.0) {
                Ok(others) => fill(out, n, || below_pole(normal(rng), rng.sample(others))),
                Err(_) => out.resize(n, f32::NAN),
            },
            Family::Pareto { a } => fill(out, n, || (exponential(rng) / a).exp()),
            Family::Sink { height } => {
                fill(out, n, || normal(rng));
                replace_one(out, height, rng);
            }
            Family::Needles { height } => {
                fill(out, n, || normal(rng));
                for _ in 0..4 {
                    let needle = height + normal(rng);
                    replace_one(out, needle, rng);
                }
            }
            Family::StudentT { nu } => match StudentT::new(nu) {
                Ok(law) => fill(out, n, || rng.sample(law)),
                Err(_) => out.resize(n, f32::NAN),
            },
            Family::Equal => {
                let score = normal(rng) as f32;
                out.resize(n, score);
            }
            Family::Masked { share } => fill(out, n, || {
                let score = normal(rng);
                if rng.random::<f64>() < share { f64::NEG_INFINITY } else { score }
            }),
            Family::Bf16 => out.extend((0..n).map(|_| bf16::from_f64(normal(rng)).to_f32())),
            Family::Ascending { step } => out.extend((0..n).map(|i| (i as f64 * step) as f32)),
        }
    }
}

fn fill(out: &mut Vec<f32>, n: usize, mut score: impl FnMut() -> f64) {
    out.extend((0..n).map(|_| score() as f32));
}

fn normal(rng: &mut impl Rng) -> f64 {
    rng.sample(StandardNormal)
}

fn exponential(rng: &mut impl Rng) -> f64 {
    rng.sample(Exp1)
}

fn replace_one(out: &mut [f32], score: f64, rng: &mut impl Rng) {
    if !out.is_empty() {
        out[rng.random_range(0..out.len())] = score as f32;
    }
}

/// The first coordinate of a direction, minus 1. `first` is that coordinate of a Gaussian vector, and
/// `others` is the squared length of its other coordinates. In this form nothing cancels near the pole.
fn below_pole(first: f64, others: f64) -> f64 {
    let length = (first * first + others).sqrt();
    if first > 0.0 { -others / (length * (length + first)) } else { first / length - 1.0 }
}
