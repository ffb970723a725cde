//! Makes records, summaries, length laws, calibrations and pages from files of attention.
//!
//! [`scan_on`] measures every row of opened [inputs](input) on a [`Device`] and passes on [`RowRecord`]s in
//! input order. A [`Diagnosis`] gathers them per layer and head and sums them up. [`page`] makes one
//! self-contained page of the summary. [`probabilities`] writes the rescaled softmax of a file. The command
//! `critbeta` uses this crate. The numbers come from [`critbeta`].

mod batches;
pub mod bench;
mod calibration;
mod device;
#[doc(hidden)]
pub mod figures;
mod from_records;
mod heads;
pub mod input;
mod law;
pub mod output;
#[cfg(feature = "html")]
pub mod page;
pub mod probabilities;
mod qk;
pub mod recording;
mod records;
mod remarks;
mod scan;
pub mod selftest;
mod settings;
#[cfg(feature = "cli")]
pub mod signals;
mod what_if;

pub use calibration::write_calibration;
pub use device::{Device, DeviceSpec};
pub use from_records::{RecordSettings, summary_of_records, summary_of_table};
pub use heads::diagnosis::Diagnosis;
pub use heads::sketch::{HeadSketch, SketchPoint, Staircase};
pub use heads::summary::{HeadSummary, InputNames, LawOutcome, Quantiles, Regimes, Summary};
pub use law::fit::{Exponent, Form, FormFit};
pub use law::length_law::LengthLaw;
pub use law::published::ClosestLaw;
pub use law::sample::BinMedians;
pub use law::verdict::Verdict;
pub use law::yardsticks::Yardstick;
pub use records::raw::{Cell, Cells};
pub use records::reader::{read_records, read_table};
pub use records::record::{COLUMNS, Column, RowPlace, RowRecord};
pub use records::writers::{RowFormat, RowWriter};
pub use remarks::{Remark, Remarks};
pub use scan::{scan, scan_on};
pub use settings::Settings;
pub use what_if::look_again;
