//! From files of attention to records, summaries, length laws and calibrations.
//!
//! [`scan_on`] a device measures every row of opened [inputs](crate::input) and hands [`RowRecord`]s on in
//! input order; a [`Diagnosis`] gathers them per layer and head and says what they show.

mod bins;
mod bounds;
mod calibration;
mod diagnosis;
mod fit;
mod length_law;
#[cfg(feature = "parquet")]
mod parquet;
mod published;
mod qk;
mod quantile;
mod reader;
mod record;
mod scan;
mod sketch;
mod summary;
mod verdict;
mod what_if;
mod writers;
mod yardsticks;

pub use calibration::{CalibratedLaw, Calibration, HeadCalibration, HeadRescalings};
pub use diagnosis::Diagnosis;
pub use fit::{Exponent, Form, FormFit};
pub use length_law::{BinMedians, LengthLaw};
pub use published::ClosestLaw;
pub use reader::{RecordSettings, read_records, summary_of_records};
pub use record::{RowPlace, RowRecord};
pub use scan::{Settings, scan, scan_on};
pub use sketch::{HeadSketch, SketchPoint, Staircase};
pub use summary::{HeadSummary, InputNames, Quantiles, Regimes, Summary};
pub use verdict::Verdict;
pub use what_if::{LawOutcome, look_again};
pub use writers::{COLUMNS, Column, RowFormat, RowWriter};
pub use yardsticks::Yardstick;
