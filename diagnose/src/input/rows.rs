//! Rows of one tensor of a mapped file. A row is decoded when it is read.

use super::elements;
use super::mapped::MappedBytes;
use critbeta::DType;
use std::ops::Range;

/// Order of a tensor's elements in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Row-major: the last dimension is contiguous.
    C,
    /// Column-major: the first dimension is contiguous.
    Fortran,
}

/// `heads` x `rows` x `cols` elements of a float tensor. All dimensions but the last two are heads.
#[derive(Debug, Clone)]
pub struct FileRows {
    bytes: MappedBytes,
    dtype: DType,
    shape: Vec<usize>,
    order: Order,
    heads: usize,
}

/// Elements of a tensor of this shape, or `None` if they overflow. The check takes zero dimensions as
/// one, so that no partial product of the shape overflows either.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d.max(1)))?;
    Some(shape.iter().product())
}

impl FileRows {
    /// Errors: the message says what was expected. `bytes` must hold exactly the elements of `shape`, which
    /// must have at least one dimension, and at least one column where there are rows.
    pub(super) fn new(
        bytes: MappedBytes,
        dtype: DType,
        shape: Vec<usize>,
        order: Order,
    ) -> Result<Self, String> {
        let Some((&cols, before)) = shape.split_last() else {
            return Err("a single number is no row of scores: expected at least one dimension".into());
        };
        let needed = elements(&shape).and_then(|count| count.checked_mul(dtype.size_bytes()));
        let Some(needed) = needed else { return Err("the number of its elements overflows".into()) };
        if needed != bytes.len() {
            return Err(format!("holds {} bytes, expected {needed}", bytes.len()));
        }
        let heads = before.split_last().map_or(1, |(_, heads)| heads.iter().product());
        if cols == 0 && before.iter().all(|&d| d > 0) {
            return Err("has rows of zero columns, expected at least one".into());
        }
        Ok(FileRows { bytes, dtype, shape, order, heads })
    }

    /// Element type in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape as in the file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Order of the elements in the file.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Product of all dimensions but the last two; 1 for one or two dimensions.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// The last dimension but one; 1 for one dimension.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().nth(1).copied().unwrap_or(1)
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Whether there is no row at all.
    pub fn is_empty(&self) -> bool {
        self.heads == 0 || self.rows() == 0
    }

    /// Replaces `out` by row `row` of head `head` as scores and returns the shift that was subtracted:
    /// score = value in `out` + shift. The shift is 0 unless the tensor is f64. It does not depend on the
    /// first `excluded` scores. A score below half of the lowest number of the dtype is masked: it becomes
    /// -inf.
    ///
    /// Panics unless `head < heads` and `row < rows`, as slice indexing does.
    pub fn read_row(&self, head: usize, row: usize, excluded: usize, out: &mut Vec<f32>) -> f64 {
        assert!(head < self.heads && row < self.rows(), "head {head} row {row} of {:?}", self.shape);
        let shift = match self.order {
            Order::C => elements::decode_row(self.dtype, self.span(head, row..row + 1), excluded, out),
            Order::Fortran => elements::decode_row(self.dtype, &self.gather(head, row), excluded, out),
        };
        elements::mask_lowest(self.dtype, out);
        shift
    }

    /// Appends the rows `rows` of head `head` as plain values, each rounded to f32 once.
    ///
    /// Panics as [`FileRows::read_row`] does. The order must be [`Order::C`].
    pub(super) fn append_values(&self, head: usize, rows: Range<usize>, out: &mut Vec<f32>) {
        assert!(
            head < self.heads && rows.end <= self.rows(),
            "head {head} rows {rows:?} of {:?}",
            self.shape
        );
        elements::append_values(self.dtype, self.span(head, rows), out);
    }

    fn span(&self, head: usize, rows: Range<usize>) -> &[u8] {
        let row_bytes = self.cols() * self.dtype.size_bytes();
        let first = head * self.rows();
        &self.bytes[(first + rows.start) * row_bytes..(first + rows.end) * row_bytes]
    }

    /// The bytes of a row whose elements are not contiguous.
    fn gather(&self, head: usize, row: usize) -> Vec<u8> {
        let size = self.dtype.size_bytes();
        let (cols, rows) = (self.cols(), self.rows());
        let leading = &self.shape[..self.shape.len().saturating_sub(2)];
        // The head index counts in row-major order whatever the file's order is.
        let (mut left, mut dims) = (head, Vec::with_capacity(leading.len()));
        for &d in leading.iter().rev() {
            dims.push(left % d);
            left /= d;
        }
        let base = dims.iter().zip(leading.iter().rev()).fold(row, |at, (&i, &d)| at * d + i);
        let stride = self.heads * rows;
        let element = |col: usize| (base + col * stride) * size;
        (0..cols).flat_map(|col| self.bytes[element(col)..][..size].iter().copied()).collect()
    }
}
