//! Opens files that the tests build, and builds elements that only these tests need.

use crate::build::write;
use critbeta_diagnose::input::{Input, Selection};

/// As [`f32s`] in f64.
pub fn f64s(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f64 / 4.0).to_le_bytes()).collect()
}

/// As [`f32s`] in bf16.
pub fn bf16s(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| half::bf16::from_f32(i as f32 / 4.0).to_le_bytes()).collect()
}

/// Writes a file and opens all of it.
pub fn open(name: &str, bytes: &[u8]) -> critbeta::Result<Input> {
    open_part(name, bytes, &Selection::default())
}

/// Writes a file and opens the selected part. The map outlives the file's name.
pub fn open_part(name: &str, bytes: &[u8], selection: &Selection) -> critbeta::Result<Input> {
    let directory = tempfile::tempdir().unwrap();
    critbeta_diagnose::input::open(&write(directory.path(), name, bytes), selection)
}

/// The names of the sources.
pub fn layers(input: &Input) -> Vec<&str> {
    input.sources.iter().map(|source| &**source.layer()).collect()
}
