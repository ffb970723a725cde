//! Whole numbers from Python.

use critbeta_diagnose::Settings;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// An int from Python for a count, an index or a seed, or the text of one that does not fit. The range is
/// checked later, where the name of the argument is known: PyO3 does not pass it here.
pub struct Whole(Result<u64, String>);

impl Whole {
    pub const ONE: Whole = Whole(Ok(1));
}

impl<'a, 'py> FromPyObject<'a, 'py> for Whole {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match given.extract::<u64>() {
            Ok(value) => Ok(Whole(Ok(value))),
            Err(error) if error.is_instance_of::<PyOverflowError>(given.py()) => {
                // Python refuses to write thousands of digits.
                let text = given.str().map_or_else(|_| "a longer number".to_owned(), |text| text.to_string());
                Ok(Whole(Err(text)))
            }
            Err(error) => Err(error),
        }
    }
}

impl Whole {
    /// Errors: ValueError that names the argument, the number found and the range expected.
    pub fn named(self, name: &str) -> PyResult<u64> {
        self.within(name, 0, u64::MAX)
    }

    /// The same for a count of things in memory.
    pub fn count(self, name: &str) -> PyResult<usize> {
        self.within(name, 0, usize::MAX as u64).map(|value| value as usize)
    }

    fn within(self, name: &str, least: u64, most: u64) -> PyResult<u64> {
        let found = match self.0 {
            Ok(value) if (least..=most).contains(&value) => return Ok(value),
            Ok(value) => value.to_string(),
            Err(text) => text,
        };
        Err(PyValueError::new_err(format!("{name} is {found}: expected {least} to {most}")))
    }
}

/// The top-k, if one is given. Errors: ValueError unless it is valid.
pub fn top_k(given: Option<Whole>) -> PyResult<Option<usize>> {
    let within = |k: Whole| k.within("top_k", 1, Settings::MAX_TOP_K as u64).map(|value| value as usize);
    given.map(within).transpose()
}
