//! The input is a decode call: its shapes, strides, tables and numbers. It is refused, or its rows are right.
#![no_main]

#[path = "../../tests/common/attention_probe.rs"]
mod attention_probe;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _refused_or_right = attention_probe::call_anything(bytes);
});
