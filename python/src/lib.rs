//! The compiled half of the Python package `critbeta`. It turns arrays into score rows, and returns the
//! results.
//!
//! The Python half (`critbeta/*.py`) makes every array a block [rows, n] and documents the functions. This
//! half only borrows the blocks, releases the interpreter lock, and calls the crate. `critbeta/_core.pyi` is
//! the interface between the two.

mod attention;
mod block;
mod cuda;
mod errors;
mod measure;
mod numbers;
mod page;
mod pair;
mod recording;
mod rows;
mod rules;
mod softmax;
mod threads;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("COLUMNS", critbeta_diagnose::COLUMNS.map(|(name, _)| name))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pymodule_export]
    use super::attention::{decode, measure};
    #[pymodule_export]
    use super::cuda::{Engine, report_layout, rows_of_pages, rows_of_reports, skip_layout};
    #[pymodule_export]
    use super::measure::{critical_beta, gap_count};
    #[pymodule_export]
    use super::page::{record_file, report_files, report_rows, report_table};
    #[pymodule_export]
    use super::pair::record_pair;
    #[pymodule_export]
    use super::recording::{Recording, Texts};
    #[pymodule_export]
    use super::rows::{Rows, record_scores};
    #[pymodule_export]
    use super::rules::{Family, Law, Rescaling, families, head_rescalings, laws};
    #[pymodule_export]
    use super::softmax::{softmax, softmax_in_place};
}
