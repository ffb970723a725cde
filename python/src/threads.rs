//! Work runs without the interpreter lock, on threads of this process.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// The threads, and the process that has them. It is only locked under the interpreter lock. A fork of Python
/// holds that lock too, so no child inherits this mutex locked.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Runs `work` on the threads of this process, `RAYON_NUM_THREADS` of them or one per core, without the
/// interpreter lock.
///
/// A forked child makes its own threads. It does not have those of its parent, and would wait for them for
/// ever. Errors: RuntimeError where the system refuses a thread.
pub fn without_lock<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> PyResult<R> {
    let pool = pool(py)?;
    Ok(py.detach(|| pool.install(work)))
}

/// The same for work that may be too small to share: if `is_small`, it stays on the calling thread, and no
/// hand-over to the pool is paid.
pub fn without_lock_if_small<R: Send>(
    py: Python<'_>,
    is_small: bool,
    work: impl FnOnce() -> R + Send,
) -> PyResult<R> {
    if is_small { Ok(py.detach(work)) } else { without_lock(py, work) }
}

/// Work that threads of this process do while its caller goes on.
pub struct Job<R> {
    process: u32,
    result: Receiver<std::thread::Result<R>>,
}

impl<R: Send + 'static> Job<R> {
    /// Begins `work`.
    pub fn begin(pool: &ThreadPool, work: impl FnOnce() -> R + Send + 'static) -> Job<R> {
        let (done, result) = channel();
        // Rayon ends the process at a panic that nobody catches.
        let work = || std::panic::catch_unwind(AssertUnwindSafe(work));
        // Nobody waits for a job that is dropped.
        pool.spawn(move || drop(done.send(work())));
        Job { process: std::process::id(), result }
    }

    /// Waits for the result. Call it without the interpreter lock.
    ///
    /// Errors: RuntimeError in a process that was forked after the job began: its thread is in the parent.
    pub fn wait(&self) -> PyResult<R> {
        if self.process != std::process::id() {
            return Err(PyRuntimeError::new_err(
                "a forked process cannot read what its parent was recording",
            ));
        }
        match self.result.recv() {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Err(PyRuntimeError::new_err("a thread ended before its work did")),
        }
    }
}

/// The threads of this process. Errors: RuntimeError where the system refuses a thread.
pub fn pool(_: Python<'_>) -> PyResult<Arc<ThreadPool>> {
    let mut held = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((owner, pool)) = &*held
        && *owner == process
    {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new().build().map_err(|e| PyRuntimeError::new_err(e.to_string()))?;
    let pool = Arc::new(pool);
    // The pool of the parent is leaked. Dropping it would signal threads that do not exist in this process,
    // through locks that they may have held during the fork.
    std::mem::forget(held.replace((process, Arc::clone(&pool))));
    Ok(pool)
}
