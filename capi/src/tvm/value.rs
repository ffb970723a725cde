//! Values of TVM-FFI, written by hand after tvm/ffi/c_api.h.
#![allow(unsafe_code)]

use crate::status::{CRITBETA_INVALID, Failure, Result};
use crate::tensor::{DLDataType, DLTensor};
use std::ffi::{CStr, c_char, c_void};

/// `TVMFFIAny`: 16 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Any {
    type_index: i32,
    /// The length of a small string; 0 for anything else.
    small_len: u32,
    /// A number, a pointer, or the bytes of a small string.
    bits: u64,
}

const _: () = assert!(size_of::<Any>() == 16);

/// `TVMFFIByteArray`.
#[repr(C)]
pub struct ByteArray {
    pub data: *const c_char,
    pub size: usize,
}

/// `TVMFFIObject`: what every object begins with.
const OBJECT_BYTES: usize = 24;

const NONE: i32 = 0;
const INT: i32 = 1;
const BOOL: i32 = 2;
const FLOAT: i32 = 3;
const OPAQUE_PTR: i32 = 4;
const DATA_TYPE: i32 = 5;
const DL_TENSOR_PTR: i32 = 7;
const RAW_STR: i32 = 8;
const SMALL_STR: i32 = 11;
const STR: i32 = 65;
const TENSOR: i32 = 70;

impl Any {
    pub const NONE: Any = Any { type_index: NONE, small_len: 0, bits: 0 };

    pub fn int(value: i64) -> Any {
        Any { type_index: INT, bits: value as u64, ..Any::NONE }
    }

    pub fn pointer(value: *const c_void) -> Any {
        Any { type_index: OPAQUE_PTR, bits: value as u64, ..Any::NONE }
    }

    fn kind(&self) -> String {
        match self.type_index {
            NONE => "None".to_owned(),
            INT => "an int".to_owned(),
            BOOL => "a bool".to_owned(),
            FLOAT => "a float".to_owned(),
            OPAQUE_PTR => "a pointer".to_owned(),
            DATA_TYPE => "a dtype".to_owned(),
            DL_TENSOR_PTR | TENSOR => "a tensor".to_owned(),
            RAW_STR | SMALL_STR | STR => "a string".to_owned(),
            other => format!("a value of type index {other}"),
        }
    }
}

/// The arguments of one call. Those that are left out at the end are None.
pub struct Arguments<'a> {
    name: &'static str,
    given: &'a [Any],
    next: usize,
}

/// The text of a rule, a beta, or a handle.
pub enum RuleArgument<'a> {
    None,
    Text(&'a str),
    Beta(f64),
    Handle(*const c_void),
}

impl<'a> Arguments<'a> {
    /// # Safety
    ///
    /// `args` is NULL, or `count` values there are alive during `'a`, and what they point to is too.
    pub unsafe fn new(name: &'static str, args: *const Any, count: i32) -> Result<Arguments<'a>> {
        let given = match usize::try_from(count) {
            Ok(0) => &[][..],
            // SAFETY: the caller's promise.
            Ok(count) if !args.is_null() && args.is_aligned() => unsafe {
                std::slice::from_raw_parts(args, count)
            },
            _ => return mistyped(format!("{name}: {count} arguments at {args:?}")),
        };
        Ok(Arguments { name, given, next: 0 })
    }

    /// Refuses arguments that are left over.
    pub fn finish(&self) -> Result<()> {
        match self.given.len() > self.next {
            true => mistyped(format!(
                "{}: {} arguments, expected at most {}",
                self.name,
                self.given.len(),
                self.next
            )),
            false => Ok(()),
        }
    }

    fn next(&mut self) -> Any {
        let value = self.given.get(self.next).copied().unwrap_or(Any::NONE);
        self.next += 1;
        value
    }

    fn refused<T>(&self, argument: &str, value: Any, expected: &str) -> Result<T> {
        mistyped(format!("{}: {argument} is {}, expected {expected}", self.name, value.kind()))
    }

    /// A tensor, or NULL for None.
    pub fn tensor(&mut self, argument: &str) -> Result<*const DLTensor> {
        let value = self.next();
        match value.type_index {
            NONE => Ok(std::ptr::null()),
            DL_TENSOR_PTR => Ok(value.bits as *const DLTensor),
            TENSOR if value.bits != 0 => Ok((value.bits as *const u8).wrapping_add(OBJECT_BYTES).cast()),
            _ => self.refused(argument, value, "a tensor"),
        }
    }

    /// A number, or `default` for None.
    pub fn float(&mut self, argument: &str, default: f64) -> Result<f64> {
        let value = self.next();
        match value.type_index {
            NONE => Ok(default),
            FLOAT => Ok(f64::from_bits(value.bits)),
            INT => Ok(value.bits as i64 as f64),
            _ => self.refused(argument, value, "a float"),
        }
    }

    /// A count, or 0 for None.
    pub fn count(&mut self, argument: &str) -> Result<u64> {
        let value = self.next();
        match value.type_index {
            NONE => Ok(0),
            INT | BOOL if value.bits as i64 >= 0 => Ok(value.bits),
            _ => self.refused(argument, value, "an int of at least 0"),
        }
    }

    /// A text, or nothing for None.
    pub fn text(&mut self, argument: &str) -> Result<Option<&'a str>> {
        let at = self.next;
        let value = self.next();
        if value.type_index == NONE {
            return Ok(None);
        }
        match self.given.get(at).and_then(text_of) {
            Some(text) => Ok(Some(text)),
            None => self.refused(argument, value, "a string of UTF-8"),
        }
    }

    /// A dtype, or the name of one.
    pub fn dtype(&mut self, argument: &str) -> Result<DLDataType> {
        let at = self.next;
        let value = self.next();
        if value.type_index == DATA_TYPE {
            let [code, bits, low, high, ..] = value.bits.to_ne_bytes();
            return Ok(DLDataType { code, bits, lanes: u16::from_ne_bytes([low, high]) });
        }
        let of = |code, bits| Ok(DLDataType { code, bits, lanes: 1 });
        match self.given.get(at).and_then(text_of) {
            Some("float32") => of(2, 32),
            Some("float16") => of(2, 16),
            Some("bfloat16") => of(4, 16),
            _ => self.refused(argument, value, "float32, float16 or bfloat16"),
        }
    }

    /// A rule: its text, a beta, or what critbeta_rule_parse returned.
    pub fn rule(&mut self, argument: &str) -> Result<RuleArgument<'a>> {
        let at = self.next;
        let value = self.next();
        match value.type_index {
            NONE => Ok(RuleArgument::None),
            FLOAT => Ok(RuleArgument::Beta(f64::from_bits(value.bits))),
            INT => Ok(RuleArgument::Beta(value.bits as i64 as f64)),
            OPAQUE_PTR => Ok(RuleArgument::Handle(value.bits as *const c_void)),
            _ => match self.given.get(at).and_then(text_of) {
                Some(text) => Ok(RuleArgument::Text(text)),
                None => self.refused(argument, value, "a string, a number or a rule"),
            },
        }
    }
}

/// The text of a value that lives as long as the value. `Arguments::new` has the caller's promise of that.
fn text_of(value: &Any) -> Option<&str> {
    let bytes = match value.type_index {
        // SAFETY: the promise; a raw string ends in a zero byte.
        RAW_STR if value.bits != 0 => unsafe { CStr::from_ptr(value.bits as *const c_char) }.to_bytes(),
        SMALL_STR if value.small_len <= 7 => &bytemuck::bytes_of(&value.bits)[..value.small_len as usize],
        STR if value.bits != 0 => {
            let bytes = (value.bits as *const u8).wrapping_add(OBJECT_BYTES).cast::<ByteArray>();
            // SAFETY: the promise; behind the head of a string object stand its bytes.
            unsafe {
                let ByteArray { data, size } = bytes.read();
                if data.is_null() { &[] } else { std::slice::from_raw_parts(data.cast::<u8>(), size) }
            }
        }
        _ => return None,
    };
    std::str::from_utf8(bytes).ok()
}

/// The status of an argument of the wrong type. Python raises a TypeError.
pub const MISTYPED: i32 = -1;

fn mistyped<T>(text: String) -> Result<T> {
    Err(Failure { status: MISTYPED, text })
}

/// The name of the Python error for a status.
pub fn error_of(status: i32) -> &'static str {
    match status {
        MISTYPED => "TypeError",
        CRITBETA_INVALID => "ValueError",
        crate::status::CRITBETA_UNSUPPORTED => "NotImplementedError",
        _ => "RuntimeError",
    }
}
