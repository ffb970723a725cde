//! DLPack tensors of a caller, checked before anything touches them.
#![allow(unsafe_code)]

use crate::status::{Result, invalid};
use bytemuck::Pod;
use critbeta::DType;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;

/// A device, as DLPack has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DLDevice {
    pub device_type: i32,
    pub device_id: i32,
}

pub const CPU: DLDevice = DLDevice { device_type: 1, device_id: 0 };
/// kDLCUDA.
pub const CUDA: i32 = 2;

impl fmt::Display for DLDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device_type {
            1 => f.write_str("cpu"),
            CUDA => write!(f, "cuda:{}", self.device_id),
            other => write!(f, "device type {other}"),
        }
    }
}

/// An element type, as DLPack has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DLDataType {
    pub code: u8,
    pub bits: u8,
    pub lanes: u16,
}

/// A tensor, as DLPack has it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct DLTensor {
    pub data: *mut c_void,
    pub device: DLDevice,
    pub ndim: i32,
    pub dtype: DLDataType,
    pub shape: *mut i64,
    pub strides: *mut i64,
    pub byte_offset: u64,
}

/// The element types that any tensor of this library has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    U32,
    U8,
}

impl Numbers {
    const ALL: [(Numbers, u8, u8, &str); 8] = [
        (Numbers::F64, 2, 64, "float64"),
        (Numbers::F32, 2, 32, "float32"),
        (Numbers::F16, 2, 16, "float16"),
        (Numbers::Bf16, 4, 16, "bfloat16"),
        (Numbers::I64, 0, 64, "int64"),
        (Numbers::I32, 0, 32, "int32"),
        (Numbers::U32, 1, 32, "uint32"),
        (Numbers::U8, 1, 8, "uint8"),
    ];

    pub fn of(name: &str, dtype: DLDataType) -> Result<Numbers> {
        let DLDataType { code, bits, lanes } = dtype;
        match Self::ALL.iter().find(|known| (known.1, known.2, 1) == (code, bits, lanes)) {
            Some(known) => Ok(known.0),
            None => {
                invalid(format!("{name}: DLPack dtype code {code}, {bits} bits, {lanes} lanes is unknown"))
            }
        }
    }

    fn row(self) -> (Numbers, u8, u8, &'static str) {
        Self::ALL[self as usize]
    }

    fn bytes(self) -> usize {
        usize::from(self.row().2 / 8)
    }

    /// The element type of scores, keys and probabilities.
    pub fn scores(self, name: &str) -> Result<DType> {
        Ok(match self {
            Numbers::F32 => DType::F32,
            Numbers::F16 => DType::F16,
            Numbers::Bf16 => DType::Bf16,
            _ => return invalid(format!("{name}: {self}, expected float32, float16 or bfloat16")),
        })
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().3)
    }
}

/// A Rust type whose slices may be borrowed from a tensor.
pub trait Held: Pod {
    const NUMBERS: Numbers;
}

macro_rules! held {
    ($($t:ty => $numbers:ident),*) => {
        $(impl Held for $t { const NUMBERS: Numbers = Numbers::$numbers; })*
    };
}
held!(f64 => F64, f32 => F32, half::f16 => F16, half::bf16 => Bf16);
held!(i64 => I64, i32 => I32, u32 => U32, u8 => U8);

/// More axes no argument has.
const MAX_AXES: usize = 8;

/// A checked tensor: its memory lies within the address space, and strides are in elements and not negative.
#[derive(Debug)]
pub struct Tensor<'a> {
    pub name: &'static str,
    pub numbers: Numbers,
    pub device: DLDevice,
    pub shape: Vec<usize>,
    /// Axes of at most one element have the stride of a dense tensor.
    pub strides: Vec<usize>,
    address: usize,
    /// Elements from the first to the last, both included.
    reach: usize,
    writable: bool,
    of: PhantomData<&'a [u8]>,
}

impl fmt::Display for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tensor { name, numbers, shape, strides, device, .. } = self;
        write!(f, "{name} {numbers} {shape:?} ")?;
        if !self.is_dense() {
            write!(f, "with strides {strides:?} ")?;
        }
        write!(f, "on {device}")
    }
}

impl<'a> Tensor<'a> {
    /// A failure that shows this tensor and what was expected.
    pub fn refused<T>(&self, expected: impl fmt::Display) -> Result<T> {
        invalid(format!("{self}: {expected}"))
    }

    pub fn is_dense(&self) -> bool {
        self.strides == dense(&self.shape)
    }

    /// The sizes of exactly `N` axes; `meaning` names them.
    pub fn sizes<const N: usize>(&self, meaning: &str) -> Result<[usize; N]> {
        match <[usize; N]>::try_from(&self.shape[..]) {
            Ok(sizes) => Ok(sizes),
            Err(_) => self.refused(format!("expected {meaning}")),
        }
    }

    /// Refuses any other shape and any space between elements.
    pub fn expect(&self, shape: &[usize], meaning: &str) -> Result<()> {
        match self.shape == shape && self.is_dense() {
            true => Ok(()),
            false => self.refused(format!("expected {meaning}, which is {shape:?}, dense")),
        }
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    /// All memory from the first to the last element. The tensor must be on the CPU.
    pub fn slice<T: Held>(&self) -> Result<&'a [T]> {
        self.check::<T>()?;
        if self.reach == 0 {
            return Ok(&[]);
        }
        // SAFETY: `Tensors::new` has the caller's promise that this memory is readable during 'a, and
        // `Tensors::add` refused it if it overlaps memory that is written. It is aligned and within the
        // address space (`checked`), and every bit pattern is a value of a Pod.
        Ok(unsafe { std::slice::from_raw_parts(self.address as *const T, self.reach) })
    }

    /// As [`Tensor::slice`], for writing. It takes the tensor, which has no clone, so this is the only slice
    /// of its memory.
    pub fn into_slice_mut<T: Held>(self) -> Result<&'a mut [T]> {
        self.check::<T>()?;
        if !self.writable {
            return self.refused("cannot be written");
        }
        if self.reach == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `slice`; a tensor that is written overlaps no other of the same call.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address as *mut T, self.reach) })
    }

    fn check<T: Held>(&self) -> Result<()> {
        if self.device.device_type != CPU.device_type {
            return self.refused("expected memory of the CPU");
        }
        match self.numbers == T::NUMBERS {
            true => Ok(()),
            false => self.refused(format!("expected {}", T::NUMBERS)),
        }
    }

    fn span(&self) -> (usize, usize) {
        (self.address, self.address + self.reach * self.numbers.bytes())
    }
}

/// The tensors of one call. What is written overlaps nothing else.
pub struct Tensors<'a> {
    spans: Vec<((usize, usize), &'static str, bool)>,
    of: PhantomData<&'a [u8]>,
}

impl<'a> Tensors<'a> {
    /// # Safety
    ///
    /// Every pointer that is given to the other methods is NULL or a tensor whose shape and strides (if not
    /// NULL) have `ndim` entries. The memory that its fields describe is alive during `'a`. Nobody else
    /// writes it then, and nobody else reads what [`Tensors::written`] was asked for.
    pub unsafe fn new() -> Tensors<'a> {
        Tensors { spans: Vec::new(), of: PhantomData }
    }

    /// A tensor that is read, or nothing for NULL.
    pub fn optional(&mut self, name: &'static str, tensor: *const DLTensor) -> Result<Option<Tensor<'a>>> {
        (!tensor.is_null()).then(|| self.add(name, tensor, false)).transpose()
    }

    /// A tensor that is read.
    pub fn read(&mut self, name: &'static str, tensor: *const DLTensor) -> Result<Tensor<'a>> {
        self.add(name, tensor, false)
    }

    /// A tensor that is written.
    pub fn written(&mut self, name: &'static str, tensor: *const DLTensor) -> Result<Tensor<'a>> {
        self.add(name, tensor, true)
    }

    /// Whether both tensors are the same elements in the same order.
    pub fn are_same(&self, a: *const DLTensor, b: *const DLTensor) -> Result<bool> {
        if a.is_null() || b.is_null() {
            return Ok(false);
        }
        let (a, b) = (checked("scores", a)?, checked("out", b)?);
        Ok((a.address, a.numbers, a.device, a.shape, a.strides)
            == (b.address, b.numbers, b.device, b.shape, b.strides))
    }

    fn add(&mut self, name: &'static str, tensor: *const DLTensor, writable: bool) -> Result<Tensor<'a>> {
        let tensor = Tensor { writable, ..checked(name, tensor)? };
        if writable
            && tensor.shape.iter().zip(&tensor.strides).any(|(&size, &stride)| size > 1 && stride == 0)
        {
            return tensor.refused("its elements overlap each other");
        }
        let (start, end) = tensor.span();
        // Memory of two devices may have one address; such calls are refused elsewhere.
        for &((other, other_end), other_name, other_writable) in &self.spans {
            if start < other_end && other < end && (writable || other_writable) {
                return tensor.refused(format!(
                    "its {} bytes at {start:#x} overlap {other_name}, {} bytes at {other:#x}",
                    end - start,
                    other_end - other
                ));
            }
        }
        if start < end {
            self.spans.push(((start, end), name, writable));
        }
        Ok(tensor)
    }
}

fn dense(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// Reads the fields of a tensor, and none of its elements.
fn checked<'a>(name: &'static str, tensor: *const DLTensor) -> Result<Tensor<'a>> {
    if tensor.is_null() || !tensor.is_aligned() {
        return invalid(format!("{name}: NULL or misaligned"));
    }
    // SAFETY: `Tensors::new` has the caller's promise.
    let DLTensor { data, device, ndim, dtype, shape, strides, byte_offset } = unsafe { *tensor };
    let numbers = Numbers::of(name, dtype)?;
    let axes = match usize::try_from(ndim) {
        Ok(axes) if axes <= MAX_AXES => axes,
        _ => return invalid(format!("{name}: {ndim} axes")),
    };
    let integers = |of: *mut i64| -> Option<&[i64]> {
        let usable = axes > 0 && !of.is_null() && of.is_aligned();
        // SAFETY: the caller's promise, for as many entries as the tensor has axes.
        if axes == 0 { Some(&[]) } else { usable.then(|| unsafe { std::slice::from_raw_parts(of, axes) }) }
    };
    let Some(given) = integers(shape) else {
        return invalid(format!("{name}: its shape is NULL or misaligned"));
    };
    let sizes: Option<Vec<usize>> = given.iter().map(|&size| usize::try_from(size).ok()).collect();
    let Some(sizes) = sizes else { return invalid(format!("{name}: its shape is {given:?}")) };
    let mut steps = dense(&sizes);
    // An empty tensor has no elements apart: NumPy gives it strides of 0.
    if !strides.is_null() && !sizes.contains(&0) {
        let Some(given) = integers(strides) else {
            return invalid(format!("{name}: its strides are misaligned"));
        };
        for ((step, &stride), &size) in steps.iter_mut().zip(given).zip(&sizes) {
            if size > 1 {
                let Ok(stride) = usize::try_from(stride) else {
                    return invalid(format!("{name} {numbers} {sizes:?}: its strides are {given:?}"));
                };
                *step = stride;
            }
        }
    }
    let reach = if sizes.contains(&0) {
        Some(0)
    } else {
        let axes = sizes.iter().zip(&steps);
        axes.map(|(&size, &step)| (size - 1).checked_mul(step))
            .try_fold(1usize, |sum, reach| sum.checked_add(reach?))
    };
    let address = (data as usize).checked_add(usize::try_from(byte_offset).unwrap_or(usize::MAX));
    let bytes =
        reach.and_then(|reach| reach.checked_mul(numbers.bytes())).filter(|&b| b <= isize::MAX as usize);
    // An overflow of the number of elements is one even where a stride of 0 repeats them.
    let count = sizes.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    // The upper half of the address space belongs to no program.
    let end = address.zip(bytes).and_then(|(address, bytes)| address.checked_add(bytes));
    let fits = end.filter(|&end| end <= isize::MAX as usize).zip(count);
    let (Some(address), Some(reach), Some(_)) = (address, reach, fits) else {
        return invalid(format!(
            "{name} {numbers} {sizes:?}: with strides {steps:?} it leaves the address space"
        ));
    };
    let tensor = Tensor {
        name,
        numbers,
        device,
        shape: sizes,
        strides: steps,
        address,
        reach,
        writable: false,
        of: PhantomData,
    };
    if reach > 0 && (data.is_null() || !address.is_multiple_of(numbers.bytes())) {
        let expected = format!("expected memory that is aligned to {} bytes", numbers.bytes());
        return tensor.refused(format!("its data is at {address:#x}, {expected}"));
    }
    Ok(tensor)
}
