//! Row records are read back with every field as it was written. Damaged files are refused.

use critbeta::cpu::{Measure, row_report};
use critbeta_diagnose::{RowFormat, RowPlace, RowRecord, RowWriter, read_records};
use std::path::{Path, PathBuf};

/// Measured, tied, poisoned, single and empty rows.
fn records(top_k: Option<usize>) -> Vec<RowRecord> {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows: [&[f32]; 6] =
        [&[1.0, 3.0, 2.0, -4.0], &[2.0, 2.0, -inf], &[nan, 1.0], &[], &[7.0], &[0.5, 0.25, 0.125]];
    rows.iter()
        .enumerate()
        .map(|(i, row)| {
            let place = RowPlace {
                layer: ["a,\"b\"\n", "c"][i % 2].into(),
                head: 1,
                row: i as u64,
                position: u64::MAX - i as u64,
            };
            let report = row_report(row, 1.0, Measure::new(0.3, top_k));
            RowRecord::new(place, &report, 0.0, top_k.is_some())
        })
        .collect()
}

fn written(directory: &Path, extension: &str, top_k: Option<usize>, of: &[RowRecord]) -> PathBuf {
    let path = directory.join(format!("rows.{extension}"));
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = RowWriter::new(RowFormat::of(&path).unwrap(), file, top_k.is_some()).unwrap();
    writer.write(of).unwrap();
    writer.finish().unwrap();
    path
}

fn read(path: &Path) -> critbeta::Result<Vec<RowRecord>> {
    let mut all = Vec::new();
    read_records(path, |records| {
        all.extend_from_slice(records);
        Ok(())
    })?;
    Ok(all)
}

fn formats() -> impl Iterator<Item = &'static str> {
    ["jsonl", "csv", "parquet"].into_iter().filter(|name| *name != "parquet" || cfg!(feature = "parquet"))
}

#[test]
fn what_is_written_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    for extension in formats() {
        for top_k in [None, Some(2)] {
            let back = read(&written(directory.path(), extension, top_k, &records(top_k))).unwrap();
            let expected = records(top_k);
            assert_eq!(back.len(), expected.len(), "{extension}");
            for (back, expected) in back.iter().zip(&expected) {
                // NaN must be NaN again. A comparison cannot say so, but text can.
                let text = |record: &RowRecord| {
                    let zero = RowRecord { max: record.max + 0.0, ..record.clone() };
                    format!("{zero:?}").replace("-NaN", "NaN")
                };
                if extension == "jsonl" && expected.poisoned {
                    assert!(back.poisoned && back.critical_beta.is_nan() && back.entropy.is_nan());
                } else {
                    assert_eq!(text(back), text(expected), "{extension}");
                }
            }
        }
    }
}

#[test]
fn no_records_are_read_back_and_an_empty_table_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for extension in formats() {
        assert_eq!(read(&written(directory.path(), extension, None, &[])).unwrap(), [], "{extension}");
        let empty = directory.path().join(format!("empty.{extension}"));
        std::fs::write(&empty, "").unwrap();
        match extension {
            // The header is not a record.
            "jsonl" => assert_eq!(read(&empty).unwrap(), []),
            "csv" => {
                let message = read(&empty).unwrap_err().to_string();
                assert!(
                    message.ends_with("empty.csv: is empty: expected the header of row records"),
                    "{message}"
                );
            }
            _ => assert!(read(&empty).is_err()),
        }
    }
}

#[test]
fn no_damaged_byte_does_more_than_be_refused() {
    let directory = tempfile::tempdir().unwrap();
    for extension in formats() {
        let good = std::fs::read(written(directory.path(), extension, None, &records(None))).unwrap();
        let path = directory.path().join(format!("damaged.{extension}"));
        let mut refused = 0;
        let step = if extension == "parquet" { 1 } else { 3 };
        for at in (0..good.len()).step_by(step) {
            for change in [0xff, 0x01, 0x80] {
                let mut bytes = good.clone();
                bytes[at] ^= change;
                let _absent = std::fs::remove_file(&path);
                std::fs::write(&path, &bytes).unwrap();
                if let Err(error) = read(&path) {
                    assert!(error.to_string().contains("damaged"), "{error}");
                    refused += 1;
                }
            }
        }
        for length in (0..good.len()).step_by(7) {
            std::fs::write(&path, &good[..length]).unwrap();
            refused += usize::from(read(&path).is_err());
        }
        assert!(refused > 100, "{extension}: {refused} of {}", good.len());
    }
}
