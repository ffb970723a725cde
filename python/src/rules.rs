//! Rescalings, the published laws, and score families.

use crate::block::indices;
use crate::errors::raised;
use crate::numbers::Whole;
use critbeta::calibration::{HeadRescalings, RescalingSpec};
use critbeta::families as known;
use critbeta::laws::{LAWS, LawEntry};
use critbeta::rescaling::RowFacts;
use numpy::{PyArray1, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A rule for the inverse temperature of a row, as one line of text. It is `identity`, `fixed:1.3`, a law of
/// `critbeta.laws` (`ssmax:s=0.43`, `qwen-logn:train=8192`), `critical:ratio=1,resolve=0.69,floor=0.5,cap=8`
/// (measured per row), or `calibrated:c=1.5,xi=0.61,anchor=8192`. It is immutable, and equal to another of
/// the same text. `str` gives a text that parses back.
#[pyclass(frozen, eq, module = "critbeta")]
pub struct Rescaling(pub critbeta::Rescaling);

impl PartialEq for Rescaling {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

#[pymethods]
impl Rescaling {
    /// The rescaling of a text.
    ///
    /// It raises ValueError, with what was expected, for a text that does not parse. It also does so for
    /// `calibrated:FILE`, because a file holds one law per head.
    #[staticmethod]
    fn parse(spec: &str) -> PyResult<Self> {
        match spec.parse().map_err(raised)? {
            RescalingSpec::Uniform(rule) => Ok(Rescaling(rule)),
            RescalingSpec::PerHead { .. } => Err(PyValueError::new_err(format!(
                "rescaling {spec:?}: a file holds one law per head, \
                 expected the law of your head: calibrated:c=,xi= with the numbers under its \"heads\". \
                 decode and measure take a list of one rule per query head"
            ))),
        }
    }

    /// The beta of a row of `n` visible keys whose query is at `position` (0-based; n - 1 if not given). The
    /// scores are multiplied by it, and it is >= 0. `critical` is the critical beta of the row at `resolve`,
    /// and `entropy` (nats) is its entropy at beta = 1. The result is NaN if the rule needs one that is not
    /// given.
    #[pyo3(signature = (n, position=None, critical=f64::NAN, entropy=f64::NAN))]
    fn beta(&self, n: Whole, position: Option<Whole>, critical: f64, entropy: f64) -> PyResult<f64> {
        let n = n.named("n")?;
        let position = position.map_or(Ok(n.saturating_sub(1)), |position| position.named("position"))?;
        let mut facts = RowFacts::new(n, position);
        (facts.critical, facts.entropy) = (critical, entropy);
        Ok(self.0.beta(&facts))
    }

    /// The beta of every row, as float64. `beta` gives that of one row. `n` and `positions` are int64, with
    /// one element per row. The result is NaN if the rule measures the row.
    fn betas<'py>(
        &self,
        py: Python<'py>,
        n: PyReadonlyArray1<'py, i64>,
        positions: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let (n, positions) = (indices("n", &n, n.len())?, indices("positions", &positions, n.len())?);
        let rows = n.into_iter().zip(positions);
        let beta = |(n, position)| self.0.beta(&RowFacts::new(n, position));
        Ok(PyArray1::from_iter(py, rows.map(beta)))
    }

    /// The resolve r (nats) of the critical beta that this rule measures in a row; None if it measures none.
    #[getter]
    fn resolve(&self) -> Option<f64> {
        self.0.resolve()
    }

    /// Whether this rule measures the entropy of a row at beta = 1.
    #[getter]
    fn needs_entropy(&self) -> bool {
        self.0.needs_entropy()
    }

    /// (a, xi) of a rule that is beta = exp(a) (ln n)^xi for every n above 1: a calibrated law. None for
    /// other rules.
    #[getter]
    fn log_power(&self) -> Option<(f64, f64)> {
        let critbeta::Rescaling::Calibrated(law) = &self.0 else { return None };
        Some((law.anchor.map_or_else(|| law.c.ln(), |length| -law.xi * length.ln().ln()), law.xi))
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("Rescaling.parse({:?})", self.0.to_string())
    }

    fn __hash__(&self) -> u64 {
        hash(&self.0.to_string())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((slf.get_type().getattr("parse")?, (slf.get().0.to_string(),)))
    }
}

type HeadRule = (String, u64, Rescaling);

/// The rules of `calibrated:FILE` by layer and head, and the number of them that the calibration calls
/// inconclusive. It is `None` for the text of one rule for all heads.
#[pyfunction]
pub fn head_rescalings(spec: &str) -> PyResult<Option<(Vec<HeadRule>, usize)>> {
    let spec: RescalingSpec = spec.parse().map_err(raised)?;
    if matches!(spec, RescalingSpec::Uniform(_)) {
        return Ok(None);
    }
    let heads = HeadRescalings::load(spec).map_err(raised)?;
    let rule = |(layer, head): (&str, u64)| {
        heads.of(layer, head).map(|rule| (layer.to_owned(), head, Rescaling(rule)))
    };
    let rules = heads.heads().map(rule).collect::<critbeta::Result<_>>().map_err(raised)?;
    Ok(Some((rules, heads.inconclusive().0)))
}

/// A published length law. It is a factor on the logits that depends on the number of visible keys n, or on
/// the position i of the query.
#[pyclass(frozen, eq, module = "critbeta")]
pub struct Law(&'static LawEntry);

impl PartialEq for Law {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

#[pymethods]
impl Law {
    /// The law of a name. It raises ValueError, with the known names, if there is none.
    #[staticmethod]
    fn named(name: &str) -> PyResult<Self> {
        LawEntry::named(name).map(Law).ok_or_else(|| {
            let names: Vec<_> = LAWS.iter().map(|law| law.name).collect();
            PyValueError::new_err(format!("unknown law {name:?}; expected {}", names.join(", ")))
        })
    }

    /// The name in the text of a rescaling.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name
    }

    /// The factor as a formula. Logarithms are natural unless the formula says otherwise.
    #[getter]
    fn formula(&self) -> &'static str {
        self.0.formula
    }

    /// What the factor varies over: the model, the row, the position or the head.
    #[getter]
    fn granularity(&self) -> &'static str {
        self.0.granularity
    }

    /// The convention used here, because implementations differ.
    #[getter]
    fn convention(&self) -> &'static str {
        self.0.convention
    }

    /// The publication.
    #[getter]
    fn source(&self) -> &'static str {
        self.0.source
    }

    /// The parameters in order. Each has a name, a default (None if it must be given), an example, and
    /// whether it is a length.
    #[getter]
    fn parameters<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let fields = |parameter: &critbeta::laws::Parameter| {
            let of = PyDict::new(py);
            of.set_item("name", parameter.name)?;
            of.set_item("default", parameter.default)?;
            of.set_item("example", parameter.example)?;
            of.set_item("is_length", parameter.is_length)?;
            Ok(of)
        };
        self.0.parameters.iter().map(fields).collect()
    }

    fn __repr__(&self) -> String {
        format!("<law {}: {}>", self.0.name, self.0.formula)
    }

    fn __hash__(&self) -> u64 {
        hash(self.0.name)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (&'static str,))> {
        Ok((slf.get_type().getattr("named")?, (slf.get().0.name,)))
    }
}

#[pyfunction]
pub fn laws() -> Vec<Law> {
    LAWS.iter().map(Law).collect()
}

/// A distribution of score rows, as text `name` or `name:parameter=value`. `critbeta.families` lists them,
/// and most have a known critical beta.
#[pyclass(frozen, eq, module = "critbeta")]
pub struct Family(known::Family);

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

#[pymethods]
impl Family {
    /// The family of a text. It raises ValueError, with what was expected, for a text that does not parse.
    #[staticmethod]
    fn parse(text: &str) -> PyResult<Self> {
        text.parse().map(Family).map_err(PyValueError::new_err)
    }

    /// The name without a parameter.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    /// How the critical beta grows, if theory gives it: factor * (log n)^log_power * n^power. `factor` is
    /// None if it is random of order 1.
    #[getter]
    fn growth<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(known::Growth { factor, log_power, power, .. }) = self.0.known() else { return Ok(None) };
        let growth = PyDict::new(py);
        growth.set_item("factor", factor)?;
        growth.set_item("log_power", log_power)?;
        growth.set_item("power", power)?;
        Ok(Some(growth))
    }

    /// One row of `n` scores as float32. The same seed gives the same row.
    #[pyo3(signature = (n, seed=Whole::ONE), text_signature = "($self, n, seed=1)")]
    fn draw<'py>(&self, py: Python<'py>, n: Whole, seed: Whole) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (n, seed, mut row) = (n.count("n")?, seed.named("seed")?, Vec::new());
        if row.try_reserve_exact(n).is_err() {
            return Err(PyMemoryError::new_err(format!("no memory for {n} scores")));
        }
        py.detach(|| self.0.draw(n, &mut Xoshiro256PlusPlus::seed_from_u64(seed), &mut row));
        Ok(PyArray1::from_vec(py, row))
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("Family.parse({:?})", self.0.to_string())
    }

    fn __hash__(&self) -> u64 {
        hash(&self.0.to_string())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((slf.get_type().getattr("parse")?, (slf.get().0.to_string(),)))
    }
}

#[pyfunction]
pub fn families() -> Vec<Family> {
    known::Family::ALL.into_iter().map(Family).collect()
}

/// The hash of the text, because equality compares the text too.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
