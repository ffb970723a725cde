//! Row records: what is kept of every row, written and read as JSON lines, CSV or Parquet.

#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod raw;
pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod writers;
