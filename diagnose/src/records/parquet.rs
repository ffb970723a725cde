//! Row records as Apache Parquet, one row group per 16,384 rows.

use super::raw::RawRecord;
use super::record::{COLUMNS, Column, RowRecord};
use ::parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
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
/// compressed by snappy or not at all.
///
/// Errors: [`Error::Io`], those of `take`, and [`Error::File`] for a missing column or another type.
pub(crate) fn read(path: &Path, mut take: impl FnMut(String, RawRecord) -> Outcome<()>) -> Outcome<()> {
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
                    if !matches!(codec, Compression::UNCOMPRESSED | Compression::SNAPPY) {
                        // The message leaves out the level.
                        let codec = codec.to_string();
                        let codec = codec.split('(').next().unwrap_or_default();
                        let message =
                            format!("column {name} is compressed by {codec}: expected SNAPPY, or none");
                        return Err(Error::file(path, message));
                    }
                    let values = guarded(path, || Values::of(group.get_column_reader(column)?, rows))?;
                    if !values.fits(kind) {
                        let found = schema.column(column).physical_type();
                        return Err(Error::file(
                            path,
                            format!("column {name} is {found}, expected {}", wanted(kind)),
                        ));
                    }
                    values
                }
            };
            columns.push(values);
        }
        for i in 0..rows {
            row += 1;
            let raw = raw_record(&columns, i).map_err(|name| {
                Error::file(path, format!("row {row}: column {name} is null or no value of its kind"))
            })?;
            take(format!("row {row}"), raw)?;
        }
    }
    Ok(())
}

/// Calls the parquet crate (60.1), which panics on some damaged files. A panic becomes an error.
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
            _ => Ok(Values::Absent),
        }
    }

    fn fits(&self, column: Column) -> bool {
        matches!(
            (self, column),
            (Values::Texts(_), Column::Text(_))
                | (Values::Counts(_), Column::Count(_))
                | (Values::Reals(_), Column::Real(_))
                | (Values::Flags(_), Column::Flag(_))
        )
    }

    fn count(&self, i: usize) -> Option<u64> {
        match self {
            Values::Counts(values) => values.get(i).copied().flatten().map(i64::cast_unsigned),
            _ => None,
        }
    }

    fn real(&self, i: usize) -> Option<f64> {
        match self {
            Values::Reals(values) => values.get(i).copied().flatten(),
            _ => None,
        }
    }

    fn flag(&self, i: usize) -> Option<bool> {
        match self {
            Values::Flags(values) => values.get(i).copied().flatten(),
            _ => None,
        }
    }
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

/// Errors: the name of a column that is null, or of a text that is not UTF-8.
fn raw_record(columns: &[Values], i: usize) -> Result<RawRecord, &'static str> {
    let place = |name: &str| COLUMNS.iter().position(|(column, _)| *column == name);
    let of = |name: &'static str| place(name).and_then(|at| columns.get(at)).ok_or(name);
    let count = |name: &'static str| of(name)?.count(i).ok_or(name);
    let real = |name: &'static str| of(name).map(|values| values.real(i));
    let flag = |name: &'static str| of(name).map(|values| values.flag(i));
    let layer = match of("layer")? {
        Values::Texts(values) => values.get(i).and_then(Option::as_ref).ok_or("layer")?,
        _ => return Err("layer"),
    };
    Ok(RawRecord {
        layer: layer.as_utf8().map_err(|_| "layer")?.to_owned(),
        head: count("head")?,
        row: count("row")?,
        position: count("position")?,
        n: count("n")?,
        max: real("max")?,
        argmax: count("argmax")?,
        ties: count("ties")?,
        critical_beta: real("critical_beta")?,
        contact_gap: real("contact_gap")?,
        contact_rank: count("contact_rank")?,
        alpha: real("alpha")?,
        resolved_beta: real("resolved_beta")?,
        beta: real("beta")?,
        ratio: real("ratio")?,
        log_partition: real("log_partition")?,
        entropy: real("entropy")?,
        top_two: real("top_two")?,
        max_weight: real("max_weight")?,
        poisoned: flag("poisoned")?.ok_or("poisoned")?,
        certified: flag("certified")?,
        resolved_certified: flag("resolved_certified")?,
    })
}

fn schema(columns: &[(&str, Column)]) -> Result<Arc<Type>> {
    let fields = columns.iter().map(|(name, column)| {
        let (physical, logical) = match column {
            Column::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Column::Count(_) => (Physical::INT64, Some(LogicalType::integer(64, false))),
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
            let values: Vec<i64> = rows.iter().map(|r| of(r).cast_signed()).collect();
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
