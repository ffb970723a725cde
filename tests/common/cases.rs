//! The cases of `benches/cases.toml`: rows with what must be counted of them.

// Neither the test nor the bench needs all of it.
#![allow(dead_code)]

use critbeta::bench::{Case, cases::LAWS};
use critbeta::reference::Row;
use critbeta::{CriticalBeta, DType, cpu};
use serde::Deserialize;

const FILE: &str = include_str!("../../benches/cases.toml");
/// Seed of the rows.
pub const SEED: u64 = 1;
/// Lengths of the rows of every law.
const LENGTHS: [u64; 5] = [1 << 6, 1 << 12, 1 << 16, 1 << 20, 1 << 22];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    law: String,
    n: u64,
    rows: u64,
    checksum: String,
}

/// A case and the checksum of its rows.
pub struct Expected {
    pub case: Case,
    pub checksum: String,
}

/// All cases of the file: every law of the benches at every length.
pub fn read() -> Vec<Expected> {
    let file: File = toml::from_str(FILE).expect("benches/cases.toml");
    let found: Vec<_> = file.case.iter().map(|entry| (entry.law.as_str(), entry.n)).collect();
    let wanted: Vec<_> = LAWS.iter().flat_map(|&law| LENGTHS.map(|n| (law, n))).collect();
    assert_eq!(found, wanted, "the laws and lengths of benches/cases.toml");
    let one = |entry: Entry| {
        let case =
            Case::new(entry.rows, entry.n, DType::F32, &entry.law).expect("a case of benches/cases.toml");
        Expected { case, checksum: entry.checksum }
    };
    file.case.into_iter().map(one).collect()
}

/// The checksum as the working path has it.
pub fn counted(rows: &[Vec<f32>]) -> String {
    checksum(rows.iter().map(|row| cpu::critical_beta(row, 0.0)))
}

/// The checksum as the definition has it.
pub fn defined(rows: &[Vec<f32>]) -> String {
    checksum(rows.iter().map(|row| Row::from_f32(row).critical_beta()))
}

/// FNV-1a, 64 bits, over the contact rank of every row and the bits of its contact gap in f32: integers alone. The critical beta
/// follows from them by one logarithm, whose last bit is the C library's.
fn checksum(rows: impl Iterator<Item = CriticalBeta>) -> String {
    let words = rows.flat_map(|row| [row.contact_rank, (row.contact_gap as f32).to_bits().into()]);
    let bytes = words.flat_map(u64::to_le_bytes);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}
