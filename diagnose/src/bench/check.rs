//! Checks of results against the definition, in f64.

use super::peers::is_poisoned;
use super::{Method, RowResult};
use critbeta::DType;
use critbeta::reference::Row;

/// Says what a copy got wrong.
pub fn equal(scores: &[f32], out: &[f64]) -> Option<String> {
    let at = scores.iter().zip(out).position(|(&score, &copied)| f64::from(score) != copied)?;
    Some(format!("column {at}: {} copied as {}", scores[at], out[at]))
}

/// Says what is wrong with a row's betas. The critical beta and its contact must be the definition's bit for
/// bit. The row's beta must equal it within the slack, or be 1 without one. In a poisoned row all but that 1
/// must be NaN.
pub fn betas(scores: &[f32], result: &RowResult, method: Method) -> Option<String> {
    if is_poisoned(scores) {
        let critical = result.critical.is_none_or(|found| found.beta.is_nan() && found.contact_gap.is_nan());
        let beta = if method.is_critical() { result.beta.is_nan() } else { result.beta == 1.0 };
        return (!(critical && beta))
            .then(|| format!("{:?} and beta {} of a poisoned row", result.critical, result.beta));
    }
    let mut counted = scores.to_vec();
    if let Some(k) = method.measure().top_k {
        counted.sort_unstable_by(|a, b| b.total_cmp(a));
        counted.truncate(k);
    }
    let mut expected = Row::from_f32(&counted).critical_beta();
    if expected.beta == f64::INFINITY {
        // All ties at the maximum count, however many scores are kept.
        let max = counted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        expected.contact_rank = scores.iter().filter(|&&score| score == max).count() as u64;
    }
    // The largest scores alone give only a lower bound. The upper bound is not checked.
    if let Some(found) = result.critical.filter(|found| {
        (found.beta, found.contact_gap, found.contact_rank)
            != (expected.beta, expected.contact_gap, expected.contact_rank)
    }) {
        return Some(format!("{found:?}, expected {expected:?}"));
    }
    let beta = if method.is_critical() { expected.beta } else { 1.0 };
    let is_near = result.beta == beta || (result.beta - beta).abs() <= beta * result.slack;
    (!is_near).then(|| format!("beta {}, expected {beta}", result.beta))
}

/// Says which probability is not within (4 + z) 2^-23 of f64, z = beta x gap, plus the output's rounding.
pub fn probabilities(scores: &[f32], beta: f64, out: &[f64], dtype: DType) -> Option<String> {
    if is_poisoned(scores) {
        let at = out.iter().position(|p| !p.is_nan())?;
        return Some(format!("column {at}: {} in a poisoned row", out[at]));
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        let at = out.iter().position(|&p| p != 0.0)?;
        return Some(format!("column {at}: {} in a row that is masked", out[at]));
    }
    let gaps: Vec<f64> = scores.iter().map(|&score| f64::from(max - score)).collect();
    let z = |gap: f64| if gap == 0.0 { 0.0 } else { beta * gap };
    let sum: f64 = gaps.iter().map(|&gap| (-z(gap)).exp()).sum();
    // Half a unit of the output's last place, and the loss where the dtype has no relative precision.
    let (units, rounding, smallest) = match dtype {
        DType::F16 => (16.0, 2f64.powi(-11), 2f64.powi(-25)),
        DType::Bf16 => (16.0, 2f64.powi(-8), 2f64.powi(-126)),
        DType::F32 | DType::F64 => (4.0, 0.0, 2f64.powi(-126)),
    };
    let at = gaps.iter().zip(out).position(|(&gap, &found)| {
        let expected = (-z(gap)).exp() / sum;
        let allowed = expected * ((units + z(gap)).min(1e6) * 2f64.powi(-23) + rounding) + smallest;
        // This form makes a NaN wrong too.
        let is_right = (found - expected).abs() <= allowed;
        !is_right
    })?;
    let expected = (-z(gaps[at])).exp() / sum;
    Some(format!("column {at}: probability {:e}, expected {expected:e} at beta {beta}", out[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use critbeta::CriticalBeta;

    const ROW: [f32; 4] = [1.0, 3.0, f32::NEG_INFINITY, 2.5];

    fn softmax(beta: f64) -> Vec<f64> {
        let weights = ROW.map(|score| (beta * (f64::from(score) - 3.0)).exp());
        weights.iter().map(|w| w / weights.iter().sum::<f64>()).collect()
    }

    #[test]
    fn a_softmax_passes_and_one_at_another_beta_is_reported() {
        assert_eq!(probabilities(&ROW, 0.7, &softmax(0.7), DType::F32), None);
        let wrong = probabilities(&ROW, 0.7, &softmax(0.70001), DType::F32).unwrap();
        assert!(wrong.starts_with("column 0: probability"), "{wrong}");
        let poisoned = [f64::NAN; 4];
        assert!(probabilities(&ROW, 0.7, &poisoned, DType::F32).is_some());
        assert!(probabilities(&ROW, f64::INFINITY, &[0.0, 1.0, 0.0, 0.0], DType::F32).is_none());
        assert!(probabilities(&[f32::NEG_INFINITY; 2], 1.0, &[0.0, 0.1], DType::F32).is_some());
    }

    #[test]
    fn another_contact_or_beta_is_reported() {
        let critical = Row::from_f32(&ROW).critical_beta();
        let right = || RowResult { critical: Some(critical), beta: critical.beta, slack: 2f64.powi(-22) };
        assert_eq!(betas(&ROW, &right(), Method::CriticalSoftmax), None);
        assert!(betas(&ROW, &right(), Method::Stats).unwrap().ends_with("expected 1"));
        let near = RowResult { beta: critical.beta * (1.0 + 2f64.powi(-23)), ..right() };
        assert_eq!(betas(&ROW, &near, Method::CriticalSoftmax), None);
        let strict = RowResult { slack: 0.0, ..near };
        assert!(betas(&ROW, &strict, Method::CriticalSoftmax).unwrap().starts_with("beta"));
        let far = RowResult { beta: critical.beta * (1.0 + 2f64.powi(-21)), ..right() };
        assert!(betas(&ROW, &far, Method::CriticalSoftmax).unwrap().starts_with("beta"));
        let poisoned = RowResult { beta: f64::NAN, ..right() };
        assert!(betas(&ROW, &poisoned, Method::CriticalSoftmax).is_some());
        let rank = critical.contact_rank + 1;
        let wrong = RowResult { critical: Some(CriticalBeta { contact_rank: rank, ..critical }), ..right() };
        assert!(betas(&ROW, &wrong, Method::CriticalSoftmax).unwrap().starts_with("CriticalBeta"));
    }

    #[test]
    fn a_poisoned_row_is_nan_throughout() {
        let row = [1.0, f32::INFINITY];
        assert_eq!(probabilities(&row, f64::NAN, &[f64::NAN; 2], DType::F32), None);
        assert!(probabilities(&row, 1.0, &[0.0, f64::NAN], DType::F32).unwrap().starts_with("column 0"));
        let right = || RowResult { critical: None, beta: f64::NAN, slack: 0.0 };
        assert_eq!(betas(&row, &right(), Method::NaiveSort), None);
        assert!(betas(&row, &RowResult { beta: 0.0, ..right() }, Method::NaiveSort).is_some());
        let stats = |critical| RowResult { critical: Some(critical), beta: 1.0, slack: 0.0 };
        assert_eq!(betas(&row, &stats(CriticalBeta::UNKNOWN), Method::Stats), None);
        assert!(betas(&row, &stats(CriticalBeta::at_top(1, 0.0)), Method::Stats).is_some());
    }

    #[test]
    fn a_top_k_is_judged_by_the_largest_scores_alone() {
        // A sink over 5,000 equal scores: the contact is all of them, or the 2,048 that are counted.
        let mut row = vec![0.0f32; 5000];
        row[7] = 8.0;
        let of = |rank: f64| RowResult { critical: None, beta: rank.ln() / 8.0, slack: 0.0 };
        assert_eq!(betas(&row, &of(2048.0), Method::TopK), None);
        assert_eq!(betas(&row, &of(5000.0), Method::NaiveSort), None);
        assert!(betas(&row, &of(5000.0), Method::TopK).is_some());
        let tied = |ties| {
            let critical = Some(CriticalBeta::at_top(ties, 0.0));
            betas(&[0.5; 5000], &RowResult { critical, beta: f64::INFINITY, slack: 0.0 }, Method::TopK)
        };
        assert_eq!(tied(5000), None);
        assert!(tied(2048).unwrap().starts_with("CriticalBeta"));
    }

    #[test]
    fn a_copy_that_lost_a_score_is_reported() {
        let mut out = ROW.map(f64::from);
        assert_eq!(equal(&ROW, &out), None);
        out[3] = 0.0;
        assert!(equal(&ROW, &out).unwrap().starts_with("column 3"));
    }
}
