//! From files of attention to records, summaries, length laws and calibrations.
//!
//! [`scan_on`] a device measures every row of opened [inputs](crate::input) and hands [`RowRecord`]s on in
//! input order; a [`Diagnosis`] gathers them per layer and head and says what they show.

mod bins;
mod calibration;
mod fit;
mod length_law;
#[cfg(feature = "parquet")]
mod parquet;
mod published;
mod qk;
mod quantile;
mod record;
mod scan;
mod summary;
mod verdict;
mod writers;
mod yardsticks;

pub use calibration::{CalibratedLaw, Calibration, HeadCalibration, HeadRescalings};
pub use fit::{Exponent, Form, FormFit};
pub use length_law::{BinMedians, LengthLaw};
pub use published::ClosestLaw;
pub use record::{RowPlace, RowRecord};
pub use scan::{Settings, scan, scan_on};
pub use summary::{Diagnosis, HeadSummary, InputNames, Quantiles, Summary};
pub use verdict::Verdict;
pub use writers::{COLUMNS, Column, RowFormat, RowWriter};
pub use yardsticks::Yardstick;
