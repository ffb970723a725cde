//! Row records as Apache Parquet, one row group per 16,384 rows.

use super::pages;
use super::raw::{Cell, Cells};
use super::record::{COLUMNS, Column, RowRecord};
use ::parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::types::Type;
use critbeta::{Error, Result as Outcome};
use std::fs::File;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

type Result<T, E = ParquetError> = std::result::Result<T, E>;

/// A group of this many rows (about 3 MB) is written at once.
const GROUP: usize = 16_384;

pub(crate) struct ParquetRows<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: &'static [(&'static str, Column)],
    held: Vec<RowRecord>,
}

impl<W: Write + Send> ParquetRows<W> {
    pub(crate) fn new(columns: &'static [(&'static str, Column)], out: W) -> io::Result<Self> {
        let file = schema(columns)
            .and_then(|schema| SerializedFileWriter::new(out, schema, Arc::new(WriterProperties::new())))
            .map_err(into_io)?;
        Ok(ParquetRows { file, columns, held: Vec::new() })
    }

    pub(crate) fn write(&mut self, records: &[RowRecord]) -> io::Result<()> {
        for part in records.chunks(GROUP) {
            self.held.extend_from_slice(part);
            if self.held.len() >= GROUP {
                self.write_group().map_err(into_io)?;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.write_group().and_then(|()| self.file.into_inner()).map_err(into_io)
    }

    fn write_group(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        let mut columns = self.columns.iter();
        while let Some(mut writer) = group.next_column()? {
            if let Some((_, column)) = columns.next() {
                write_column(writer.untyped(), *column, &self.held)?;
            }
            writer.close()?;
        }
        group.close()?;
        self.held.clear();
        Ok(())
    }
}

/// Calls `take` with every record and its place in words. Columns may be optional, in any order, and
/// compressed by snappy, zstd or gzip.
///
/// Errors: [`Error::Io`], those of `take`, and [`Error::File`] for a missing column or another type.
pub(crate) fn read(path: &Path, mut take: impl FnMut(String, &Cells) -> Outcome<()>) -> Outcome<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let file = guarded(path, || SerializedFileReader::new(file))?;
    let schema = file.metadata().file_metadata().schema_descr_ptr();
    let found = |name: &str| (0..schema.num_columns()).find(|&at| schema.column(at).path().string() == name);
    let mut row = 0u64;
    for at in 0..file.num_row_groups() {
        let group = guarded(path, || file.get_row_group(at))?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut columns = Vec::with_capacity(COLUMNS.len());
        for (name, kind) in COLUMNS {
            let optional = name.ends_with("certified");
            let values = match found(name) {
                None if optional => Values::Absent,
                None => return Err(Error::file(path, format!("has no column {name}: expected row records"))),
                Some(column) => {
                    let codec = group.metadata().column(column).compression();
                    let known = matches!(codec, Compression::UNCOMPRESSED | Compression::SNAPPY)
                        || matches!(codec, Compression::ZSTD(_) | Compression::GZIP(_));
                    if !known {
                        // The message leaves out the level.
                        let codec = codec.to_string();
                        let codec = codec.split('(').next().unwrap_or_default();
                        let message =
                            format!("column {name} is compressed by {codec}: expected SNAPPY, ZSTD or GZIP");
                        return Err(Error::file(path, message));
                    }
                    let values = guarded(path, || Values::of(pages::column(&*group, column)?, rows))?;
                    // A decimal is stored as a whole number.
                    let decimal = schema.column(column).converted_type() == ConvertedType::DECIMAL;
                    if decimal || matches!(values, Values::Absent) {
                        let found = schema.column(column).physical_type();
                        let detail = format!("column {name} is {found}, expected {}", wanted(kind));
                        return Err(Error::file(path, detail));
                    }
                    values
                }
            };
            columns.push(values);
        }
        for i in 0..rows {
            row += 1;
            take(format!("row {row}"), &std::array::from_fn(|at| columns[at].cell(i)))?;
        }
    }
    Ok(())
}

/// Calls the parquet crate (60.1), which panics on a few damaged files (`pages.rs`). A panic becomes an
/// error, but not in a program that was built with `panic = "abort"`.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Outcome<T> {
    let damaged = || Error::file(path, "no Parquet file: damaged");
    match catch_unwind(AssertUnwindSafe(read)).map_err(|_| damaged())? {
        Ok(value) => Ok(value),
        Err(ParquetError::External(inner)) => Err(match inner.downcast::<io::Error>() {
            Ok(system) => Error::io(path, *system),
            Err(other) => Error::file(path, format!("no Parquet file: {other}")),
        }),
        Err(other) => Err(Error::file(path, format!("no Parquet file: {other}"))),
    }
}

/// The values of one column of one row group.
enum Values {
    Absent,
    Texts(Vec<Option<ByteArray>>),
    Counts(Vec<Option<i64>>),
    Reals(Vec<Option<f64>>),
    Flags(Vec<Option<bool>>),
}

impl Values {
    fn of(reader: ColumnReader, rows: usize) -> Result<Values> {
        match reader {
            ColumnReader::ByteArrayColumnReader(r) => read_all(r, rows).map(Values::Texts),
            ColumnReader::Int64ColumnReader(r) => read_all(r, rows).map(Values::Counts),
            ColumnReader::DoubleColumnReader(r) => read_all(r, rows).map(Values::Reals),
            ColumnReader::BoolColumnReader(r) => read_all(r, rows).map(Values::Flags),
            // Other tools narrow columns.
            ColumnReader::Int32ColumnReader(r) => Ok(Values::Counts(widened(read_all(r, rows)?))),
            ColumnReader::FloatColumnReader(r) => Ok(Values::Reals(widened(read_all(r, rows)?))),
            _ => Ok(Values::Absent),
        }
    }

    fn cell(&self, i: usize) -> Cell {
        match self {
            Values::Absent => Cell::Absent,
            Values::Texts(values) => cell_of(values, i, |text| match text.as_utf8() {
                Ok(text) => Cell::Text(text.to_owned()),
                Err(_) => Cell::Null,
            }),
            Values::Counts(values) => cell_of(values, i, |&value| match u64::try_from(value) {
                Ok(value) => Cell::Whole(value),
                Err(_) => Cell::Real(value as f64),
            }),
            Values::Reals(values) => cell_of(values, i, |&value| Cell::Real(value)),
            Values::Flags(values) => cell_of(values, i, |&value| Cell::Flag(value)),
        }
    }
}

fn cell_of<T>(values: &[Option<T>], i: usize, of: impl Fn(&T) -> Cell) -> Cell {
    values.get(i).and_then(Option::as_ref).map_or(Cell::Null, of)
}

fn widened<T, U: From<T>>(values: Vec<Option<T>>) -> Vec<Option<U>> {
    values.into_iter().map(|value| value.map(U::from)).collect()
}

fn wanted(column: Column) -> &'static str {
    match column {
        Column::Text(_) => "a string",
        Column::Count(_) => "INT64",
        Column::Real(_) => "DOUBLE",
        Column::Flag(_) => "BOOLEAN",
    }
}

/// All values of a column. Those that an optional column lacks are null.
fn read_all<T: DataType>(mut reader: ColumnReaderImpl<T>, rows: usize) -> Result<Vec<Option<T::T>>> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    while levels.len().max(values.len()) < rows {
        let (records, ..) = reader.read_records(rows, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General(format!("a column ends before its {rows} rows")));
        }
    }
    if levels.is_empty() {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    Ok(levels.into_iter().map(|level| if level > 0 { values.next() } else { None }).collect())
}

fn schema(columns: &[(&str, Column)]) -> Result<Arc<Type>> {
    let fields = columns.iter().map(|(name, column)| {
        let (physical, logical) = match column {
            Column::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            // Signed, because people subtract columns, and unsigned differences wrap in their tools.
            Column::Count(_) => (Physical::INT64, None),
            Column::Real(_) => (Physical::DOUBLE, None),
            Column::Flag(_) => (Physical::BOOLEAN, None),
        };
        let field = Type::primitive_type_builder(name, physical).with_repetition(Repetition::REQUIRED);
        field.with_logical_type(logical).build().map(Arc::new)
    });
    let fields = fields.collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Type::group_type_builder("rows").with_fields(fields).build()?))
}

fn write_column(writer: &mut ColumnWriter, column: Column, rows: &[RowRecord]) -> Result<()> {
    match (writer, column) {
        (ColumnWriter::ByteArrayColumnWriter(w), Column::Text(of)) => {
            let values: Vec<ByteArray> = rows.iter().map(|r| ByteArray::from(of(r))).collect();
            w.write_batch(&values, None, None)
        }
        (ColumnWriter::Int64ColumnWriter(w), Column::Count(of)) => {
            let values: Result<Vec<i64>, _> = rows.iter().map(|r| i64::try_from(of(r))).collect();
            let values = values.map_err(|_| ParquetError::General("a count of 2^63 or more".into()))?;
            w.write_batch(&values, None, None)
        }
        (ColumnWriter::DoubleColumnWriter(w), Column::Real(of)) => {
            let values: Vec<f64> = rows.iter().map(of).collect();
            w.write_batch(&values, None, None)
        }
        (ColumnWriter::BoolColumnWriter(w), Column::Flag(of)) => {
            let values: Vec<bool> = rows.iter().map(of).collect();
            w.write_batch(&values, None, None)
        }
        _ => return Err(ParquetError::General("a column does not have the type of its schema".into())),
    }?;
    Ok(())
}

/// Keeps the system's own error, such as a full disk.
fn into_io(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(system) => *system,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}
