//! Exact critical inverse temperature of attention rows, and a softmax that is rescaled by it.
//!
//! A row of attention is a softmax over n scores. Its gaps are D_j = max - s_j, and N(t) counts the gaps of
//! at most t. The critical beta of the row is Lambda = sup over t > 0 of log N(t) / t (arXiv:2605.12697). Far
//! below Lambda the softmax blurs the top keys together as n grows. Far above it one key takes all the
//! weight.
//!
//! # On a CPU
//!
//! ```
//! use critbeta::{Rescaling, Scores, cpu};
//!
//! // Two rows of four scores. A score of -inf is masked.
//! let scores = [3.0f32, 0.0, 0.0, 0.0, 1.0, 1.5, f32::NEG_INFINITY, 0.0];
//! let rows = Scores::dense(&scores, 2, 4)?;
//! // Each row is rescaled to its own critical beta, and at most to 8.
//! let rule: Rescaling = "critical:cap=8".parse()?;
//! let mut probabilities = [0.0f32; 8];
//! let found = cpu::softmax(&rows, &rule, None, &mut probabilities)?;
//! // All four scores of the first row lie within a gap of 3, so its critical beta is log 4 / 3.
//! assert_eq!(found[0].beta, 4f64.ln() / 3.0);
//! assert_eq!(probabilities[6], 0.0);
//! # Ok::<(), critbeta::Error>(())
//! ```
//!
//! [`cpu::row_reports`] measures rows without a softmax. [`CriticalBeta`] carries the gap and the rank that
//! anyone can check by hand, and [`reference`](mod@reference) is the slow definition in f64.
//!
//! # On a GPU
//!
//! [`cuda::Engine::launch`] is the entry for a server. It takes device memory, a stream and a workspace that
//! the caller owns.
//!
//! 1. [`cuda::Engine::cuda`] opens a GPU, once per process. [`cuda::Engine::load`] loads a kernel
//!    before its first launch.
//! 2. [`cuda::Call::softmax`] describes one launch over device rows. Its other fields are set after that.
//! 3. [`cuda::Call::workspace_bytes`] gives the size of the workspace. The caller allocates it
//!    and fills it with zeros, once.
//! 4. [`cuda::Engine::launch`] checks the call and enqueues it. A CUDA graph can capture the launch.
//!
//! [`cuda::Plan`] names the kernel and the reasons for it, on a machine without a GPU too.
//!
//! # Modules and features
//!
//! - [`Scores`] says what a legal block of rows is. An empty row has critical beta 0, a single score also has
//!   0, and tied maxima have +inf. A NaN or +inf makes its own row NaN, and no other row.
//! - [`attention`] takes queries, and keys and values in pages: the critical beta of each row, and an output
//!   that leaves unread what the row does not need.
//! - [`Rescaling`] chooses beta. It is plain data with one text form. [`laws`] lists the published length
//!   laws.
//! - Feature `calibration` (default): the module `calibration` reads a rule for each layer and head from a
//!   file.
//! - Feature `cuda` (default): NVIDIA GPUs. The driver is found at run time, so the build needs no CUDA.
//! - Feature `families`: the module `families` draws score rows whose critical beta is known.
//! - Feature `simt`: a simulator runs the CUDA kernels on a CPU, for tests. The build needs a C++17 compiler.
//!
//! The crate `critbeta-diagnose` holds files, reports and the command `critbeta`.

pub mod attention;
#[cfg(feature = "calibration")]
pub mod calibration;
pub mod cpu;
mod critical;
pub mod cuda;
mod dtype;
mod error;
#[cfg(feature = "families")]
pub mod families;
pub mod laws;
pub mod reference;
pub mod rescaling;
mod scores;
mod spec;
pub mod stats;

pub use critical::{CriticalBeta, operating_ratio};
pub use dtype::{DType, rebase_shift, rebased};
pub use error::{Error, Result};
pub use rescaling::Rescaling;
pub use scores::{Element, Scores, ScoresMut};

/// The Rust examples of `docs/embedding.md` are tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;
