//! Element types of scores in files and buffers, and their conversion to the working f32.

use half::{bf16, f16};
use std::fmt;

/// A floating-point element type of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary64, little endian.
    F64,
    /// IEEE binary32, little endian.
    F32,
    /// IEEE binary16, little endian.
    F16,
    /// bfloat16, little endian.
    Bf16,
}

impl DType {
    /// All element types, widest first.
    pub const ALL: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::Bf16];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// Scores below this are masked, as -inf is. It is half of the lowest finite number of this type. Models
    /// add that number to the scores of masked keys, and a score or a bias may be in the sum. For f64 it is
    /// that of f32, the working type: most f64 scores were f32 before, as numbers of a Python list are.
    pub const fn masked_below(self) -> f64 {
        let lowest = match self {
            DType::F64 | DType::F32 => f32::MIN as f64,
            DType::F16 => f16::MIN.to_f64_const(),
            DType::Bf16 => bf16::MIN.to_f64_const(),
        };
        lowest / 2.0
    }

    /// The lower-case name used on command lines: `f64`, `f32`, `f16`, `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }
}

/// The shift that is subtracted from the f64 scores of a row before they become f32 scores. It is the largest
/// finite score that is not masked, or 0 if there is none. Gaps then keep 24 bits, whatever the offset of the
/// row is.
pub fn rebase_shift(scores: impl Iterator<Item = f64>) -> f64 {
    let visible = scores.filter(|&v| v.is_finite() && v >= DType::F64.masked_below());
    let top = visible.fold(f64::NEG_INFINITY, f64::max);
    if top.is_finite() { top } else { 0.0 }
}

/// `score - shift`, rounded to f32 once. A score that [`DType::masked_below`] calls masked becomes -inf. Any
/// other finite score becomes at least half of f32's lowest, so it stays unmasked.
pub fn rebased(score: f64, shift: f64) -> f32 {
    if score < DType::F64.masked_below() {
        f32::NEG_INFINITY
    } else if score.is_finite() {
        ((score - shift) as f32).max(DType::F32.masked_below() as f32)
    } else {
        score as f32
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        DType::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| format!("unknown dtype {s:?}: expected f64, f32, f16 or bf16"))
    }
}
