//! Exact critical inverse temperature of attention rows, and what it says about a model.
//!
//! A row of attention is a softmax over n scores. With D_j = max - s_j its gaps and N(t) how many of
//! them are at most t, its critical beta is Lambda = sup over t > 0 of log N(t) / t: far below it the
//! top keys are not told apart as n grows, far above it one key takes all (arXiv:2605.12697).
//!
//! ```
//! // A sink 8 nats above a thousand equal keys: the contact lies at the far end of the row.
//! let mut row = vec![0.0f32; 1000];
//! row[0] = 8.0;
//! let critical = critbeta::cpu::critical_beta(&row, 0.0);
//! assert_eq!(critical.beta, 1000f64.ln() / 8.0);
//! assert_eq!((critical.contact_gap, critical.contact_rank), (8.0, 1000));
//! ```
//!
//! Read in this order:
//!
//! - [`Scores`]: what a legal block of rows is; -inf is masked.
//! - [`reference`](mod@reference): the definition in f64, sorted and obvious, with every quantity and bound of the theory.
//! - [`cpu`]: the same numbers fast, rows in parallel; the rescaled softmax.
//! - [`cuda`]: the same on a GPU, for rows that lie there already.
//! - [`CriticalBeta`]: the value and the witness that lets anyone check it by hand.
//! - [`rescaling`], [`laws`]: how beta is chosen, as plain data with one text form; the published laws.
//! - [`calibration`] (a feature of that name): a rule for each layer and head, from a file.
//! - `families` (feature `families`): score families with known answers.
//!
//! Files, reports and the command `critbeta` are the crate `critbeta-diagnose`.
//!
//! Legal rows include the empty (all zero), the single (Lambda = 0), the tied (Lambda = +inf) and the
//! poisoned one: a NaN or +inf makes its own row NaN and no other.

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

/// The README's example is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
