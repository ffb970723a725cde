//! Attention over keys in pages in device memory: what `critbeta::attention` does on the host.

mod measure;
mod params;
mod views;

pub use measure::MeasureCall;
pub use params::{AttentionParams, QUERY_ROWS, UNIT, WIDE_QUERY_ROWS};
pub use views::{DevicePages, DeviceQueries, DeviceSequences};
