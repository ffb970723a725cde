//! Read-only bytes of a mapped file, or bytes that are in memory already. It has unsafe code: docs/adr/0001.
#![allow(unsafe_code)]

use critbeta::{Error, Result};
use memmap2::Mmap;
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// A range of a mapped file or of bytes in memory. Clones share the bytes. The last one to drop unmaps the
/// file.
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
        // This comes before the open, because opening a FIFO would wait for its writer.
        let found = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if found.is_dir() {
            return Err(Error::file(path, "is a directory, expected a file"));
        }
        if !found.is_file() {
            return Err(Error::file(path, "is a pipe, socket or device: only a regular file can be mapped"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: the map is read-only and private to this process. Another process may still change
        // the file, which no system call prevents. Scores are then those of either version: every bit
        // pattern is a legal score, and offsets were checked against this map's length, not the file's.
        // If the file becomes shorter, SIGBUS ends the process.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        if map.is_empty() {
            return Err(Error::file(path, "is empty"));
        }
        let range = 0..map.len();
        Ok(MappedBytes { all: Bytes::Mapped(Arc::new(map)), range })
    }

    /// The bytes in `range`, or `None` if it reaches beyond the end.
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
