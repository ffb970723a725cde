//! The recording of a model that runs.

use crate::errors::raised;
use crate::measure::settings;
use crate::rows::Rows;
use crate::threads::{Job, pool};
use critbeta::DType;
use critbeta_diagnose::recording::{self, Call, KeptTensor, Products, TextKeys, TextRows};
use numpy::ndarray::{Array3, Array4};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArray3, PyReadonlyArray4};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::ThreadPool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The rows of some texts in a call. All layers of a forward pass share it.
#[pyclass(frozen, module = "critbeta._core")]
pub struct Texts(Arc<Vec<TextRows>>);

/// Text, index in the batch, number of rows, the first of them, and the keys from the first on: to the end if
/// they are columns of a tile.
type Place = (u64, usize, usize, usize, usize, Option<usize>);

#[pymethods]
impl Texts {
    #[new]
    fn new(places: Vec<Place>, positions: PyReadonlyArray1<'_, i64>) -> PyResult<Texts> {
        let mut positions = positions.as_array().iter().copied().collect::<Vec<i64>>().into_iter();
        let mut texts = Vec::with_capacity(places.len());
        for (text, batch, rows, row, first, end) in places {
            let positions = positions.by_ref().take(rows).map(u64::try_from);
            let positions = positions.collect::<Result<Vec<_>, _>>();
            let positions = positions.map_err(|_| PyValueError::new_err("positions: expected 0 or more"))?;
            if positions.len() != rows {
                return Err(PyValueError::new_err("positions: expected one per row"));
            }
            let keys = end.map_or(TextKeys::From(first), |end| TextKeys::Within(first..end));
            texts.push(TextRows { text, batch, row, positions, keys });
        }
        Ok(Texts(Arc::new(texts)))
    }
}

/// The records of a model that runs, without repeated rows.
#[pyclass(frozen, module = "critbeta._core")]
pub struct Recording(Mutex<State>);

struct State {
    /// Only the job locks it, or whoever has waited for the job.
    recording: Arc<Mutex<recording::Recording>>,
    /// Small calls wait here for each other: the threads then share more work at once.
    waiting: Vec<Waiting>,
    bytes: usize,
    /// The calls that waited before are measured while the model goes on. There is one such job at a time.
    job: Option<Job<critbeta::Result<()>>>,
}

/// A call with its own memory, because the model may write to its cache.
struct Waiting {
    layer: String,
    first_head: u64,
    texts: Arc<Vec<TextRows>>,
    products: Option<OwnProducts>,
    tile: Option<Array4<f32>>,
}

struct OwnProducts {
    dtypes: [DType; 2],
    q: Array3<u8>,
    k: Array4<u8>,
    scale: f64,
}

/// Calls that wait have about this many bytes, and one call that does has at most so many.
const WAITING_BYTES: usize = 4 << 20;
const SMALL_BYTES: usize = 1 << 20;

/// Element types, queries, keys and scale.
type Given<'py> = (String, String, PyReadonlyArray3<'py, u8>, PyReadonlyArray4<'py, u8>, f64);
/// Name, element type, shape and elements.
type Tensor<'py> = (String, &'static str, Vec<usize>, Bound<'py, PyArray1<u8>>);

#[pymethods]
impl Recording {
    #[new]
    fn new(resolve: f64, max_bytes: u64) -> PyResult<Recording> {
        let found = recording::Recording::new(settings(resolve, 1.0, None)?, max_bytes);
        let recording = Arc::new(Mutex::new(found.map_err(raised)?));
        Ok(Recording(Mutex::new(State { recording, waiting: Vec::new(), bytes: 0, job: None })))
    }

    #[pyo3(signature = (layer, texts, products, tile, first_head = 0))]
    fn add(
        &self,
        py: Python<'_>,
        layer: &str,
        texts: &Texts,
        products: Option<Given<'_>>,
        tile: Option<PyReadonlyArray4<'_, f32>>,
        first_head: u64,
    ) -> PyResult<()> {
        let products = match &products {
            None => None,
            Some((q_type, k_type, q, k, scale)) => {
                let dtype = |name: &String| {
                    name.parse::<DType>().map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
                };
                let (q, k) = (q.as_array(), k.as_array());
                Some(Products { dtypes: [dtype(q_type)?, dtype(k_type)?], q, k, scale: *scale })
            }
        };
        let tile = tile.as_ref().map(|tile| tile.as_array());
        let call = Call { layer, first_head, texts: &texts.0, products, tile };
        call.check().map_err(raised)?;
        let pool = pool(py)?;
        // Locks are taken without the interpreter's, which their holder may need to go on.
        py.detach(|| {
            let mut state = self.locked();
            if call.bytes() > SMALL_BYTES {
                return state.with(&pool, |recording| recording.add(&[call]))?.map_err(raised);
            }
            state.bytes += call.bytes();
            state.waiting.push(Waiting::of(&call, &texts.0));
            if state.bytes < WAITING_BYTES { Ok(()) } else { state.begin(&pool) }
        })
    }

    /// The number of records.
    fn count(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |recording| recording.records().len())
    }

    /// The records so far, without the `first` ones.
    #[pyo3(signature = (first = 0))]
    fn rows(&self, py: Python<'_>, first: usize) -> PyResult<Rows> {
        self.with(py, |recording| {
            let records = recording.records();
            let records = if first == 0 {
                records
            } else {
                Arc::new(records.get(first..).unwrap_or_default().to_vec())
            };
            Rows { records, settings: *recording.settings(), notes: Vec::new() }
        })
    }

    /// How many rows are kept, and whether some are not, for want of room.
    fn kept(&self, py: Python<'_>) -> PyResult<(u64, bool)> {
        self.with(py, |recording| (recording.kept_rows(), recording.is_full()))
    }

    fn file_count(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |recording| recording.file_count())
    }

    /// A file of what is kept: text, scale, tensors.
    fn file<'py>(&self, py: Python<'py>, index: usize) -> PyResult<(u64, Option<f64>, Vec<Tensor<'py>>)> {
        let file = self.with(py, |found| (index < found.file_count()).then(|| found.file(index)))?;
        let Some(file) = file else {
            return Err(PyValueError::new_err(format!("no file {index}")));
        };
        let tensor = |(name, tensor): (String, KeptTensor)| {
            let KeptTensor { dtype, shape, bytes } = tensor;
            (name, dtype.map_or("i64", DType::name), shape, PyArray1::from_vec(py, bytes))
        };
        Ok((file.text, file.scale, file.tensors.into_iter().map(tensor).collect()))
    }
}

impl Recording {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `of` when no call waits.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        of: impl FnOnce(&recording::Recording) -> R + Send,
    ) -> PyResult<R> {
        let pool = pool(py)?;
        py.detach(|| self.locked().with(&pool, |recording| of(recording)))
    }
}

impl State {
    /// Has the calls that wait measured, after those before them.
    fn begin(&mut self, pool: &ThreadPool) -> PyResult<()> {
        self.finish()?;
        let (calls, recording) = (std::mem::take(&mut self.waiting), Arc::clone(&self.recording));
        self.bytes = 0;
        self.job = Some(Job::begin(pool, move || {
            let calls: Vec<Call> = calls.iter().map(Waiting::call).collect();
            locked(&recording).add(&calls)
        }));
        Ok(())
    }

    fn finish(&mut self) -> PyResult<()> {
        let Some(job) = &self.job else { return Ok(()) };
        let result = job.wait()?;
        self.job = None;
        result.map_err(raised)
    }

    /// Calls `of` on the threads of this process when no call waits.
    fn with<R: Send>(
        &mut self,
        pool: &ThreadPool,
        of: impl FnOnce(&mut recording::Recording) -> R + Send,
    ) -> PyResult<R> {
        if !self.waiting.is_empty() {
            self.begin(pool)?;
        }
        self.finish()?;
        // A thread of the pool must not take this lock: it could take up other work that waits for it.
        let mut recording = locked(&self.recording);
        let recording = &mut *recording;
        Ok(pool.install(|| of(recording)))
    }
}

fn locked(recording: &Mutex<recording::Recording>) -> MutexGuard<'_, recording::Recording> {
    recording.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    fn of(call: &Call, texts: &Arc<Vec<TextRows>>) -> Waiting {
        let own = |of: &Products| OwnProducts {
            dtypes: of.dtypes,
            q: of.q.as_standard_layout().into_owned(),
            k: of.k.as_standard_layout().into_owned(),
            scale: of.scale,
        };
        Waiting {
            layer: call.layer.to_owned(),
            first_head: call.first_head,
            texts: Arc::clone(texts),
            products: call.products.as_ref().map(own),
            tile: call.tile.map(|tile| tile.as_standard_layout().into_owned()),
        }
    }

    fn call(&self) -> Call<'_> {
        Call {
            layer: &self.layer,
            first_head: self.first_head,
            texts: &self.texts,
            products: self.products.as_ref().map(OwnProducts::view),
            tile: self.tile.as_ref().map(|tile| tile.view()),
        }
    }
}

impl OwnProducts {
    fn view(&self) -> Products<'_> {
        Products { dtypes: self.dtypes, q: self.q.view(), k: self.k.view(), scale: self.scale }
    }
}
