//! Vector operations by instruction set, and the passes over a row that are made of them.
//!
//! There are sixteen lanes whatever the machine: one AVX-512 register, two of AVX2, an array elsewhere. Every operation is rounded the same
//! way in each, so a row's result does not depend on the instruction set. One of the three modules that may hold unsafe code.
#![allow(unsafe_code)]

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
                        unsafe { $name::<crate::cpu::lanes::x86::Avx512, $($g),*>($($arg),*) }
                    }
                    #[target_feature(enable = "avx2,fma,f16c")]
                    unsafe fn avx2<$($g: Element),*>($($arg: $ty),*) $(-> $ret)? {
                        unsafe { $name::<crate::cpu::lanes::x86::Avx2, $($g),*>($($arg),*) }
                    }
                    // SAFETY: only what Isa::available has looked for is ever used.
                    match self {
                        Isa::Avx512 => return unsafe { avx512::<$($g),*>($($arg),*) },
                        Isa::Avx2 => return unsafe { avx2::<$($g),*>($($arg),*) },
                        Isa::Portable => {}
                    }
                }
                unsafe { $name::<crate::cpu::lanes::portable::Portable, $($g),*>($($arg),*) }
            }
        }
    };
}

mod copy;
mod gaps;
mod load;
mod portable;
mod tops;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use gaps::Bins;
pub(super) use tops::Worst;
pub(super) use weights::{Exponent, WEIGHT_ONE};

use crate::{Error, Result};
use std::fmt;
use std::sync::OnceLock;

/// Scores that a lane operation takes at once.
pub(super) const LANES: usize = 16;
/// Vectors that share one maximum a lane: 4,096 scores then have 128 of them, and 2^20 scores 128 KiB.
pub(super) const BLOCK_VECTORS: usize = 32;
/// Scores of a block.
pub(super) const BLOCK: usize = BLOCK_VECTORS * LANES;
/// Gaps that are ranked pair by pair: faster than a sort, and ties cost nothing.
pub(super) const FEW: usize = 64;
/// Scores whose weights are summed into one f64: parts of a row are multiples of it, so that sums do not depend on how many parts there are.
pub(super) const CHUNK: usize = 8 * BLOCK;

/// Operations on sixteen f32. All are unsafe because they need their instruction set; pointers are to sixteen elements.
trait Lanes: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen f64.
    type W: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(at: *const f32) -> Self::F;
    unsafe fn load_half(at: *const u16) -> Self::F;
    unsafe fn load_bfloat(at: *const u16) -> Self::F;
    unsafe fn store(at: *mut f32, v: Self::F);
    unsafe fn store_half(at: *mut u16, v: Self::F);
    unsafe fn store_bfloat(at: *mut u16, v: Self::F);
    /// Orders what was stored past the caches before whatever tells another thread of it.
    unsafe fn fence();
    /// Begins to bring the line of this address into the second-level cache.
    unsafe fn prefetch(at: *const u8);
    /// Stores past the caches; the address is a multiple of what is stored.
    unsafe fn stream(at: *mut f32, v: Self::F);
    unsafe fn stream_half(at: *mut u16, v: Self::F);
    unsafe fn stream_bfloat(at: *mut u16, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a * b - c, rounded once.
    unsafe fn fms(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger, b where one is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn at_least(a: Self::F, b: Self::F) -> u16;
    unsafe fn equal(a: Self::F, b: Self::F) -> u16;
    /// The larger of the bits of `a` and of |b|: above those of infinity for NaN.
    unsafe fn larger_magnitude(a: Self::F, b: Self::F) -> Self::F;
    /// q * 2^n for q about 2^25 and an integer n <= 0, which is also in the low bits of `shifted` = MAGIC + n. What lies below 2^-125 may be
    /// 0: as a probability it is, and no sum feels it.
    unsafe fn raise(q: Self::F, n: Self::F, shifted: Self::F) -> Self::F;
    /// a where the mask is set, else b.
    unsafe fn select(mask: u16, a: Self::F, b: Self::F) -> Self::F;
    /// Stores the lanes of the mask one after another; may overwrite all sixteen places.
    unsafe fn compress(at: *mut f32, mask: u16, v: Self::F);
    /// Towards zero, of values from 0 to 2^31.
    unsafe fn truncate(v: Self::F) -> [u32; 16];
    /// The largest lane, none of them NaN.
    unsafe fn largest(v: Self::F) -> f32;
    unsafe fn wide_zero() -> Self::W;
    unsafe fn wide_add(w: Self::W, v: Self::F) -> Self::W;
    unsafe fn wide_lanes(w: Self::W) -> [f64; 16];
}

/// An instruction set that rows are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of arrays: NEON on aarch64, and slow on an x86 without FMA.
    Portable,
}

impl Isa {
    /// The environment variable that names the instruction set to use: `avx512`, `avx2` or `portable`.
    pub const VARIABLE: &'static str = "CRITBETA_LANES";

    /// All that this machine has, widest first.
    pub fn available() -> Vec<Isa> {
        [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().filter(|isa| isa.is_available()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let has_avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        match self {
            Isa::Avx512 => {
                has_avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Isa::Avx2 => has_avx2(),
            Isa::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Isa::Portable
    }

    /// The widest that this machine has, or what [`Isa::VARIABLE`] names; looked up once.
    ///
    /// Errors: [`Error::Settings`] for a name that is unknown, or of what this machine does not have.
    pub fn chosen() -> Result<Isa> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        let choose = || {
            let available = Isa::available();
            let Some(name) = std::env::var_os(Isa::VARIABLE) else { return Ok(available[0]) };
            let named = available.iter().copied().find(|isa| name == *isa.to_string());
            named.ok_or_else(|| {
                let expected = available.iter().map(Isa::to_string).collect::<Vec<_>>().join(", ");
                format!("{}={name:?} is not to be had here: expected {expected}", Isa::VARIABLE)
            })
        };
        CHOSEN.get_or_init(choose).clone().map_err(|detail| Error::Settings { detail })
    }

    /// [`Isa::chosen`], or the widest where that is an error: for what cannot fail, and does not differ by a bit.
    pub(in crate::cpu) fn chosen_or_widest() -> Isa {
        Isa::chosen().unwrap_or_else(|_| Isa::available()[0])
    }
}

/// Its name in [`Isa::VARIABLE`].
impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        })
    }
}
