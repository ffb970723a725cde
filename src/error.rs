//! The one error type. Every message carries the name and the numbers of what offended.

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what was expected instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: a missing file, a full disk, no permission.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file as a whole is not what its format promises.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        detail: String,
    },
    /// One tensor of a readable file cannot be used.
    #[error("{}: tensor {tensor:?} {dtype} {shape:?}: {detail}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name (shown escaped: names come from outside).
        tensor: String,
        /// Its dtype as the file spells it.
        dtype: String,
        /// Its shape as the file gives it.
        shape: Vec<usize>,
        /// What was expected.
        detail: String,
    },
    /// A borrowed score view whose lengths do not fit together.
    #[error("scores of {rows} rows x {cols} columns: {detail}")]
    Scores {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// What does not fit.
        detail: String,
    },
    /// A measurement that was asked for with numbers that make no sense.
    #[error("{detail}")]
    Settings {
        /// What was expected and what was found.
        detail: String,
    },
    /// A rescaling text that does not parse, or cannot be applied.
    #[error("rescaling {spec:?}: {detail}")]
    Spec {
        /// The text as given.
        spec: String,
        /// What was expected.
        detail: String,
    },
    /// Two gap profiles counted against different maxima: their counts must not be added.
    #[error(
        "gap profiles anchored at {left} and {right} do not merge: recount one against the larger maximum"
    )]
    AnchorMismatch {
        /// The anchor of the left profile.
        left: f32,
        /// The anchor of the right profile.
        right: f32,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, detail: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn spec(spec: &str, detail: impl Into<String>) -> Self {
        Error::Spec { spec: spec.to_owned(), detail: detail.into() }
    }
}
