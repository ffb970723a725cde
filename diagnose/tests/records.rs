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
                position: i64::MAX as u64 - i as u64,
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

/// The same records as other tools write them.
#[test]
fn tables_of_other_tools_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let lines =
        std::fs::read_to_string(written(directory.path(), "csv", Some(2), &records(Some(2)))).unwrap();
    let text = |records: Vec<RowRecord>| format!("{records:?}").replace("-NaN", "NaN");
    let expected = text(read(&directory.path().join("rows.csv")).unwrap());
    let table: Vec<Vec<String>> = csv_records(&lines);
    let to_csv = |table: &[Vec<String>]| {
        let quoted = |cell: &String| format!("\"{}\"", cell.replace('"', "\"\""));
        let line = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n";
        table.iter().map(line).collect::<String>()
    };
    let changed = |name: &str, change: &dyn Fn(usize, &str, &str) -> String| {
        let mut changed = table.clone();
        for (row, cells) in changed.iter_mut().enumerate().skip(1) {
            for (cell, column) in cells.iter_mut().zip(&table[0]) {
                *cell = change(row, column, cell);
            }
        }
        (name.to_owned(), changed)
    };
    let is_flag = |column: &str| column == "poisoned" || column.ends_with("certified");
    let counts = ["head", "row", "n", "argmax", "ties", "contact_rank"];
    let mut tables = vec![
        changed("pandas", &|_, column, cell| match cell {
            "true" if is_flag(column) => "True".into(),
            "false" if is_flag(column) => "False".into(),
            _ => cell.into(),
        }),
        changed("R", &|_, column, cell| if is_flag(column) { cell.to_uppercase() } else { cell.into() }),
        changed("SQLite", &|_, column, cell| match cell {
            "true" if is_flag(column) => "1".into(),
            "false" if is_flag(column) => "0".into(),
            _ => cell.into(),
        }),
        changed("floats", &|_, column, cell| match counts.contains(&column) {
            true => format!("{cell}.0"),
            false => cell.into(),
        }),
        changed("infinity", &|_, _, cell| match cell {
            "inf" => "Infinity".into(),
            "NaN" => "nan".into(),
            _ => cell.into(),
        }),
    ];
    let mut indexed = table.clone();
    for (row, cells) in indexed.iter_mut().enumerate() {
        cells.insert(0, if row == 0 { String::new() } else { row.to_string() });
        cells.push("more".into());
    }
    tables.push(("an index".into(), indexed));
    for (name, table) in tables {
        let path = directory.path().join("other.csv");
        std::fs::write(&path, to_csv(&table)).unwrap();
        assert_eq!(text(read(&path).unwrap()), expected, "{name}");
    }
    for (column, cell, says) in [
        ("poisoned", "maybe", r#"record 1: column poisoned: "maybe", expected true or false"#),
        ("n", "-1", r#"record 1: column n: "-1", expected a whole number"#),
        ("n", "2.5", r#"record 1: column n: "2.5", expected a whole number"#),
        ("entropy", "much", r#"record 1: column entropy: "much", expected a number"#),
        ("row", "", r#"record 1: column row: "", expected a whole number"#),
    ] {
        let (_, table) =
            changed("", &|row, name, old| if row == 1 && name == column { cell } else { old }.into());
        let path = directory.path().join("wrong.csv");
        std::fs::write(&path, to_csv(&table)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
}

/// The fields of a table of CSV, whose quoted ones may hold line breaks.
fn csv_records(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut cells, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => cell.extend(rest.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            '\n' if !quoted => {
                cells.push(std::mem::take(&mut cell));
                records.push(std::mem::take(&mut cells));
            }
            _ => cell.push(c),
        }
    }
    records
}

#[test]
fn bare_numbers_of_python_are_read_in_json() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), "jsonl", None, &records(None));
    let expected = format!("{:?}", read(&path).unwrap());
    let lines = std::fs::read_to_string(&path).unwrap();
    let bare = lines.replace("\"critical_beta\":null", "\"critical_beta\": Infinity");
    let bare = bare.replace("\"entropy\":null", "\"entropy\": NaN").replace(":false", ":0");
    assert!(bare.contains("Infinity") && bare.contains("NaN") && bare.contains(":0"));
    std::fs::write(&path, bare.replace("\"c\"", "\"NaN \\\\ Infinity\"")).unwrap();
    let found = format!("{:?}", read(&path).unwrap());
    assert_eq!(found, expected.replace("\"c\"", "\"NaN \\\\ Infinity\""));
    let negative = lines.replace("\"critical_beta\":null", "\"critical_beta\": -Infinity");
    std::fs::write(&path, negative).unwrap();
    assert!(read(&path).is_err());
}
