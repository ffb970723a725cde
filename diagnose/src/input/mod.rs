//! Files of attention: scores as `.npy` or `.safetensors`, queries with keys as `.safetensors`.
//!
//! Files are mapped, never loaded; everything that could be wrong with one is found when it is opened.

pub(crate) mod elements;
mod mapped;
pub mod npy;
mod positions;
mod rows;
pub mod safetensors;
mod select;
mod tensors;

pub use mapped::MappedBytes;
pub use rows::{FileRows, Order};
pub(crate) use select::positions_of;
pub use tensors::{QkPair, ScoreTensor, Values};

use critbeta::{Error, Result};
use safetensors::SafetensorsFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What of a file is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Selection<'a> {
    /// `--tensor`: the name of a score tensor, the NAME of a pair, or of one of its members.
    pub tensor: Option<&'a str>,
    /// `--scale`: what dot products of pairs are multiplied by.
    pub scale: Option<f64>,
}

/// A file of attention, open.
#[derive(Debug, Clone)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// What there is to diagnose, in the order of the file: at least one, each of at least one row.
    pub sources: Vec<Source>,
    /// Names of what is left out: other tensors beside pairs, and whatever has no rows.
    pub skipped: Vec<String>,
}

/// One thing to diagnose.
#[derive(Debug, Clone)]
pub enum Source {
    /// Scores as they are.
    Scores(ScoreTensor),
    /// Queries and keys that scores are computed from.
    Pair(QkPair),
}

impl Input {
    /// Rows of all heads of all sources.
    pub fn rows(&self) -> u64 {
        self.sources.iter().map(|source| source.heads() as u64 * source.rows() as u64).sum()
    }
}

impl Source {
    /// The tensor's name, without `.q` for a pair.
    pub fn layer(&self) -> &Arc<str> {
        match self {
            Source::Scores(tensor) => tensor.layer(),
            Source::Pair(pair) => pair.layer(),
        }
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        match self {
            Source::Scores(tensor) => tensor.heads(),
            Source::Pair(pair) => pair.heads(),
        }
    }

    /// Rows of one head.
    pub fn rows(&self) -> usize {
        match self {
            Source::Scores(tensor) => tensor.rows(),
            Source::Pair(pair) => pair.rows(),
        }
    }
}

const SCALE_OF_SCORES: &str =
    "holds scores, which are scaled already: --scale is for pairs of queries and keys";

/// Opens a file of attention by its extension, `.npy` or `.safetensors`.
///
/// Errors: [`Error::Io`] if it cannot be opened, [`Error::File`] and [`Error::Tensor`] for whatever in
/// it does not fit, with what was expected.
pub fn open(path: &Path, selection: &Selection) -> Result<Input> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let fail = |detail: &str| Err(Error::file(path, detail));
    match extension.as_str() {
        "npy" => open_npy(path, selection),
        "safetensors" => select::select(&SafetensorsFile::open(path)?, selection),
        "npz" => fail("is an archive of arrays: save one array as .npy (numpy.save) or all as .safetensors"),
        "pt" | "pth" | "bin" | "pkl" => {
            fail("may hold pickled code, which is not read: save it with safetensors.torch.save_file")
        }
        "gguf" => fail("holds weights, not attention: capture scores or queries and keys as .safetensors"),
        _ => fail(
            "has an unknown extension: .npy and .safetensors are read, and by `report` row records: .parquet, .csv, .jsonl",
        ),
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
