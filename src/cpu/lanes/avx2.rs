//! Lanes of two AVX2 registers.
#![allow(unsafe_code)]

use super::{BLOCK, Lanes, WIDTH, Work};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// This machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        found.then_some(Avx2(()))
    }
}

pub(super) fn run<W: Work>(lanes: Avx2, work: W) -> W::Out {
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    fn compiled<W: Work>(lanes: Avx2, work: W) -> W::Out {
        work.run(lanes)
    }
    // SAFETY: `lanes` exists only where `detect` found these instructions.
    unsafe { compiled(lanes, work) }
}

/// For every subset of eight lanes, the order of lanes that moves the subset to the front.
const FRONT: [[u32; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut kept, mut lane) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                table[set][kept] = lane;
                kept += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    table
};

type F = [__m256; 2];

/// Applies one instruction to both halves.
macro_rules! halves {
    ($instruction:expr, $($v:ident),+) => {{
        #[allow(unused_unsafe)]
        unsafe { [$instruction($($v[0]),+), $instruction($($v[1]),+)] }
    }};
}

// SAFETY of every block below: the instructions exist, as `self` proves. Loads and stores are unaligned and
// stay within the arrays that they get; where they need alignment, the code beside them tests it.
impl Lanes for Avx2 {
    type F = F;
    type H = __m256i;
    type M = F;
    type D = [__m256d; 4];

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> F {
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())] }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; WIDTH]) -> F {
        unsafe {
            let (low, high) = (from.as_ptr().cast(), from[8..].as_ptr().cast());
            [_mm256_cvtph_ps(_mm_loadu_si128(low)), _mm256_cvtph_ps(_mm_loadu_si128(high))]
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; WIDTH]) -> F {
        unsafe {
            let (low, high) = (from.as_ptr().cast(), from[8..].as_ptr().cast());
            let wide = [_mm_loadu_si128(low), _mm_loadu_si128(high)];
            let wide = halves!(_mm256_cvtepu16_epi32, wide);
            let wide = halves!(_mm256_slli_epi32::<16>, wide);
            halves!(_mm256_castsi256_ps, wide)
        }
    }
    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; BLOCK]) -> [F; 2] {
        unsafe {
            let (low, high) = (from.as_ptr().cast(), from[WIDTH..].as_ptr().cast());
            let pairs = [_mm256_loadu_si256(low), _mm256_loadu_si256(high)];
            let upper = [_mm256_set1_epi32(0xffff_0000u32 as i32); 2];
            let odd = halves!(_mm256_and_si256, pairs, upper);
            let even = halves!(_mm256_slli_epi32::<16>, pairs);
            [halves!(_mm256_castsi256_ps, odd), halves!(_mm256_castsi256_ps, even)]
        }
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; WIDTH]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), v[1]);
        }
    }
    #[inline(always)]
    fn stream(self, v: F, to: &mut [f32; WIDTH]) {
        match to.as_ptr().addr().is_multiple_of(32) {
            true => unsafe {
                _mm256_stream_ps(to.as_mut_ptr(), v[0]);
                _mm256_stream_ps(to[8..].as_mut_ptr(), v[1]);
            },
            false => self.store(v, to),
        }
    }
    #[inline(always)]
    fn to_f16(self, v: F) -> __m256i {
        let half = halves!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>, v);
        unsafe { _mm256_set_m128i(half[1], half[0]) }
    }
    #[inline(always)]
    fn to_bf16(self, v: F) -> __m256i {
        unsafe {
            let (one, half) = ([_mm256_set1_epi32(1); 2], [_mm256_set1_epi32(0x7fff); 2]);
            let bits = halves!(_mm256_castps_si256, v);
            let odd = halves!(_mm256_srli_epi32::<16>, bits);
            let odd = halves!(_mm256_and_si256, odd, one);
            let up = halves!(_mm256_add_epi32, odd, half);
            let rounded = halves!(_mm256_add_epi32, bits, up);
            let rounded = halves!(_mm256_srli_epi32::<16>, rounded);
            // The instruction packs within 128 bits, so quarters come out as 0 2 1 3.
            let packed = _mm256_packus_epi32(rounded[0], rounded[1]);
            _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
        }
    }
    #[inline(always)]
    fn store_half(self, v: __m256i, to: &mut [u16; WIDTH]) {
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn stream_half(self, v: __m256i, to: &mut [u16; WIDTH]) {
        let to = to.as_mut_ptr();
        match to.addr().is_multiple_of(32) {
            true => unsafe { _mm256_stream_si256(to.cast(), v) },
            false => unsafe { _mm256_storeu_si256(to.cast(), v) },
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(at).cast()) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        halves!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        halves!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn ge(self, a: F, b: F) -> F {
        halves!(_mm256_cmp_ps::<_CMP_GE_OQ>, a, b)
    }
    #[inline(always)]
    fn unordered(self, a: F, b: F) -> F {
        halves!(_mm256_cmp_ps::<_CMP_UNORD_Q>, a, b)
    }
    #[inline(always)]
    fn or(self, a: F, b: F) -> F {
        halves!(_mm256_or_ps, a, b)
    }
    #[inline(always)]
    fn and(self, a: F, b: F) -> F {
        halves!(_mm256_and_ps, a, b)
    }
    #[inline(always)]
    fn no(self) -> F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    fn bits(self, m: F) -> u32 {
        unsafe { (_mm256_movemask_ps(m[0]) | _mm256_movemask_ps(m[1]) << 8) as u32 }
    }
    #[inline(always)]
    fn any(self, m: F) -> bool {
        unsafe { _mm256_movemask_ps(_mm256_or_ps(m[0], m[1])) != 0 }
    }
    #[inline(always)]
    fn select(self, m: F, yes: F, no: F) -> F {
        halves!(_mm256_blendv_ps, no, yes, m)
    }

    #[inline(always)]
    fn raise(self, q: F, shifted: F, smallest: F) -> F {
        let m = self.ge(shifted, smallest);
        let (q, power) = (halves!(_mm256_castps_si256, q), halves!(_mm256_castps_si256, shifted));
        let power = halves!(_mm256_slli_epi32::<23>, power);
        let raised = halves!(_mm256_add_epi32, q, power);
        let raised = halves!(_mm256_castsi256_ps, raised);
        halves!(_mm256_and_ps, raised, m)
    }
    #[inline(always)]
    fn truncate(self, v: F, to: &mut [u16; WIDTH]) {
        let v = halves!(_mm256_cvttps_epi32, v);
        unsafe {
            // The instruction packs within 128 bits, so quarters come out as 0 2 1 3.
            let packed = _mm256_packus_epi32(v[0], v[1]);
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), ordered)
        }
    }
    #[inline(always)]
    fn compress(self, v: F, m: F, to: &mut [f32; WIDTH]) -> usize {
        unsafe {
            let sets = [_mm256_movemask_ps(m[0]) as usize & 255, _mm256_movemask_ps(m[1]) as usize & 255];
            let front = |set: usize| _mm256_loadu_si256(FRONT[set].as_ptr().cast());
            let moved = [
                _mm256_permutevar8x32_ps(v[0], front(sets[0])),
                _mm256_permutevar8x32_ps(v[1], front(sets[1])),
            ];
            let kept = sets[0].count_ones() as usize;
            _mm256_storeu_ps(to.as_mut_ptr(), moved[0]);
            _mm256_storeu_ps(to[kept..][..8].as_mut_ptr(), moved[1]);
            kept + sets[1].count_ones() as usize
        }
    }

    #[inline(always)]
    fn zero(self) -> [__m256d; 4] {
        unsafe { [_mm256_setzero_pd(); 4] }
    }
    #[inline(always)]
    fn accumulate(self, sum: [__m256d; 4], v: F) -> [__m256d; 4] {
        unsafe {
            [
                _mm256_add_pd(sum[0], _mm256_cvtps_pd(_mm256_castps256_ps128(v[0]))),
                _mm256_add_pd(sum[1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[0]))),
                _mm256_add_pd(sum[2], _mm256_cvtps_pd(_mm256_castps256_ps128(v[1]))),
                _mm256_add_pd(sum[3], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[1]))),
            ]
        }
    }
    #[inline(always)]
    fn sums(self, sum: [__m256d; 4]) -> [f64; WIDTH] {
        let mut to = [0.0; WIDTH];
        for (quarter, sum) in to.chunks_exact_mut(4).zip(sum) {
            unsafe { _mm256_storeu_pd(quarter.as_mut_ptr(), sum) }
        }
        to
    }

    #[inline(always)]
    fn ceil(self, v: F) -> F {
        halves!(_mm256_ceil_ps, v)
    }
    // Sixteen vectors are added as they are transposed: 28 shuffles and 30 additions.
    #[inline(always)]
    fn fold(self, v: [F; WIDTH]) -> F {
        unsafe {
            let zero = _mm256_setzero_ps();
            let mut sums = [zero; 2];
            for (half, sum) in sums.iter_mut().enumerate() {
                let (mut fours, mut twos) = ([zero; 4], [zero; 2]);
                for (i, to) in fours.iter_mut().enumerate() {
                    // Vector i ends up in the first half, and vector i + 4 in the second.
                    let (a, b) = (v[8 * half + i], v[8 * half + i + 4]);
                    let (a, b) = (_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]));
                    let low = _mm256_permute2f128_ps::<0x20>(a, b);
                    *to = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
                }
                for (i, to) in twos.iter_mut().enumerate() {
                    let (a, b) = (_mm256_castps_pd(fours[2 * i]), _mm256_castps_pd(fours[2 * i + 1]));
                    let low = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    *to = _mm256_add_ps(low, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
                }
                let [a, b] = twos;
                *sum = _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
            }
            sums
        }
    }
}
