//! Turns elements of files into scores, and back.

use critbeta::{DType, rebase_shift, rebased};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Reads the element at `bytes[at..]` exactly: every dtype here fits in f64.
pub(crate) fn read(dtype: DType, bytes: &[u8], at: usize) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(array(bytes, at)),
        DType::F32 => f32::from_le_bytes(array(bytes, at)).into(),
        DType::F16 => f16::from_le_bytes(array(bytes, at)).into(),
        DType::Bf16 => bf16::from_le_bytes(array(bytes, at)).into(),
    }
}

/// Appends `values` as little-endian elements of `dtype`, rounded to nearest even once.
pub(crate) fn write(dtype: DType, values: &[impl Copy + Into<f64>], out: &mut Vec<u8>) {
    out.reserve(values.len() * dtype.size_bytes());
    for v in values.iter().map(|&value| value.into()) {
        match dtype {
            DType::F64 => out.extend(v.to_le_bytes()),
            DType::F32 => out.extend((v as f32).to_le_bytes()),
            DType::F16 => out.extend(f16::from_f64(v).to_le_bytes()),
            DType::Bf16 => out.extend(bf16::from_f64(v).to_le_bytes()),
        }
    }
}

/// Replaces the scores that `dtype` calls masked by -inf. Afterwards f32 holds them, whose lowest number is
/// another.
pub(crate) fn mask_lowest(dtype: DType, scores: &mut [f32]) {
    // f64 scores were masked before their shift.
    let below = if dtype == DType::F64 { f32::NEG_INFINITY } else { dtype.masked_below() as f32 };
    for score in scores {
        *score = if *score < below { f32::NEG_INFINITY } else { *score };
    }
}

/// Replaces `out` by the contiguous elements of `bytes` as f32 scores and returns the shift
/// that was subtracted first: score = value in `out` + shift.
///
/// f32, f16 and bf16 are exact and have shift 0. The largest finite score from `excluded` on is subtracted
/// from an f64 row before it is rounded, so its gaps keep 24 bits at any offset and beside any sink. If the
/// gap of a low score overflows f32, the score stays finite: it is not masked.
pub(crate) fn decode_row(dtype: DType, bytes: &[u8], excluded: usize, out: &mut Vec<f32>) -> f64 {
    out.clear();
    if dtype != DType::F64 {
        append_values(dtype, bytes, out);
        return 0.0;
    }
    let wide = bytes.chunks_exact(8).map(|c| f64::from_le_bytes(array(c, 0)));
    let shift = rebase_shift(wide.clone().skip(excluded));
    out.extend(wide.map(|v| rebased(v, shift)));
    shift
}

/// Appends the contiguous elements of `bytes` as plain values, each rounded to f32 once. No shift is
/// subtracted: elements of a query or key are not scores.
pub(crate) fn append_values(dtype: DType, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        DType::F64 => out.extend(bytes.chunks_exact(8).map(|c| f64::from_le_bytes(array(c, 0)) as f32)),
        DType::F32 => out.extend(bytes.chunks_exact(4).map(|c| f32::from_le_bytes(array(c, 0)))),
        DType::F16 => {
            let begin = out.len();
            out.resize(begin + bytes.len() / 2, 0.0);
            let mut halves = [f16::ZERO; 128];
            for (values, bytes) in out[begin..].chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                let halves = &mut halves[..values.len()];
                halves
                    .iter_mut()
                    .zip(bytes.chunks_exact(2))
                    .for_each(|(h, c)| *h = f16::from_le_bytes(array(c, 0)));
                // The slice is converted at once: one by one, each call would query the processor's features.
                halves.convert_to_f32_slice(values);
            }
        }
        // A bf16 is the upper half of an f32, so a NaN stays one without a check.
        DType::Bf16 => out.extend(
            bytes.chunks_exact(2).map(|c| f32::from_bits(u32::from(u16::from_le_bytes(array(c, 0))) << 16)),
        ),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&bytes[at..at + N]);
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_rows_keep_their_gaps_under_a_huge_offset() {
        let bytes: Vec<u8> = [1e300, 1e300 - 1e284, f64::NEG_INFINITY, -1e38, 5.0, -1e300]
            .iter()
            .flat_map(|v: &f64| v.to_le_bytes())
            .collect();
        let mut out = Vec::new();
        let shift = decode_row(DType::F64, &bytes, 0, &mut out);
        assert_eq!(shift, 1e300);
        assert_eq!(out[0], 0.0);
        assert_eq!(out[1], f32::MIN / 2.0);
        assert_eq!(out[2], f32::NEG_INFINITY);
        assert_eq!(out[3..], [f32::MIN / 2.0, f32::MIN / 2.0, f32::NEG_INFINITY]);
        let bytes: Vec<u8> = [1e9, 1e9 - 1e-4].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
        decode_row(DType::F64, &bytes, 0, &mut out);
        assert_eq!(out[1], (1e9 - 1e-4 - 1e9) as f32);
        // A sink that is left out does not affect the rounding of the others.
        let bytes: Vec<u8> = [1e300, 0.1, 0.2].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
        assert_eq!(decode_row(DType::F64, &bytes, 1, &mut out), 0.2);
        assert_eq!(out[1..], [(0.1f64 - 0.2) as f32, 0.0]);
    }

    #[test]
    fn every_dtype_round_trips_its_own_values() {
        for d in DType::ALL {
            let values = [0.0, 1.0, -2.5, 0.15625, f64::NEG_INFINITY, f64::INFINITY];
            let mut bytes = Vec::new();
            write(d, &values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * d.size_bytes());
            for (i, v) in values.iter().enumerate() {
                assert_eq!(read(d, &bytes, i * d.size_bytes()), *v, "{d}");
            }
            assert_eq!(d.name().parse::<DType>(), Ok(d));
        }
    }
}
