//! The CUDA kernels: exact critical beta and rescaled softmax of rows in device memory. A row that fits on
//! chip is read once and written once.
//!
//! | a caller has | the entry |
//! | --- | --- |
//! | a question: which kernel runs, and why | [`Plan::choose`], which needs no GPU |
//! | scores in host memory | [`Engine::softmax`], [`Engine::row_reports`] as in [`cpu`](crate::cpu) |
//! | scores in device memory | [`Engine::launch`] |
//!
//! [`Engine::launch`] takes the caller's device memory, stream and workspace. It allocates nothing on the
//! device and does not wait for the GPU, so a CUDA graph can capture it. The page `docs/embedding.md` has an
//! example.
//!
//! An engine drives a GPU ([`Engine::cuda`], feature `cuda`), or it runs the same kernels thread by thread on
//! a CPU ([`Engine::simulated`], feature `simt`). The simulator is slow and serves tests: it checks for races
//! and for accesses outside of the memory that a launch was given.
//!
//! Nothing here has been measured on a GPU yet (2026-11-30).

mod arch;
mod attention;
mod attention_params;
#[cfg(feature = "cuda")]
mod cache;
mod call;
mod choice;
mod costs;
mod decode;
#[cfg_attr(feature = "cuda", path = "enabled.rs")]
#[cfg_attr(not(feature = "cuda"), path = "disabled.rs")]
mod driver;
mod engine;
mod facts;
mod host;
mod ladder;
mod launch;
#[cfg(feature = "cuda")]
mod launch_cuda;
mod launch_simt;
#[cfg(feature = "cuda")]
mod loader;
mod model;
mod notice;
mod params;
mod plan;
mod problem;
mod rule;
mod simulator;
#[cfg(feature = "cuda")]
mod sources;
mod spans;
mod timing;
mod variants;
mod wrappers;

pub use arch::Arch;
pub use attention::{
    DecodeCall, DecodePlan, DecodeShape, DeviceAttention, DevicePages, DeviceQueries, DeviceSequences,
    MeasureCall,
};
pub use attention_params::SkipReport;
pub use call::{Call, DeviceOutput, DeviceRows, Workspace};
pub use engine::{DeviceMemory, Engine};
pub use facts::facts;
pub use model::{Bound, Prediction};
pub use notice::Notice;
pub use params::{Contact, RowReport};
pub use plan::Plan;
pub use problem::Problem;
pub use rule::Beta;
pub use simulator::{SimtOptions, Traffic};

/// This module is not part of the API: the tests and the benchmark of this project read it. It changes
/// without notice.
#[doc(hidden)]
pub mod internals {
    pub use super::attention::{Slots, slots_in};
    pub use super::attention_params::*;
    pub use super::costs::Costs;
    pub use super::ladder::RESIDENT_THREADS;
    pub use super::params::*;
    pub use super::plan::Launch;
    pub use super::variants::{Family, Scope, Variant};
}
