//! Structs of several versions, handles and texts from C.
#![allow(unsafe_code)]

use crate::status::{Result, invalid};
use std::ffi::{CStr, c_char};

/// The struct of a newer version may be larger than ours, but not by this much: such a size was never set.
const MAX_BYTES: usize = 1 << 12;

/// A struct of the header that begins with `size_t size`.
///
/// # Safety
///
/// The struct is `repr(C)`, begins with a `usize`, and zeros in all bytes are a value of it.
pub unsafe trait Versioned: Copy {
    const NAME: &'static str;
}

/// The struct behind `given`, with zeros in the fields that its version lacks.
///
/// # Safety
///
/// `given` is NULL, or points to as many readable bytes as its first `size_t` says.
pub unsafe fn versioned<T: Versioned>(given: *const T) -> Result<T> {
    let (name, own) = (T::NAME, size_of::<T>());
    if given.is_null() || !given.is_aligned() {
        return invalid(format!("{name}: NULL or misaligned"));
    }
    // SAFETY: the caller's promise; the first field is a usize.
    let size = unsafe { given.cast::<usize>().read() };
    // A size that ends within a pointer is no sizeof, and half of a pointer leads anywhere.
    if !(size_of::<usize>()..=MAX_BYTES).contains(&size) || !size.is_multiple_of(align_of::<T>()) {
        return invalid(format!("{name}: size {size}: expected sizeof({name}), which is {own} here"));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(given.cast::<u8>(), size) };
    if let Some(at) = bytes.iter().skip(own).position(|&byte| byte != 0) {
        return invalid(format!(
            "{name}: byte {} of {size} is set, but this version knows {own} bytes: it is older than the header",
            own + at
        ));
    }
    // SAFETY: zeros are a value of the struct, and so is what the caller wrote over them: pointers and
    // numbers.
    unsafe {
        let mut found = std::mem::zeroed::<T>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut found).cast(), size.min(own));
        Ok(found)
    }
}

/// What a handle begins with. It tells handles of two kinds apart.
#[repr(C)]
pub struct Handle<T> {
    mark: u64,
    pub value: T,
}

/// A kind of handle.
pub trait Kind {
    const NAME: &'static str;
    const MARK: u64;
}

/// Makes a handle that [`free`] takes back.
pub fn handle<T: Kind>(value: T) -> *mut Handle<T> {
    Box::into_raw(Box::new(Handle { mark: T::MARK, value }))
}

/// The value behind a handle, or nothing for NULL.
///
/// # Safety
///
/// `handle` is NULL, or points to 8 readable bytes. If they are the mark of `T`, [`handle`] made it, and
/// nobody frees it during `'a`.
pub unsafe fn optional<'a, T: Kind>(handle: *const Handle<T>) -> Result<Option<&'a T>> {
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    if !handle.is_aligned() || unsafe { (&raw const (*handle).mark).read() } != T::MARK {
        return invalid(format!("{0}: not a {0} of this library", T::NAME));
    }
    // SAFETY: as above.
    Ok(Some(unsafe { &(*handle).value }))
}

/// Frees what [`handle`] made. NULL is allowed.
///
/// # Safety
///
/// As for [`optional`], and nobody uses the handle any more.
pub unsafe fn free<T: Kind>(given: *mut Handle<T>) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        if optional(given)?.is_some() {
            (&raw mut (*given).mark).write(0);
            drop(Box::from_raw(given));
        }
    }
    Ok(())
}

/// The text behind a pointer, or nothing for NULL.
///
/// # Safety
///
/// `text` is NULL or ends in a zero byte, and stays as it is during `'a`.
pub unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    match unsafe { CStr::from_ptr(text) }.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => invalid(format!("{name}: not UTF-8")),
    }
}

/// Writes `value` to where `to` points.
///
/// # Safety
///
/// `to` is NULL or writable.
pub unsafe fn put<T>(name: &str, to: *mut T, value: impl FnOnce() -> Result<T>) -> Result<()> {
    if to.is_null() || !to.is_aligned() {
        return invalid(format!("{name}: NULL or misaligned"));
    }
    let value = value()?;
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Copies `text` to a buffer of `capacity` bytes, as snprintf does: what does not fit is cut at a character,
/// and a zero byte ends it.
///
/// # Safety
///
/// `to` is NULL, or `capacity` bytes there are writable.
pub unsafe fn print(text: &str, to: *mut c_char, capacity: usize) -> Result<()> {
    let Some(room) = capacity.checked_sub(1) else { return Ok(()) };
    if to.is_null() {
        return invalid(format!("text: NULL with a capacity of {capacity} bytes"));
    }
    let text = text.replace('\0', " ");
    let end = (0..=room.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let fits = &text[..end];
    // SAFETY: the caller's promise; `fits` and the zero byte are at most `capacity` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(fits.as_ptr(), to.cast(), fits.len());
        to.add(fits.len()).write(0);
    }
    Ok(())
}
