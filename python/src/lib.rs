//! The compiled half of the Python package `critbeta`. It turns arrays into score rows, and returns the
//! results.
//!
//! The Python half (`critbeta/*.py`) makes every array a block [rows, n] and documents the functions. This
//! half only borrows the blocks, releases the interpreter lock, and calls the crate. `critbeta/_core.pyi` is
//! the interface between the two.

mod block;
mod cuda;
mod measure;
mod numbers;
mod page;
mod pair;
mod rows;
mod rules;
mod softmax;
mod threads;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::path::Path;

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pymodule_export]
    use super::cuda::{Engine, report_layout, rows_of_reports};
    #[pymodule_export]
    use super::measure::{critical_beta, gap_count};
    #[pymodule_export]
    use super::page::{report_files, report_rows};
    #[pymodule_export]
    use super::pair::record_pair;
    #[pymodule_export]
    use super::rows::{Rows, record_scores};
    #[pymodule_export]
    use super::rules::{Family, Law, Rescaling, families, head_rescalings, laws};
    #[pymodule_export]
    use super::softmax::{softmax, softmax_in_place};
}

/// The Python exception for an error of the crate.
fn raised(error: critbeta::Error) -> PyErr {
    use critbeta::Error;
    let text = error.to_string();
    match error {
        Error::Io { path, source } => match source.raw_os_error().filter(|_| cfg!(unix)) {
            Some(code) => Python::attach(|py| refused(py, code, &path)).unwrap_or_else(|error| error),
            None => PyOSError::new_err(text),
        },
        Error::File { .. }
        | Error::Launch { .. }
        | Error::Scores { .. }
        | Error::Settings { .. }
        | Error::Spec { .. }
        | Error::Tensor { .. } => PyValueError::new_err(text),
        _ => PyRuntimeError::new_err(text),
    }
}

/// An error of the system as Python raises it: with its number, its file name, and the class of that number,
/// for example FileNotFoundError.
fn refused(py: Python<'_>, code: i32, path: &Path) -> PyResult<PyErr> {
    let text = py.import("os")?.call_method1("strerror", (code,))?;
    Ok(PyErr::from_value(py.get_type::<PyOSError>().call1((code, text, path.as_os_str()))?))
}
