//! Lanes in plain Rust. Every other implementation must equal this one bit for bit.
//!
//! `mul_add` rounds once everywhere. It is a library call if the compiler's target has no such instruction.

use super::{BLOCK, Lanes, WIDTH};
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(super) struct Portable;

type F = [f32; WIDTH];
type M = [bool; WIDTH];

#[inline(always)]
fn both<A: Copy, B>(a: [A; WIDTH], b: [A; WIDTH], of: impl Fn(A, A) -> B) -> [B; WIDTH] {
    std::array::from_fn(|j| of(a[j], b[j]))
}

impl Lanes for Portable {
    type F = F;
    type H = [u16; WIDTH];
    type M = M;
    type D = [f64; WIDTH];

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; WIDTH]
    }
    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> F {
        *from
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; WIDTH]) -> F {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; WIDTH]) -> F {
        from.map(bf16::to_f32)
    }
    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; BLOCK]) -> [F; 2] {
        let pairs: [[bf16; 2]; WIDTH] = bytemuck::cast(*from);
        [pairs.map(|[_, odd]| odd.to_f32()), pairs.map(|[even, _]| even.to_f32())]
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; WIDTH]) {
        *to = v;
    }
    #[inline(always)]
    fn stream(self, v: F, to: &mut [f32; WIDTH]) {
        *to = v;
    }
    #[inline(always)]
    fn to_f16(self, v: F) -> [u16; WIDTH] {
        v.map(|v| f16::from_f32(v).to_bits())
    }
    #[inline(always)]
    fn to_bf16(self, v: F) -> [u16; WIDTH] {
        v.map(|v| bf16::from_f32(v).to_bits())
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
        both(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        both(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|j| a[j].mul_add(b[j], c[j]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        both(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        both(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn ge(self, a: F, b: F) -> M {
        both(a, b, |a, b| a >= b)
    }
    #[inline(always)]
    fn unordered(self, a: F, b: F) -> M {
        both(a, b, |a, b| a.is_nan() | b.is_nan())
    }
    #[inline(always)]
    fn or(self, a: M, b: M) -> M {
        both(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn and(self, a: M, b: M) -> M {
        both(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn no(self) -> M {
        [false; WIDTH]
    }
    #[inline(always)]
    fn bits(self, m: M) -> u32 {
        m.iter().rev().fold(0, |bits, &yes| bits << 1 | u32::from(yes))
    }
    #[inline(always)]
    fn select(self, m: M, yes: F, no: F) -> F {
        std::array::from_fn(|j| if m[j] { yes[j] } else { no[j] })
    }

    #[inline(always)]
    fn raise(self, q: F, shifted: F, smallest: F) -> F {
        std::array::from_fn(|j| match shifted[j] >= smallest[j] {
            true => f32::from_bits(q[j].to_bits().wrapping_add(shifted[j].to_bits() << 23)),
            false => 0.0,
        })
    }
    #[inline(always)]
    fn truncate(self, v: F, to: &mut [u16; WIDTH]) {
        *to = v.map(|v| v as u16);
    }
    #[inline(always)]
    fn compress(self, v: F, m: M, to: &mut [f32; WIDTH]) -> usize {
        let mut kept = 0;
        for j in 0..WIDTH {
            to[kept] = v[j]; // at most j: a lane that is not kept is overwritten by the next one
            kept += usize::from(m[j]);
        }
        kept
    }

    #[inline(always)]
    fn zero(self) -> [f64; WIDTH] {
        [0.0; WIDTH]
    }
    #[inline(always)]
    fn accumulate(self, sum: [f64; WIDTH], v: F) -> [f64; WIDTH] {
        std::array::from_fn(|j| sum[j] + f64::from(v[j]))
    }
    #[inline(always)]
    fn sums(self, sum: [f64; WIDTH]) -> [f64; WIDTH] {
        sum
    }

    #[inline(always)]
    fn ceil(self, v: F) -> F {
        v.map(f32::ceil)
    }
}
