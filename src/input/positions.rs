//! Query positions: which key each row stands at.

use super::safetensors::{SafetensorsFile, Tensor};
use crate::Result;
use safetensors::Dtype;
use std::sync::Arc;

/// The positions of the `rows` rows of tensor or pair `name`: `NAME.positions`, else `positions`, else `None`.
///
/// Errors: [`crate::Error::Tensor`] unless they are one non-negative integer per row.
pub(super) fn positions(file: &SafetensorsFile, name: &str, rows: usize) -> Result<Option<Arc<[u64]>>> {
    let own = file.tensor(&format!("{name}.positions"));
    let Some(tensor) = own.or_else(|| file.tensor("positions")) else { return Ok(None) };
    if tensor.shape != [rows] {
        return Err(file.fail(tensor, format!("expected [{rows}], one position per row of {name:?}")));
    }
    let values = integers(tensor).ok_or_else(|| file.fail(tensor, "expected an integer dtype"))?;
    let unsigned = |(r, value): (usize, i128)| {
        value
            .try_into()
            .map_err(|_| file.fail(tensor, format!("positions[{r}] is {value}, expected 0 or more")))
    };
    values.into_iter().enumerate().map(unsigned).collect::<Result<_>>().map(Some)
}

fn integers(tensor: &Tensor) -> Option<Vec<i128>> {
    let (size, signed) = match tensor.dtype {
        Dtype::I64 => (8, true),
        Dtype::U64 => (8, false),
        Dtype::I32 => (4, true),
        Dtype::U32 => (4, false),
        Dtype::I16 => (2, true),
        Dtype::U16 => (2, false),
        Dtype::I8 => (1, true),
        Dtype::U8 => (1, false),
        _ => return None,
    };
    let integer = |bytes: &[u8]| {
        // Two's complement: the top byte counts as signed.
        let unsigned = bytes.iter().rev().fold(0i128, |n, &byte| n << 8 | i128::from(byte));
        if signed && bytes[size - 1] > 0x7f { unsigned - (1 << (8 * size)) } else { unsigned }
    };
    Some(tensor.bytes.chunks_exact(size).map(integer).collect())
}
