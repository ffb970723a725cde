//! NumPy arrays as blocks of score rows, without a copy unless they are f64. Only this file and `cuda.rs`
//! have unsafe code.
#![allow(unsafe_code)]

use crate::errors::raised;
use critbeta::{Element, Scores, rebase_shift, rebased};
use half::{bf16, f16};
use numpy::{Element as NumpyElement, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use numpy::{PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use rayon::prelude::*;

/// A borrowed array [rows, n] of float64, float32, float16 or uint16. NumPy has no bfloat16, so uint16 holds
/// its bits.
pub enum Block<'py> {
    F64(PyReadonlyArray2<'py, f64>),
    F32(PyReadonlyArray2<'py, f32>),
    F16(PyReadonlyArray2<'py, f16>),
    Bf16(PyReadonlyArray2<'py, u16>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Block<'py> {
    type Error = PyErr;

    fn extract(array: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArray2<f32>>() {
            read(&array).map(Block::F32)
        } else if let Ok(array) = array.cast::<PyArray2<f16>>() {
            read(&array).map(Block::F16)
        } else if let Ok(array) = array.cast::<PyArray2<u16>>() {
            read(&array).map(Block::Bf16)
        } else if let Ok(array) = array.cast::<PyArray2<f64>>() {
            read(&array).map(Block::F64)
        } else {
            Err(PyTypeError::new_err("expected rows of float64, float32, float16 or the bits of bfloat16"))
        }
    }
}

fn read<'py, T: NumpyElement>(array: &Bound<'py, PyArray2<T>>) -> PyResult<PyReadonlyArray2<'py, T>> {
    array.try_readonly().map_err(|_| PyValueError::new_err("the scores are being written by another call"))
}

/// The rows of a block, usable without the interpreter lock.
pub struct ScoreRows<'a> {
    pub data: Data<'a>,
    pub rows: usize,
    pub cols: usize,
    stride: usize,
    lens: Option<Vec<u32>>,
}

pub enum Data<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Block<'_> {
    /// The rows of the array, with the lengths `lens` unless all rows are full.
    ///
    /// Errors: ValueError for lengths that do not fit; MemoryError if there is no memory for the records of
    /// the rows.
    pub fn rows(&self, lens: Option<&PyReadonlyArray1<i64>>) -> PyResult<ScoreRows<'_>> {
        let shape = match self {
            Block::F64(array) => array.shape(),
            Block::F32(array) => array.shape(),
            Block::F16(array) => array.shape(),
            Block::Bf16(array) => array.shape(),
        };
        let (rows, cols) = (shape[0], shape[1]);
        // An array without columns can have any number of rows, because it needs no memory.
        if Vec::<critbeta_diagnose::RowRecord>::new().try_reserve_exact(rows).is_err() {
            return Err(PyMemoryError::new_err(format!("no memory for the records of {rows} rows")));
        }
        let (data, stride) = match self {
            Block::F64(array) => span(array).map(|(span, stride)| (Data::F64(span), stride))?,
            Block::F32(array) => span(array).map(|(span, stride)| (Data::F32(span), stride))?,
            Block::F16(array) => span(array).map(|(span, stride)| (Data::F16(span), stride))?,
            Block::Bf16(array) => {
                let (span, stride) = span(array)?;
                (Data::Bf16(bytemuck::cast_slice(span)), stride)
            }
        };
        let lens = lens.map(|lens| lengths(lens, rows, cols)).transpose()?;
        Ok(ScoreRows { data, rows, cols, stride, lens })
    }
}

/// The elements of an array from the first to the last, and the stride of its rows.
///
/// Errors: ValueError unless rows are contiguous and do not overlap.
fn span<'a, T: NumpyElement>(array: &'a PyReadonlyArray2<'_, T>) -> PyResult<(&'a [T], usize)> {
    let (rows, cols) = (array.shape()[0], array.shape()[1]);
    if rows == 0 || cols == 0 {
        return Ok((&[], cols));
    }
    if let Ok(dense) = array.as_slice() {
        return Ok((dense, cols));
    }
    let (size, strides) = (size_of::<T>() as isize, array.strides());
    let stride = usize::try_from(strides[0] / size).unwrap_or(0);
    let count = (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols));
    let fits = (cols == 1 || strides[1] == size) && strides[0] % size == 0 && stride >= cols;
    let first = array.data().cast_const();
    match count {
        // SAFETY: NumPy vouches for every element of the array. The strides were just checked: the elements
        // ascend in one allocation, from `first` to `first + count`, and `first` is aligned. The bytes
        // between two rows are in it too. Every pattern of them is a T (a float or an integer), and nobody
        // reads them, because `Scores` reads only rows. The borrow ends with `array`, which keeps the memory
        // alive. Its flag prevents writes through rust-numpy.
        Some(count) if fits && first.is_aligned() => {
            Ok((unsafe { std::slice::from_raw_parts(first, count) }, stride))
        }
        _ => Err(PyValueError::new_err(format!(
            "rows of shape [{rows}, {cols}] with strides {strides:?} bytes: \
             expected contiguous, aligned rows apart"
        ))),
    }
}

/// Row lengths in the type of the crate. Errors: ValueError unless each row has one within 0..=cols.
pub fn lengths(lens: &PyReadonlyArray1<i64>, rows: usize, cols: usize) -> PyResult<Vec<u32>> {
    let of_row = |row, len| match u32::try_from(len) {
        Ok(len) if len as usize <= cols => Ok(len),
        _ => Err(format!("lens: {len} of row {row}, expected 0 to the {cols} columns")),
    };
    each("lens", lens, rows, of_row)
}

/// Query positions or counts in the type of the crate. Errors: ValueError unless each row has one of at least
/// 0.
pub fn indices(name: &str, values: &PyReadonlyArray1<i64>, rows: usize) -> PyResult<Vec<u64>> {
    let of_row = |row, found| {
        u64::try_from(found).map_err(|_| format!("{name}: {found} of row {row}, expected 0 or more"))
    };
    each(name, values, rows, of_row)
}

/// Query positions for a softmax. Errors: ValueError unless each row has one within 32 bits.
pub fn places(positions: &PyReadonlyArray1<i64>, rows: usize) -> PyResult<Vec<u32>> {
    let of_row = |row, found| {
        let message = || format!("positions: {found} of row {row}, expected 0 to {}", u32::MAX);
        u32::try_from(found).map_err(|_| message())
    };
    each("positions", positions, rows, of_row)
}

fn each<T>(
    name: &str,
    values: &PyReadonlyArray1<i64>,
    rows: usize,
    of_row: impl Fn(usize, i64) -> Result<T, String>,
) -> PyResult<Vec<T>> {
    if values.len() != rows {
        return Err(PyValueError::new_err(format!("{name}: {} given for {rows} rows", values.len())));
    }
    let values = values.as_array();
    let each = values.iter().enumerate().map(|(row, &value)| of_row(row, value));
    each.collect::<Result<_, _>>().map_err(PyValueError::new_err)
}

/// The work on rows of any element type.
pub trait Work {
    type Output;

    /// A score is the value in `scores` plus the shift of its row. Shifts are 0 unless the array was f64.
    fn run<T: Element>(self, scores: &Scores<T>, shifts: &[f64]) -> critbeta::Result<Self::Output>;
}

impl ScoreRows<'_> {
    /// Length of a row.
    pub fn len(&self, row: usize) -> usize {
        self.lens.as_ref().map_or(self.cols, |lens| lens[row] as usize)
    }

    /// Does `work` on the rows. It rebases f64 rows as the readers of the crate do.
    ///
    /// Errors: those of `work`, and ValueError for a wrong number of lengths.
    pub fn run<W: Work>(&self, work: W) -> PyResult<W::Output> {
        match self.data {
            Data::F32(data) => self.view(data, self.stride, &[], work),
            Data::F16(data) => self.view(data, self.stride, &[], work),
            Data::Bf16(data) => self.view(data, self.stride, &[], work),
            Data::F64(data) => {
                let (mut narrow, mut shifts) = (Vec::new(), vec![0.0; self.rows]);
                if narrow.try_reserve_exact(self.rows * self.cols).is_err() {
                    let message = format!("no memory for {} x {} scores as float32", self.rows, self.cols);
                    return Err(PyMemoryError::new_err(message));
                }
                narrow.resize(self.rows * self.cols, 0.0f32);
                let rows = narrow.par_chunks_mut(self.cols.max(1)).zip(shifts.par_iter_mut()).enumerate();
                rows.for_each(|(row, (out, shift))| {
                    let scores = &data[row * self.stride..][..self.len(row)];
                    *shift = rebase_shift(scores.iter().copied());
                    out.iter_mut().zip(scores).for_each(|(out, &score)| *out = rebased(score, *shift));
                });
                self.view(&narrow, self.cols, &shifts, work)
            }
        }
    }

    fn view<T: Element, W: Work>(
        &self,
        data: &[T],
        stride: usize,
        shifts: &[f64],
        work: W,
    ) -> PyResult<W::Output> {
        let view = Scores::strided(data, self.rows, self.cols, stride);
        let view = match &self.lens {
            Some(lens) => view.and_then(|view| view.with_lens(lens)),
            None => view,
        };
        view.and_then(|view| work.run(&view, shifts)).map_err(raised)
    }
}

/// A borrowed array [rows, n] for the probabilities: float32, float16 or the bits of bfloat16.
pub enum Target<'py> {
    F32(PyReadwriteArray2<'py, f32>),
    F16(PyReadwriteArray2<'py, f16>),
    Bf16(PyReadwriteArray2<'py, u16>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Target<'py> {
    type Error = PyErr;

    fn extract(array: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArray2<f32>>() {
            write(&array).map(Target::F32)
        } else if let Ok(array) = array.cast::<PyArray2<f16>>() {
            write(&array).map(Target::F16)
        } else if let Ok(array) = array.cast::<PyArray2<u16>>() {
            write(&array).map(Target::Bf16)
        } else {
            Err(PyTypeError::new_err("expected rows of float32, float16 or the bits of bfloat16"))
        }
    }
}

fn write<'py, T: NumpyElement>(array: &Bound<'py, PyArray2<T>>) -> PyResult<PyReadwriteArray2<'py, T>> {
    let refused = |_| PyValueError::new_err("out is read-only, or in use by another call");
    array.try_readwrite().map_err(refused)
}

/// The elements of a target, usable without the interpreter lock.
pub enum Out<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

impl Target<'_> {
    /// The shape [rows, n].
    pub fn shape(&self) -> [usize; 2] {
        let shape = match self {
            Target::F32(array) => array.shape(),
            Target::F16(array) => array.shape(),
            Target::Bf16(array) => array.shape(),
        };
        [shape[0], shape[1]]
    }

    /// All elements. Errors: ValueError unless they are contiguous.
    pub fn elements(&mut self) -> PyResult<Out<'_>> {
        let refused = |_| PyValueError::new_err("out is not C-contiguous");
        Ok(match self {
            Target::F32(array) => Out::F32(array.as_slice_mut().map_err(refused)?),
            Target::F16(array) => Out::F16(array.as_slice_mut().map_err(refused)?),
            Target::Bf16(array) => {
                Out::Bf16(bytemuck::cast_slice_mut(array.as_slice_mut().map_err(refused)?))
            }
        })
    }
}
