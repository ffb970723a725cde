//! Attention over keys in pages in device memory: what `critbeta::attention` does on the host.

mod check;
mod decode;
mod measure;
mod one_pass;
mod plan;
mod views;

pub use decode::{DecodeCall, DeviceAttention};
pub use measure::MeasureCall;
pub use plan::{DecodePlan, DecodeShape};
pub use views::{DevicePages, DeviceQueries, DeviceSequences};
