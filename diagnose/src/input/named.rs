//! Tensors by name, wherever they come from: one .safetensors, its shards, or the members of an .npz.

use super::safetensors::Tensor;
use critbeta::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tensors whose names are unique.
pub(crate) struct NamedTensors {
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    by_name: HashMap<Arc<str>, usize>,
    /// Names of what is there beside them and cannot be read as a tensor.
    pub(super) others: Vec<String>,
    /// Why the metadata has no one scale for all tensors.
    pub(super) scales_differ: Option<String>,
}

impl NamedTensors {
    /// Errors: [`Error::File`] if two tensors have one name.
    pub(super) fn new(path: &Path, metadata: BTreeMap<String, String>, tensors: Vec<Tensor>) -> Result<Self> {
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (at, tensor) in tensors.iter().enumerate() {
            if by_name.insert(Arc::clone(&tensor.name), at).is_some() {
                return Err(Error::file(path, format!("{:?} is there twice", tensor.name)));
            }
        }
        let path = path.to_owned();
        Ok(NamedTensors { path, metadata, tensors, by_name, others: Vec::new(), scales_differ: None })
    }

    /// The path as it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Text beside the tensors, such as `scale`.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors in the order of their bytes.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// An error about one of the tensors.
    pub(super) fn fail(&self, tensor: &Tensor, detail: impl Into<String>) -> Error {
        tensor.fail(&self.path, detail)
    }
}
