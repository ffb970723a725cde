//! Which values are read: the keys whose masses can be left out together are found before any value is.
//!
//! The mass of a key in a row is its probability in units of 2^-32, rounded up to an integer >= 1. The mass
//! of a key of a head is the largest of its rows. Masses fall into bins, four to an octave. The cut is the
//! highest bin edge for which the masses below it sum to at most eps. The sum of the largest is at least each
//! row's own sum, so every row stays within eps. Masses are integers below 2^53 in f32 and f64, so their sums
//! are exact and have no order.

use super::call::MASS_ONE;
use crate::cpu::{InstructionSet, Lanes, WIDTH, Work};

/// A bin is the exponent of a mass and two bits of its mantissa.
const BIN_SHIFT: u32 = 21;
/// If fewer keys than one in so many could be left out, all are read: to gather most of the values takes as
/// long as to read all. With 16 in place of 4, rows that keep 0.8 to 0.85 of 5,635 keys took 1.04 of the time
/// without a budget, and uniform rows 1.01 (2026-11-29).
const FEW: usize = 4;
/// f32 holds every integer up to this.
pub(super) const EXACT: f32 = 16_777_216.0;
/// Masses of a sample.
pub(super) const SAMPLES: usize = 256;

/// The mass of probabilities. A probability that was rounded to 0 also has a unit.
#[inline(always)]
pub(super) fn mass<L: Lanes>(lanes: L, probs: L::F) -> L::F {
    lanes.max(lanes.ceil(lanes.mul(probs, lanes.splat(MASS_ONE as f32))), lanes.splat(1.0))
}

/// The end of a row as a whole vector, with `value` behind it.
#[inline(always)]
pub(super) fn padded(tail: &[f32], value: f32) -> [f32; WIDTH] {
    let mut last = [value; WIDTH];
    last[..tail.len()].copy_from_slice(tail);
    last
}

/// Raises the masses of a head's keys to those of one row. Both have one length.
pub(super) struct RaiseMasses<'a> {
    pub probs: &'a [f32],
    pub masses: &'a mut [f32],
}

impl Work for RaiseMasses<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (probs, probs_tail) = self.probs.as_chunks::<WIDTH>();
        let (masses, masses_tail) = self.masses.as_chunks_mut::<WIDTH>();
        for (probs, masses) in probs.iter().zip(masses) {
            let raised = lanes.max(mass(lanes, lanes.load(probs)), lanes.load(masses));
            lanes.store(raised, masses);
        }
        let last = (padded(probs_tail, 0.0), padded(masses_tail, 0.0));
        let raised = lanes.max(mass(lanes, lanes.load(&last.0)), lanes.load(&last.1));
        let mut to = [0.0; WIDTH];
        lanes.store(raised, &mut to);
        masses_tail.copy_from_slice(&to[..masses_tail.len()]);
    }
}

/// A guess of the cut, from few keys of a head.
pub(super) struct Guess {
    bin: u32,
}

impl Guess {
    /// Guesses by `sampled`, the masses of one in `step` keys. It is `None` if too few keys seem to be below
    /// the cut.
    pub(super) fn of(sampled: &[f32], step: usize, budget: f64, set: InstructionSet) -> Option<Guess> {
        let (mut bin, mut top) = bins(budget);
        while bin < top {
            let middle = (bin + top).div_ceil(2);
            let sum = set.run(SumBelow { masses: sampled, edge: edge(middle) });
            if sum * step as f64 <= budget { bin = middle } else { top = middle - 1 }
        }
        // A sample is allowed to be wrong by a fifth.
        let left = set.run(CountBelow { masses: sampled, edge: edge(bin) });
        (5 * FEW * left > 4 * sampled.len()).then_some(Guess { bin })
    }

    /// The cut for all masses of a head: a key is read if its mass is at least this. The masses below it sum
    /// to at most `budget`. It is `None` if too few masses are below it.
    pub(super) fn worthwhile_cut(&self, masses: &[f32], budget: f64, set: InstructionSet) -> Option<f32> {
        let cut = self.cut(masses, budget, set);
        let left = set.run(CountBelow { masses, edge: cut });
        (left > masses.len() / FEW).then_some(cut)
    }

    fn cut(&self, masses: &[f32], budget: f64, set: InstructionSet) -> f32 {
        let below = |bin: u32| set.run(SumBelow { masses, edge: edge(bin) });
        let ((mut low, mut high), mut guess) = (bins(budget), self.bin);
        let mut passes = 0;
        while low < high {
            let probe = if passes < 2 { guess.clamp(low + 1, high) } else { (low + high).div_ceil(2) };
            passes += 1;
            match below(probe) <= budget {
                true => (low, guess) = (probe, probe + 1),
                false => (high, guess) = (probe - 1, probe - 1),
            }
        }
        edge(low)
    }
}

/// Below the first bin are only keys that no row needs. A mass in the bin of the budget can be within it.
fn bins(budget: f64) -> (u32, u32) {
    (1f32.to_bits() >> BIN_SHIFT, ((budget as f32).to_bits() >> BIN_SHIFT) + 1)
}

/// The smallest mass in a bin.
fn edge(bin: u32) -> f32 {
    f32::from_bits(bin << BIN_SHIFT)
}

struct SumBelow<'a> {
    masses: &'a [f32],
    edge: f32,
}

impl Work for SumBelow<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        let (edge, none) = (lanes.splat(self.edge), lanes.splat(0.0));
        let (masses, tail) = self.masses.as_chunks::<WIDTH>();
        let last = padded(tail, 0.0);
        let mut sums = lanes.zero();
        // f32 holds the sums of so many vectors exactly, which takes half of the time of f64.
        let exact = (EXACT / self.edge).clamp(2.0, 64.0) as usize / 2 * 2;
        for part in masses.chunks(exact).chain([&[last][..]]) {
            // Two sums do not wait for each other.
            let (pairs, single) = part.as_chunks::<2>();
            let mut of_part = [none; 2];
            for [a, b] in pairs {
                let (a, b) = (lanes.load(a), lanes.load(b));
                of_part[0] = lanes.add(of_part[0], lanes.select(lanes.ge(a, edge), none, a));
                of_part[1] = lanes.add(of_part[1], lanes.select(lanes.ge(b, edge), none, b));
            }
            for m in single {
                let m = lanes.load(m);
                of_part[0] = lanes.add(of_part[0], lanes.select(lanes.ge(m, edge), none, m));
            }
            sums = lanes.accumulate(sums, of_part[0]);
            sums = lanes.accumulate(sums, of_part[1]);
        }
        // Exact integers: any order.
        lanes.sums(sums).into_iter().sum()
    }
}

struct CountBelow<'a> {
    masses: &'a [f32],
    edge: f32,
}

impl Work for CountBelow<'_> {
    type Out = usize;
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> usize {
        // The compiler vectorises this plain loop.
        self.masses.iter().filter(|mass| **mass < self.edge).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_below_the_cut_sum_to_at_most_the_budget_and_no_higher_edge_does() {
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        for n in [1, 5, 16, 33, 1000, 40_000] {
            for octaves in [0.0, 3.0, 31.0] {
                let masses: Vec<f32> =
                    (0..n).map(|_| (2f64.powf(31.0 - octaves * random()) as f32).ceil()).collect();
                for budget in [1.0, 2.0, 1000.0, 4e6, 2147483648.0, 4294950911.0] {
                    let mut cuts = Vec::new();
                    for set in InstructionSet::supported() {
                        // No guess changes the cut.
                        for bin in [0, 1000, 1100, u32::MAX] {
                            cuts.push(Guess { bin }.cut(&masses, budget, set));
                        }
                    }
                    assert!(cuts.iter().all(|cut| *cut == cuts[0]), "{cuts:?}");
                    let sum =
                        |edge: f32| masses.iter().filter(|&&m| m < edge).map(|&m| m as u64).sum::<u64>();
                    assert!(sum(cuts[0]) <= budget as u64, "n = {n}, budget {budget}");
                    let next = f32::from_bits(cuts[0].to_bits() + (1 << BIN_SHIFT));
                    if cuts[0] <= budget as f32 {
                        assert!(sum(next) > budget as u64, "n = {n}, budget {budget}: {} is low", cuts[0]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_mass_is_rounded_up_on_every_set() {
        let mut probs =
            vec![0.0, 1e-30, 1.0, 0.5, 2f32.powi(-32), 2f32.powi(-32) * 1.5, 0.3, f32::MIN_POSITIVE];
        probs.extend((0..40).map(|i| 2f32.powi(-i) * 0.77));
        for set in InstructionSet::supported() {
            let mut masses = vec![0.0; probs.len()];
            set.run(RaiseMasses { probs: &probs, masses: &mut masses });
            for (p, m) in probs.iter().zip(&masses) {
                assert_eq!(f64::from(*m), (f64::from(*p) * MASS_ONE).ceil().max(1.0), "{p} on {set}");
            }
        }
    }
}
