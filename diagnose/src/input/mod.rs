//! Files of attention: scores as `.npy`, `.npz` or `.safetensors`, queries with keys as the last two.
//!
//! Files are mapped, never loaded, but for the members of an `.npz` that are deflated. Opening a file finds
//! everything that could be wrong with it.

pub(crate) mod elements;
mod heads_last;
mod mapped;
mod named;
pub mod npy;
mod npz;
mod positions;
mod rows;
pub mod safetensors;
mod select;
mod shards;
mod source;
mod tensors;

pub use heads_last::note_on_scores;
pub use mapped::MappedBytes;
pub(crate) use named::NamedTensors;
pub use rows::{FileRows, Order};
pub(crate) use select::positions_of;
pub use source::{Input, Selection, Source};
pub use tensors::{QkPair, ScoreTensor, Values};

use critbeta::{Error, Result};
use safetensors::SafetensorsFile;
use source::SCALE_OF_SCORES;
use std::path::Path;

/// Opens a file of attention by its extension: `.npy`, `.npz`, `.safetensors`, or the index of shards. A
/// folder is opened as its shards.
///
/// Errors: [`Error::Io`] if it cannot be opened, [`Error::File`] and [`Error::Tensor`] for whatever does
/// not fit. The message says what was expected.
pub fn open(path: &Path, selection: &Selection) -> Result<Input> {
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if shards::is_several(path) {
        return select::select(&open_named(path)?, selection);
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let fail = |detail: &str| Err(Error::file(path, detail));
    match extension.as_str() {
        "npy" => open_npy(path, selection),
        "safetensors" | "npz" => select::select(&open_named(path)?, selection),
        "pt" | "pth" | "bin" | "pkl" => {
            fail("may hold pickled code, which is not read: save it with safetensors.torch.save_file")
        }
        "gz" | "bz2" | "xz" | "zst" | "zip" | "tar" | "tgz" => {
            fail("is packed: unpack it first, because files are mapped and not read")
        }
        "gguf" => fail("holds weights, not attention: capture scores or queries and keys as .safetensors"),
        // Such as /dev/stdin and a shell's <(...), which have no extension.
        _ if !found.is_file() => MappedBytes::open(path).and_then(|_| fail("is no regular file")),
        _ => fail(
            "has an unknown extension: .npy, .npz and .safetensors are read, and by `report` row records: .parquet, .csv, .jsonl",
        ),
    }
}

/// Opens a .safetensors, an .npz, a folder of shards or its index.
///
/// Errors: [`Error::Io`]; [`Error::File`] for all that does not fit.
pub(crate) fn open_named(path: &Path) -> Result<NamedTensors> {
    if shards::is_several(path) {
        shards::open(path)
    } else if npz::is_npz(path) {
        npz::open(path)
    } else {
        let file = SafetensorsFile::open(path)?;
        NamedTensors::new(path, file.metadata().clone(), file.tensors().to_vec())
    }
}

fn open_npy(path: &Path, selection: &Selection) -> Result<Input> {
    let rows = npy::open(path)?;
    let fail = |detail: String| Err(Error::file(path, detail));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if let Some(name) = selection.tensor.filter(|&name| name != stem) {
        return fail(format!("has no tensor {name:?}: a .npy file holds one, called {stem:?}"));
    }
    if selection.scale.is_some() {
        return fail(SCALE_OF_SCORES.into());
    }
    if rows.is_empty() {
        return fail(format!("has nothing to diagnose: shape {:?} has no rows", rows.shape()));
    }
    let scores = ScoreTensor::new(stem.into(), rows);
    Ok(Input { path: path.to_owned(), sources: vec![Source::Scores(scores)], skipped: Vec::new() })
}
