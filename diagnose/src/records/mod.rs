//! Row records: what is kept of every row, written and read as JSON lines, CSV or Parquet.

#[cfg(feature = "parquet")]
mod parquet;
mod raw;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod writers;
