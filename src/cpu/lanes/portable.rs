//! Sixteen lanes as an array: what runs where no instruction set below is there, and what the others must equal bit for bit.
//! On aarch64 the compiler makes NEON of it, which is part of that target.

use super::Lanes;
use super::weights::MAGIC;
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(super) struct Portable;

type F = [f32; 16];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

#[inline(always)]
fn mask(f: impl Fn(usize) -> bool) -> u16 {
    (0..16).fold(0, |mask, i| mask | (u16::from(f(i)) << i))
}

impl Lanes for Portable {
    type F = F;
    type W = [f64; 16];

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> F {
        unsafe { at.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_half(at: *const u16) -> F {
        let bits = unsafe { at.cast::<[u16; 16]>().read_unaligned() };
        each(|i| f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bfloat(at: *const u16) -> F {
        let bits = unsafe { at.cast::<[u16; 16]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: F) {
        unsafe { at.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fence() {}
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn stream(at: *mut f32, v: F) {
        unsafe { at.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_half(at: *mut u16, v: F) {
        let bits: [u16; 16] = std::array::from_fn(|i| f16::from_f32(v[i]).to_bits());
        unsafe { at.cast::<[u16; 16]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn store_bfloat(at: *mut u16, v: F) {
        let bits: [u16; 16] = std::array::from_fn(|i| bf16::from_f32(v[i]).to_bits());
        unsafe { at.cast::<[u16; 16]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn stream_half(at: *mut u16, v: F) {
        unsafe { Self::store_half(at, v) }
    }
    #[inline(always)]
    unsafe fn stream_bfloat(at: *mut u16, v: F) {
        unsafe { Self::store_bfloat(at, v) }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn fms(a: F, b: F, c: F) -> F {
        each(|i| a[i].mul_add(b[i], -c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn at_least(a: F, b: F) -> u16 {
        mask(|i| a[i] >= b[i])
    }
    #[inline(always)]
    unsafe fn equal(a: F, b: F) -> u16 {
        mask(|i| a[i] == b[i])
    }
    #[inline(always)]
    unsafe fn larger_magnitude(a: F, b: F) -> F {
        each(|i| f32::from_bits(a[i].to_bits().max(b[i].to_bits() & i32::MAX as u32)))
    }
    #[inline(always)]
    unsafe fn raise(q: F, _: F, shifted: F) -> F {
        each(|i| {
            let raised = q[i].to_bits().wrapping_add(shifted[i].to_bits() << 23);
            if shifted[i] >= MAGIC - 150.0 { f32::from_bits(raised) } else { 0.0 }
        })
    }
    #[inline(always)]
    unsafe fn select(mask: u16, a: F, b: F) -> F {
        each(|i| if mask >> i & 1 == 1 { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn compress(at: *mut f32, mask: u16, v: F) {
        let mut to = at;
        for (i, x) in v.into_iter().enumerate() {
            if mask >> i & 1 == 1 {
                unsafe {
                    to.write(x);
                    to = to.add(1);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn truncate(v: F) -> [u32; 16] {
        std::array::from_fn(|i| v[i] as u32)
    }
    #[inline(always)]
    unsafe fn largest(v: F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn wide_zero() -> [f64; 16] {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn wide_add(w: [f64; 16], v: F) -> [f64; 16] {
        std::array::from_fn(|i| w[i] + f64::from(v[i]))
    }
    #[inline(always)]
    unsafe fn wide_lanes(w: [f64; 16]) -> [f64; 16] {
        w
    }
}
