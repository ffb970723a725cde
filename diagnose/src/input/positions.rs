//! Query positions: the key that each row stands at.

use super::mapped::MappedBytes;
use super::named::NamedTensors;
use super::safetensors::Tensor;
use critbeta::Result;
use safetensors::Dtype;
use std::sync::Arc;

/// 0-based positions of rows. They are decoded one by one, because a file may hold any number of rows.
#[derive(Debug, Clone)]
pub(super) enum Positions {
    /// Row r stands at `first + r`.
    Consecutive { first: u64 },
    /// Positions in memory that were checked.
    Given(Arc<[u64]>),
    /// A tensor of integers that was checked.
    Stored { bytes: MappedBytes, integer: Integer, largest: u64 },
}

/// An integer dtype, little endian.
#[derive(Debug, Clone, Copy)]
pub(super) struct Integer {
    size: usize,
    signed: bool,
}

impl Integer {
    fn of(dtype: Dtype) -> Option<Self> {
        let (size, signed) = match dtype {
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
        Some(Integer { size, signed })
    }

    fn decode(self, bytes: &[u8]) -> i128 {
        // This is two's complement: the top byte has the sign.
        let unsigned = bytes.iter().rev().fold(0i128, |n, &byte| n << 8 | i128::from(byte));
        let negative = self.signed && bytes.last().is_some_and(|&top| top > 0x7f);
        if negative { unsigned - (1 << (8 * self.size)) } else { unsigned }
    }
}

impl Positions {
    /// How many positions the file has for `name`, if it has any.
    pub(super) fn count(file: &NamedTensors, name: &str) -> Option<usize> {
        let [count] = tensor(file, name)?.shape[..] else { return None };
        Some(count)
    }

    /// The positions of the `rows` rows of `name`: `NAME.positions`, else `positions`, else `None`.
    ///
    /// Errors: [`crate::Error::Tensor`] unless they are one integer per row, each in 0..limit.
    pub(super) fn of(
        file: &NamedTensors,
        name: &str,
        rows: usize,
        limit: Option<usize>,
    ) -> Result<Option<Self>> {
        let Some(tensor) = tensor(file, name) else { return Ok(None) };
        if tensor.shape != [rows] {
            return Err(file.fail(tensor, format!("expected [{rows}], one position per row of {name:?}")));
        }
        let integer =
            Integer::of(tensor.dtype).ok_or_else(|| file.fail(tensor, "expected an integer dtype"))?;
        check(file, tensor, integer, limit)?;
        let largest = limit.map_or(u64::MAX, |limit| (limit as u64).saturating_sub(1));
        Ok(Some(Positions::Stored { bytes: tensor.bytes.clone(), integer, largest }))
    }

    /// The position of row `row`.
    ///
    /// Panics unless `row` is one of the tensor's rows, as slice indexing does.
    pub(super) fn at(&self, row: usize) -> u64 {
        match self {
            Positions::Consecutive { first } => first + row as u64,
            Positions::Given(positions) => positions[row],
            Positions::Stored { bytes, integer, largest } => {
                let value = integer.decode(&bytes[row * integer.size..][..integer.size]);
                // This was checked at the open. If the file has changed since, it stays a legal index.
                u64::try_from(value).unwrap_or(0).min(*largest)
            }
        }
    }
}

/// The positions of `name`: its own, else those for all.
fn tensor<'a>(file: &'a NamedTensors, name: &str) -> Option<&'a Tensor> {
    file.tensor(&format!("{name}.positions")).or_else(|| file.tensor("positions"))
}

fn check(file: &NamedTensors, tensor: &Tensor, integer: Integer, limit: Option<usize>) -> Result<()> {
    for (r, bytes) in tensor.bytes.chunks_exact(integer.size).enumerate() {
        let value = integer.decode(bytes);
        if value < 0 {
            return Err(file.fail(tensor, format!("positions[{r}] is {value}, expected 0 or more")));
        }
        if let Some(keys) = limit.filter(|&keys| value >= keys as i128) {
            return Err(
                file.fail(tensor, format!("positions[{r}] is {value}, expected below the {keys} keys"))
            );
        }
    }
    Ok(())
}
