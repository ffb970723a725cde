//! Results against f64 and the CPU path.

use crate::DType;
use crate::cpu::{self, Measure};
use crate::cuda::params::RowReport;

/// What a copy got wrong.
pub fn equal(scores: &[f32], out: &[f64]) -> Option<String> {
    let at = scores.iter().zip(out).position(|(&score, &copied)| f64::from(score) != copied)?;
    Some(format!("column {at}: {} copied as {}", scores[at], out[at]))
}

/// Whether the critical beta and its contact are the CPU's bit for bit, and the row's beta is it within 2^-22, or 1 where
/// it `is_critical` not.
pub fn report(scores: &[f32], found: &RowReport, measure: Measure, is_critical: bool) -> Option<String> {
    let expected = cpu::row_report(scores, 1.0, measure).critical;
    let critical = found.decode(measure).critical;
    if critical != expected {
        return Some(format!("{critical:?}, expected {expected:?}"));
    }
    let beta = if is_critical { expected.beta } else { 1.0 };
    let is_near = found.beta == beta || (found.beta - beta).abs() <= beta * 2f64.powi(-22);
    (!is_near).then(|| format!("beta {}, expected {beta}", found.beta))
}

/// Whether every probability is within (4 + z) 2^-23, z = beta x gap, of f64, and the rounding of the output.
pub fn probabilities(scores: &[f32], beta: f64, out: &[f64], dtype: DType) -> Option<String> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        let at = out.iter().position(|&p| p != 0.0)?;
        return Some(format!("column {at}: {} in a row that is masked", out[at]));
    }
    let gaps: Vec<f64> = scores.iter().map(|&score| f64::from(max - score)).collect();
    let z = |gap: f64| if gap == 0.0 { 0.0 } else { beta * gap };
    let sum: f64 = gaps.iter().map(|&gap| (-z(gap)).exp()).sum();
    // Half a unit of the output's last place, and what is lost where it has no relative precision.
    let (rounding, smallest) = match dtype {
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        DType::Bf16 => (2f64.powi(-8), 2f64.powi(-126)),
        DType::F32 | DType::F64 => (0.0, 2f64.powi(-126)),
    };
    let at = gaps.iter().zip(out).position(|(&gap, &found)| {
        let expected = (-z(gap)).exp() / sum;
        let allowed = expected * ((4.0 + z(gap)).min(1e6) * 2f64.powi(-23) + rounding) + smallest;
        // Written so that a NaN is wrong too.
        let is_right = (found - expected).abs() <= allowed;
        !is_right
    })?;
    let expected = (-z(gaps[at])).exp() / sum;
    Some(format!("column {at}: probability {:e}, expected {expected:e} at beta {beta}", out[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::params::Contact;
    use bytemuck::Zeroable;

    const ROW: [f32; 4] = [1.0, 3.0, f32::NEG_INFINITY, 2.5];

    fn softmax(beta: f64) -> Vec<f64> {
        let weights = ROW.map(|score| (beta * (f64::from(score) - 3.0)).exp());
        weights.iter().map(|w| w / weights.iter().sum::<f64>()).collect()
    }

    #[test]
    fn a_softmax_passes_and_one_at_another_beta_is_told() {
        assert_eq!(probabilities(&ROW, 0.7, &softmax(0.7), DType::F32), None);
        let wrong = probabilities(&ROW, 0.7, &softmax(0.70001), DType::F32).unwrap();
        assert!(wrong.starts_with("column 0: probability"), "{wrong}");
        let poisoned = [f64::NAN; 4];
        assert!(probabilities(&ROW, 0.7, &poisoned, DType::F32).is_some());
        assert!(probabilities(&ROW, f64::INFINITY, &[0.0, 1.0, 0.0, 0.0], DType::F32).is_none());
        assert!(probabilities(&[f32::NEG_INFINITY; 2], 1.0, &[0.0, 0.1], DType::F32).is_some());
    }

    #[test]
    fn another_contact_or_beta_is_told() {
        let expected = cpu::critical_beta(&ROW, 0.0);
        let contact = Contact { gap: expected.contact_gap as f32, rank: expected.contact_rank as u32 };
        let beta = expected.beta;
        let mut found =
            RowReport { max: 3.0, len: 3, ties: 1, resolved: contact, beta, ..RowReport::zeroed() };
        found.kth_gap = -1.0; // every score was counted
        let told = |found: &RowReport| report(&ROW, found, Measure::default(), true);
        assert_eq!(told(&found), None);
        assert!(report(&ROW, &found, Measure::default(), false).unwrap().ends_with("expected 1"));
        found.beta *= 1.0 + 2f64.powi(-21);
        assert!(told(&found).unwrap().starts_with("beta"));
        found.resolved.rank += 1;
        assert!(told(&found).unwrap().starts_with("CriticalBeta"));
    }

    #[test]
    fn a_copy_that_lost_a_score_is_told() {
        let mut out = ROW.map(f64::from);
        assert_eq!(equal(&ROW, &out), None);
        out[3] = 0.0;
        assert!(equal(&ROW, &out).unwrap().starts_with("column 3"));
    }
}
