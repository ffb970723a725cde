//! Read-only bytes: files in memory without loading them, or what is there already. One of the few unsafe files: docs/adr/0001.
#![allow(unsafe_code)]

use critbeta::{Error, Result};
use memmap2::Mmap;
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// A range of a mapped file, or of bytes that never were in one. Clones share them; a file stays mapped until the last is
/// dropped.
#[derive(Debug, Clone)]
pub struct MappedBytes {
    all: Bytes,
    range: Range<usize>,
}

#[derive(Debug, Clone)]
enum Bytes {
    Mapped(Arc<Mmap>),
    Owned(Arc<Vec<u8>>),
}

impl From<Vec<u8>> for MappedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        MappedBytes { all: Bytes::Owned(Arc::new(bytes)), range }
    }
}

impl MappedBytes {
    /// Maps the whole of a regular file.
    ///
    /// Errors: [`Error::Io`] if it cannot be opened, [`Error::File`] if it is empty or not regular.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before the file is opened: opening a FIFO would wait for its writer.
        let found = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if found.is_dir() {
            return Err(Error::file(path, "is a directory, expected a file"));
        }
        if !found.is_file() {
            return Err(Error::file(path, "is a pipe, socket or device: only a regular file can be mapped"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the map is read-only and private to this process. Another process may still change
        // the file under it, which no system call prevents: scores read then are those of either
        // version (every bit pattern is a legal score, and offsets were checked against this map's
        // length, not the file's), and a file cut shorter ends the process with SIGBUS.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        if map.is_empty() {
            return Err(Error::file(path, "is empty"));
        }
        let range = 0..map.len();
        Ok(MappedBytes { all: Bytes::Mapped(Arc::new(map)), range })
    }

    /// The bytes `range` of these; `None` if it reaches beyond them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(MappedBytes { all: self.all.clone(), range: start + range.start..start + range.end })
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.all {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}
