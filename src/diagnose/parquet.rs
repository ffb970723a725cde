//! Row records as Apache Parquet, one row group per 16,384 rows.

use super::record::RowRecord;
use super::writers::Column;
use ::parquet::basic::{LogicalType, Repetition, Type as Physical};
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::types::Type;
use std::io::{self, Write};
use std::sync::Arc;

/// Rows held back until a group is written: about 3 MB.
const GROUP: usize = 16_384;

pub(super) struct ParquetRows<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: &'static [(&'static str, Column)],
    held: Vec<RowRecord>,
}

impl<W: Write + Send> ParquetRows<W> {
    pub(super) fn new(columns: &'static [(&'static str, Column)], out: W) -> io::Result<Self> {
        let file = schema(columns)
            .and_then(|schema| SerializedFileWriter::new(out, schema, Arc::new(WriterProperties::new())))
            .map_err(into_io)?;
        Ok(ParquetRows { file, columns, held: Vec::new() })
    }

    pub(super) fn write(&mut self, records: &[RowRecord]) -> io::Result<()> {
        for part in records.chunks(GROUP) {
            self.held.extend_from_slice(part);
            if self.held.len() >= GROUP {
                self.write_group().map_err(into_io)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
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

/// Keeps the system's own error (a full disk) as it is.
fn into_io(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(system) => *system,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}
