//! The one error type. Every message carries the name and the numbers of the input that was refused.

use std::path::{Path, PathBuf};

/// The result of every function in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where it went wrong, and what was expected instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file or directory, for example because it is missing.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file as a whole does not follow its format.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        detail: String,
    },
    /// One tensor of a readable file is not usable.
    #[error("{}: tensor {tensor:?} {dtype} {shape:?}: {detail}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The name of the tensor. The message escapes it, because names come from outside.
        tensor: String,
        /// The dtype as the file spells it.
        dtype: String,
        /// The shape as the file gives it.
        shape: Vec<usize>,
        /// What was expected.
        detail: String,
    },
    /// The lengths of a borrowed view of scores do not fit together.
    #[error("scores of {rows} rows x {cols} columns: {detail}")]
    Scores {
        /// Rows of the block.
        rows: usize,
        /// Columns of the block.
        cols: usize,
        /// What does not fit.
        detail: String,
    },
    /// The arguments of an attention call do not fit together. Nothing was written.
    #[error("attention: {what}: {detail}")]
    Attention {
        /// The argument that was refused, with its shape.
        what: String,
        /// What was found and what was expected.
        detail: String,
    },
    /// The settings of a measurement make no sense.
    #[error("{detail}")]
    Settings {
        /// What was expected and what was found.
        detail: String,
    },
    /// A rescaling text does not parse, or the rule cannot be applied.
    #[error("rescaling {spec:?}: {detail}")]
    Spec {
        /// The text as given.
        spec: String,
        /// What was expected.
        detail: String,
    },
    /// The arguments of a launch on a GPU (or of its plan) do not fit together. Nothing was launched.
    #[error("launch over {rows} rows x {cols} columns: {detail}")]
    Launch {
        /// Rows of the block.
        rows: u64,
        /// Columns of the block.
        cols: u64,
        /// What does not fit, with its numbers, and what was expected.
        detail: String,
    },
    /// This build has no GPU code, or no simulator.
    #[error("{what} is not in this build: {remedy}")]
    NotBuilt {
        /// The missing part.
        what: &'static str,
        /// How to build it in.
        remedy: &'static str,
    },
    /// There is no CUDA driver at all.
    #[error("no CUDA driver: tried {tried}; {remedy}")]
    NoDriver {
        /// The libraries that were tried.
        tried: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// There is a driver, but no usable GPU. The driver or the device is too old, or no device has that
    /// number.
    #[error("no GPU: {found}; {remedy}")]
    NoGpu {
        /// What was tried and what was found.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// No image of the kernels runs on the device.
    #[error("no kernels for {device} (driver {driver}): {}; {remedy}", attempts.join("; "))]
    NoImage {
        /// Name and capability of the device.
        device: String,
        /// The CUDA version that the driver supports.
        driver: String,
        /// Each attempt, and how it failed.
        attempts: Vec<String>,
        /// What to do about it.
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
    /// The simulator found a fault in a kernel. This is a defect of this crate.
    #[error("simulated {kernel}: {fault}")]
    Simulated {
        /// The kernel's symbol.
        kernel: &'static str,
        /// Kind of fault, source line, address, threads.
        fault: String,
    },
    /// Two gap profiles were counted against different maxima, so their counts must not be added.
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

    /// `path` as a whole does not follow its format.
    pub fn file(path: &Path, detail: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn attention(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Attention { what: what.into(), detail: detail.into() }
    }

    pub(crate) fn spec(spec: &str, detail: impl Into<String>) -> Self {
        Error::Spec { spec: spec.to_owned(), detail: detail.into() }
    }
}
