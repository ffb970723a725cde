//! Passes for the search of a contact.

use super::load::{lanes_of, load, load_tail, vector};
use super::{BLOCK, BLOCK_VECTORS, FEW, Isa, LANES, Lanes};
use crate::Element;

/// How many gaps are at most each of `cuts`.
#[inline(always)]
unsafe fn count_within<L: Lanes>(gaps: &[f32], cuts: &[f32; 8]) -> [u32; 8] {
    unsafe {
        let mut counts = [0; 8];
        let full = gaps.len() / LANES * LANES;
        for at in (0..full).step_by(LANES) {
            let v = L::load(gaps.as_ptr().add(at));
            for (count, &cut) in counts.iter_mut().zip(cuts) {
                *count += L::at_least(L::splat(cut), v).count_ones();
            }
        }
        for (count, &cut) in counts.iter_mut().zip(cuts) {
            *count += gaps[full..].iter().filter(|&&gap| gap <= cut).count() as u32;
        }
        counts
    }
}
pass! {
    /// How many gaps are at most each of `cuts`.
    pub(in crate::cpu) count_within<>(gaps: &[f32], cuts: &[f32; 8]) -> [u32; 8]
}

/// How many of a few gaps are at most each of them.
#[inline(always)]
unsafe fn rank<L: Lanes>(gaps: &[f32], ranks: &mut [u32; FEW]) {
    unsafe {
        let mut v = [L::splat(f32::INFINITY); FEW / LANES];
        for (i, v) in v.iter_mut().enumerate() {
            let mut lanes = [f32::INFINITY; LANES];
            for (lane, gap) in lanes.iter_mut().zip(gaps.iter().skip(i * LANES)) {
                *lane = *gap;
            }
            *v = L::load(lanes.as_ptr());
        }
        for (at_most, &gap) in ranks.iter_mut().zip(gaps) {
            let gap = L::splat(gap);
            *at_most = 0;
            for v in v {
                *at_most += L::at_least(gap, v).count_ones();
            }
        }
    }
}
pass! {
    /// How many of a few finite gaps are at most each of them.
    pub(in crate::cpu) rank<>(gaps: &[f32], ranks: &mut [u32; FEW])
}

/// The smallest and the largest of some gaps.
#[inline(always)]
unsafe fn extent<L: Lanes>(gaps: &[f32]) -> (f32, f32) {
    unsafe {
        let (mut least, mut most) = (L::splat(f32::INFINITY), L::splat(f32::NEG_INFINITY));
        let full = gaps.len() / LANES * LANES;
        for at in (0..full).step_by(LANES) {
            let v = L::load(gaps.as_ptr().add(at));
            (least, most) = (L::min(v, least), L::max(v, most));
        }
        let rest = || gaps[full..].iter().copied();
        let least = lanes_of::<L>(least).into_iter().chain(rest()).fold(f32::INFINITY, f32::min);
        (least, lanes_of::<L>(most).into_iter().chain(rest()).fold(f32::NEG_INFINITY, f32::max))
    }
}
pass! {
    /// The smallest and the largest of some gaps.
    pub(in crate::cpu) extent<>(gaps: &[f32]) -> (f32, f32)
}

/// Stores those of sixteen scores that are at least `least`, and says where the next go.
#[inline(always)]
unsafe fn store_largest<L: Lanes>(v: L::F, least: L::F, to: *mut f32) -> *mut f32 {
    unsafe {
        let mask = L::at_least(v, least);
        L::compress(to, mask, v);
        to.add(mask.count_ones() as usize)
    }
}

/// Replaces `scores` by those of a row from `least` on, of the blocks whose maxima are.
#[inline(always)]
unsafe fn gather<L: Lanes, T: Element>(row: &[T], maxima: &[f32], least: f32, scores: &mut Vec<f32>) {
    unsafe {
        let least = L::splat(least);
        // Sixteen more than there can be: a store takes all lanes. Whole at once: memory that is not touched costs nothing.
        scores.clear();
        scores.reserve_exact(row.len() + LANES);
        for b in 0..maxima.len() / LANES {
            if L::at_least(L::load(maxima.as_ptr().add(b * LANES)), least) == 0 {
                continue;
            }
            let mut to = scores.as_mut_ptr().add(scores.len());
            if (b + 1) * BLOCK <= row.len() {
                let start = row.as_ptr().add(b * BLOCK);
                for i in 0..BLOCK_VECTORS {
                    to = store_largest::<L>(load::<L, T>(start.add(i * LANES)), least, to);
                }
            } else {
                for i in b * BLOCK_VECTORS..row.len().div_ceil(LANES) {
                    to = store_largest::<L>(vector::<L, T>(row, i), least, to);
                }
            }
            scores.set_len(to.offset_from_unsigned(scores.as_ptr()));
        }
    }
}
pass! {
    /// Replaces `scores` by those of `row` from `least` on, of the blocks whose `maxima` are.
    pub(in crate::cpu) gather<T>(row: &[T], maxima: &[f32], least: f32, scores: &mut Vec<f32>)
}

/// Replaces sixteen values `$v` by what `$kept` makes of them under its mask, in place and in order. No function: a closure would not have the instruction set.
macro_rules! keep {
    ($gaps:ident, $v:ident => $kept:expr) => {{
        $gaps.reserve_exact(LANES);
        let (n, start) = ($gaps.len(), $gaps.as_mut_ptr());
        let mut kept = 0;
        for at in (0..n).step_by(LANES) {
            let ($v, valid) = match n - at {
                left @ 0..LANES => (load_tail::<L, f32>(&$gaps[at..]), (1u16 << left) - 1),
                _ => (L::load(start.add(at)), u16::MAX),
            };
            let (kept_of, mask) = $kept;
            let mask = mask & valid;
            // Never beyond what has been read: kept <= at.
            L::compress(start.add(kept), mask, kept_of);
            kept += mask.count_ones() as usize;
        }
        $gaps.set_len(kept);
    }};
}

#[inline(always)]
unsafe fn to_gaps<L: Lanes>(scores: &mut Vec<f32>, max: f32, cut: f32) {
    unsafe {
        let (top, least, most) = (L::splat(max), L::splat(f32::from_bits(1)), L::splat(cut));
        keep!(scores, v => {
            let gap = L::sub(top, v);
            (gap, L::at_least(gap, least) & L::at_least(most, gap))
        });
    }
}
pass! {
    /// Replaces scores by their gaps 0 < gap <= cut below `max`, in order.
    pub(in crate::cpu) to_gaps<>(scores: &mut Vec<f32>, max: f32, cut: f32)
}

#[inline(always)]
unsafe fn keep_within<L: Lanes>(gaps: &mut Vec<f32>, cut: f32) {
    unsafe { keep!(gaps, v => (v, L::at_least(L::splat(cut), v))) }
}
pass! {
    /// Keeps the gaps of at most `cut`, in order.
    pub(in crate::cpu) keep_within<>(gaps: &mut Vec<f32>, cut: f32)
}

/// A bin ends where the next begins.
#[inline(always)]
unsafe fn keep_bins<L: Lanes>(gaps: &mut Vec<f32>, bins: &Bins, first: usize, last: usize) {
    unsafe {
        let (first, behind) = (L::splat(first as f32), L::splat((last + 1) as f32));
        keep!(gaps, v => (v, L::at_least(bins.place::<L>(v), first) & !L::at_least(bins.place::<L>(v), behind)))
    }
}
pass! {
    /// Keeps the gaps whose bin is among `first ..= last`, in order.
    pub(in crate::cpu) keep_bins<>(gaps: &mut Vec<f32>, bins: &Bins, first: usize, last: usize)
}

/// Equal bins of gaps from `low` on; the last one takes all that lie behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::cpu) struct Bins {
    pub low: f32,
    pub per_unit: f32,
    pub count: usize,
}

impl Bins {
    /// Where among the bins a gap lies: its bin when truncated.
    #[inline(always)]
    unsafe fn place<L: Lanes>(&self, v: L::F) -> L::F {
        unsafe {
            let place = L::mul(L::sub(v, L::splat(self.low)), L::splat(self.per_unit));
            L::min(place, L::splat((self.count - 1) as f32))
        }
    }

    /// The bin of one gap, as the passes find it.
    pub(in crate::cpu) fn of(&self, gap: f32) -> usize {
        ((gap - self.low) * self.per_unit).min((self.count - 1) as f32) as usize
    }
}

/// Counts gaps by bin, in four tables.
#[inline(always)]
unsafe fn count_bins<L: Lanes>(gaps: &[f32], bins: &Bins, counts: &mut [[u32; 4]]) {
    unsafe {
        assert_eq!(counts.len(), bins.count);
        let full = gaps.len() / LANES * LANES;
        for at in (0..full).step_by(LANES) {
            let places = L::truncate(bins.place::<L>(L::load(gaps.as_ptr().add(at))));
            // Four tables: equal bins in a row would wait for each other's store. No place lies beyond the last bin, and
            // none below 0 as no gap lies below `low`.
            for (i, &place) in places.iter().enumerate() {
                counts.get_unchecked_mut((place as usize).min(bins.count - 1))[i % 4] += 1;
            }
        }
        for &gap in &gaps[full..] {
            counts[bins.of(gap)][0] += 1;
        }
    }
}
pass! {
    /// Counts `gaps`, none below the first bin, by bin; the four tables add up.
    pub(in crate::cpu) count_bins<>(gaps: &[f32], bins: &Bins, counts: &mut [[u32; 4]])
}

/// Ranks below this have their logarithm in a table.
const SERIES_FROM: u64 = 4096;

/// Calls `offer` with the index of every gap of an ascending run whose ratio can reach what `offer` returns, the best so far.
#[inline(always)]
unsafe fn winners<L: Lanes>(
    sorted: &[f32],
    before: u64,
    resolve: f64,
    attained: f64,
    offer: &mut dyn FnMut(usize) -> f64,
) {
    const BLOCK: usize = 64;
    // Above the rounding of a series of five terms, at most 64 / 4096 apart.
    const SLACK: f64 = 1.0 - 1e-11;
    let mut best = attained;
    for (b, block) in sorted.chunks(BLOCK).enumerate() {
        let at = b * BLOCK;
        let first = before + at as u64 + 1;
        if first < SERIES_FROM {
            for i in 0..block.len() {
                best = best.max(offer(at + i));
            }
            continue;
        }
        let (log, step) = ((first as f64).ln() - resolve, 1.0 / first as f64);
        let mut wins = [false; BLOCK];
        for (j, (win, &gap)) in wins.iter_mut().zip(block).enumerate() {
            let x = j as f64 * step;
            let log = log
                + x * (1.0 - x * (1.0 / 2.0 - x * (1.0 / 3.0 - x * (1.0 / 4.0 - x * (1.0 / 5.0 - x / 6.0)))));
            *win = log >= best * SLACK * f64::from(gap);
        }
        if wins.iter().any(|&win| win) {
            for i in (0..block.len()).filter(|&i| wins[i]) {
                best = best.max(offer(at + i));
            }
        }
    }
}
pass! {
    /// Calls `offer` with the index of every gap of `sorted`, `before` smaller ones aside, whose ratio can reach the best so far:
    /// `attained`, then what `offer` returns.
    pub(in crate::cpu) winners<>(sorted: &[f32], before: u64, resolve: f64, attained: f64, offer: &mut dyn FnMut(usize) -> f64)
}
