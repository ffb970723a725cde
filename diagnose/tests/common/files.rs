//! Builds good and bad files of attention byte by byte.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use serde_json::json;
use std::path::{Path, PathBuf};

/// A `.npy` of version `version` with this header text and body.
pub fn npy_of(version: [u8; 2], header: &str, body: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY".to_vec();
    file.extend(version);
    match version[0] {
        1 => file.extend((header.len() as u16).to_le_bytes()),
        _ => file.extend((header.len() as u32).to_le_bytes()),
    }
    file.extend(header.as_bytes());
    file.extend(body);
    file
}

/// A `.npy` of version 1.0 as numpy writes it.
pub fn npy(descr: &str, fortran: bool, shape: &str, body: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 11;
    npy_of([1, 0], &format!("{text:padded$}\n"), body)
}

/// A `.safetensors` with this header and body.
pub fn safetensors_of(header: &str, body: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), body].concat()
}

/// Name, dtype, shape and elements.
pub type Named<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// A `.safetensors` of these tensors in order, with a `scale` in its metadata if there is one.
pub fn safetensors(tensors: &[Named], scale: Option<&str>) -> Vec<u8> {
    let (mut entries, mut body) = (Vec::new(), Vec::new());
    entries.extend(scale.map(|scale| format!("\"__metadata__\":{}", json!({"scale": scale}))));
    for (name, dtype, shape, bytes) in tensors {
        let (start, end) = (body.len(), body.len() + bytes.len());
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        entries.push(format!("{}:{entry}", json!(name)));
        body.extend(bytes);
    }
    safetensors_of(&format!("{{{}}}", entries.join(",")), &body)
}

/// `count` scores 0, 1/4, 2/4, .. in f32: exact in f16 and bf16 up to 64.
pub fn f32s(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32 / 4.0).to_le_bytes()).collect()
}

/// As [`f32s`] in f16.
pub fn f16s(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| half::f16::from_f32(i as f32 / 4.0).to_le_bytes()).collect()
}

/// Integers as I64.
pub fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A pair of 4 query heads over 2 key heads, 3 rows over 5 keys of 2 elements.
pub fn pair<'a>() -> Vec<Named<'a>> {
    vec![("a.q", "F32", &[4, 3, 2], f32s(24)), ("a.k", "F16", &[2, 5, 2], f16s(20))]
}

/// Writes a file into `directory`.
pub fn write(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    // ext4 flushes a file that is truncated and rewritten. 20,000 such files took 35 s instead of 1
    // (2026-11-24).
    let _absent = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).unwrap();
    path
}
