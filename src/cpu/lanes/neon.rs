//! Lanes of four NEON registers.
#![allow(unsafe_code)]

use super::{BLOCK, Lanes, WIDTH, Work};
use half::{bf16, f16};
use std::arch::aarch64::*;

/// This machine has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

pub(super) fn run<W: Work>(lanes: Neon, work: W) -> W::Out {
    #[target_feature(enable = "neon")]
    fn compiled<W: Work>(lanes: Neon, work: W) -> W::Out {
        work.run(lanes)
    }
    // SAFETY: `lanes` exists only where `detect` found these instructions.
    unsafe { compiled(lanes, work) }
}

type F = [float32x4_t; 4];
type M = [uint32x4_t; 4];

/// Applies one expression to every quarter.
macro_rules! quarters {
    ($j:ident => $each:expr) => {{
        #[allow(unused_unsafe)]
        let of = |$j: usize| unsafe { $each };
        [of(0), of(1), of(2), of(3)]
    }};
}

// SAFETY of every block below: the instructions exist, as `self` proves. Loads and stores stay within the
// arrays that they get.
impl Lanes for Neon {
    type F = F;
    type H = [u16; WIDTH];
    type M = M;
    type D = [float64x2_t; 8];

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        quarters!(_j => vdupq_n_f32(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> F {
        quarters!(j => vld1q_f32(from[4 * j..][..4].as_ptr()))
    }
    // `half` uses the conversion instructions if the CPU has them.
    #[inline(always)]
    fn load_f16(self, from: &[f16; WIDTH]) -> F {
        self.load(&from.map(f16::to_f32))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; WIDTH]) -> F {
        quarters!(j => {
            let bits = vmovl_u16(vld1_u16(from[4 * j..][..4].as_ptr().cast()));
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits))
        })
    }
    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; BLOCK]) -> [F; 2] {
        let pairs: [[bf16; 2]; WIDTH] = bytemuck::cast(*from);
        [self.load(&pairs.map(|[_, odd]| odd.to_f32())), self.load(&pairs.map(|[even, _]| even.to_f32()))]
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; WIDTH]) {
        for (j, v) in v.into_iter().enumerate() {
            unsafe { vst1q_f32(to[4 * j..][..4].as_mut_ptr(), v) }
        }
    }
    // A store past the caches has no intrinsic here.
    #[inline(always)]
    fn stream(self, v: F, to: &mut [f32; WIDTH]) {
        self.store(v, to);
    }
    #[inline(always)]
    fn to_f16(self, v: F) -> [u16; WIDTH] {
        let mut wide = [0.0; WIDTH];
        self.store(v, &mut wide);
        wide.map(|v| f16::from_f32(v).to_bits())
    }
    #[inline(always)]
    fn to_bf16(self, v: F) -> [u16; WIDTH] {
        let mut to = [0; WIDTH];
        for (j, v) in v.into_iter().enumerate() {
            unsafe {
                let bits = vreinterpretq_u32_f32(v);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
                vst1_u16(to[4 * j..][..4].as_mut_ptr(), vshrn_n_u32::<16>(rounded));
            }
        }
        to
    }
    #[inline(always)]
    fn store_half(self, v: [u16; WIDTH], to: &mut [u16; WIDTH]) {
        *to = v;
    }
    #[inline(always)]
    fn stream_half(self, v: [u16; WIDTH], to: &mut [u16; WIDTH]) {
        *to = v;
    }
    #[inline(always)]
    fn prefetch<T>(self, _: &T) {}
    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        quarters!(j => vaddq_f32(a[j], b[j]))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        quarters!(j => vsubq_f32(a[j], b[j]))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        quarters!(j => vmulq_f32(a[j], b[j]))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        quarters!(j => vfmaq_f32(c[j], a[j], b[j]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        quarters!(j => vmaxq_f32(a[j], b[j]))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        quarters!(j => vminq_f32(a[j], b[j]))
    }

    #[inline(always)]
    fn ge(self, a: F, b: F) -> M {
        quarters!(j => vcgeq_f32(a[j], b[j]))
    }
    #[inline(always)]
    fn unordered(self, a: F, b: F) -> M {
        quarters!(j => vmvnq_u32(vandq_u32(vceqq_f32(a[j], a[j]), vceqq_f32(b[j], b[j]))))
    }
    #[inline(always)]
    fn or(self, a: M, b: M) -> M {
        quarters!(j => vorrq_u32(a[j], b[j]))
    }
    #[inline(always)]
    fn and(self, a: M, b: M) -> M {
        quarters!(j => vandq_u32(a[j], b[j]))
    }
    #[inline(always)]
    fn no(self) -> M {
        quarters!(_j => vdupq_n_u32(0))
    }
    #[inline(always)]
    fn bits(self, m: M) -> u32 {
        const WEIGHTS: [[u32; 4]; 4] = [
            [1, 1 << 1, 1 << 2, 1 << 3],
            [1 << 4, 1 << 5, 1 << 6, 1 << 7],
            [1 << 8, 1 << 9, 1 << 10, 1 << 11],
            [1 << 12, 1 << 13, 1 << 14, 1 << 15],
        ];
        let weighed = quarters!(j => vandq_u32(m[j], vld1q_u32(WEIGHTS[j].as_ptr())));
        unsafe {
            let (low, high) = (vorrq_u32(weighed[0], weighed[1]), vorrq_u32(weighed[2], weighed[3]));
            vaddvq_u32(vorrq_u32(low, high))
        }
    }
    #[inline(always)]
    fn any(self, m: M) -> bool {
        unsafe { vmaxvq_u32(vorrq_u32(vorrq_u32(m[0], m[1]), vorrq_u32(m[2], m[3]))) != 0 }
    }
    #[inline(always)]
    fn select(self, m: M, yes: F, no: F) -> F {
        quarters!(j => vbslq_f32(m[j], yes[j], no[j]))
    }

    #[inline(always)]
    fn raise(self, q: F, shifted: F, smallest: F) -> F {
        let m = self.ge(shifted, smallest);
        quarters!(j => {
            let power = vshlq_n_u32::<23>(vreinterpretq_u32_f32(shifted[j]));
            let raised = vaddq_u32(vreinterpretq_u32_f32(q[j]), power);
            vreinterpretq_f32_u32(vandq_u32(raised, m[j]))
        })
    }
    #[inline(always)]
    fn truncate(self, v: F, to: &mut [u16; WIDTH]) {
        for (j, v) in v.into_iter().enumerate() {
            unsafe { vst1_u16(to[4 * j..][..4].as_mut_ptr(), vmovn_u32(vcvtq_u32_f32(v))) }
        }
    }
    // The code goes lane by lane without a branch, because NEON has no such instruction.
    #[inline(always)]
    fn compress(self, v: F, m: M, to: &mut [f32; WIDTH]) -> usize {
        let (mut lanes, bits, mut kept) = ([0.0; WIDTH], self.bits(m), 0);
        self.store(v, &mut lanes);
        for (j, lane) in lanes.into_iter().enumerate() {
            to[kept] = lane;
            kept += (bits >> j & 1) as usize;
        }
        kept
    }

    #[inline(always)]
    fn zero(self) -> [float64x2_t; 8] {
        unsafe { [vdupq_n_f64(0.0); 8] }
    }
    #[inline(always)]
    fn accumulate(self, sum: [float64x2_t; 8], v: F) -> [float64x2_t; 8] {
        let low = quarters!(j => vaddq_f64(sum[2 * j], vcvt_f64_f32(vget_low_f32(v[j]))));
        let high = quarters!(j => vaddq_f64(sum[2 * j + 1], vcvt_high_f64_f32(v[j])));
        [low[0], high[0], low[1], high[1], low[2], high[2], low[3], high[3]]
    }
    #[inline(always)]
    fn sums(self, sum: [float64x2_t; 8]) -> [f64; WIDTH] {
        let mut to = [0.0; WIDTH];
        for (pair, sum) in to.chunks_exact_mut(2).zip(sum) {
            unsafe { vst1q_f64(pair.as_mut_ptr(), sum) }
        }
        to
    }

    #[inline(always)]
    fn ceil(self, v: F) -> F {
        quarters!(j => vrndpq_f32(v[j]))
    }
}
