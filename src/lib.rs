//! Exact critical inverse temperature of attention rows.

mod dtype;
mod error;

pub use dtype::DType;
pub use error::{Error, Result};
