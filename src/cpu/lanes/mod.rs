//! Sixteen lanes of f32 on every instruction set: one trait, detected once, forced by `CRITBETA_LANES`.
//!
//! There are sixteen lanes whatever the width of the registers. Lane j of a block is column j mod 16 on any
//! machine, and every operation rounds once. So every sum has the same bits on all machines.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod modes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

pub(crate) use modes::Standard;

use crate::{Element, Error, Result};
use half::{bf16, f16};
use std::any::TypeId;
use std::fmt;
use std::sync::OnceLock;

/// Number of lanes of a vector.
pub(crate) const WIDTH: usize = 16;
/// Number of elements of a block, which loads as two vectors.
pub(crate) const BLOCK: usize = 2 * WIDTH;

/// Operations on vectors of [`WIDTH`] lanes. A value of an implementing type proves that this machine has its
/// instructions. So the methods are safe.
pub(crate) trait Lanes: Copy {
    /// f32 lanes.
    type F: Copy;
    /// Bits of 16-bit lanes.
    type H: Copy;
    /// A yes or no per lane.
    type M: Copy;
    /// f64 lanes.
    type D: Copy;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; WIDTH]) -> Self::F;
    fn load_f16(self, from: &[f16; WIDTH]) -> Self::F;
    fn load_bf16(self, from: &[bf16; WIDTH]) -> Self::F;
    /// The odd elements of a block, and the even ones.
    fn load_bf16_pairs(self, from: &[bf16; BLOCK]) -> [Self::F; 2];
    fn store(self, v: Self::F, to: &mut [f32; WIDTH]);
    /// Like `store`, but past the caches if `to` is aligned for that. [`Lanes::fence`] must follow.
    fn stream(self, v: Self::F, to: &mut [f32; WIDTH]);
    /// Rounds to nearest even. No lane may be NaN.
    fn to_f16(self, v: Self::F) -> Self::H;
    /// Rounds to nearest even. No lane may be NaN.
    fn to_bf16(self, v: Self::F) -> Self::H;
    fn store_half(self, v: Self::H, to: &mut [u16; WIDTH]);
    /// Stores past the caches like [`Lanes::stream`].
    fn stream_half(self, v: Self::H, to: &mut [u16; WIDTH]);
    /// Requests the cache line of `at`, which will be read soon.
    fn prefetch<T>(self, at: &T);
    /// Orders streamed stores before everything that follows.
    fn fence(self);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Where a or b is NaN, the result may be either of them.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Where a or b is NaN, the result may be either of them.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;

    /// a >= b; false where a or b is NaN.
    fn ge(self, a: Self::F, b: Self::F) -> Self::M;
    /// True where a or b is NaN.
    fn unordered(self, a: Self::F, b: Self::F) -> Self::M;
    fn or(self, a: Self::M, b: Self::M) -> Self::M;
    fn and(self, a: Self::M, b: Self::M) -> Self::M;
    fn no(self) -> Self::M;
    /// Bit j of the result is lane j.
    fn bits(self, m: Self::M) -> u32;
    fn any(self, m: Self::M) -> bool {
        self.bits(m) != 0
    }
    fn select(self, m: Self::M, yes: Self::F, no: Self::F) -> Self::F;

    /// `q` times 2^k where `shifted` >= `smallest`, and 0 elsewhere. k is the integer in the low bits of
    /// `shifted`.
    fn raise(self, q: Self::F, shifted: Self::F, smallest: Self::F) -> Self::F;
    /// Writes the integer part of every lane. Each lane is 0 or more and below 2^15.
    fn truncate(self, v: Self::F, to: &mut [u16; WIDTH]);
    /// Moves the lanes of `m` to the front of `to`, in order, and returns their number. What follows them is
    /// arbitrary.
    fn compress(self, v: Self::F, m: Self::M, to: &mut [f32; WIDTH]) -> usize;

    fn zero(self) -> Self::D;
    /// `sum` + `v`, in f64.
    fn accumulate(self, sum: Self::D, v: Self::F) -> Self::D;
    fn sums(self, sum: Self::D) -> [f64; WIDTH];

    /// The smallest integer at or above each lane.
    fn ceil(self, v: Self::F) -> Self::F;
    /// Lane i of the result is the sum of all lanes of `v[i]`. Each step adds the upper half of the lanes to
    /// the lower half.
    #[inline(always)]
    fn fold(self, v: [Self::F; WIDTH]) -> Self::F {
        let mut sums = [0.0; WIDTH];
        for (sum, v) in sums.iter_mut().zip(v) {
            let mut lanes = [0.0; WIDTH];
            self.store(v, &mut lanes);
            for width in [8, 4, 2, 1] {
                for j in 0..width {
                    lanes[j] += lanes[j + width];
                }
            }
            *sum = lanes[0];
        }
        self.load(&sums)
    }
}

/// Loads lanes of any element type.
#[inline(always)]
pub(crate) fn load<L: Lanes, T: Element>(lanes: L, from: &[T; WIDTH]) -> L::F {
    let of = TypeId::of::<T>();
    if of == TypeId::of::<f32>() {
        lanes.load(bytemuck::cast_ref(from))
    } else if of == TypeId::of::<f16>() {
        lanes.load_f16(bytemuck::cast_ref(from))
    } else if of == TypeId::of::<bf16>() {
        lanes.load_bf16(bytemuck::cast_ref(from))
    } else {
        lanes.load(&from.map(T::to_f32))
    }
}

/// Loads a block of any element type. [`element_of`] says which lane holds which element. Pairs of bf16 come
/// apart by a mask and a shift, which are half of the operations that it takes to widen each vector.
#[inline(always)]
pub(crate) fn load_block<L: Lanes, T: Element>(lanes: L, from: &[T; BLOCK]) -> [L::F; 2] {
    if TypeId::of::<T>() == TypeId::of::<bf16>() {
        return lanes.load_bf16_pairs(bytemuck::cast_ref(from));
    }
    let halves = from.as_chunks::<WIDTH>().0;
    [load(lanes, &halves[0]), load(lanes, &halves[1])]
}

/// The element of a block that lane `lane` of its two vectors holds.
#[inline(always)]
pub(crate) fn element_of<T: Element>(lane: usize) -> usize {
    let is_paired = TypeId::of::<T>() == TypeId::of::<bf16>();
    if is_paired { 2 * (lane % WIDTH) + 1 - lane / WIDTH } else { lane }
}

/// Stores lanes as any element type. No lane may be NaN. With STREAM it stores like [`Lanes::stream`].
#[inline(always)]
pub(super) fn store<L: Lanes, O: Element, const STREAM: bool>(lanes: L, v: L::F, to: &mut [O; WIDTH]) {
    let of = TypeId::of::<O>();
    let half = if of == TypeId::of::<f32>() {
        let to = bytemuck::cast_mut(to);
        return if STREAM { lanes.stream(v, to) } else { lanes.store(v, to) };
    } else if of == TypeId::of::<f16>() {
        lanes.to_f16(v)
    } else if of == TypeId::of::<bf16>() {
        lanes.to_bf16(v)
    } else {
        let mut wide = [0.0; WIDTH];
        lanes.store(v, &mut wide);
        *to = wide.map(O::from_f32);
        return;
    };
    let to = bytemuck::cast_mut(to);
    if STREAM { lanes.stream_half(half, to) } else { lanes.store_half(half, to) }
}

/// Work on the lanes of whatever instruction set the machine has. `run` must be `#[inline(always)]`, because
/// only then is it compiled for that instruction set.
pub(crate) trait Work {
    type Out;
    fn run<L: Lanes>(self, lanes: L) -> Self::Out;
}

/// An instruction set that this machine has.
#[derive(Clone, Copy)]
pub struct InstructionSet(Proof);

#[derive(Clone, Copy)]
enum Proof {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl InstructionSet {
    /// The environment variable that forces a set: `avx512`, `avx2`, `neon` or `portable`. It is read once.
    pub const VARIABLE: &str = "CRITBETA_LANES";

    /// The sets that this machine has, fastest first. `portable` is always the last.
    pub fn supported() -> Vec<InstructionSet> {
        #[cfg(target_arch = "x86_64")]
        let found = [avx512::Avx512::detect().map(Proof::Avx512), avx2::Avx2::detect().map(Proof::Avx2)];
        #[cfg(target_arch = "aarch64")]
        let found = [neon::Neon::detect().map(Proof::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let found: [Option<Proof>; 0] = [];
        let portable = Proof::Portable(portable::Portable);
        found.into_iter().flatten().chain([portable]).map(InstructionSet).collect()
    }

    /// The set that this process uses: the fastest, or the one that [`InstructionSet::VARIABLE`] names.
    ///
    /// Errors: [`Error::Settings`] if the variable names no set that this machine has. Functions that cannot
    /// fail then use the fastest set.
    pub fn chosen() -> Result<InstructionSet> {
        static CHOSEN: OnceLock<Result<InstructionSet, String>> = OnceLock::new();
        let choose = || InstructionSet::named(std::env::var_os(Self::VARIABLE).as_deref());
        CHOSEN.get_or_init(choose).clone().map_err(|detail| Error::Settings { detail })
    }

    fn named(name: Option<&std::ffi::OsStr>) -> Result<InstructionSet, String> {
        let supported = InstructionSet::supported();
        let Some(name) = name else { return Ok(supported[0]) };
        supported.iter().copied().find(|set| name == set.name()).ok_or_else(|| {
            let names: Vec<&str> = supported.iter().map(InstructionSet::name).collect();
            format!("{} is {name:?}: this machine has {}", Self::VARIABLE, names.join(", "))
        })
    }

    pub(crate) fn chosen_or_fastest() -> InstructionSet {
        InstructionSet::chosen().unwrap_or_else(|_| InstructionSet::supported()[0])
    }

    /// Its name in the environment variable.
    pub fn name(&self) -> &'static str {
        match self.0 {
            Proof::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Proof::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Proof::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Proof::Neon(_) => "neon",
        }
    }

    /// Whether the set has stores past the caches.
    pub(super) fn streams(self) -> bool {
        match self.0 {
            Proof::Portable(_) => false,
            #[cfg(target_arch = "x86_64")]
            Proof::Avx2(_) | Proof::Avx512(_) => true,
            #[cfg(target_arch = "aarch64")]
            Proof::Neon(_) => false,
        }
    }

    /// Orders this thread's streamed stores before everything that follows.
    pub(super) fn fence(self) {
        struct Fence;
        impl Work for Fence {
            type Out = ();
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) {
                lanes.fence();
            }
        }
        self.run(Fence);
    }

    pub(crate) fn run<W: Work>(self, work: W) -> W::Out {
        // Threads that share a row get no more of it than this.
        let _modes = Standard::modes();
        match self.0 {
            Proof::Portable(lanes) => work.run(lanes),
            #[cfg(target_arch = "x86_64")]
            Proof::Avx2(lanes) => avx2::run(lanes, work),
            #[cfg(target_arch = "x86_64")]
            Proof::Avx512(lanes) => avx512::run(lanes, work),
            #[cfg(target_arch = "aarch64")]
            Proof::Neon(lanes) => neon::run(lanes, work),
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
