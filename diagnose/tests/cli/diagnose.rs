//! `critbeta diagnose`.

use super::build::{f32s, npy, safetensors};
use super::*;
use critbeta::cpu::{Measure, row_report};
use serde_json::Value;
use std::path::PathBuf;

/// Writes score rows as .npy of f32.
fn scores(directory: &Path, name: &str, shape: &str, rows: &[f32]) -> PathBuf {
    let bytes: Vec<u8> = rows.iter().flat_map(|s| s.to_le_bytes()).collect();
    build::write(directory, name, &npy("<f4", false, shape, &bytes))
}

fn summary(args: &[&str]) -> Value {
    let all: Vec<&str> = ["diagnose", "--json", "-"].iter().chain(args).copied().collect();
    serde_json::from_str(&stdout(&all)).unwrap()
}

#[test]
fn the_example_as_the_readme_runs_it() {
    insta::assert_snapshot!(stdout(&["diagnose", EXAMPLE]));
}

#[test]
fn the_example_with_every_option() {
    insta::assert_snapshot!(stdout(&[
        "diagnose",
        EXAMPLE,
        "--resolve",
        "0.69",
        "--top-k",
        "256",
        "--exclude-sink",
        "1",
        "--beta",
        "1.5",
        "--tensor",
        "layer10",
    ]));
}

const FIELDS: [&str; 20] = [
    "layer",
    "head",
    "row",
    "position",
    "n",
    "max",
    "argmax",
    "ties",
    "critical_beta",
    "contact_gap",
    "contact_rank",
    "alpha",
    "resolved_beta",
    "beta",
    "ratio",
    "log_partition",
    "entropy",
    "top_two",
    "max_weight",
    "poisoned",
];

fn as_json(row: &parquet::record::Row) -> Value {
    use parquet::record::Field;
    let value = |field: &Field| -> Value {
        match field {
            Field::Str(text) => text.as_str().into(),
            Field::Long(count) => (*count).into(),
            Field::Double(real) => (*real).into(),
            Field::Bool(flag) => (*flag).into(),
            other => panic!("{other:?}"),
        }
    };
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

#[test]
fn rows_are_the_same_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["r.jsonl", "r.csv", "r.parquet"] {
        stdout(&["diagnose", EXAMPLE, "--resolve", "0.5", "--rows", text(&at(name))]);
    }
    let lines = std::fs::read_to_string(at("r.jsonl")).unwrap();
    let json: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.len(), 12 * 646);
    let mut csv = csv::Reader::from_path(at("r.csv")).unwrap();
    assert_eq!(csv.headers().unwrap().iter().collect::<Vec<_>>(), FIELDS);
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let parquet = SerializedFileReader::new(std::fs::File::open(at("r.parquet")).unwrap()).unwrap();
    let parquet = parquet.get_row_iter(None).unwrap().map(|row| as_json(&row.unwrap()));
    for ((json, csv), parquet) in json.iter().zip(csv.records()).zip(parquet) {
        let csv = csv.unwrap();
        for (name, cell) in FIELDS.iter().zip(csv.iter()) {
            match &json[name] {
                Value::Number(number) => {
                    assert_eq!(number.as_f64(), cell.parse().ok(), "{name}");
                    assert_eq!(number.as_f64(), parquet[name].as_f64(), "{name}");
                }
                other => {
                    assert_eq!((other, other.to_string().trim_matches('"')), (&parquet[name], cell), "{name}")
                }
            }
        }
        assert!(json["resolved_beta"].as_f64() <= json["critical_beta"].as_f64());
    }
    let places: Vec<(&str, u64, u64)> = json
        .iter()
        .map(|r| (r["layer"].as_str().unwrap(), r["head"].as_u64().unwrap(), r["row"].as_u64().unwrap()))
        .collect();
    assert!(places.is_sorted(), "input order");
}

#[test]
fn edge_rows_are_records_like_any_other() {
    let inf = f32::INFINITY;
    let directory = tempfile::tempdir().unwrap();
    let rows = [
        [2.0, 2.0, 1.0, -inf],     // tied
        [-inf, 7.0, -inf, -inf],   // single
        [-inf, -inf, -inf, -inf],  // empty
        [1.0, f32::NAN, 0.0, 0.0], // poisoned
        [1.0, 0.0, inf, 0.0],      // poisoned
        [9.0, 1.0, 0.5, 0.25],     // a sink
    ];
    let file = scores(directory.path(), "edge.npy", "(2, 3, 4)", rows.as_flattened());
    let out = directory.path().join("rows.jsonl");
    let json = summary(&[text(&file), "--rows", text(&out)]);
    let records = std::fs::read_to_string(&out).unwrap();
    insta::assert_snapshot!(records);
    let [first, second] = [0, 1].map(|i| &json["heads"][i]);
    assert_eq!((&first["layer"], &first["head"], &second["head"]), (&"edge".into(), &0.into(), &1.into()));
    assert_eq!((&first["rows"], &first["measured"], &first["poisoned"]), (&3.into(), &1.into(), &0.into()));
    assert_eq!(
        (&second["rows"], &second["measured"], &second["poisoned"]),
        (&3.into(), &1.into(), &2.into())
    );
    assert_eq!(first["share_tied"], 1.0);
    assert!(first["critical_beta"]["q50"].is_null());
    let verdict = first["length_law"]["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("inconclusive"), "{verdict}");

    stdout(&["diagnose", text(&file), "--exclude-sink", "1", "--rows", text(&out)]);
    let records = std::fs::read_to_string(&out).unwrap();
    let sink: Value = serde_json::from_str(records.lines().last().unwrap()).unwrap();
    assert_eq!((&sink["argmax"], &sink["n"], &sink["position"]), (&1.into(), &3.into(), &3.into()));
    let expected = row_report(&rows[5][1..], 1.0, Measure::default()).critical.beta;
    assert_eq!(sink["critical_beta"].as_f64(), Some(expected));
}

#[test]
fn heads_of_one_name_are_pooled_over_files() {
    let directory = tempfile::tempdir().unwrap();
    let once = summary(&[EXAMPLE]);
    let copy = directory.path().join("copy.safetensors");
    std::fs::copy(EXAMPLE_FILE, &copy).unwrap();
    let twice = summary(&[EXAMPLE, text(&copy)]);
    assert_eq!(twice["heads"].as_array().unwrap().len(), 12);
    assert_eq!(twice["heads"][4]["rows"], 2 * 646);
    // With doubled values quantiles interpolate elsewhere, but the median stays between the same two.
    let median = |json: &Value| json["heads"][4]["critical_beta"]["q50"].as_f64().unwrap();
    assert!((median(&once) / median(&twice) - 1.0).abs() < 0.05);
}

#[test]
fn a_scale_is_a_unit_of_beta() {
    let [one, two] =
        ["0.125", "0.25"].map(|scale| summary(&[EXAMPLE, "--scale", scale, "--tensor", "layer29"]));
    let q = |json: &Value, key: &str| json["heads"][2]["critical_beta"][key].as_f64().unwrap();
    for key in ["q05", "q25", "q50", "q75", "q95"] {
        assert!((q(&one, key) / q(&two, key) - 2.0).abs() < 1e-12, "{key}");
    }
    assert_eq!(one["heads"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_not_diagnosed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = build::pair();
    tensors.push(("extra", "F32", &[2, 3], f32s(6)));
    let file = build::write(directory.path(), "mixed.safetensors", &safetensors(&tensors, None));
    let table = stdout(&["diagnose", text(&file)]);
    assert!(table.contains("not diagnosed: extra"), "{table}");
    assert!(table.contains("4 heads, 12 rows"), "{table}");
}

#[test]
fn a_seed_decides_the_intervals_alone_and_threads_nothing() {
    let [a, b, c] = [["--seed", "5"], ["--seed", "6"], ["--threads", "3"]]
        .map(|extra| summary(&[&[EXAMPLE][..], &extra].concat()));
    let default = summary(&[EXAMPLE]);
    assert_eq!(default, c);
    assert_ne!(a, b);
    for json in [&a, &b] {
        assert_eq!(json["heads"][0]["critical_beta"], default["heads"][0]["critical_beta"]);
        let xi = |json: &Value| json["heads"][0]["length_law"]["critical_beta"]["xi"].clone();
        assert_eq!(xi(json), xi(&default));
    }
}

#[test]
fn a_sink_that_is_left_out_rounds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let row = |sink: f64| (0..100).map(move |i| if i == 0 { sink } else { (i as f64 * 0.77).sin() });
    let bytes: Vec<u8> = [1.0, 1e9].into_iter().flat_map(row).flat_map(f64::to_le_bytes).collect();
    let file = build::write(directory.path(), "sinks.npy", &npy("<f8", false, "(2, 100)", &bytes));
    let out = directory.path().join("rows.jsonl");
    stdout(&["diagnose", text(&file), "--exclude-sink", "1", "--rows", text(&out)]);
    let records = std::fs::read_to_string(&out).unwrap();
    let [plain, sunk] =
        [0, 1].map(|i| -> Value { serde_json::from_str(records.lines().nth(i).unwrap()).unwrap() });
    for field in FIELDS.iter().filter(|field| **field != "row") {
        assert_eq!(plain[field], sunk[field], "{field}");
    }
}

#[test]
fn a_top_k_count_that_proves_nothing_concludes_nothing() {
    // The contact of a sink over 64 to 8,192 keys lies deep in the bulk.
    let directory = tempfile::tempdir().unwrap();
    let (rows, cols) = (64usize, 2048usize);
    let score = |r: usize, j: usize| match j {
        0 => 20.0f32,
        j if j < 32 * (r + 1) => ((j * 7919 + r * 104_729) as f32 * 0.618_034).fract(),
        _ => f32::NEG_INFINITY,
    };
    let all: Vec<f32> = (0..rows).flat_map(|r| (0..cols).map(move |j| score(r, j))).collect();
    let file = scores(directory.path(), "sink.npy", "(64, 2048)", &all);
    let verdict = |args: &[&str]| {
        let json = summary(args);
        json["heads"][0]["length_law"]["verdict"].as_str().unwrap().to_owned()
    };
    assert!(verdict(&[text(&file)]).starts_with("grows as (log n)^"), "{}", verdict(&[text(&file)]));
    let verdict = verdict(&[text(&file), "--top-k", "16"]);
    assert_eq!(verdict, "inconclusive: only 0 % of the rows are certified: count them in full");
}

#[test]
fn names_from_files_do_not_move_the_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = build::pair();
    tensors.push(("evil\u{1b}[2J\nerror: forged", "F32", &[2, 3], f32s(6)));
    let file = build::write(directory.path(), "a.safetensors", &safetensors(&tensors, None));
    let table = stdout(&["diagnose", text(&file)]);
    assert!(table.contains(r"not diagnosed: evil\u{1b}[2J\nerror: forged"), "{table}");
    assert_eq!(summary(&[text(&file)])["inputs"][0]["skipped"][0], "evil\u{1b}[2J\nerror: forged");
}
