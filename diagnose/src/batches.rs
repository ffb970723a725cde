//! The loop under every file command: it works in parallel, keeps results in order and bounds memory.

use critbeta::{Error, Result};
use rayon::prelude::*;
use std::path::Path;

/// Checks that all threads together can get the memory for the rows of `layer`. A later failure would end the
/// process.
///
/// Errors: [`Error::File`] if the system refuses it.
pub(crate) fn check_memory(path: &Path, layer: &str, bytes_per_thread: u128) -> Result<()> {
    let threads = rayon::current_num_threads();
    let bytes = bytes_per_thread * threads as u128;
    let mut probe: Vec<u8> = Vec::new();
    match usize::try_from(bytes).map(|bytes| probe.try_reserve_exact(bytes)) {
        Ok(Ok(())) => Ok(()),
        _ => {
            let gib = bytes as f64 / (1u64 << 30) as f64;
            let detail = format!(
                "tensor {layer:?}: its rows need {gib:.1} GiB of memory on {threads} threads, more than there is"
            );
            Err(Error::file(path, detail))
        }
    }
}

/// Runs `work` on every job and hands the results to `sink` in the order of the jobs.
///
/// At most `jobs_per_thread` results per thread wait at any time; each thread reuses one scratch.
/// Errors: the first of the sink.
pub(crate) fn in_order<J: Send + Sync, S: Default, R: Send>(
    jobs: impl Iterator<Item = J>,
    jobs_per_thread: usize,
    work: impl Fn(&mut S, &J) -> R + Sync,
    mut sink: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let size = rayon::current_num_threads() * jobs_per_thread;
    let mut jobs = jobs.fuse();
    loop {
        let batch: Vec<J> = jobs.by_ref().take(size).collect();
        if batch.is_empty() {
            return Ok(());
        }
        // Every job has one result, even if a thread takes many. Only stolen work makes new scratch.
        let results: Vec<R> = batch.par_iter().map_init(S::default, &work).collect();
        results.into_iter().try_for_each(&mut sink)?;
    }
}
