//! `.npz` files: a zip archive of `.npy` members, as numpy.savez and numpy.savez_compressed write it.

use super::mapped::MappedBytes;
use super::named::NamedTensors;
use super::npy::{self, Header};
use super::rows::{Order, elements};
use super::safetensors::Tensor;
use critbeta::{Error, Result};
use flate2::bufread::DeflateDecoder;
use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord, ZipSliceArchive};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::{Read, copy, sink};
use std::path::Path;

/// Deflate makes at most this many bytes of one.
const DEFLATE_LIMIT: u64 = 1032;
/// What a member may be larger than that, for one that is nearly empty.
const SLACK: u64 = 1 << 16;

pub(super) fn is_npz(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}

/// Opens every member as a tensor of its name. Members that are stored stay mapped. Those that are deflated,
/// and arrays in Fortran order, are held in memory. Members that are no numbers are named as others.
///
/// Errors: [`Error::Io`]; [`Error::File`] names the member: a damaged one, one of Python objects, or an array
/// whose elements are floats that cannot be read. Source: the zip format's APPNOTE, numpy.lib.format.
pub(super) fn open(path: &Path) -> Result<NamedTensors> {
    let file = MappedBytes::open(path)?;
    let fail = |detail: String| Error::file(path, detail);
    let archive = ZipArchive::from_slice(&file[..]).map_err(|e| fail(format!("no .npz file: {e}")))?;
    let (mut tensors, mut others, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    let mut entries = archive.entries();
    while let Some(entry) = entries.next_entry().map_err(|e| fail(format!("no .npz file: {e}")))? {
        if entry.is_dir() {
            continue;
        }
        let name = String::from_utf8(entry.file_path().as_ref().to_vec());
        let name = name.map_err(|e| fail(format!("member {:?}: its name is no UTF-8", e.as_bytes())))?;
        let Some(stem) = name.strip_suffix(".npy") else {
            others.push(name);
            continue;
        };
        let of_member = |detail: String| fail(format!("member {name:?}: {detail}"));
        let (range, found) = member(&file, &archive, &entry).map_err(of_member)?;
        ranges.push(range);
        match found {
            Some((dtype, shape, bytes)) => tensors.push(Tensor { name: stem.into(), dtype, shape, bytes }),
            None => others.push(stem.to_owned()),
        }
    }
    // Members that share their bytes could fill the memory from a small file.
    ranges.sort_unstable();
    if ranges.windows(2).any(|two| two[1].0 < two[0].1) {
        return Err(fail("members share bytes: no .npz file as NumPy writes it".into()));
    }
    let mut named = NamedTensors::new(path, BTreeMap::new(), tensors)?;
    named.others = others;
    Ok(named)
}

type Array = (Dtype, Vec<usize>, MappedBytes);

/// Where a member lies in the file, and its array; `None` for one that holds no numbers.
fn member(
    file: &MappedBytes,
    archive: &ZipSliceArchive<&[u8]>,
    entry: &ZipFileHeaderRecord,
) -> Result<((u64, u64), Option<Array>), String> {
    let found = archive.get_entry(entry.wayfinder()).map_err(|e| e.to_string())?;
    let (range, size) = (found.compressed_data_range(), entry.uncompressed_size_hint());
    if entry.flags().is_encrypted() {
        return Err("is encrypted".into());
    }
    let mut head = Vec::new();
    let most = (npy::HEADER_LIMIT + 12) as u64;
    let begin = |reader: &mut dyn Read, head: &mut Vec<u8>| {
        reader.take(most).read_to_end(head).map(|_| ()).map_err(|e| format!("is damaged: {e}"))
    };
    let deflated = match entry.compression_method() {
        CompressionMethod::STORE => false,
        CompressionMethod::DEFLATE => true,
        other => return Err(format!("is packed by {other:?}: expected it stored or deflated")),
    };
    match deflated {
        true => begin(&mut DeflateDecoder::new(found.data()), &mut head)?,
        false => begin(&mut found.data(), &mut head)?,
    }
    let Some((header, dtype)) = described(&head)? else { return Ok((range, None)) };
    let damaged = |e: std::io::Error| format!("is damaged: {e}");
    let bytes = if deflated {
        let packed = found.data().len() as u64;
        let mut bytes = Vec::new();
        let room = usize::try_from(size).ok().filter(|_| size <= packed * DEFLATE_LIMIT + SLACK);
        let room = room.ok_or_else(|| format!("announces {size} bytes from {packed}: is damaged"))?;
        bytes.try_reserve_exact(room).map_err(|_| format!("needs {size} bytes of memory unpacked"))?;
        let mut reader = found.verifying_reader(DeflateDecoder::new(found.data()));
        reader.by_ref().take(size + 1).read_to_end(&mut bytes).map_err(damaged)?;
        MappedBytes::from(bytes)
    } else {
        copy(&mut found.verifying_reader(found.data()), &mut sink()).map_err(damaged)?;
        let whole = usize::try_from(range.0).ok().zip(usize::try_from(range.1).ok());
        whole.and_then(|(start, end)| file.slice(start..end)).ok_or("lies beyond the end of the file")?
    };
    let Header { shape, order, body, .. } = header;
    let bytes = bytes.slice(body..bytes.len()).ok_or("ends within its header")?;
    let size = dtype.bitsize() / 8;
    let needed = elements(&shape).and_then(|count| count.checked_mul(size));
    if needed != Some(bytes.len()) {
        let needed = needed.map_or("more than there is".to_owned(), |needed| needed.to_string());
        return Err(format!("array {dtype} {shape:?} holds {} bytes, expected {needed}", bytes.len()));
    }
    let bytes = match order {
        Order::Fortran if shape.len() > 1 => row_major(&bytes, &shape, size)?.into(),
        Order::C | Order::Fortran => bytes,
    };
    Ok((range, Some((dtype, shape, bytes))))
}

/// The header of an array and its dtype; `None` for an array that holds no numbers.
///
/// Errors: for Python objects, and floats that cannot be read.
fn described(head: &[u8]) -> Result<Option<(Header, Dtype)>, String> {
    // A structured dtype holds no scores.
    let Some(header) = npy::read_header(head)? else { return Ok(None) };
    let dtype = match header.descr.trim_matches('\'') {
        "|b1" => Dtype::BOOL,
        "|i1" => Dtype::I8,
        "|u1" => Dtype::U8,
        "<i2" => Dtype::I16,
        "<u2" => Dtype::U16,
        "<i4" => Dtype::I32,
        "<u4" => Dtype::U32,
        "<i8" => Dtype::I64,
        "<u8" => Dtype::U64,
        descr if descr.get(1..2).is_some_and(|kind| "fVO".contains(kind)) => {
            super::safetensors::stored(npy::dtype(&header.descr)?)
        }
        // Text, dates, complex numbers, integers in another byte order.
        _ => return Ok(None),
    };
    Ok(Some((header, dtype)))
}

/// The elements of a Fortran array in C order.
fn row_major(bytes: &[u8], shape: &[usize], size: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    out.try_reserve_exact(bytes.len()).map_err(|_| format!("needs {} bytes of memory", bytes.len()))?;
    let mut index = vec![0; shape.len()];
    for _ in 0..bytes.len() / size {
        let at = index.iter().zip(shape).rev().fold(0, |at, (&i, &dim)| at * dim + i);
        out.extend_from_slice(&bytes[at * size..][..size]);
        for (i, &dim) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < dim {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}
