//! What a plan is made for.

use super::variants::Family;
use crate::DType;

/// The part of a call that its plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Rows, 1 to 2^31 - 1.
    pub rows: u64,
    /// Columns, 1 to 2^24.
    pub cols: u64,
    /// Element type of the scores: f32, f16 or bf16.
    pub dtype: DType,
    /// What the kernel does with each row.
    pub(super) family: Family,
}

impl Problem {
    /// The problem of writing the probabilities of `rows` x `cols` scores.
    pub fn softmax(rows: u64, cols: u64, dtype: DType) -> Problem {
        Problem { rows, cols, dtype, family: Family::CriticalSoftmax }
    }

    /// The problem of reporting on `rows` rows of `cols` scores, without probabilities.
    pub fn statistics(rows: u64, cols: u64, dtype: DType) -> Problem {
        Problem { rows, cols, dtype, family: Family::GapProfile }
    }
}
