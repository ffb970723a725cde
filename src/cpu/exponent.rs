//! exp(-beta gap) in lanes, with a stated error.

use super::lanes::Lanes;

/// exp(-beta gap) for one row. beta is held in two floats of base 2, as in the kernels (`kernels/math.cuh`).
/// With one float, every weight would be off by z 2^-24 relative, z = beta gap, all in the same direction. Z
/// would then be off by up to ln n 2^-24, and the largest probability with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exponent {
    base2: f32,
    /// The part of beta that `base2` leaves out.
    rest: f32,
    /// Factor of the gaps that keeps the exponent of every weight within the range of f32; 0 for beta = 0.
    scale: f32,
    /// Whether beta is 0, infinite, or so far from 1 that `scale` is not 1.
    pub special: bool,
}

impl Exponent {
    /// `beta` >= 0.
    pub(super) fn new(beta: f64) -> Exponent {
        const FAR: f64 = 18446744073709551616.0; // 2^64
        let base2 = beta * std::f64::consts::LOG2_E;
        let (scale, scaled) = match base2 {
            0.0 => (0.0, 0.0),
            b if b > FAR => (FAR, b / FAR),
            b if b < 1.0 / FAR => (1.0 / FAR, b * FAR),
            b => (1.0, b),
        };
        let finite = if base2 > 2f64.powi(190) { f32::INFINITY } else { scaled as f32 };
        let rest = if finite.is_finite() { (scaled - f64::from(finite)) as f32 } else { 0.0 };
        Exponent { base2: finite, rest, scale: scale as f32, special: scale != 1.0 }
    }
}

/// Weights are stored times 2^25. So weights down to 2^-150 are normal floats, and only a probability is ever
/// rounded below the normal range.
pub(super) const WEIGHT_ONE: f32 = 33554432.0;
/// Added to a float below 2^22, this leaves the float's integer in the low bits.
const MAGIC: f32 = 12582912.0;

/// 2^25 exp(-beta gap) of every score, and 0 below 2^-150. A polynomial gives 2^f on -1/2..=1/2; it is then
/// multiplied by a power of two.
#[inline(always)]
pub(super) fn weigh<L: Lanes, const SPECIAL: bool>(lanes: L, score: L::F, max: f32, e: &Exponent) -> L::F {
    let splat = |x| lanes.splat(x);
    let mut gap = lanes.sub(splat(max), score);
    if SPECIAL {
        let (one, none) = (splat(WEIGHT_ONE), splat(0.0));
        if e.base2 == 0.0 && e.scale == 0.0 {
            // All keys are equal, even one whose gap overflows.
            return lanes.select(lanes.ge(score, splat(f32::MIN)), one, none);
        }
        if e.base2 == 0.0 {
            return lanes.select(lanes.ge(splat(f32::MAX), gap), one, none);
        }
        if e.base2 == f32::INFINITY {
            return lanes.select(lanes.ge(none, gap), one, none);
        }
        gap = lanes.mul(gap, splat(e.scale));
    }
    let magic = splat(MAGIC);
    let shifted = lanes.fma(gap, splat(-e.base2), magic);
    // f is the exponent's fraction, which `shifted` has rounded away.
    let f = lanes.fma(gap, splat(-e.base2), lanes.sub(magic, shifted));
    let f = lanes.fma(gap, splat(-e.rest), f);
    polynomial(lanes, f, shifted)
}

#[inline(always)]
fn polynomial<L: Lanes>(lanes: L, f: L::F, shifted: L::F) -> L::F {
    let term = |c: f32| lanes.splat(c * WEIGHT_ONE);
    let q = lanes.fma(term(0.000_153_533_6), f, term(0.001_339_887_5));
    let q = lanes.fma(q, f, term(0.009_618_437));
    let q = lanes.fma(q, f, term(0.055_503_324));
    let q = lanes.fma(q, f, term(0.240_226_48));
    let q = lanes.fma(q, f, term(std::f32::consts::LN_2));
    let q = lanes.fma(q, f, term(1.0));
    // Far below, `shifted` has lost its integer.
    lanes.raise(q, shifted, lanes.splat(MAGIC - 150.0))
}

#[cfg(test)]
mod tests {
    use super::super::lanes::{InstructionSet, WIDTH, Work};
    use super::*;

    /// Takes every `step`-th f32 exponent from 0 to -150, and finds how far its weight is off, in units of
    /// 2^-23 relative.
    struct Worst {
        step: usize,
    }

    impl Work for Worst {
        type Out = (f64, f32);
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> (f64, f32) {
            let one = Exponent { base2: 1.0, rest: 0.0, scale: 1.0, special: false };
            let mut worst = (0.0, 0.0);
            for first in (0..=150f32.to_bits()).step_by(self.step * WIDTH) {
                let gaps: [f32; WIDTH] =
                    std::array::from_fn(|j| f32::from_bits(first + (j * self.step) as u32));
                let mut weights = [0.0; WIDTH];
                let score = lanes.sub(lanes.splat(0.0), lanes.load(&gaps));
                lanes.store(weigh::<L, false>(lanes, score, 0.0, &one), &mut weights);
                for (gap, weight) in gaps.into_iter().zip(weights).filter(|&(gap, _)| gap <= 150.0) {
                    let exact = (-f64::from(gap)).exp2();
                    let off =
                        ((f64::from(weight) / f64::from(WEIGHT_ONE)) / exact - 1.0).abs() * 2f64.powi(23);
                    worst = if off > worst.0 { (off, gap) } else { worst };
                }
            }
            worst
        }
    }

    fn polynomial_is_within_one_unit(step: usize) {
        for set in InstructionSet::supported() {
            let (off, gap) = set.run(Worst { step });
            assert!(off <= 1.0, "{set}: 2^-{gap} is {off} units of 2^-23 off");
        }
    }

    #[test]
    fn every_hundredth_power_of_two_is_within_one_unit() {
        polynomial_is_within_one_unit(101);
    }

    /// Tests all 1.1e9 floats from 0 to 150 on the fastest set; the others have its bits. The error is at
    /// most 0.671 units (2026-11-25).
    #[test]
    fn every_power_of_two_is_within_one_unit() {
        let (off, gap) = InstructionSet::supported()[0].run(Worst { step: 1 });
        assert!(off <= 1.0, "2^-{gap} is {off} units of 2^-23 off");
        println!("at most {off} units of 2^-23, at 2^-{gap}");
    }

    fn weights(scores: &[f32; WIDTH], max: f32, beta: f64) -> [f32; WIDTH] {
        struct Weigh<'a>(&'a [f32; WIDTH], f32, Exponent);
        impl Work for Weigh<'_> {
            type Out = [f32; WIDTH];
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> [f32; WIDTH] {
                let mut weights = [0.0; WIDTH];
                lanes.store(weigh::<L, true>(lanes, lanes.load(self.0), self.1, &self.2), &mut weights);
                weights
            }
        }
        let sets = InstructionSet::supported();
        let found: Vec<_> = sets.iter().map(|set| set.run(Weigh(scores, max, Exponent::new(beta)))).collect();
        assert!(found.iter().all(|weights| weights == &found[0]), "{sets:?}");
        found[0].map(|weight| weight / WEIGHT_ONE)
    }

    #[test]
    fn weights_are_exact_at_the_ends() {
        let inf = f32::NEG_INFINITY;
        let mut scores = [inf; WIDTH];
        scores[..6].copy_from_slice(&[3.0, 2.0, 3.0, -3e38, -200.0, f32::MIN]);
        let first = |beta| weights(&scores, 3.0, beta)[..7].to_vec();
        assert_eq!(first(0.0), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(first(f64::MIN_POSITIVE), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(first(f64::INFINITY), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(first(1e300), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(first(1.0)[3..], [0.0; 4]);
        // A gap that overflows counts as masked, except for beta = 0.
        scores[0] = f32::MAX;
        assert_eq!(weights(&scores, f32::MAX, 1e-300)[..7], [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        // 3e38 + 3.4e38 overflows; 3.4e38 itself is 2^128 - 2^104.
        let far = weights(&scores, f32::MAX, 1e-39);
        let expected = (-1e-39 * f64::from(f32::MAX)).exp();
        assert!((f64::from(far[1]) / expected - 1.0).abs() < 2f64.powi(-21), "{far:?}");
    }
}
