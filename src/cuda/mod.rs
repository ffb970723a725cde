//! The CUDA kernels: exact critical beta and rescaled softmax of device rows, one read and one write.
//!
//! Three levels. [`Plan`] says, without a GPU, which kernel runs and why. [`Engine`] has the verbs of
//! [`cpu`](crate::cpu) on host slices: it uploads, runs and downloads. [`Engine::launch`] embeds: borrowed device
//! rows, the caller's stream, the caller's workspace; asynchronous, no allocation on the device, no host sync, so
//! a CUDA graph can capture it.
//!
//! An engine drives a GPU ([`Engine::cuda`], feature `cuda`) or runs the same kernels thread by thread on a CPU
//! ([`Engine::simulated`], feature `simt`): slow, for tests, with a checker of races and memory.
//!
//! Nothing here has been measured on a GPU yet (2026-11-25).

mod arch;
mod call;
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
mod params;
mod plan;
mod rule;
mod simulator;
#[cfg(feature = "cuda")]
mod sources;
mod timing;
mod variants;
mod wrappers;

pub use arch::Arch;
pub use call::{Call, DeviceOutput, DeviceRows, Workspace};
pub use engine::{DeviceMemory, Engine};
pub use facts::facts;
pub use params::{Contact, RowReport};
pub use plan::{Plan, Problem};
pub use rule::Beta;
pub use simulator::{SimtOptions, Traffic};

/// Not part of the API: what this project's own tests and benchmark look at. It changes without notice.
#[doc(hidden)]
pub mod internals {
    pub use super::params::*;
    pub use super::plan::Launch;
    pub use super::variants::{Family, Scope, Variant};
}
