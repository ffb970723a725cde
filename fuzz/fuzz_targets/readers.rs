//! The input is the bytes of a file. Opening it and reading every row must not panic. The first byte picks
//! the format.
#![no_main]

#[expect(dead_code, reason = "the other target's body")]
#[path = "../../diagnose/tests/bad_files/probe.rs"]
mod probe;

use libfuzzer_sys::{Corpus, fuzz_target};
use std::path::PathBuf;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((&format, bytes)) = bytes.split_first() else { return Corpus::Reject };
    let name = ["input.npy", "input.safetensors", "input.npz"][usize::from(format % 3)];
    let path: PathBuf = DIRECTORY.path().join(name);
    std::fs::write(&path, bytes).expect("room for the file");
    let _either = probe::read_everything(&path);
    std::fs::remove_file(&path).expect("the file just written");
    Corpus::Keep
});
