//! What `diagnose` measures of an input.

use critbeta::diagnose::{RowRecord, Settings, scan};
use critbeta::input::Input;

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
