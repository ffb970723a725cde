//! Turns products of queries and keys into scores.

use super::lanes::{InstructionSet, Lanes, Work};
use crate::DType;

/// Multiplies every score by `factor`, in f64, and rounds once. A product of -inf, or below half of f32's
/// lowest number, becomes NaN, because it would read as masked.
pub fn scale(scores: &mut [f32], factor: f64) {
    InstructionSet::chosen_or_fastest().run(Scale { scores, factor });
}

struct Scale<'a> {
    scores: &'a mut [f32],
    factor: f64,
}

impl Work for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let poison = |score: f32| if score < DType::F32.masked_below() as f32 { f32::NAN } else { score };
        // The compiler vectorises these plain loops.
        match self.factor == 1.0 {
            true => self.scores.iter_mut().for_each(|s| *s = poison(*s)),
            false => self.scores.iter_mut().for_each(|s| *s = poison((f64::from(*s) * self.factor) as f32)),
        }
    }
}
