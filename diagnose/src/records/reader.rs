//! Reads row records: JSON lines, CSV or Parquet as `--rows` writes them. Any tool may have changed them.

use super::raw::{Cell, Cells, Layers, checked, lacks};
use super::record::{COLUMNS, RowRecord};
use super::writers::RowFormat;
use critbeta::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Reads the records of a .jsonl, .csv or .parquet file in order, a batch at a time. A .csv with only a
/// header has no records; neither has an empty .jsonl.
///
/// Infinite and NaN values are null in JSON. Null and NaN mean NaN in a poisoned row. In other rows they mean
/// infinity, for critical_beta, resolved_beta and ratio. What other tools write is read too: `True` and 1,
/// whole numbers as floats, bare `NaN` and `Infinity`, and columns of their own.
///
/// Errors: those of `sink`; [`Error::Io`]; [`Error::File`], which names the line or row and the column.
///
/// The Parquet reader panics on a few damaged files, which becomes an [`Error::File`] by unwinding. A program
/// that is built with `panic = "abort"` ends there: it should take .csv or .jsonl from those it does not trust.
pub fn read_records(path: &Path, mut sink: impl FnMut(&[RowRecord]) -> Result<()>) -> Result<()> {
    let mut layers = Layers::default();
    let mut batch = Batch { held: Vec::new(), sink: &mut sink };
    match RowFormat::of(path)? {
        RowFormat::Jsonl => read_json_lines(path, &mut layers, &mut batch)?,
        RowFormat::Csv => read_csv(path, &mut layers, &mut batch)?,
        #[cfg(feature = "parquet")]
        RowFormat::Parquet => {
            super::parquet::read(path, |place, cells| batch.add(path, &place, &mut layers, cells))?
        }
        #[cfg(not(feature = "parquet"))]
        RowFormat::Parquet => return Err(Error::file(path, "this build has no Parquet")),
    }
    batch.flush()
}

/// Reads the records of a table in memory, as [`read_records`] does those of a file. `columns` are the names
/// of its columns; the cells of a row are in the order of [`COLUMNS`]. Errors call the table `name`.
pub fn read_table(
    name: &Path,
    columns: &[&str],
    rows: impl Iterator<Item = Cells>,
    mut sink: impl FnMut(&[RowRecord]) -> Result<()>,
) -> Result<()> {
    if let Some(column) = lacks(|name| columns.contains(&name)) {
        return Err(no_column(name, column));
    }
    let mut layers = Layers::default();
    let mut batch = Batch { held: Vec::new(), sink: &mut sink };
    for (at, cells) in rows.enumerate() {
        batch.add(name, &format!("row {}", at + 1), &mut layers, &cells)?;
    }
    batch.flush()
}

fn no_column(path: &Path, name: &str) -> Error {
    Error::file(path, format!("has no column {name}: expected row records"))
}

/// Records that wait for the sink, at most `BATCH`.
struct Batch<'a> {
    held: Vec<RowRecord>,
    sink: &'a mut dyn FnMut(&[RowRecord]) -> Result<()>,
}

const BATCH: usize = 4096;

impl Batch<'_> {
    fn add(&mut self, path: &Path, place: &str, layers: &mut Layers, cells: &Cells) -> Result<()> {
        let record = checked(cells, layers).map_err(|why| Error::file(path, format!("{place}: {why}")))?;
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
        let parsed = serde_json::from_slice(&line).or_else(|e| match without_bare_numbers(&line) {
            Some(line) => serde_json::from_slice(&line),
            None => Err(e),
        });
        let Line(cells) = parsed.map_err(|e| {
            Error::file(path, format!("{place}: not a row record as `diagnose --rows` writes it: {e}"))
        })?;
        batch.add(path, &place, layers, &cells)?;
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
    let header = table.headers().map_err(fail)?;
    let columns = COLUMNS.map(|(name, _)| header.iter().position(|column| column == name));
    if let Some(name) = lacks(|name| header.iter().any(|column| column == name)) {
        return Err(no_column(path, name));
    }
    for (i, record) in table.records().enumerate() {
        let record = record.map_err(fail)?;
        let cell = |column: Option<usize>| match column {
            Some(at) => Cell::Text(record.get(at).unwrap_or_default().to_owned()),
            None => Cell::Absent,
        };
        batch.add(path, &format!("record {}", i + 1), layers, &columns.map(cell))?;
    }
    Ok(())
}

/// The cells of an object of JSON.
struct Line(Cells);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(line: D) -> Result<Self, D::Error> {
        struct Columns;
        impl<'de> Visitor<'de> for Columns {
            type Value = Line;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Line, A::Error> {
                let mut cells = Cells::default();
                while let Some(name) = entries.next_key::<Cow<'de, str>>()? {
                    let value = entries.next_value::<Value>()?;
                    let Some(at) = COLUMNS.iter().position(|(column, _)| *column == name) else { continue };
                    if !matches!(cells[at], Cell::Absent) {
                        return Err(A::Error::custom(format_args!("column {name} is there twice")));
                    }
                    cells[at] = match value {
                        Value::Null => Cell::Null,
                        Value::Bool(value) => Cell::Flag(value),
                        Value::String(text) => Cell::Text(text),
                        Value::Number(value) => match value.as_u64() {
                            Some(value) => Cell::Whole(value),
                            None => Cell::Real(value.as_f64().unwrap_or(f64::NAN)),
                        },
                        Value::Array(_) | Value::Object(_) => {
                            return Err(A::Error::custom(format_args!(
                                "column {name} holds no single value"
                            )));
                        }
                    };
                }
                Ok(Line(cells))
            }
        }
        line.deserialize_map(Columns)
    }
}

/// The line with null for the bare `NaN` and `Infinity` that Python writes, if it has any.
fn without_bare_numbers(line: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest, mut quoted) = (Vec::with_capacity(line.len()), line, false);
    while let Some(&byte) = rest.first() {
        let bare = [&b"NaN"[..], b"Infinity"].into_iter().find(|bare| rest.starts_with(bare));
        let taken = match bare {
            Some(bare) if !quoted => {
                out.extend_from_slice(b"null");
                bare.len()
            }
            _ => {
                quoted ^= byte == b'"';
                // What stands behind a backslash ends no string.
                let taken = if quoted && byte == b'\\' { 2.min(rest.len()) } else { 1 };
                out.extend_from_slice(&rest[..taken]);
                taken
            }
        };
        rest = &rest[taken..];
    }
    (out != line).then_some(out)
}
