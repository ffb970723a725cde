//! Sixteen lanes as one AVX-512 register, or as two of AVX2.

use super::Lanes;
use super::weights::MAGIC;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512;

impl Lanes for Avx512 {
    type F = __m512;
    type W = [__m512d; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_half(at: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bfloat(at: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn fence() {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn stream(at: *mut f32, v: __m512) {
        unsafe { _mm512_stream_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn store_half(at: *mut u16, v: __m512) {
        unsafe { _mm256_storeu_si256(at.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bfloat(at: *mut u16, v: __m512) {
        unsafe { _mm256_storeu_si256(at.cast(), bfloats(v)) }
    }
    #[inline(always)]
    unsafe fn stream_half(at: *mut u16, v: __m512) {
        unsafe { _mm256_stream_si256(at.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn stream_bfloat(at: *mut u16, v: __m512) {
        unsafe { _mm256_stream_si256(at.cast(), bfloats(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fms(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmsub_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn at_least(a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn equal(a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn larger_magnitude(a: __m512, b: __m512) -> __m512 {
        unsafe {
            let magnitude = _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(i32::MAX));
            _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), magnitude))
        }
    }
    #[inline(always)]
    unsafe fn raise(q: __m512, n: __m512, _: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(q, n) }
    }
    #[inline(always)]
    unsafe fn select(mask: u16, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }
    #[inline(always)]
    unsafe fn compress(at: *mut f32, mask: u16, v: __m512) {
        // Into a register and then out whole: to memory it is microcoded on Zen 4.
        unsafe { _mm512_storeu_ps(at, _mm512_maskz_compress_ps(mask, v)) }
    }
    #[inline(always)]
    unsafe fn truncate(v: __m512) -> [u32; 16] {
        let mut lanes = [0; 16];
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), _mm512_cvttps_epi32(v)) };
        lanes
    }
    #[inline(always)]
    unsafe fn largest(v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn wide_zero() -> [__m512d; 2] {
        unsafe { [_mm512_setzero_pd(); 2] }
    }
    #[inline(always)]
    unsafe fn wide_add(w: [__m512d; 2], v: __m512) -> [__m512d; 2] {
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            let low = _mm512_castps512_ps256(v);
            [_mm512_add_pd(w[0], _mm512_cvtps_pd(low)), _mm512_add_pd(w[1], _mm512_cvtps_pd(high))]
        }
    }
    #[inline(always)]
    unsafe fn wide_lanes(w: [__m512d; 2]) -> [f64; 16] {
        let mut lanes = [0.0; 16];
        unsafe {
            _mm512_storeu_pd(lanes.as_mut_ptr(), w[0]);
            _mm512_storeu_pd(lanes.as_mut_ptr().add(8), w[1]);
        }
        lanes
    }
}

/// Rounded to nearest even by integers: the instruction for it flushes subnormals.
#[inline(always)]
unsafe fn bfloats(v: __m512) -> __m256i {
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22)));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2;

type Pair = [__m256; 2];

impl Lanes for Avx2 {
    type F = Pair;
    type W = [__m256d; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Pair {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Pair {
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_half(at: *const u16) -> Pair {
        unsafe {
            let (low, high) = (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast()));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_bfloat(at: *const u16) -> Pair {
        unsafe {
            let (low, high) = (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Pair) {
        unsafe {
            _mm256_storeu_ps(at, v[0]);
            _mm256_storeu_ps(at.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn fence() {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn stream(at: *mut f32, v: Pair) {
        unsafe {
            _mm256_stream_ps(at, v[0]);
            _mm256_stream_ps(at.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_half(at: *mut u16, v: Pair) {
        unsafe { _mm256_storeu_si256(at.cast(), halves(v)) }
    }
    #[inline(always)]
    unsafe fn store_bfloat(at: *mut u16, v: Pair) {
        unsafe { _mm256_storeu_si256(at.cast(), bfloats_of_pair(v)) }
    }
    #[inline(always)]
    unsafe fn stream_half(at: *mut u16, v: Pair) {
        unsafe { _mm256_stream_si256(at.cast(), halves(v)) }
    }
    #[inline(always)]
    unsafe fn stream_bfloat(at: *mut u16, v: Pair) {
        unsafe { _mm256_stream_si256(at.cast(), bfloats_of_pair(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn fms(a: Pair, b: Pair, c: Pair) -> Pair {
        unsafe { [_mm256_fmsub_ps(a[0], b[0], c[0]), _mm256_fmsub_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn at_least(a: Pair, b: Pair) -> u16 {
        unsafe { signs([_mm256_cmp_ps::<_CMP_GE_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_GE_OQ>(a[1], b[1])]) }
    }
    #[inline(always)]
    unsafe fn equal(a: Pair, b: Pair) -> u16 {
        unsafe { signs([_mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1])]) }
    }
    #[inline(always)]
    unsafe fn larger_magnitude(a: Pair, b: Pair) -> Pair {
        unsafe { [larger_magnitude(a[0], b[0]), larger_magnitude(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn raise(q: Pair, _: Pair, shifted: Pair) -> Pair {
        unsafe { [raise(q[0], shifted[0]), raise(q[1], shifted[1])] }
    }
    #[inline(always)]
    unsafe fn select(mask: u16, a: Pair, b: Pair) -> Pair {
        unsafe { [select(mask, a[0], b[0]), select(mask >> 8, a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn compress(at: *mut f32, mask: u16, v: Pair) {
        let mut lanes = [0.0f32; 16];
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let (mut to, mut left) = (at, mask);
        while left != 0 {
            unsafe {
                to.write(lanes[left.trailing_zeros() as usize]);
                to = to.add(1);
            }
            left &= left - 1;
        }
    }
    #[inline(always)]
    unsafe fn truncate(v: Pair) -> [u32; 16] {
        let mut lanes = [0; 16];
        unsafe {
            let at = lanes.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(at, _mm256_cvttps_epi32(v[0]));
            _mm256_storeu_si256(at.add(1), _mm256_cvttps_epi32(v[1]));
        }
        lanes
    }
    #[inline(always)]
    unsafe fn largest(v: Pair) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn wide_zero() -> [__m256d; 4] {
        unsafe { [_mm256_setzero_pd(); 4] }
    }
    #[inline(always)]
    unsafe fn wide_add(w: [__m256d; 4], v: Pair) -> [__m256d; 4] {
        unsafe {
            [
                _mm256_add_pd(w[0], _mm256_cvtps_pd(_mm256_castps256_ps128(v[0]))),
                _mm256_add_pd(w[1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[0]))),
                _mm256_add_pd(w[2], _mm256_cvtps_pd(_mm256_castps256_ps128(v[1]))),
                _mm256_add_pd(w[3], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[1]))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn wide_lanes(w: [__m256d; 4]) -> [f64; 16] {
        let mut lanes = [0.0; 16];
        for (i, w) in w.into_iter().enumerate() {
            unsafe { _mm256_storeu_pd(lanes.as_mut_ptr().add(4 * i), w) };
        }
        lanes
    }
}

#[inline(always)]
unsafe fn signs(v: Pair) -> u16 {
    unsafe { (_mm256_movemask_ps(v[0]) | _mm256_movemask_ps(v[1]) << 8) as u16 }
}

#[inline(always)]
unsafe fn larger_magnitude(a: __m256, b: __m256) -> __m256 {
    unsafe {
        let magnitude = _mm256_and_si256(_mm256_castps_si256(b), _mm256_set1_epi32(i32::MAX));
        _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), magnitude))
    }
}

#[inline(always)]
unsafe fn raise(q: __m256, shifted: __m256) -> __m256 {
    unsafe {
        let floor = _mm256_set1_ps(MAGIC - 150.0);
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
        let raised = _mm256_add_epi32(_mm256_castps_si256(q), exponent);
        _mm256_and_ps(_mm256_castsi256_ps(raised), _mm256_cmp_ps::<_CMP_GE_OQ>(shifted, floor))
    }
}

#[inline(always)]
unsafe fn select(mask: u16, a: __m256, b: __m256) -> __m256 {
    unsafe {
        let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(mask)), bits);
        _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bits)))
    }
}

#[inline(always)]
unsafe fn halves(v: Pair) -> __m256i {
    unsafe {
        let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]);
        _mm256_set_m128i(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]), low)
    }
}

#[inline(always)]
unsafe fn rounded(v: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

#[inline(always)]
unsafe fn bfloats_of_pair(v: Pair) -> __m256i {
    // Packing works in halves of a register: their order is put right.
    unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(rounded(v[0]), rounded(v[1]))) }
}
