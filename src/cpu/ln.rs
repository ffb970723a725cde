//! Logs of counts for bounds, in operations that a compiler can vectorise. The ratio itself takes `f64::ln`.

/// How far [`ln`] may be off, with room for the roundings of a bound.
pub(super) const LN_ERROR: f64 = 1e-11;

/// ln of a count >= 1, within 2e-12; for 0 the result is below -700. The error was measured on all counts to
/// 2^20 and on powers of 1.01 to 2^53 (2026-11-25).
#[inline(always)]
pub(super) fn ln(count: f64) -> f64 {
    /// The bits of the square root of 1/2. The mantissa lies between this root and twice the root.
    const ROOT_HALF: u64 = 0x3fe6a09e667f3bcd;
    /// An integer that is added to the bits of this ends up in its low bits.
    const MAGIC: f64 = 6755399441055744.0;
    let bits = count.to_bits();
    let exponent = (bits.wrapping_sub(ROOT_HALF) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    let exponent = f64::from_bits(MAGIC.to_bits().wrapping_add(exponent as u64)) - MAGIC;
    // ln m = 2 artanh((m - 1) / (m + 1)).
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let q = z * (1.0 / 15.0) + 1.0 / 13.0;
    let q = q * z + 1.0 / 11.0;
    let q = q * z + 1.0 / 9.0;
    let q = q * z + 1.0 / 7.0;
    let q = q * z + 1.0 / 5.0;
    let q = q * z + 1.0 / 3.0;
    let q = q * z + 1.0;
    exponent * std::f64::consts::LN_2 + 2.0 * s * q
}

/// How far [`ln32`] may be off, with room for the roundings of a bound up to 44.
pub(super) const LN32_ERROR: f32 = 2e-5;

/// Like [`ln`], within 5e-6; for 0 the result is below -80.
#[inline(always)]
pub(super) fn ln32(count: f32) -> f32 {
    /// The bits of the square root of 1/2.
    const ROOT_HALF: u32 = 0x3f3504f3;
    let exponent = (count.to_bits().wrapping_sub(ROOT_HALF) as i32) >> 23;
    let m = f32::from_bits(count.to_bits().wrapping_sub((exponent as u32) << 23));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let q = (z * (1.0 / 5.0) + 1.0 / 3.0) * z + 1.0;
    exponent as f32 * std::f32::consts::LN_2 + 2.0 * s * q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_for_bounds_are_within_their_error() {
        let powers =
            std::iter::successors(Some(1.0f64), |x| Some((x * 1.01).ceil()).filter(|&x| x < 2f64.powi(53)));
        for count in (1..1 << 20).map(f64::from).chain(powers) {
            assert!((ln(count) - count.ln()).abs() <= LN_ERROR / 5.0, "{count}");
            assert!(
                (f64::from(ln32(count as f32)) - count.ln()).abs() <= f64::from(LN32_ERROR) / 4.0,
                "{count}"
            );
        }
        assert!(ln(0.0) < -700.0 && ln32(0.0) < -80.0);
    }
}
