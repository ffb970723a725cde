//! Passes for weights, their sum, and probabilities.

use super::load::{lanes_of, load, load_tail, vector};
use super::{CHUNK, Isa, LANES, Lanes};
use crate::{DType, Element};

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

/// 2^25 exp(-beta gap), 0 below 2^-150. Relative error below 0.84 * 2^-23 (0.832 over all gaps at beta = 1, 2026-11-25) beside that of the gap.
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
            let mut q = L::splat(0.000_153_533_6 * WEIGHT_ONE);
            q = L::fma(q, f, L::splat(0.001_339_887_5 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.009_618_437 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.055_503_324 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(0.240_226_48 * WEIGHT_ONE));
            q = L::fma(q, f, L::splat(std::f32::consts::LN_2 * WEIGHT_ONE));
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

/// `$call` with `$weigh` being what weighs by `$exponent`: compiled for each.
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
        let (a, b) =
            (L::add(L::add(w[0], w[1]), L::add(w[2], w[3])), L::add(L::add(w[4], w[5]), L::add(w[6], w[7])));
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
        weights.clear();
        sums.clear();
        weights.reserve_exact(row.len() + GROUP * LANES);
        let mut to = weights.as_mut_ptr();
        for (c, chunk) in row.chunks(CHUNK).enumerate() {
            let mut sum = L::wide_zero();
            let full = chunk.len() / (GROUP * LANES);
            let ahead = next.as_ptr().wrapping_add(c * CHUNK);
            for g in 0..full {
                let start = chunk.as_ptr().add(g * GROUP * LANES);
                if (c * CHUNK + (g + 1) * GROUP * LANES) <= next.len() {
                    for line in 0..GROUP * LANES * size_of::<T>() / 64 {
                        L::prefetch(
                            ahead.wrapping_add(g * GROUP * LANES).cast::<u8>().wrapping_add(64 * line),
                        );
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
        weights.set_len(row.len());
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
    /// Replaces `weights` by 2^25 exp(-beta gap) of every score of `row`, and `sums` by the sum of exp(-beta gap) of each chunk; meanwhile
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
            L::fence();
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
