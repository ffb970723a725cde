//! Writes row records as JSON lines, CSV or Parquet, batch by batch.

use super::record::{COLUMNS, RowRecord};
use critbeta::{Error, Result};
use std::io::{self, Write};
use std::path::Path;

/// A format of row records. The file's extension decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// One JSON object per line. Infinite and NaN values are null.
    Jsonl,
    /// Comma-separated with a header. Infinite values are `inf`, NaN is `NaN`.
    Csv,
    /// Apache Parquet. Infinite values are inf.
    Parquet,
}

impl RowFormat {
    /// The format of `path`.
    ///
    /// Errors: [`Error::File`] for another extension, and for .parquet in a build without that feature.
    pub fn of(path: &Path) -> Result<RowFormat> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        match extension.as_str() {
            "jsonl" | "ndjson" => Ok(RowFormat::Jsonl),
            "csv" => Ok(RowFormat::Csv),
            "parquet" if cfg!(feature = "parquet") => Ok(RowFormat::Parquet),
            "parquet" => Err(Error::file(path, "this build has no Parquet: build with --features parquet")),
            _ => Err(Error::file(path, "row records are written as .jsonl, .csv or .parquet")),
        }
    }
}

/// Writes records to `W` in one of the formats.
pub struct RowWriter<W: Write + Send> {
    sink: Sink<W>,
}

enum Sink<W: Write + Send> {
    Jsonl(W),
    Csv(Box<csv::Writer<W>>),
    #[cfg(feature = "parquet")]
    Parquet(Box<super::parquet::ParquetRows<W>>),
}

impl<W: Write + Send> RowWriter<W> {
    /// Begins a file. `top_k` says whether records have the certificate fields. Errors: those of `out`.
    pub fn new(format: RowFormat, out: W, top_k: bool) -> io::Result<Self> {
        let columns = if top_k { &COLUMNS[..] } else { &COLUMNS[..COLUMNS.len() - 2] };
        let sink = match format {
            RowFormat::Jsonl => Sink::Jsonl(out),
            RowFormat::Csv => {
                let mut table = csv::WriterBuilder::new().has_headers(false).from_writer(out);
                table.write_record(columns.iter().map(|(name, _)| name)).map_err(io::Error::from)?;
                Sink::Csv(Box::new(table))
            }
            #[cfg(feature = "parquet")]
            RowFormat::Parquet => Sink::Parquet(Box::new(super::parquet::ParquetRows::new(columns, out)?)),
            #[cfg(not(feature = "parquet"))]
            RowFormat::Parquet => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(RowWriter { sink })
    }

    /// Adds records in order. Errors: those of the target.
    pub fn write(&mut self, records: &[RowRecord]) -> io::Result<()> {
        match &mut self.sink {
            Sink::Jsonl(out) => records.iter().try_for_each(|record| {
                serde_json::to_writer(&mut *out, record)?;
                out.write_all(b"\n")
            }),
            Sink::Csv(table) => {
                records.iter().try_for_each(|record| table.serialize(record)).map_err(io::Error::from)
            }
            #[cfg(feature = "parquet")]
            Sink::Parquet(rows) => rows.write(records),
        }
    }

    /// Completes the file and returns its target. Errors: those of the target.
    pub fn finish(self) -> io::Result<W> {
        match self.sink {
            Sink::Jsonl(out) => Ok(out),
            Sink::Csv(table) => table.into_inner().map_err(|e| e.into_error()),
            #[cfg(feature = "parquet")]
            Sink::Parquet(rows) => rows.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "parquet")]
    use super::super::record::Column;
    use super::super::record::RowPlace;
    use super::*;
    use critbeta::cpu::{Measure, row_report};

    fn records(top_k: Option<usize>) -> Vec<RowRecord> {
        let rows: [&[f32]; 4] = [&[1.0, 3.0, 2.0], &[2.0, 2.0, f32::NEG_INFINITY], &[f32::NAN], &[]];
        let place =
            |row: usize| RowPlace { layer: "a,\"b\"\n".into(), head: 1, row: row as u64, position: 7 };
        rows.iter()
            .enumerate()
            .map(|(i, row)| {
                let report = row_report(row, 1.0, Measure::new(0.0, top_k));
                RowRecord::new(place(i), &report, 0.0, top_k.is_some())
            })
            .collect()
    }

    fn written(format: RowFormat, top_k: Option<usize>, records: &[RowRecord]) -> Vec<u8> {
        let mut writer = RowWriter::new(format, Vec::new(), top_k.is_some()).unwrap();
        writer.write(records).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn columns_are_the_fields_of_a_record_in_order() {
        for top_k in [None, Some(2)] {
            let text = String::from_utf8(written(RowFormat::Jsonl, top_k, &records(top_k)[..1])).unwrap();
            let mut at = 0;
            let columns = if top_k.is_some() { &COLUMNS[..] } else { &COLUMNS[..20] };
            for (name, _) in columns {
                let found = text.find(&format!("\"{name}\":")).unwrap();
                assert!(found > at || at == 0, "{name}");
                at = found;
            }
            assert_eq!(text.matches("\":").count(), columns.len());
        }
    }

    #[test]
    fn json_says_null_where_csv_says_inf() {
        let text = String::from_utf8(written(RowFormat::Jsonl, None, &records(None))).unwrap();
        let rows: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(rows[1]["critical_beta"].is_null() && rows[1]["ties"] == 2 && rows[1]["ratio"] == 0.0);
        assert!(rows[2]["entropy"].is_null() && rows[2]["poisoned"] == true);
        for name in ["n", "max", "critical_beta", "ratio", "log_partition", "entropy", "max_weight", "beta"] {
            assert_eq!(rows[3][name].as_f64(), Some(0.0), "{name}");
        }
        let text = String::from_utf8(written(RowFormat::Csv, None, &records(None))).unwrap();
        let mut table = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(table.headers().unwrap().len(), 20);
        let rows: Vec<csv::StringRecord> = table.records().map(|r| r.unwrap()).collect();
        assert_eq!((&rows[0][0], &rows[1][8], &rows[2][16]), ("a,\"b\"\n", "inf", "NaN"));
        assert_eq!(rows.len(), 4);
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn parquet_reads_back() {
        use ::parquet::file::reader::{FileReader, SerializedFileReader};
        use ::parquet::record::Field;
        let records = records(Some(2));
        let open = |bytes: Vec<u8>| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            SerializedFileReader::new(file).unwrap()
        };
        let reader = open(written(RowFormat::Parquet, Some(2), &records));
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(|r| r.unwrap()).collect();
        assert_eq!(rows.len(), 4);
        for (row, record) in rows.iter().zip(&records) {
            for ((name, field), (expected, column)) in row.get_column_iter().zip(&COLUMNS) {
                assert_eq!(name, expected);
                let same = match (column, field) {
                    (Column::Text(of), Field::Str(v)) => of(record) == v,
                    (Column::Count(of), Field::Long(v)) => of(record).cast_signed() == *v,
                    (Column::Real(of), Field::Double(v)) => of(record).total_cmp(v).is_eq(),
                    (Column::Flag(of), Field::Bool(v)) => of(record) == *v,
                    _ => false,
                };
                assert!(same, "{name}: {field:?}");
            }
        }
        // More rows than a group holds, in uneven batches.
        let many: Vec<RowRecord> = (0..40_000).map(|row| RowRecord { row, ..records[0].clone() }).collect();
        let mut writer = RowWriter::new(RowFormat::Parquet, Vec::new(), true).unwrap();
        many.chunks(9_999).for_each(|batch| writer.write(batch).unwrap());
        let file = open(writer.finish().unwrap());
        let rows = file.get_row_iter(None).unwrap().map(|row| {
            let row = row.unwrap();
            row.get_column_iter().find(|(name, _)| *name == "row").map(|(_, field)| field.clone())
        });
        assert!(rows.eq((0..40_000).map(|row| Some(Field::Long(row)))));
        let empty = written(RowFormat::Parquet, None, &[]);
        assert_eq!(open(empty).metadata().file_metadata().num_rows(), 0);
    }
}
