//! Bytes that nobody wrote on purpose: truncated files, seeded mutations, seeded rows.

use crate::build::*;
use crate::npz::npz;
use crate::opened::*;
use crate::probe::{compare_with_reference, read_everything};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Well-formed small files of each kind.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut placed = pair();
    placed.push(("positions", "I16", &[3], vec![0, 0, 4, 0, 2, 0]));
    let scores: [Named; 2] = [("s", "BF16", &[2, 3], bf16s(6)), ("s.positions", "U8", &[2], vec![4, 5])];
    vec![
        ("rows.npy", npy("<f4", false, "(2, 3)", &f32s(6))),
        ("fortran.npy", npy("<f2", true, "(2, 2, 3)", &f16s(12))),
        ("scores.safetensors", safetensors(&scores, None)),
        ("pair.safetensors", safetensors(&placed, Some("0.5"))),
        ("stored.npz", npz(&[("a.npy", npy("<f4", false, "(2, 3)", &f32s(6)))], false)),
        ("deflated.npz", npz(&[("a.npy", npy("<f2", true, "(2, 3, 2)", &f16s(12)))], true)),
    ]
}

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in seeds() {
        let values = read_everything(&write(directory.path(), name, &bytes)).unwrap();
        assert!(values >= 6, "{name}: {values}");
        for end in 0..bytes.len() {
            let path = write(directory.path(), name, &bytes[..end]);
            let error = read_everything(&path).expect_err(name).to_string();
            assert!(error.contains(name), "{name} cut at {end}: {error}");
        }
    }
}

/// Overwrites, inserts, removes or repeats a few bytes.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    const TELLING: &[u8] = b"0129-.,:'\"{}[]()eE\\<>|\0\n\x7f\x80\xff";
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len());
        let byte = match rng.random_range(0..3) {
            0 => rng.random(),
            1 => TELLING[rng.random_range(0..TELLING.len())],
            _ => bytes[at] ^ (1 << rng.random_range(0..8)),
        };
        match rng.random_range(0..8) {
            0 => bytes.insert(at, byte),
            1 if bytes.len() > 1 => drop(bytes.remove(at)),
            2 => {
                let end = bytes.len().min(at + rng.random_range(1..16));
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at] = byte,
        }
    }
}

#[test]
fn no_mutation_panics() {
    const ROUNDS: u64 = 5_000;
    let directory = tempfile::tempdir().unwrap();
    for (name, whole) in seeds() {
        let mut still_read = 0;
        for seed in 0..ROUNDS {
            let mut bytes = whole.clone();
            mutate(&mut bytes, &mut StdRng::seed_from_u64(seed));
            let path = write(directory.path(), name, &bytes);
            match catch_unwind(AssertUnwindSafe(|| read_everything(&path))) {
                Ok(Ok(_)) => still_read += 1,
                Ok(Err(error)) => assert!(error.to_string().contains(name), "{error}"),
                Err(_) => panic!("{name} of seed {seed} panics: {:?}", String::from_utf8_lossy(&bytes)),
            }
        }
        // Both must occur: mutations of scores, which stay readable, and of headers, which do not.
        assert!((ROUNDS / 100..ROUNDS * 9 / 10).contains(&still_read), "{name}: {still_read} read");
    }
}

#[test]
fn rows_of_any_bytes_agree_with_the_reference() {
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..4_000 {
        let length = rng.random_range(0..if round % 40 == 0 { 4_000 } else { 200 });
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        if round % 2 == 0 {
            // All scores share one f32 exponent. Else nearly every row has a NaN or one score far above all.
            bytes.iter_mut().skip(4).step_by(4).for_each(|byte| *byte = 0x3f);
        }
        compare_with_reference(&bytes);
    }
}
