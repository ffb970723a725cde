//! What a file of attention holds for a diagnosis.

use super::shards;
use super::tensors::{QkPair, ScoreTensor};
use critbeta::Result;
use std::path::PathBuf;
use std::sync::Arc;

/// The part of a file to read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Selection<'a> {
    /// `--tensor`: the name of a score tensor, the NAME of a pair, or of one of its members.
    pub tensor: Option<&'a str>,
    /// `--scale`: the factor on the dot products of pairs.
    pub scale: Option<f64>,
}

/// A file of attention, open.
#[derive(Debug, Clone)]
pub struct Input {
    /// The file, the folder of shards, or their index.
    pub path: PathBuf,
    /// The sources to diagnose, in the order of the file: at least one, each with at least one row.
    pub sources: Vec<Source>,
    /// Names of tensors that are left out: those beside pairs, those that are no floats, and those without
    /// rows.
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
    /// The files behind [`Input::path`]: itself, or the shards of a folder or an index.
    ///
    /// Errors: those of finding the shards again.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        if shards::is_several(&self.path) { shards::files(&self.path) } else { Ok(vec![self.path.clone()]) }
    }

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

    /// What to know before trusting its numbers: its shape fits both ways, and its heads may come last.
    pub fn note(&self) -> Option<String> {
        match self {
            Source::Scores(tensor) => tensor.note(),
            Source::Pair(pair) => pair.note(),
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

pub(super) const SCALE_OF_SCORES: &str =
    "holds scores, which are scaled already: --scale is for pairs of queries and keys";
