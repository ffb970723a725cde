//! One pass over a part of a row each, compiled once per instruction set.

use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{BLOCK, BLOCK_VECTORS, CHUNK, Isa, LANES, Lanes};
use crate::{DType, Element};

/// Makes a function over `Lanes` a method of [`Isa`] that runs it with the instruction set.
macro_rules! pass {
    ($(#[$doc:meta])* $vis:vis $name:ident<$($g:ident),*>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        impl Isa {
            $(#[$doc])*
            #[allow(clippy::too_many_arguments)]
            $vis fn $name<$($g: Element),*>(self, $($arg: $ty),*) $(-> $ret)? {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                    unsafe fn avx512<$($g: Element),*>($($arg: $ty),*) $(-> $ret)? {
                        unsafe { $name::<Avx512, $($g),*>($($arg),*) }
                    }
                    #[target_feature(enable = "avx2,fma,f16c")]
                    unsafe fn avx2<$($g: Element),*>($($arg: $ty),*) $(-> $ret)? {
                        unsafe { $name::<Avx2, $($g),*>($($arg),*) }
                    }
                    // SAFETY: only what Isa::available has looked for is ever used.
                    match self {
                        Isa::Avx512 => return unsafe { avx512::<$($g),*>($($arg),*) },
                        Isa::Avx2 => return unsafe { avx2::<$($g),*>($($arg),*) },
                        Isa::Portable => {}
                    }
                }
                unsafe { $name::<Portable, $($g),*>($($arg),*) }
            }
        }
    };
}

/// Sixteen scores from `at` on, widened.
#[inline(always)]
unsafe fn load<L: Lanes, T: Element>(at: *const T) -> L::F {
    unsafe {
        match T::DTYPE {
            DType::F16 => L::load_half(at.cast()),
            DType::Bf16 => L::load_bfloat(at.cast()),
            _ => L::load(at.cast()),
        }
    }
}

/// The last scores of a row, fewer than sixteen, with -inf behind them.
#[inline(always)]
unsafe fn load_tail<L: Lanes, T: Element>(tail: &[T]) -> L::F {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes.iter_mut().zip(tail).for_each(|(lane, s)| *lane = s.to_f32());
    unsafe { L::load(lanes.as_ptr()) }
}

/// The i-th sixteen scores of a row, -inf behind its end.
#[inline(always)]
unsafe fn vector<L: Lanes, T: Element>(row: &[T], i: usize) -> L::F {
    let at = i * LANES;
    if at + LANES <= row.len() {
        unsafe { load::<L, T>(row.as_ptr().add(at)) }
    } else {
        unsafe { load_tail::<L, T>(&row[at.min(row.len())..]) }
    }
}

#[inline(always)]
unsafe fn lanes_of<L: Lanes>(v: L::F) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    unsafe { L::store(lanes.as_mut_ptr(), v) };
    lanes
}

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

/// Appends the maxima of each lane of each block of a row to `maxima`.
#[inline(always)]
unsafe fn block_maxima<L: Lanes, T: Element>(row: &[T], maxima: &mut Vec<f32>) -> Worst {
    unsafe {
        let blocks = row.len().div_ceil(BLOCK);
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
    /// Appends the maxima of each lane of each block of `row` to `maxima`, and says the worst kind of score. Where that is NaN,
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
        let (firsts, seconds) = (lanes_of::<L>(first), lanes_of::<L>(second));
        let (mut max, mut next) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for v in firsts.into_iter().chain(seconds) {
            if v > max {
                (next, max) = (max, v);
            } else if v > next {
                next = v;
            }
        }
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
        let below = lanes_of::<L>(below).into_iter().fold(second, f32::max);
        Places { ties, first, second: if ties > 1 { max } else { below } }
    }
}
pass! {
    /// Where `row` attains `max`, by the blocks whose `maxima` say so; `second` is the largest maximum beside one of `max`.
    pub(in crate::cpu) places<T>(row: &[T], maxima: &[f32], max: f32, second: f32) -> Places
}

/// Appends the gaps of `values` below `max`.
#[inline(always)]
unsafe fn gaps_of<L: Lanes>(values: &[f32], max: f32, gaps: &mut Vec<f32>) {
    unsafe {
        assert!(values.len().is_multiple_of(LANES));
        gaps.reserve(values.len());
        let (top, to) = (L::splat(max), gaps.as_mut_ptr().add(gaps.len()));
        for at in (0..values.len()).step_by(LANES) {
            L::store(to.add(at), L::sub(top, L::load(values.as_ptr().add(at))));
        }
        gaps.set_len(gaps.len() + values.len());
    }
}
pass! {
    /// Appends the gaps of `values`, whole vectors of them, below `max`.
    pub(in crate::cpu) gaps_of<>(values: &[f32], max: f32, gaps: &mut Vec<f32>)
}

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

/// Stores the gaps of sixteen scores from `least` to `most`, and says where the next go.
#[inline(always)]
unsafe fn store_gaps<L: Lanes>(v: L::F, top: L::F, least: L::F, most: L::F, to: *mut f32) -> *mut f32 {
    unsafe {
        let gap = L::sub(top, v);
        let mask = L::at_least(most, gap) & L::at_least(gap, least);
        L::compress(to, mask, gap);
        to.add(mask.count_ones() as usize)
    }
}

/// Appends the gaps 0 < gap <= cut of a row to `gaps`, of the blocks whose maxima reach that far.
#[inline(always)]
unsafe fn gather<L: Lanes, T: Element>(row: &[T], maxima: &[f32], max: f32, cut: f32, gaps: &mut Vec<f32>) {
    unsafe {
        let (top, most, least) = (L::splat(max), L::splat(cut), L::splat(f32::from_bits(1)));
        for b in 0..maxima.len() / LANES {
            let nearest = L::sub(top, L::load(maxima.as_ptr().add(b * LANES)));
            if L::at_least(most, nearest) == 0 {
                continue;
            }
            // Sixteen more than there can be: a store takes all lanes.
            gaps.reserve(BLOCK + LANES);
            let mut to = gaps.as_mut_ptr().add(gaps.len());
            if (b + 1) * BLOCK <= row.len() {
                let start = row.as_ptr().add(b * BLOCK);
                for i in 0..BLOCK_VECTORS {
                    to = store_gaps::<L>(load::<L, T>(start.add(i * LANES)), top, least, most, to);
                }
            } else {
                for i in b * BLOCK_VECTORS..row.len().div_ceil(LANES) {
                    to = store_gaps::<L>(vector::<L, T>(row, i), top, least, most, to);
                }
            }
            gaps.set_len(to.offset_from_unsigned(gaps.as_ptr()));
        }
    }
}
pass! {
    /// Appends the gaps of `row` below `max` with 0 < gap <= cut to `gaps`, of the blocks whose `maxima` reach that far.
    pub(in crate::cpu) gather<T>(row: &[T], maxima: &[f32], max: f32, cut: f32, gaps: &mut Vec<f32>)
}

/// Keeps what `$mask` says of sixteen gaps `$v`, in place and in order. No function: a closure would not have the instruction set.
macro_rules! keep {
    ($gaps:ident, $v:ident => $mask:expr) => {{
        $gaps.reserve(LANES);
        let (n, start) = ($gaps.len(), $gaps.as_mut_ptr());
        let mut kept = 0;
        for at in (0..n).step_by(LANES) {
            let ($v, valid) = match n - at {
                left @ 0..LANES => (load_tail::<L, f32>(&$gaps[at..]), (1u16 << left) - 1),
                _ => (L::load(start.add(at)), u16::MAX),
            };
            let mask = $mask & valid;
            // Never beyond what has been read: kept <= at.
            L::compress(start.add(kept), mask, $v);
            kept += mask.count_ones() as usize;
        }
        $gaps.set_len(kept);
    }};
}

#[inline(always)]
unsafe fn keep_within<L: Lanes>(gaps: &mut Vec<f32>, cut: f32) {
    unsafe { keep!(gaps, v => L::at_least(L::splat(cut), v)) }
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
        keep!(gaps, v => L::at_least(bins.place::<L>(v), first) & !L::at_least(bins.place::<L>(v), behind))
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
unsafe fn winners<L: Lanes>(sorted: &[f32], before: u64, resolve: f64, attained: f64, offer: &mut dyn FnMut(usize) -> f64) {
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
            let log = log + x * (1.0 - x * (1.0 / 2.0 - x * (1.0 / 3.0 - x * (1.0 / 4.0 - x * (1.0 / 5.0 - x / 6.0)))));
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

/// How exp(-beta gap) is computed: by a power of two, or by the limits of beta.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::cpu) enum Exponent {
    /// beta log2 e in two floats.
    Power { high: f32, low: f32 },
    /// beta = 0: every key alike but the masked ones.
    Uniform,
    /// beta = infinity: the maxima alone.
    Maxima,
    /// So large or small that floats do not hold it: in f64, score by score.
    Wide(f64),
}

impl Exponent {
    pub(in crate::cpu) fn of(beta: f64) -> Self {
        let scaled = beta * std::f64::consts::LOG2_E;
        if beta == 0.0 {
            Exponent::Uniform
        } else if beta == f64::INFINITY {
            Exponent::Maxima
        } else if !(1e-20..1e20).contains(&scaled) {
            Exponent::Wide(beta)
        } else {
            let high = scaled as f32;
            Exponent::Power { high, low: (scaled - f64::from(high)) as f32 }
        }
    }
}

/// Weights are kept times 2^25: exp(-beta gap) down to 2^-150 is then a normal float.
pub(in crate::cpu) const WEIGHT_ONE: f32 = (1 << 25) as f32;
pub(super) const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: what is added to it is rounded to an integer, which its low bits hold

/// Weights of sixteen scores, times 2^25.
trait Weigh<L: Lanes>: Copy {
    unsafe fn weigh(self, v: L::F) -> L::F;
}

/// 2^25 exp(-beta gap), 0 below 2^-150. Relative error below 0.82 * 2^-23 beside that of the gap.
#[derive(Clone, Copy)]
struct Power<F> {
    max: F,
    /// Beyond this gap weights are 0; so that no infinity meets another.
    furthest: F,
    /// -beta log2 e in two.
    high: F,
    low: F,
}

impl<L: Lanes> Weigh<L> for Power<L::F> {
    #[inline(always)]
    unsafe fn weigh(self, v: L::F) -> L::F {
        unsafe {
            let gap = L::min(L::sub(self.max, v), self.furthest);
            let shifted = L::fma(gap, self.high, L::splat(MAGIC));
            let n = L::sub(shifted, L::splat(MAGIC));
            let f = L::fma(gap, self.low, L::fms(gap, self.high, n));
            // 2^f on -1/2 ..= 1/2; the coefficients are those of kernels/math.cuh.
            let mut q = L::splat(0.000_153_533_605_043_776_33 * WEIGHT_ONE);
            q = L::fma(q, f, L::splat(0.001_339_887_501_671_910_3 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.009_618_436_917_662_62 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.055_503_323_674_201_965 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.240_226_477_384_567_26 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.693_147_182_464_599_6 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(WEIGHT_ONE));
            L::raise(q, n, shifted)
        }
    }
}

#[inline(always)]
unsafe fn power<L: Lanes>(max: f32, high: f32, low: f32) -> Power<L::F> {
    unsafe {
        let furthest = L::splat((200.0 / high).min(f32::MAX));
        Power { max: L::splat(max), furthest, high: L::splat(-high), low: L::splat(-low) }
    }
}

/// beta = 0.
#[derive(Clone, Copy)]
struct Uniform;

impl<L: Lanes> Weigh<L> for Uniform {
    #[inline(always)]
    unsafe fn weigh(self, v: L::F) -> L::F {
        unsafe { L::select(L::at_least(v, L::splat(f32::MIN)), L::splat(WEIGHT_ONE), L::splat(0.0)) }
    }
}

/// beta = infinity, under this maximum.
#[derive(Clone, Copy)]
struct Maxima(f32);

impl<L: Lanes> Weigh<L> for Maxima {
    #[inline(always)]
    unsafe fn weigh(self, v: L::F) -> L::F {
        unsafe { L::select(L::equal(v, L::splat(self.0)), L::splat(WEIGHT_ONE), L::splat(0.0)) }
    }
}

/// Score by score in f64.
#[derive(Clone, Copy)]
struct Wide {
    max: f32,
    beta: f64,
}

impl<L: Lanes> Weigh<L> for Wide {
    #[inline(always)]
    unsafe fn weigh(self, v: L::F) -> L::F {
        unsafe {
            let mut lanes = lanes_of::<L>(v);
            for lane in &mut lanes {
                *lane = match self.max - *lane {
                    0.0 => WEIGHT_ONE,
                    gap => ((-self.beta * f64::from(gap)).exp() * f64::from(WEIGHT_ONE)) as f32,
                };
            }
            L::load(lanes.as_ptr())
        }
    }
}

/// Calls `$f::<L, .., W>(.., weigh)` for the exponent.
macro_rules! weighing {
    ($max:expr, $exponent:expr, $weigh:ident => $call:expr) => {
        match $exponent {
            Exponent::Power { high, low } => {
                let $weigh = power::<L>($max, high, low);
                $call
            }
            Exponent::Uniform => {
                let $weigh = Uniform;
                $call
            }
            Exponent::Maxima => {
                let $weigh = Maxima($max);
                $call
            }
            Exponent::Wide(beta) => {
                let $weigh = Wide { max: $max, beta };
                $call
            }
        }
    };
}

/// Vectors whose weights are added as a tree in f32, before those of a lane are added in f64.
const GROUP: usize = 8;

/// Weighs a group of vectors, stores their weights at `to` and adds them up.
#[inline(always)]
unsafe fn group_sum<L: Lanes, W: Weigh<L>>(v: [L::F; GROUP], weigh: W, to: *mut f32) -> L::F {
    unsafe {
        let mut w = v;
        for (i, w) in w.iter_mut().enumerate() {
            *w = weigh.weigh(*w);
            L::store(to.add(i * LANES), *w);
        }
        let (a, b) = (L::add(L::add(w[0], w[1]), L::add(w[2], w[3])), L::add(L::add(w[4], w[5]), L::add(w[6], w[7])));
        L::add(a, b)
    }
}

/// The sum of the lanes' weights, in one order.
#[inline(always)]
unsafe fn lane_sum<L: Lanes>(sum: L::W) -> f64 {
    let lanes = unsafe { L::wide_lanes(sum) };
    let mut total = [0.0; 4];
    for (total, l) in total.iter_mut().zip(lanes.chunks_exact(4)) {
        *total = (l[0] + l[1]) + (l[2] + l[3]);
    }
    ((total[0] + total[1]) + (total[2] + total[3])) / f64::from(WEIGHT_ONE)
}

#[inline(always)]
unsafe fn weigh_row<L: Lanes, T: Element, W: Weigh<L>>(
    row: &[T],
    next: &[T],
    weigh: W,
    weights: &mut Vec<f32>,
    sums: &mut Vec<f64>,
) {
    unsafe {
        let before = weights.len();
        weights.reserve(row.len() + GROUP * LANES);
        let mut to = weights.as_mut_ptr().add(before);
        for (c, chunk) in row.chunks(CHUNK).enumerate() {
            let mut sum = L::wide_zero();
            let full = chunk.len() / (GROUP * LANES);
            let ahead = next.as_ptr().wrapping_add(c * CHUNK);
            for g in 0..full {
                let start = chunk.as_ptr().add(g * GROUP * LANES);
                if (c * CHUNK + (g + 1) * GROUP * LANES) <= next.len() {
                    for line in 0..GROUP * LANES * size_of::<T>() / 64 {
                        L::prefetch(ahead.wrapping_add(g * GROUP * LANES).cast::<u8>().wrapping_add(64 * line));
                    }
                }
                let mut v = [L::splat(0.0); GROUP];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = load::<L, T>(start.add(i * LANES));
                }
                sum = L::wide_add(sum, group_sum(v, weigh, to));
                to = to.add(GROUP * LANES);
            }
            let rest = &chunk[full * GROUP * LANES..];
            if !rest.is_empty() {
                let mut v = [L::splat(0.0); GROUP];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = vector::<L, T>(rest, i);
                }
                sum = L::wide_add(sum, group_sum(v, weigh, to));
            }
            sums.push(lane_sum::<L>(sum));
        }
        weights.set_len(before + row.len());
    }
}

#[inline(always)]
unsafe fn weigh<L: Lanes, T: Element>(
    row: &[T],
    next: &[T],
    max: f32,
    exponent: Exponent,
    weights: &mut Vec<f32>,
    sums: &mut Vec<f64>,
) {
    unsafe { weighing!(max, exponent, weigh => weigh_row::<L, T, _>(row, next, weigh, weights, sums)) }
}
pass! {
    /// Appends 2^25 exp(-beta gap) of every score of `row` to `weights`, and the sum of exp(-beta gap) of each chunk to `sums`; meanwhile
    /// fetches the row that comes `next`.
    pub(in crate::cpu) weigh<T>(
        row: &[T],
        next: &[T],
        max: f32,
        exponent: Exponent,
        weights: &mut Vec<f32>,
        sums: &mut Vec<f64>,
    )
}

/// Stores sixteen probabilities.
#[inline(always)]
unsafe fn put<L: Lanes, O: Element>(at: *mut O, v: L::F, stream: bool) {
    unsafe {
        match (O::DTYPE, stream) {
            (DType::F16, false) => L::store_half(at.cast(), v),
            (DType::F16, true) => L::stream_half(at.cast(), v),
            (DType::Bf16, false) => L::store_bfloat(at.cast(), v),
            (DType::Bf16, true) => L::stream_bfloat(at.cast(), v),
            (_, false) => L::store(at.cast(), v),
            (_, true) => L::stream(at.cast(), v),
        }
    }
}

/// Writes fewer than sixteen probabilities.
#[inline(always)]
unsafe fn scale_few<L: Lanes, O: Element>(weights: &[f32], factor: L::F, out: &mut [O]) {
    unsafe {
        let mut probs = [O::zeroed(); LANES];
        put::<L, O>(probs.as_mut_ptr(), L::mul(load_tail::<L, f32>(weights), factor), false);
        out.copy_from_slice(&probs[..out.len()]);
    }
}

#[inline(always)]
unsafe fn scale<L: Lanes, O: Element>(weights: &[f32], factor: f32, out: &mut [O], stream: bool) {
    unsafe {
        assert_eq!(weights.len(), out.len());
        let factor = L::splat(factor);
        // Up to where a vector of the output is aligned.
        let line = LANES * size_of::<O>();
        let ahead = (line - out.as_ptr() as usize % line) % line / size_of::<O>();
        let (few, weights) = weights.split_at(if stream { ahead.min(out.len()) } else { 0 });
        let (head, out) = out.split_at_mut(few.len());
        scale_few::<L, O>(few, factor, head);
        let (from, to, vectors) = (weights.as_ptr(), out.as_mut_ptr(), out.len() / LANES);
        if stream {
            for i in 0..vectors {
                put::<L, O>(to.add(i * LANES), L::mul(L::load(from.add(i * LANES)), factor), true);
            }
        } else {
            for i in 0..vectors {
                put::<L, O>(to.add(i * LANES), L::mul(L::load(from.add(i * LANES)), factor), false);
            }
        }
        scale_few::<L, O>(&weights[vectors * LANES..], factor, &mut out[vectors * LANES..]);
    }
}
pass! {
    /// Writes weight * factor to `out`, which is as long; past the caches with `stream`.
    pub(in crate::cpu) scale<O>(weights: &[f32], factor: f32, out: &mut [O], stream: bool)
}

