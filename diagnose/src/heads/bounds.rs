//! The finite-n bounds that can be checked on a record alone.

use crate::records::record::RowRecord;
use critbeta::operating_ratio;
use critbeta::reference::{entropy_bound, top_two_bound};

/// Rounding may move a record beyond a bound by this: sums of f32 weights on a GPU err by at most 2^-20.
const ROUNDING: f64 = 1e-6;

/// Whether a row breaks the bound on its top-two difference (rho < 1) or on its entropy (rho > 1). Under a
/// top-k count a critical beta is only a lower bound, so the operating ratio is not known.
pub(crate) fn violated(record: &RowRecord) -> bool {
    let ratio = operating_ratio(record.beta, record.critical_beta);
    let exceeds = |value: f64, bound: Option<f64>| bound.is_some_and(|bound| value > bound + ROUNDING);
    record.certified != Some(false)
        && (exceeds(record.top_two, top_two_bound(ratio)) || exceeds(record.entropy, entropy_bound(ratio)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowPlace;
    use critbeta::cpu::{Measure, row_report};

    #[test]
    fn a_record_that_was_tampered_with_is_a_violation() {
        let record = |beta: f64| {
            let place = RowPlace { layer: "a".into(), head: 0, row: 0, position: 3 };
            RowRecord::new(place, &row_report(&[2.0, 1.0, 0.5, 0.0], beta, Measure::default()), 0.0, false)
        };
        let (blurred, collapsed) = (record(0.1), record(9.0));
        assert!(blurred.ratio < 1.0 && collapsed.ratio > 1.0);
        assert!(!violated(&blurred) && !violated(&collapsed));
        assert!(violated(&RowRecord { top_two: 0.9, ..blurred.clone() }));
        assert!(violated(&RowRecord { entropy: 1.3, ..collapsed.clone() }));
        assert!(!violated(&RowRecord { entropy: 1.3, certified: Some(false), ..collapsed }));
    }
}
