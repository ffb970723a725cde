//! Passes for the top of a row, by the maxima of its blocks.

use super::load::{lanes_of, load, vector};
use super::{BLOCK, BLOCK_VECTORS, Isa, LANES, Lanes};
use crate::Element;

/// The worst kind of score in a part of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cpu) enum Worst {
    /// All are finite.
    Finite,
    /// Some are infinite.
    Infinite,
    /// Some are NaN.
    Nan,
}

#[inline(always)]
unsafe fn worst_of<L: Lanes>(magnitude: L::F) -> Worst {
    match unsafe { lanes_of::<L>(magnitude) }.into_iter().map(f32::to_bits).fold(0, u32::max) {
        0..0x7f80_0000 => Worst::Finite,
        0x7f80_0000 => Worst::Infinite,
        _ => Worst::Nan,
    }
}

/// Replaces `maxima` by the maxima of each lane of each block of a row.
#[inline(always)]
unsafe fn block_maxima<L: Lanes, T: Element>(row: &[T], maxima: &mut Vec<f32>) -> Worst {
    unsafe {
        let blocks = row.len().div_ceil(BLOCK);
        maxima.clear();
        maxima.reserve(blocks * LANES);
        let mut worst = L::splat(0.0);
        for b in 0..blocks {
            let mut best = [L::splat(f32::NEG_INFINITY); 4];
            if (b + 1) * BLOCK <= row.len() {
                let start = row.as_ptr().add(b * BLOCK);
                for i in 0..BLOCK_VECTORS / 4 {
                    for (k, best) in best.iter_mut().enumerate() {
                        let v = load::<L, T>(start.add((4 * i + k) * LANES));
                        *best = L::max(v, *best);
                        worst = L::larger_magnitude(worst, v);
                    }
                }
            } else {
                for i in b * BLOCK_VECTORS..row.len().div_ceil(LANES) {
                    let v = vector::<L, T>(row, i);
                    best[0] = L::max(v, best[0]);
                    if (i + 1) * LANES <= row.len() {
                        worst = L::larger_magnitude(worst, v);
                    } else {
                        // Without the -inf behind the end.
                        for s in &row[i * LANES..] {
                            worst = L::larger_magnitude(worst, L::splat(s.to_f32()));
                        }
                    }
                }
            }
            let best = L::max(L::max(best[0], best[1]), L::max(best[2], best[3]));
            L::store(maxima.as_mut_ptr().add(maxima.len()), best);
            maxima.set_len(maxima.len() + LANES);
        }
        worst_of::<L>(worst)
    }
}
pass! {
    /// Replaces `maxima` by the maxima of each lane of each block of `row`, and says the worst kind of score. Where that is NaN,
    /// maxima mean nothing.
    pub(in crate::cpu) block_maxima<T>(row: &[T], maxima: &mut Vec<f32>) -> Worst
}

/// How many scores of a row are finite.
#[inline(always)]
unsafe fn count_finite<L: Lanes, T: Element>(row: &[T]) -> u64 {
    unsafe {
        let (low, high) = (L::splat(f32::MIN), L::splat(f32::MAX));
        let mut count = 0;
        for i in 0..row.len().div_ceil(LANES) {
            let v = vector::<L, T>(row, i);
            count += u64::from((L::at_least(v, low) & L::at_least(high, v)).count_ones());
        }
        count
    }
}
pass! {
    /// How many scores of `row` are finite.
    pub(in crate::cpu) count_finite<T>(row: &[T]) -> u64
}

/// The two largest of some values, equal under ties.
#[inline(always)]
unsafe fn largest_two<L: Lanes>(values: &[f32]) -> (f32, f32) {
    unsafe {
        let lowest = L::splat(f32::NEG_INFINITY);
        let (mut first, mut second) = (lowest, lowest);
        for i in 0..values.len().div_ceil(LANES) {
            let v = vector::<L, f32>(values, i);
            second = L::max(L::min(first, v), second);
            first = L::max(v, first);
        }
        let max = L::largest(first);
        let holders = L::equal(first, L::splat(max));
        let next = if holders.count_ones() > 1 { max } else { L::largest(L::select(holders, second, first)) };
        (max, next)
    }
}
pass! {
    /// The two largest of `values`, equal under ties.
    pub(in crate::cpu) largest_two<>(values: &[f32]) -> (f32, f32)
}

/// Where a maximum is attained: how often, where first, and the largest score beside one of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::cpu) struct Places {
    pub ties: u64,
    pub first: usize,
    pub second: f32,
}

/// Looks at the blocks whose maxima hold `max`; `second` is the largest of the other maxima.
#[inline(always)]
unsafe fn places<L: Lanes, T: Element>(row: &[T], maxima: &[f32], max: f32, second: f32) -> Places {
    unsafe {
        let (same, lowest) = (L::splat(max), L::splat(f32::NEG_INFINITY));
        let (mut ties, mut first, mut below) = (0, usize::MAX, lowest);
        for b in 0..maxima.len() / LANES {
            if L::equal(L::load(maxima.as_ptr().add(b * LANES)), same) == 0 {
                continue;
            }
            for i in b * BLOCK_VECTORS..((b + 1) * BLOCK_VECTORS).min(row.len().div_ceil(LANES)) {
                let v = vector::<L, T>(row, i);
                let mask = L::equal(v, same);
                if mask != 0 && first == usize::MAX {
                    first = i * LANES + mask.trailing_zeros() as usize;
                }
                ties += u64::from(mask.count_ones());
                below = L::max(L::select(mask, lowest, v), below);
            }
        }
        let below = L::largest(L::max(below, L::splat(second)));
        Places { ties, first, second: if ties > 1 { max } else { below } }
    }
}
pass! {
    /// Where `row` attains `max`, by the blocks whose `maxima` say so; `second` is the largest maximum beside one of `max`.
    pub(in crate::cpu) places<T>(row: &[T], maxima: &[f32], max: f32, second: f32) -> Places
}
