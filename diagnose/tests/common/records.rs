//! The records that `diagnose` makes of an input.

use critbeta_diagnose::input::Input;
use critbeta_diagnose::{RowRecord, Settings, scan};

/// The records of all its rows, in order.
pub fn records(input: &Input) -> Vec<RowRecord> {
    let mut all = Vec::new();
    scan(std::slice::from_ref(input), &Settings::default(), |records| {
        all.extend_from_slice(records);
        Ok(())
    })
    .unwrap();
    all
}
