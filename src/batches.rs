//! Work in parallel, results in order, memory bounded: the loop under every file command.

use crate::Result;
use rayon::prelude::*;

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
        // One result per job even where a thread takes many: scratch is remade only when work is stolen.
        let results: Vec<R> = batch.par_iter().map_init(S::default, &work).collect();
        results.into_iter().try_for_each(&mut sink)?;
    }
}
