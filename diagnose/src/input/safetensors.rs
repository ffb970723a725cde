//! `.safetensors` files: named tensors and a map of text.

use super::mapped::MappedBytes;
use critbeta::{DType, Error, Result};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mapped `.safetensors` file whose header was checked against its length.
///
/// Source: the format's description in the safetensors repository.
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    by_name: HashMap<Arc<str>, usize>,
}

/// One tensor as its file holds it: C order, little endian.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name, unescaped: anyone may have written it.
    pub name: Arc<str>,
    /// Its dtype. `Display` spells it as the file does.
    pub dtype: Dtype,
    /// Its shape; empty for a single number.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: MappedBytes,
}

impl Tensor {
    /// The dtype as scores, or `None` for all but F64, F32, F16 and BF16.
    pub fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F64 => Some(DType::F64),
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::Bf16),
            _ => None,
        }
    }

    /// An error about this tensor of the file at `path`.
    pub(super) fn fail(&self, path: &Path, detail: impl Into<String>) -> Error {
        Error::Tensor {
            path: path.to_owned(),
            tensor: self.name.to_string(),
            dtype: self.dtype.to_string(),
            shape: self.shape.clone(),
            detail: detail.into(),
        }
    }
}

/// The format's name for the dtype of scores.
pub(crate) fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
    }
}

/// The format's own library has this limit. A header of a million tensors is about this long.
const HEADER_LIMIT: u64 = 100_000_000;

impl SafetensorsFile {
    /// Maps `path` and checks its header.
    ///
    /// Errors: [`Error::Io`] if it cannot be opened; [`Error::File`] unless the header is JSON within
    /// the file and its tensors cover the rest of it without holes or overlaps.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedBytes::open(path)?;
        let fail = |detail: String| Error::file(path, detail);
        let length = file.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
        let length = length.ok_or_else(|| {
            fail(format!("is {} bytes long, expected at least 8: no .safetensors file", file.len()))
        })?;
        let left = file.len() as u64 - 8;
        if length > HEADER_LIMIT || length > left {
            let limit = HEADER_LIMIT.min(left);
            return Err(fail(format!(
                "announces a header of {length} bytes, expected at most {limit}: no .safetensors file, or cut short"
            )));
        }
        let header = &file[8..8 + length as usize];
        serde_json::from_slice::<UniqueNames>(header)
            .map_err(|e| fail(format!("header: {}", printable(&e))))?;
        let (length, header) = SafeTensors::read_metadata(&file)
            .map_err(|e| fail(format!("header: {}{}", printable(&e), remedy(&e, file.len()))))?;
        let mut tensors = Vec::new();
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = file.slice(8 + length + start..8 + length + end);
            let bytes =
                bytes.ok_or_else(|| fail(format!("tensor {name:?} lies beyond the end of the file")))?;
            let tensor = Tensor { name: name.into(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            tensors.push((info.data_offsets, tensor));
        }
        // The name decides the order of tensors without elements, because these share their offsets.
        tensors.sort_by(|(at, a), (other, b)| at.cmp(other).then_with(|| a.name.cmp(&b.name)));
        let tensors: Vec<Tensor> = tensors.into_iter().map(|(_, tensor)| tensor).collect();
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (Arc::clone(&tensor.name), i)).collect();
        let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(SafetensorsFile { path: path.to_owned(), metadata, tensors, by_name })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `__metadata__` of the header; empty if there is none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors in the order of their bytes in the file.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

/// A JSON object whose names are unique. The format forbids duplicates, but its library keeps the last one.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(header: D) -> Result<Self, D::Error> {
        header.deserialize_map(UniqueNames)
    }
}

impl<'de> Visitor<'de> for UniqueNames {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = entries.next_key::<String>()? {
            if name == "__metadata__" {
                entries.next_value::<UniqueNames>()?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
            if let Some(twice) = seen.replace(name) {
                return Err(A::Error::custom(format_args!("{twice:?} is there twice")));
            }
        }
        Ok(self)
    }
}

/// Explains the error that the most common damage causes.
fn remedy(error: &SafeTensorError, bytes: usize) -> String {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            format!(
                ": its tensors do not add up to the file's {bytes} bytes, so it was cut short or has extra bytes at its end"
            )
        }
        _ => String::new(),
    }
}

/// The library's message. Text that it quotes from the file is escaped and kept short.
fn printable(error: &dyn Display) -> String {
    let plain = |c: char| c == ' ' || c.is_ascii_graphic();
    let escape = |c: char| if plain(c) { c.to_string() } else { c.escape_default().to_string() };
    error.to_string().chars().take(300).map(escape).collect()
}
