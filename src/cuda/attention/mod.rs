//! Attention over keys in pages in device memory: what `critbeta::attention` does on the host.

mod check;
mod decode;
mod measure;
mod on_chip;
mod one_pass;
mod plan;
mod slots;
mod views;

pub use decode::{DecodeCall, DeviceAttention};
pub use measure::MeasureCall;
pub use plan::{DecodePlan, DecodeShape};
pub use slots::{Slots, slots_in};
pub use views::{DevicePages, DeviceQueries, DeviceSequences};
