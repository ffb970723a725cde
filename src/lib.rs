//! Exact critical inverse temperature of attention rows.

mod batches;
pub mod cpu;
mod critical;
pub mod diagnose;
mod dtype;
mod error;
pub mod families;
pub mod input;
pub mod laws;
pub mod output;
pub mod probabilities;
pub mod reference;
pub mod rescaling;
mod scores;
mod spec;
pub mod stats;

pub use critical::{CriticalBeta, operating_ratio};
pub use dtype::DType;
pub use error::{Error, Result};
pub use rescaling::{Rescaling, RescalingSpec};
pub use scores::{Element, Scores};
