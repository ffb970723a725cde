//! From what was measured to the file of its page: what the command and the Python package share.

use super::{FileFacts, Provenance, render};
use crate::input::Input;
use crate::output::Output;
use crate::{RecordSettings, Settings, Summary, look_again, summary_of_records};
use critbeta::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes the page of `summary` to `out`, which waits to be committed. Errors: [`Error::Io`].
pub fn write(mut out: Output, summary: &Summary, provenance: &Provenance) -> Result<Output> {
    let page = render(summary, provenance);
    out.write_all(page.as_bytes()).map_err(|source| Error::io(out.path(), source))?;
    Ok(out)
}

/// Writes the page of attention with its gap counts and other rules on the same rows: reads all scores of `inputs`, whose
/// summary under `settings` is `summary`, again and fills that in. `progress` hears of rows done, `command` is how it was asked for.
///
/// Errors: those of [`look_again`] and of reading and writing.
pub fn write_of_inputs(
    out: Output,
    inputs: &[Input],
    settings: &Settings,
    summary: &mut Summary,
    command: String,
    progress: impl FnMut(u64),
) -> Result<Output> {
    look_again(inputs, settings, summary, progress)?;
    let files = inputs.iter().map(FileFacts::of).collect::<Result<Vec<_>>>()?;
    write(out, summary, &Provenance { command, files })
}

/// Writes the page of row records kept earlier, and says their summary.
///
/// Errors: those of [`FileFacts::of_records`] and [`summary_of_records`], and of writing.
pub fn write_of_records(
    out: Output,
    rows: &Path,
    asked: &RecordSettings,
    seed: u64,
    command: String,
) -> Result<(Output, Summary)> {
    // First, as it refuses what cannot be read twice.
    let files = vec![FileFacts::of_records(rows)?];
    let summary = summary_of_records(rows, asked, seed)?;
    Ok((write(out, &summary, &Provenance { command, files })?, summary))
}
