//! Lanes of one AVX-512 register.
#![allow(unsafe_code)]

use super::avx2::Avx2;
use super::{BLOCK, Lanes, WIDTH, Work};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// This machine has AVX-512 F, BW, DQ and VL. It also has what AVX2 has, for work on half a register.
#[derive(Clone, Copy)]
pub(super) struct Avx512(Avx2);

impl Avx512 {
    pub(super) fn detect() -> Option<Avx512> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("bmi2");
        Avx2::detect().filter(|_| found).map(Avx512)
    }
}

pub(super) fn run<W: Work>(lanes: Avx512, work: W) -> W::Out {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,popcnt")]
    fn compiled<W: Work>(lanes: Avx512, work: W) -> W::Out {
        work.run(lanes)
    }
    // SAFETY: `lanes` exists only where `detect` found these instructions.
    unsafe { compiled(lanes, work) }
}

// SAFETY of every block below: the instructions exist, as `self` proves. Loads and stores are unaligned and
// stay within the arrays that they get; where they need alignment, the code beside them tests it.
impl Lanes for Avx512 {
    type F = __m512;
    type H = __m256i;
    type M = __mmask16;
    type D = [__m512d; 2];

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; WIDTH]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; WIDTH]) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; BLOCK]) -> [__m512; 2] {
        unsafe {
            let pairs = _mm512_loadu_si512(from.as_ptr().cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [_mm512_castsi512_ps(odd), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))]
        }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; WIDTH]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn stream(self, v: __m512, to: &mut [f32; WIDTH]) {
        let to = to.as_mut_ptr();
        match to.addr().is_multiple_of(64) {
            true => unsafe { _mm512_stream_ps(to, v) },
            false => unsafe { _mm512_storeu_ps(to, v) },
        }
    }
    #[inline(always)]
    fn to_f16(self, v: __m512) -> __m256i {
        unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v) }
    }
    // Integers do the rounding, because the bf16 conversion instruction flushes subnormals to zero.
    #[inline(always)]
    fn to_bf16(self, v: __m512) -> __m256i {
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
        }
    }
    #[inline(always)]
    fn store_half(self, v: __m256i, to: &mut [u16; WIDTH]) {
        self.0.store_half(v, to);
    }
    #[inline(always)]
    fn stream_half(self, v: __m256i, to: &mut [u16; WIDTH]) {
        self.0.stream_half(v, to);
    }
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        self.0.prefetch(at);
    }
    #[inline(always)]
    fn fence(self) {
        self.0.fence();
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn ge(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) }
    }
    #[inline(always)]
    fn unordered(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }
    #[inline(always)]
    fn and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    fn no(self) -> __mmask16 {
        0
    }
    #[inline(always)]
    fn bits(self, m: __mmask16) -> u32 {
        m.into()
    }
    #[inline(always)]
    fn select(self, m: __mmask16, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(m, no, yes) }
    }

    #[inline(always)]
    fn raise(self, q: __m512, shifted: __m512, smallest: __m512) -> __m512 {
        unsafe {
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            let m = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(shifted, smallest);
            _mm512_castsi512_ps(_mm512_maskz_add_epi32(m, _mm512_castps_si512(q), power))
        }
    }
    #[inline(always)]
    fn truncate(self, v: __m512, to: &mut [u16; WIDTH]) {
        unsafe {
            let narrow = _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(v));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow)
        }
    }
    // The lanes go to a register first. Straight to memory, the instruction takes 16 times as long on Zen 4.
    #[inline(always)]
    fn compress(self, v: __m512, m: __mmask16, to: &mut [f32; WIDTH]) -> usize {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_maskz_compress_ps(m, v)) };
        m.count_ones() as usize
    }

    #[inline(always)]
    fn zero(self) -> [__m512d; 2] {
        unsafe { [_mm512_setzero_pd(); 2] }
    }
    #[inline(always)]
    fn accumulate(self, [low, high]: [__m512d; 2], v: __m512) -> [__m512d; 2] {
        unsafe {
            let upper = _mm512_extractf32x8_ps::<1>(v);
            let low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
            [low, _mm512_add_pd(high, _mm512_cvtps_pd(upper))]
        }
    }
    #[inline(always)]
    fn sums(self, [low, high]: [__m512d; 2]) -> [f64; WIDTH] {
        let mut to = [0.0; WIDTH];
        unsafe {
            _mm512_storeu_pd(to.as_mut_ptr(), low);
            _mm512_storeu_pd(to[WIDTH / 2..].as_mut_ptr(), high);
        }
        to
    }

    #[inline(always)]
    fn ceil(self, v: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(v) }
    }
    // Sixteen vectors are added as they are transposed: 30 shuffles and 15 additions.
    #[inline(always)]
    fn fold(self, v: [__m512; WIDTH]) -> __m512 {
        unsafe {
            let zero = _mm512_setzero_ps();
            let (mut eights, mut fours) = ([zero; 8], [zero; 4]);
            for (i, to) in eights.iter_mut().enumerate() {
                // Vector 4 l + s ends up in lane s of quarter l.
                let at = |i: usize| v[4 * (i % 4) + i / 4];
                let (a, b) = (at(2 * i), at(2 * i + 1));
                let low = _mm512_shuffle_f32x4::<0x44>(a, b);
                *to = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xee>(a, b));
            }
            for (i, to) in fours.iter_mut().enumerate() {
                let (a, b) = (eights[2 * i], eights[2 * i + 1]);
                let low = _mm512_shuffle_f32x4::<0x88>(a, b);
                *to = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xdd>(a, b));
            }
            let mut twos = [zero; 2];
            for (i, to) in twos.iter_mut().enumerate() {
                let (a, b) = (_mm512_castps_pd(fours[2 * i]), _mm512_castps_pd(fours[2 * i + 1]));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                *to = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
            }
            let [a, b] = twos;
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b))
        }
    }
}
