//! A legal block of score rows is a checked, borrowed view.

use crate::{DType, Error, Result};
use half::{bf16, f16};

/// An element type of score rows in memory: f32, f16 or bf16. Every value converts to the working f32
/// exactly.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The name of this type among the element types.
    const DTYPE: DType;

    /// The value as f32.
    fn to_f32(self) -> f32;

    /// The score as f32. It is -inf if it is masked: -inf itself, or below [`DType::masked_below`].
    fn score(self) -> f32 {
        let value = self.to_f32();
        if value < Self::DTYPE.masked_below() as f32 { f32::NEG_INFINITY } else { value }
    }

    /// `value` rounded to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

/// Only this crate implements [`Element`]. The row algorithms pad with -inf, which another type may not have.
mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

/// `rows` x `cols` attention scores in row-major order. Row `r` begins at `r * stride`.
///
/// Scores are the logits that the softmax sees at beta = 1. A score of -inf is masked, and so is one below
/// half of the lowest finite number of its type ([`DType::masked_below`]). With lengths, row `r` has
/// `lens[r] <= cols` scores, and the elements behind them are never read.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a, T: Element = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
    lens: Option<&'a [u32]>,
}

impl<'a, T: Element> Scores<'a, T> {
    /// A dense view: the stride is `cols`, and every row is full.
    ///
    /// Errors: [`Error::Scores`] unless `data` holds exactly `rows * cols` elements.
    pub fn dense(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        let view = Scores::strided(data, rows, cols, cols)?;
        if data.len() != rows * cols {
            let detail = format!("the buffer holds {} elements, expected {}", data.len(), rows * cols);
            return Err(Error::Scores { rows, cols, detail });
        }
        Ok(view)
    }

    /// A view of rows that begin `stride` elements apart.
    ///
    /// Errors: [`Error::Scores`] if `stride < cols` or the last row reaches beyond `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        let fail = |detail| Err(Error::Scores { rows, cols, detail });
        if stride < cols {
            return fail(format!("rows {stride} elements apart would overlap"));
        }
        let needed = match rows.checked_sub(1) {
            None => Some(0),
            Some(last) => last.checked_mul(stride).and_then(|start| start.checked_add(cols)),
        };
        match needed {
            Some(needed) if needed <= data.len() => Ok(Scores { data, rows, cols, stride, lens: None }),
            _ => fail(format!(
                "with stride {stride} the rows reach beyond the buffer of {} elements",
                data.len()
            )),
        }
    }

    /// The same rows with their own lengths.
    ///
    /// Errors: [`Error::Scores`] unless each row has one length, at most the columns.
    pub fn with_lens(self, lens: &'a [u32]) -> Result<Self> {
        let fail = |detail| Err(Error::Scores { rows: self.rows, cols: self.cols, detail });
        if lens.len() != self.rows {
            return fail(format!("{} row lengths given, expected one per row", lens.len()));
        }
        if let Some(row) = lens.iter().position(|&len| len as usize > self.cols) {
            return fail(format!("length {} of row {row} exceeds the columns", lens[row]));
        }
        Ok(Scores { lens: Some(lens), ..self })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Allocated width of a row in elements. Its length may be less.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The scores of row `row`, up to its length.
    ///
    /// Panics if `row >= rows`, as slice indexing does.
    pub fn row(&self, row: usize) -> &'a [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let len = self.lens.map_or(self.cols, |lens| lens[row] as usize);
        &self.data[row * self.stride..][..len]
    }

    /// The 0-based query position of row `row` if the caller gives none. It is the last unmasked key, or 0 if
    /// there is none.
    ///
    /// Panics as [`Scores::row`] does.
    pub fn last_visible(&self, row: usize) -> u64 {
        last_visible(self.row(row))
    }
}

/// The position of a row if the caller gives none: its last unmasked key.
pub(crate) fn last_visible<T: Element>(scores: &[T]) -> u64 {
    scores.iter().rposition(|s| s.score() != f32::NEG_INFINITY).unwrap_or(0) as u64
}

/// Score rows that are replaced by their probabilities. They are like [`Scores`], but borrowed for writing.
#[derive(Debug)]
pub struct ScoresMut<'a, T: Element = f32> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    stride: usize,
    lens: Option<&'a [u32]>,
}

impl<'a, T: Element> ScoresMut<'a, T> {
    /// Like [`Scores::dense`], with the same errors.
    pub fn dense(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        Scores::dense(data, rows, cols)?;
        Ok(ScoresMut { data, rows, cols, stride: cols, lens: None })
    }

    /// Like [`Scores::strided`], with the same errors.
    pub fn strided(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        Scores::strided(data, rows, cols, stride)?;
        Ok(ScoresMut { data, rows, cols, stride, lens: None })
    }

    /// Like [`Scores::with_lens`], with the same errors.
    pub fn with_lens(self, lens: &'a [u32]) -> Result<Self> {
        self.as_scores().with_lens(lens)?;
        Ok(ScoresMut { lens: Some(lens), ..self })
    }

    /// The same rows, for reading.
    pub fn as_scores(&self) -> Scores<'_, T> {
        let &ScoresMut { ref data, rows, cols, stride, lens } = self;
        Scores { data, rows, cols, stride, lens }
    }

    /// Every row with all its columns, and its length.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = (usize, &mut [T])> {
        let (cols, lens) = (self.cols, self.lens);
        // The last row may end before its stride does. Rows without columns have no chunk of their own.
        let rows = self.data.chunks_mut(self.stride.max(1)).take(if cols == 0 { 0 } else { self.rows });
        rows.enumerate()
            .map(move |(row, data)| (lens.map_or(cols, |lens| lens[row] as usize), &mut data[..cols]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_where_their_length_says() {
        let data: Vec<f32> = (0..11).map(|v| v as f32).collect();
        let view = Scores::strided(&data, 3, 3, 4).unwrap().with_lens(&[3, 0, 2]).unwrap();
        assert_eq!(view.row(0), &[0.0, 1.0, 2.0]);
        assert_eq!(view.row(1), &[] as &[f32]);
        assert_eq!(view.row(2), &[8.0, 9.0]);
        assert_eq!([0, 1, 2].map(|row| view.last_visible(row)), [2, 0, 1]);
        let masked = [half::f16::ONE, half::f16::ONE, half::f16::NEG_INFINITY];
        assert_eq!(Scores::dense(&masked, 1, 3).unwrap().last_visible(0), 1);
        assert_eq!(Scores::<f32>::dense(&[], 0, 7).unwrap().rows(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers() {
        let data = [0.0f32; 6];
        let message = |r: Result<Scores<f32>>| r.unwrap_err().to_string();
        assert!(message(Scores::dense(&data, 2, 4)).contains("2 rows x 4 columns"));
        assert!(message(Scores::dense(&data, 2, 2)).contains("6 elements, expected 4"));
        assert!(message(Scores::strided(&data, 2, 3, 2)).contains("overlap"));
        assert!(message(Scores::strided(&data, usize::MAX, 3, usize::MAX)).contains("beyond"));
        let view = Scores::dense(&data, 2, 3).unwrap();
        assert!(message(view.with_lens(&[3])).contains("1 row lengths"));
        assert!(message(view.with_lens(&[3, 4])).contains("length 4 of row 1"));
    }
}
