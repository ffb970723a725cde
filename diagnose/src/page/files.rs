//! From a measurement to the file of its page. The command and the Python package share this.

use super::provenance::{FileFacts, Provenance};
use super::render::render;
use crate::input::Input;
use crate::output::Output;
use crate::{RecordSettings, Settings, Summary, look_again, summary_of_records};
use critbeta::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes the page of `summary` to `out`, which is still to be committed. Errors: [`Error::Io`].
pub fn write(mut out: Output, summary: &Summary, provenance: &Provenance) -> Result<Output> {
    let page = render(summary, provenance);
    out.write_all(page.as_bytes()).map_err(|source| Error::io(out.path(), source))?;
    Ok(out)
}

/// Writes the page of attention, with the gap counts of its rows and with other rules on the same rows. For
/// these it reads all scores of `inputs` again and fills them into `summary`, which must be that of `inputs`
/// under `settings`. `progress` is called with the number of rows just read.
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
    let files = inputs.iter().map(FileFacts::of).collect::<Result<Vec<_>>>()?.concat();
    write(out, summary, &Provenance { command, files })
}

/// Writes the page of row records that were kept earlier, and returns their summary.
///
/// Errors: those of [`FileFacts::of_records`] and [`summary_of_records`], and of writing.
pub fn write_of_records(
    out: Output,
    rows: &Path,
    settings: &RecordSettings,
    seed: u64,
    command: String,
) -> Result<(Output, Summary)> {
    // This comes first because it refuses a file that cannot be read twice.
    let files = vec![FileFacts::of_records(rows)?];
    let summary = summary_of_records(rows, settings, seed)?;
    Ok((write(out, &summary, &Provenance { command, files })?, summary))
}
