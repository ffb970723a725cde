//! Reads row records: JSON lines, CSV or Parquet as `--rows` writes them. Any tool may have changed them.

use super::raw::{Layers, RawRecord};
use super::record::RowRecord;
use super::writers::RowFormat;
use critbeta::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Reads the records of a .jsonl, .csv or .parquet file in order, a batch at a time. A .csv with only a
/// header has no records; neither has an empty .jsonl.
///
/// Infinite and NaN values are null in JSON. Null means NaN in a poisoned row. In other rows it means
/// infinity, for critical_beta, resolved_beta and ratio. Errors: those of `sink`; [`Error::Io`];
/// [`Error::File`], which names the line or row and the column.
pub fn read_records(path: &Path, mut sink: impl FnMut(&[RowRecord]) -> Result<()>) -> Result<()> {
    let mut layers = Layers::default();
    let mut batch = Batch { held: Vec::new(), sink: &mut sink };
    match RowFormat::of(path)? {
        RowFormat::Jsonl => read_json_lines(path, &mut layers, &mut batch)?,
        RowFormat::Csv => read_csv(path, &mut layers, &mut batch)?,
        #[cfg(feature = "parquet")]
        RowFormat::Parquet => {
            super::parquet::read(path, |place, raw| batch.add(path, &place, &mut layers, raw))?
        }
        #[cfg(not(feature = "parquet"))]
        RowFormat::Parquet => return Err(Error::file(path, "this build has no Parquet")),
    }
    batch.flush()
}

/// Records that wait for the sink, at most `BATCH`.
struct Batch<'a> {
    held: Vec<RowRecord>,
    sink: &'a mut dyn FnMut(&[RowRecord]) -> Result<()>,
}

const BATCH: usize = 4096;

impl Batch<'_> {
    fn add(&mut self, path: &Path, place: &str, layers: &mut Layers, raw: RawRecord) -> Result<()> {
        let record = raw.checked(layers).map_err(|why| Error::file(path, format!("{place}: {why}")))?;
        self.held.push(record);
        if self.held.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        (self.sink)(&self.held)?;
        self.held.clear();
        Ok(())
    }
}

fn read_json_lines(path: &Path, layers: &mut Layers, batch: &mut Batch) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut reader, mut line, mut number) = (BufReader::with_capacity(1 << 16, file), Vec::new(), 0);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))? == 0 {
            return Ok(());
        }
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = format!("line {number}");
        let raw = serde_json::from_slice(&line).map_err(|e| {
            Error::file(path, format!("{place}: not a row record as `diagnose --rows` writes it: {e}"))
        })?;
        batch.add(path, &place, layers, raw)?;
    }
}

fn read_csv(path: &Path, layers: &mut Layers, batch: &mut Batch) -> Result<()> {
    let fail = |e: csv::Error| {
        let message = e.to_string();
        match e.into_kind() {
            csv::ErrorKind::Io(e) => Error::io(path, e),
            _ => Error::file(path, format!("not row records as `diagnose --rows` writes them: {message}")),
        }
    };
    let mut table = csv::Reader::from_path(path).map_err(fail)?;
    if table.headers().map_err(fail)?.is_empty() {
        return Err(Error::file(path, "is empty: expected the header of row records"));
    }
    for (i, raw) in table.deserialize().enumerate() {
        batch.add(path, &format!("record {}", i + 1), layers, raw.map_err(fail)?)?;
    }
    Ok(())
}
