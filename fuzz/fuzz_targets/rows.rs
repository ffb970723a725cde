//! Any bytes as a row: the fast path agrees with the sorted reference to the last bit.
#![no_main]

#[expect(dead_code, reason = "the other target's body")]
#[path = "../../diagnose/tests/bad_files/probe.rs"]
mod probe;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| probe::compare_with_reference(bytes));
