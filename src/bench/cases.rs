//! What is measured: shapes, dtypes and laws.

use crate::families::Family;
use crate::{DType, Error, Result};

/// Rows of one shape, dtype and law.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub n: u64,
    /// f32, f16 or bf16.
    pub dtype: DType,
    /// What the scores are drawn from.
    pub law: Family,
}

/// The test laws, in the order and under the names that every script uses.
pub const LAWS: [&str; 9] =
    ["gaussian", "sink", "needles", "student-t", "log-grid", "equal", "masked", "bf16", "ascending"];

/// Bytes of scores of the cases with many rows: several times any L2 cache.
const MANY_BYTES: u64 = 256 << 20;

impl Case {
    /// A case of `law`, by its name in [`LAWS`] or with a parameter as `critbeta families` reads it.
    ///
    /// Errors: [`Error::Settings`] for an unknown law, for zero rows or columns, and for f64.
    pub fn new(rows: u64, n: u64, dtype: DType, law: &str) -> Result<Case> {
        let law = law.parse().map_err(|detail| Error::Settings { detail })?;
        if rows == 0 || n == 0 || dtype == DType::F64 {
            let detail =
                format!("a bench of {rows} rows x {n} {dtype}: expected rows, columns and f32, f16 or bf16");
            return Err(Error::Settings { detail });
        }
        Ok(Case { rows, n, dtype, law })
    }

    /// As many rows of `n` as make 256 MiB of scores.
    ///
    /// Errors: as [`Case::new`].
    pub fn many(n: u64, dtype: DType, law: &str) -> Result<Case> {
        let row_bytes = n.saturating_mul(dtype.size_bytes() as u64);
        Case::new((MANY_BYTES / row_bytes.max(1)).max(1), n, dtype, law)
    }

    /// Bytes that a softmax must move: each score read once, each probability, of the same dtype, written once.
    pub fn moved_bytes(&self) -> u64 {
        2 * self.rows * self.n * self.dtype.size_bytes() as u64
    }
}

/// The ladder: many rows of 4K to 1M in f32 and bf16, every law at two lengths, and 1 to 8 long rows.
///
/// Errors: none but those of [`Case::new`], which would be a defect of the table.
pub fn ladder() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        for log_n in 12..=20 {
            cases.push(Case::many(1 << log_n, dtype, "gaussian")?);
        }
    }
    for law in LAWS.into_iter().filter(|&law| law != "gaussian") {
        for n in [1 << 15, 1 << 18] {
            cases.push(Case::many(n, DType::F32, law)?);
        }
    }
    for rows in [1, 2, 4, 8] {
        for log_n in 17..=20 {
            cases.push(Case::new(rows, 1 << log_n, DType::F32, "gaussian")?);
        }
    }
    for rows in [1, 8] {
        for n in [1 << 17, 1 << 20] {
            cases.push(Case::new(rows, n, DType::Bf16, "gaussian")?);
        }
    }
    Ok(cases)
}

/// A case for each scope and some laws, small enough for the simulator and for a memory checker; times of them mean nothing.
///
/// Errors: as [`ladder`].
pub fn small() -> Result<Vec<Case>> {
    let shapes =
        [(5, 300, DType::F32), (3, 5000, DType::Bf16), (2, 40_000, DType::F32), (1, 150_000, DType::F16)];
    let laws = LAWS.into_iter().cycle();
    shapes
        .into_iter()
        .cycle()
        .take(LAWS.len())
        .zip(laws)
        .map(|((rows, n, dtype), law)| Case::new(rows, n, dtype, law))
        .collect()
}
