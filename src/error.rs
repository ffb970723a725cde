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
    /// A launch on a GPU (or its plan) whose arguments do not fit together; nothing was launched.
    #[error("launch over {rows} rows x {cols} columns: {detail}")]
    Launch {
        /// Rows asked for.
        rows: u64,
        /// Columns asked for.
        cols: u64,
        /// What does not fit, with its numbers, and what was expected.
        detail: String,
    },
    /// This build has no GPU code, or no simulator of it.
    #[error("{what} is not in this build: {remedy}")]
    NotBuilt {
        /// What was asked for.
        what: &'static str,
        /// How to build it.
        remedy: &'static str,
    },
    /// There is no CUDA driver at all.
    #[error("no CUDA driver: tried {tried}; {remedy}")]
    NoDriver {
        /// The libraries that were looked for.
        tried: String,
        /// What helps.
        remedy: &'static str,
    },
    /// No GPU can be used although there is a driver: no device, too old a driver or device, no device of that number.
    #[error("no GPU: {found}; {remedy}")]
    NoGpu {
        /// What was tried and what was found.
        found: String,
        /// What helps.
        remedy: String,
    },
    /// No image of the kernels runs on the device.
    #[error("no kernels for {device} (driver {driver}): {}; {remedy}", attempts.join("; "))]
    NoImage {
        /// The device's name and capability.
        device: String,
        /// The CUDA version that the driver supports.
        driver: String,
        /// Each way that was tried, and how it failed.
        attempts: Vec<String>,
        /// What helps.
        remedy: &'static str,
    },
    /// The CUDA driver refused a call.
    #[error("{call}: CUDA error {code} {name}")]
    Cuda {
        /// The call, with its numbers.
        call: String,
        /// The driver's error code.
        code: u32,
        /// The driver's name for it.
        name: String,
    },
    /// The simulator of the kernels found a fault in one: a defect of this crate.
    #[error("simulated {kernel}: {fault}")]
    Simulated {
        /// The kernel's symbol.
        kernel: &'static str,
        /// Kind of fault, source line, address, threads.
        fault: String,
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
    /// The operating system refused `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }

    /// `path` as a whole is not what its format promises.
    pub fn file(path: &Path, detail: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn spec(spec: &str, detail: impl Into<String>) -> Self {
        Error::Spec { spec: spec.to_owned(), detail: detail.into() }
    }
}
