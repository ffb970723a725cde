//! Errors of the crate as Python exceptions.

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::path::Path;

/// The Python exception for an error of the crate.
pub fn raised(error: critbeta::Error) -> PyErr {
    use critbeta::Error;
    let text = error.to_string();
    match error {
        Error::Io { path, source } => match source.raw_os_error().filter(|_| cfg!(unix)) {
            Some(code) => Python::attach(|py| refused(py, code, &path)).unwrap_or_else(|error| error),
            None => PyOSError::new_err(text),
        },
        Error::Attention { .. }
        | Error::File { .. }
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
