//! Rows that tests and benches share: one of every family, and small rows full of ties and masks.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use critbeta::families::Family;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

/// Values of the resolve r in nats: none, above a tie of two (log 2 = 0.693), and above a tie of twenty.
pub const RESOLVES: [f64; 3] = [0.0, 0.69, 3.0];

/// One row of `n` scores.
pub fn draw(family: Family, n: usize, seed: u64) -> Vec<f32> {
    let mut row = Vec::new();
    family.draw(n, &mut Xoshiro256PlusPlus::seed_from_u64(seed), &mut row);
    row
}

/// One row of `n` scores of every family.
pub fn every_family(n: usize, seed: u64) -> impl Iterator<Item = (Family, Vec<f32>)> {
    Family::ALL.into_iter().map(move |family| (family, draw(family, n, seed)))
}

/// The relative rounding error of a sum of n positive f64 terms in any order. It is doubled, because a test
/// compares two such sums, and it includes 8 more operations around them.
pub fn sum_error(n: usize) -> f64 {
    (n as f64 + 8.0) * f64::EPSILON
}

/// The error bound of a probability that is computed in f32: (4 + z) 2^-23 relative, with z = beta gap, and
/// one rounding below the normal range.
pub fn prob_error(weight: f64, z: f64) -> f64 {
    if weight == 0.0 { 2f64.powi(-150) } else { weight * (4.0 + z) * 2f64.powi(-23) + 2f64.powi(-150) }
}

/// A score on the lattice of eighths, where shifts and gaps are exact. One in five is masked.
pub fn lattice_score() -> impl Strategy<Value = f32> {
    prop_oneof![4 => (-40i32..=40).prop_map(|i| i as f32 / 8.0), 1 => Just(f32::NEG_INFINITY)]
}

/// Any score that a row may hold: a wide range, ties, masks and both zeros, but no poison.
pub fn any_score() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => lattice_score(),
        4 => -100.0f32..100.0,
        1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        1 => prop::sample::select(vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN / 2.0, 1e-45]),
    ]
}

/// Up to 200 of [`any_score`].
pub fn any_row() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(any_score(), 0..200)
}
