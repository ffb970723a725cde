//! Element types of scores in files and buffers, and their conversion to the working f32.

use crate::{Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::fmt;

/// A floating-point element type that scores come in.
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
    /// All of them, widest first.
    pub const ALL: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::Bf16];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
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

    /// Reads the element at `bytes[at..]` exactly (every dtype here fits in f64).
    pub(crate) fn read(self, bytes: &[u8], at: usize) -> f64 {
        match self {
            DType::F64 => f64::from_le_bytes(array(bytes, at)),
            DType::F32 => f32::from_le_bytes(array(bytes, at)).into(),
            DType::F16 => f16::from_le_bytes(array(bytes, at)).into(),
            DType::Bf16 => bf16::from_le_bytes(array(bytes, at)).into(),
        }
    }

    /// Appends `values` as little-endian elements of this dtype, rounded to nearest even once.
    pub(crate) fn write(self, values: &[f64], out: &mut Vec<u8>) {
        out.reserve(values.len() * self.size_bytes());
        for &v in values {
            match self {
                DType::F64 => out.extend(v.to_le_bytes()),
                DType::F32 => out.extend((v as f32).to_le_bytes()),
                DType::F16 => out.extend(f16::from_f64(v).to_le_bytes()),
                DType::Bf16 => out.extend(bf16::from_f64(v).to_le_bytes()),
            }
        }
    }

    /// Replaces `out` by the contiguous elements of `bytes` as f32 scores and returns the shift
    /// that was taken off first: score = value in `out` + shift.
    ///
    /// f32, f16 and bf16 are exact and have shift 0. An f64 row is rebased on its largest finite
    /// score from `excluded` on before it is rounded, so that its gaps keep 24 bits whatever the row's
    /// offset or its sink; a score so low that its gap overflows f32 stays a finite (unmasked) score.
    pub(crate) fn decode_row(self, bytes: &[u8], excluded: usize, out: &mut Vec<f32>) -> f64 {
        out.clear();
        match self {
            DType::F64 => {
                let wide = bytes.chunks_exact(8).map(|c| f64::from_le_bytes(array(c, 0)));
                let shift = shift_of(wide.clone().skip(excluded));
                out.extend(wide.map(|v| rebased(v, shift)));
                return shift;
            }
            DType::F32 => out.extend(bytes.chunks_exact(4).map(|c| f32::from_le_bytes(array(c, 0)))),
            DType::F16 => {
                out.resize(bytes.len() / 2, 0.0);
                let mut halves = [f16::ZERO; 128];
                for (values, bytes) in out.chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                    let halves = &mut halves[..values.len()];
                    halves
                        .iter_mut()
                        .zip(bytes.chunks_exact(2))
                        .for_each(|(h, c)| *h = f16::from_le_bytes(array(c, 0)));
                    // By the slice: one by one each asks anew what the processor can do.
                    halves.convert_to_f32_slice(values);
                }
            }
            // The upper half of an f32: a NaN stays one without being asked whether it is.
            DType::Bf16 => out.extend(
                bytes
                    .chunks_exact(2)
                    .map(|c| f32::from_bits(u32::from(u16::from_le_bytes(array(c, 0))) << 16)),
            ),
        }
        0.0
    }
}

/// Writes a row of f64 scores to `out` as the f32 scores that this crate works on, and returns the shift that was
/// taken off first: score = value in `out` + shift.
///
/// The shift is the largest finite score, so that gaps keep 24 bits whatever the row's offset; a score so low that its gap
/// overflows f32 stays a finite (unmasked) score. Readers of f64 files do the same. Errors: [`Error::Scores`] unless
/// `out` is as long as the row.
pub fn rebase(scores: &[f64], out: &mut [f32]) -> Result<f64> {
    if scores.len() != out.len() {
        let detail = format!("{} f32 scores to write to, expected one per score", out.len());
        return Err(Error::Scores { rows: 1, cols: scores.len(), detail });
    }
    let shift = shift_of(scores.iter().copied());
    out.iter_mut().zip(scores).for_each(|(out, &score)| *out = rebased(score, shift));
    Ok(shift)
}

fn shift_of(scores: impl Iterator<Item = f64>) -> f64 {
    let top = scores.filter(|v| v.is_finite()).fold(f64::NEG_INFINITY, f64::max);
    if top.is_finite() { top } else { 0.0 }
}

fn rebased(v: f64, shift: f64) -> f32 {
    if v.is_finite() { ((v - shift) as f32).max(f32::MIN) } else { v as f32 }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&bytes[at..at + N]);
    a
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_rows_keep_their_gaps_under_a_huge_offset() {
        let bytes: Vec<u8> = [1e300, 1e300 - 1e284, f64::NEG_INFINITY, -1e300, 5.0]
            .iter()
            .flat_map(|v: &f64| v.to_le_bytes())
            .collect();
        let mut out = Vec::new();
        let shift = DType::F64.decode_row(&bytes, 0, &mut out);
        assert_eq!(shift, 1e300);
        assert_eq!(out[0], 0.0);
        assert_eq!(out[1], f32::MIN);
        assert_eq!(out[2], f32::NEG_INFINITY);
        assert_eq!(out[3], f32::MIN);
        let bytes: Vec<u8> = [1e9, 1e9 - 1e-4].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
        DType::F64.decode_row(&bytes, 0, &mut out);
        assert_eq!(out[1], (1e9 - 1e-4 - 1e9) as f32);
        let mut row = [0.0; 2];
        assert_eq!(rebase(&[1e9, 1e9 - 1e-4], &mut row).unwrap(), 1e9);
        assert_eq!(row, out[..]);
        let error = rebase(&[1.0; 3], &mut row).unwrap_err().to_string();
        assert!(error.contains("3 columns") && error.contains("2 f32 scores"), "{error}");
        // A sink that is left out does not round the others.
        let bytes: Vec<u8> = [1e300, 0.1, 0.2].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
        assert_eq!(DType::F64.decode_row(&bytes, 1, &mut out), 0.2);
        assert_eq!(out[1..], [(0.1f64 - 0.2) as f32, 0.0]);
    }

    #[test]
    fn every_dtype_round_trips_its_own_values() {
        for d in DType::ALL {
            let values = [0.0, 1.0, -2.5, 0.15625, f64::NEG_INFINITY, f64::INFINITY];
            let mut bytes = Vec::new();
            d.write(&values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * d.size_bytes());
            for (i, v) in values.iter().enumerate() {
                assert_eq!(d.read(&bytes, i * d.size_bytes()), *v, "{d}");
            }
            assert_eq!(d.name().parse::<DType>(), Ok(d));
        }
    }
}
