//! From files of attention to records, summaries, length laws and calibrations.

#[cfg(feature = "parquet")]
mod parquet;
mod record;
mod writers;

pub use record::{RowPlace, RowRecord};
pub use writers::{RowFormat, RowWriter};
