//! `.npy` files: one array of float scores.

use super::mapped::MappedBytes;
use super::rows::{FileRows, Order};
use critbeta::{DType, Error, Result};
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";
/// numpy itself refuses headers above 10,000 bytes unless the caller trusts them.
pub(super) const HEADER_LIMIT: usize = 64 << 10;
const PLAIN_HEADER: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (rows, n), }";

/// Maps `path`, checks its header against its length, and returns the array as rows of scores.
///
/// Errors: [`Error::Io`] if it cannot be opened, [`Error::File`] if it is no array of little-endian f2, f4 or
/// f8, or does not hold exactly the elements of its shape. Source: numpy.lib.format, versions 1 to 3.
pub fn open(path: &Path) -> Result<FileRows> {
    parse(&MappedBytes::open(path)?).map_err(|detail| Error::file(path, detail))
}

/// What the header of an array says.
pub(super) struct Header {
    /// The dtype, in quotes.
    pub descr: String,
    pub shape: Vec<usize>,
    pub order: Order,
    /// Where the elements begin.
    pub body: usize,
}

fn parse(file: &MappedBytes) -> Result<FileRows, String> {
    let Header { descr, shape, order, body } = parsed(file)?;
    let dtype = dtype(&descr)?;
    let bytes = file.slice(body..file.len()).ok_or("ends within its header")?;
    let about = format!("{dtype} {shape:?}");
    FileRows::new(bytes, dtype, shape, order).map_err(|e| format!("array {about}: {e}"))
}

/// The header at the beginning of `file`, or `None` for a structured dtype.
pub(super) fn read_header(file: &[u8]) -> Result<Option<Header>, String> {
    if header(file)?.0.contains('[') { Ok(None) } else { parsed(file).map(Some) }
}

fn parsed(file: &[u8]) -> Result<Header, String> {
    let (text, body) = header(file)?;
    check_plain(text)?;
    let mut unread = &file[..body];
    let header = npyz::NpyHeader::from_reader(&mut unread).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        format!("header {}: {reason}; expected {PLAIN_HEADER}", excerpt(text))
    })?;
    let shape: Option<Vec<usize>> = header.shape().iter().map(|&d| d.try_into().ok()).collect();
    let shape = shape.ok_or_else(|| format!("shape {:?} overflows", header.shape()))?;
    let order = match header.order() {
        npyz::Order::C => Order::C,
        npyz::Order::Fortran => Order::Fortran,
    };
    Ok(Header { descr: header.dtype().descr(), shape, order, body })
}

/// The header's text, and where the elements begin.
fn header(file: &[u8]) -> Result<(&str, usize), String> {
    if !file.starts_with(MAGIC) {
        return Err("does not begin with \\x93NUMPY: this is no .npy file".into());
    }
    let version = file.get(6..8).ok_or("ends within its header, after the magic bytes")?;
    let length_bytes = match version {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        other => return Err(format!("has version {}.{}, expected 1.0, 2.0 or 3.0", other[0], other[1])),
    };
    let start = 8 + length_bytes;
    let length = file.get(8..start).ok_or("ends within its header, before the header's length")?;
    let length = length.iter().rev().fold(0usize, |n, &byte| n << 8 | usize::from(byte));
    if length > HEADER_LIMIT {
        return Err(format!("has a header of {length} bytes, expected at most {HEADER_LIMIT}"));
    }
    let body = start + length;
    let text = file.get(start..body).ok_or_else(|| {
        format!("ends within its header: {length} bytes announced, {} there", file.len() - start)
    })?;
    match str::from_utf8(text) {
        Ok(text) if text.is_ascii() => Ok((text, body)),
        _ => Err("has a header that is not ASCII".into()),
    }
}

/// Refuses all but the header of a plain array. Such a header has four strings and two brackets, and
/// only True, False and decimal numbers outside of the strings.
///
/// npyz 0.9.1 accepts any Python literal. Ten nested braces take it 0.14 s, and seventeen over 180 s. If
/// the product of a shape overflows, it panics, or wraps in release (measured 2026-11-24).
fn check_plain(text: &str) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("header {}: {what}; expected {PLAIN_HEADER}", excerpt(text)));
    if text.contains('[') {
        return refuse("structured dtypes are not read");
    }
    if text.contains(['"', '\\']) || text.matches('\'').count() != 8 {
        return refuse("not the three keys 'descr', 'fortran_order' and 'shape'");
    }
    if text.matches('{').count() != 1 || text.matches('(').count() != 1 {
        return refuse("not one dict with one tuple");
    }
    let outside = || text.split('\'').step_by(2);
    if let Some(odd) = outside().find_map(|part| part.find(|c| !is_plain(c)).map(|at| &part[at..])) {
        return refuse(&format!("unexpected {:?}", odd.chars().next().unwrap_or_default()));
    }
    let mut shape = Vec::new();
    for word in outside().flat_map(|part| part.split(|c: char| !c.is_ascii_alphanumeric())) {
        if !["", "True", "False"].contains(&word) {
            match word.parse::<usize>() {
                Ok(dim) => shape.push(dim),
                Err(_) => return refuse(&format!("unexpected {:?}", excerpt(word))),
            }
        }
    }
    match super::rows::elements(&shape) {
        Some(_) => Ok(()),
        None => refuse("the number of elements overflows"),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ,:(){}\n".contains(c)
}

/// The beginning of a header's text, escaped for a message.
fn excerpt(text: &str) -> String {
    let short: String = text.trim_end().chars().take(100).collect();
    format!("{short:?}")
}

/// The dtype of scores that a header names in quotes.
pub(super) fn dtype(descr: &str) -> Result<DType, String> {
    let accepted = "expected '<f2', '<f4' or '<f8'";
    match descr {
        "'<f2'" => Ok(DType::F16),
        "'<f4'" => Ok(DType::F32),
        "'<f8'" => Ok(DType::F64),
        "'>f2'" | "'>f4'" | "'>f8'" => Err(format!(
            "dtype {descr} is big endian, {accepted}: save array.astype({})",
            descr.replace('>', "<")
        )),
        "'|V2'" | "'<V2'" => Err(format!(
            "dtype {descr} is bfloat16 or another type that .npy has no name for, {accepted}: save \
             array.astype('<f4'), or bfloat16 as .safetensors"
        )),
        "'|O'" => Err(format!("dtype '|O' holds pickled Python objects, {accepted}")),
        other => Err(format!("dtype {}, {accepted}", excerpt(other))),
    }
}
