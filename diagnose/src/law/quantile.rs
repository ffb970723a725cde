//! Medians and quantiles. They stay meaningful with heavy tails and infinite values.

/// Quantile `p` in 0..=1 of ascending `sorted`: linear interpolation between order statistics.
///
/// Between a finite and an infinite value it is infinite. Without values it is NaN.
pub(crate) fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = p * last as f64;
    let low = sorted[at.floor() as usize];
    let high = sorted[at.ceil() as usize];
    // This rounds no equal values and never computes inf - inf.
    if low == high { low } else { low + (high - low) * at.fract() }
}

/// Median of ascending `sorted`, or NaN without values.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    quantile(sorted, 0.5)
}

/// The values in ascending order.
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_and_survive_infinities() {
        let inf = f64::INFINITY;
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0], 1.0), 2.0);
        assert_eq!(median(&[1.0, inf]), inf);
        assert_eq!(median(&[1.0, 2.0, inf]), 2.0);
        assert_eq!(quantile(&[1.0, inf, inf], 0.95), inf);
        assert_eq!(median(&[inf, inf]), inf);
        assert!(median(&[]).is_nan());
    }
}
