//! `critbeta bench` without its times: what it measures, writes and refuses.

use super::{build, critbeta, names, stderr, stdout, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FAMILIES: [&str; 9] =
    ["gaussian", "sink", "needles", "student-t", "log-grid", "equal", "masked", "bf16", "ascending"];

fn methods() -> Vec<&'static str> {
    let all = ["copy", "copy_nt", "critical_softmax", "naive_sort", "softmax", "stats", "topk"];
    #[cfg(target_arch = "x86_64")]
    let streams = std::arch::is_x86_feature_detected!("avx");
    #[cfg(not(target_arch = "x86_64"))]
    let streams = false;
    all.into_iter().filter(|&method| method != "copy_nt" || streams).collect()
}

#[test]
fn json_has_the_seconds_of_every_method() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bench.json");
    for (dtype, family) in ["f32", "f16", "bf16"].into_iter().cycle().zip(FAMILIES) {
        let case = ["bench", "--device", "cpu", "--rows", "3", "--len", "301", "--rounds", "2"];
        let table =
            stdout(&[&case[..], &["--dtype", dtype, "--family", family, "--json", text(&file)]].concat());
        assert!(table.contains("3 x 301") && table.contains("1 cases, 0 wrong results"), "{table}");
        let json: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let [case] = &json["cases"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!((case["rows"].as_u64(), case["n"].as_u64()), (Some(3), Some(301)));
        assert_eq!((case["dtype"].as_str(), case["family"].as_str()), (Some(dtype), Some(family)));
        let seconds = case["seconds"].as_object().unwrap();
        assert_eq!(seconds.keys().collect::<Vec<_>>(), methods());
        assert!(seconds.values().all(|seconds| seconds.as_f64().unwrap() > 0.0), "{case}");
        assert_eq!(case["failed"], serde_json::json!({}));
    }
    assert_eq!(names(directory.path()), ["bench.json"]);
}

#[test]
fn json_goes_to_stdout_in_place_of_the_table() {
    let args = ["bench", "--device", "cpu", "--rows", "2", "--len", "99", "--rounds", "1", "--json", "-"];
    let json: Value = serde_json::from_str(&stdout(&args)).unwrap();
    assert_eq!(json["cases"][0]["n"], Value::from(99));
    assert!(!std::path::Path::new("-").exists());
}

#[test]
fn poisoned_rows_are_right_when_they_are_nan() {
    // These scores leave the range of f32, or of f16.
    let cases =
        [&["--family", "ascending:step=1e36"][..], &["--family", "simplex:gap=1e30", "--dtype", "f16"]];
    for family in cases {
        let printed = stdout(
            &[&["bench", "--device", "cpu", "--rows", "3", "--len", "5000", "--rounds", "1"], family]
                .concat(),
        );
        assert!(printed.contains("1 cases, 0 wrong results"), "{printed}");
    }
}

#[test]
fn a_parameter_of_a_family_is_part_of_its_name() {
    let printed =
        stdout(&["bench", "--device", "cpu", "--rows", "1", "--len", "40", "--family", "sink:height=3"]);
    assert!(printed.contains("sink:height=3"), "{printed}");
    let printed =
        stdout(&["bench", "--device", "cpu", "--rows", "1", "--len", "40", "--family", "sink:height=20"]);
    assert!(printed.contains("sink") && !printed.contains("height"), "{printed}");
}

#[test]
fn rows_of_one_score_and_the_small_cases_are_right_too() {
    for rows in ["1", "5"] {
        let printed =
            stdout(&["bench", "--device", "cpu", "--rows", rows, "--len", "1", "--family", "masked"]);
        assert!(printed.contains("1 cases, 0 wrong results"), "{printed}");
    }
    let printed = stdout(&["bench", "--device", "cpu", "--small", "--rounds", "1", "--threads", "1"]);
    assert!(
        printed.starts_with("cpu, 1 threads") && printed.contains("9 cases, 0 wrong results"),
        "{printed}"
    );
    assert!(FAMILIES.iter().all(|family| printed.contains(family)), "{printed}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (args, says) in [
        (&["--rows", "4"][..], "--len"),
        (&["--family", "sink"], "--len"),
        (&["--dtype", "bf16"], "--len"),
        (&["--rows", "0", "--len", "9"], "--rows"),
        (&["--len", "0"], "--len"),
        (&["--len", "16777217"], "16777216"),
        (&["--len", "9", "--rounds", "0"], "--rounds"),
        (&["--len", "9", "--dtype", "int8"], "expected f64, f32, f16 or bf16"),
        (&["--len", "9", "--small"], "cannot be used with"),
        (&["--small", "--rows", "3"], "cannot be used with"),
        (&["--small", "--family", "sink"], "cannot be used with"),
        (&["--small", "--dtype", "f16"], "cannot be used with"),
        (&["--small", "--shuffled"], "cannot be used with"),
        (&["--small", "--turns", "scores"], "cannot be used with"),
        (&["--len", "9", "--turns", "-"], "expected a file"),
        (&["--turns", "scores"], "--len"),
        (&["--len", "9", "--heads", "8"], "--decode"),
        (&["--len", "9", "--eps", "0.1"], "--decode"),
        (&["--decode", "--small", "--len", "9"], "cannot be used with"),
        (&["--decode", "--heads", "4"], "--len"),
        (&["--decode", "--family", "sink"], "--len"),
        (&["--decode", "--len", "99", "--heads", "0"], "expected a whole number from 1"),
    ] {
        let error = stderr(2, &[&["bench", "--device", "cpu"], args].concat());
        assert!(error.contains(says), "{args:?}: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent/bench.json");
    for (args, says) in [
        (&["--len", "9", "--rows", "2", "--family", "cauchy"][..], "unknown name \"cauchy\""),
        (&["--len", "9", "--rows", "2", "--family", "sink:height=-1"], "above 0"),
        (&["--len", "9", "--rows", "2", "--dtype", "f64"], "expected rows, columns and f32, f16 or bf16"),
        (&["--len", "16777216", "--rows", "18446744073709551615"], "expected scores that fit in memory"),
        (&["--len", "16777216", "--rows", "68719476736"], "scores"),
        (&["--len", "9", "--rows", "2", "--json", text(&absent)], "No such file"),
        (&["--len", "9", "--rows", "qk.safetensors"], "a file is for --decode"),
        (&["--decode", "--rows", "4", "--len", "99"], "expected a file of queries and keys"),
        (&["--decode", "--rows", text(&absent)], "No such file"),
        (&["--decode", "--len", "99", "--family", "masked"], "no product of a query and a key is masked"),
        (&["--decode", "--len", "99", "--dtype", "f64"], "expected sizes above 0 and f32, f16 or bf16"),
        (&["--decode", "--len", "99", "--eps", "1"], "eps 1"),
        (&["--decode", "--len", "99", "--eps", "nan"], "eps NaN"),
        (&["--decode", "--len", "99", "--head-dim", "60"], "60 elements"),
        (&["--decode", "--len", "99", "--heads", "6", "--kv-heads", "4"], "6 query heads"),
        (&["--decode", "--len", "16777216", "--seqs", "2147483648"], "no memory"),
        (&["--len", "9", "--rows", "2", "--turns", text(&absent)], "No such file"),
    ] {
        let error = stderr(1, &[&["bench", "--device", "cpu"], args].concat());
        assert!(error.contains(says) && error.lines().count() == 1, "{args:?}: {error}");
    }
    assert!(names(directory.path()).is_empty());
}

const DECODE: [&str; 9] = [
    "decode",
    "decode_critical",
    "decode_critical_full",
    "decode_full",
    "dense",
    "keys",
    "measure",
    "stream",
    "stream_keys",
];

fn sorted_keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort();
    keys
}

#[test]
fn decode_is_right_and_has_the_seconds_of_every_method() {
    for (dtype, family) in ["f32", "f16", "bf16"].into_iter().cycle().zip(FAMILIES) {
        if family == "masked" {
            continue;
        }
        let shape = ["--seqs", "2", "--heads", "6", "--kv-heads", "2", "--len", "300", "--head-dim", "72"];
        let case = ["bench", "--decode", "--page", "7", "--eps", "0.01", "--rounds", "2", "--json", "-"];
        let args = [&case[..], &shape, &["--dtype", dtype, "--family", family]].concat();
        let json: Value = serde_json::from_str(&stdout(&args)).unwrap();
        let [case] = &json["cases"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!(case["failed"], serde_json::json!({}), "{family} {dtype}");
        assert_eq!(sorted_keys(&case["seconds"]), DECODE);
        assert_eq!((case["heads"].as_u64(), case["len"].as_u64()), (Some(6), Some(300)));
        assert_eq!((case["dtype"].as_str(), case["rows"].as_str()), (Some(dtype), Some(family)));
        // One needle holds the whole row, and equal scores are needed alike: their budget is 3 keys of 300.
        let keep = case["keep"].as_f64().unwrap();
        assert!(if family == "needles" { keep < 0.5 } else { keep > 0.0 && keep <= 1.0 }, "{family}: {keep}");
        assert!(family != "equal" || keep > 0.98, "{keep}");
    }
}

/// A file of queries and keys with two layers of 4 heads over 2, 3 rows and 50 keys.
pub fn layers(directory: &Path) -> PathBuf {
    let numbers = |count: usize, factor: f32| -> Vec<u8> {
        (0..count).flat_map(|i| ((i as f32 * factor).sin()).to_le_bytes()).collect()
    };
    let pair = |layer: &str| {
        [
            (format!("{layer}.q"), [4, 3, 64], numbers(4 * 3 * 64, 0.37)),
            (format!("{layer}.k"), [2, 50, 64], numbers(2 * 50 * 64, 0.73)),
        ]
    };
    let tensors: Vec<_> = ["a", "b"].into_iter().flat_map(pair).collect();
    let named: Vec<build::Named> =
        tensors.iter().map(|(name, shape, bytes)| (&name[..], "F32", &shape[..], bytes.clone())).collect();
    build::write(directory, "qk.safetensors", &build::safetensors(&named, None))
}

#[test]
fn the_small_cases_of_decode_are_right() {
    let printed = stdout(&["bench", "--decode", "--device", "cpu", "--small", "--rounds", "1"]);
    assert!(printed.starts_with("cpu, ") && printed.contains("3 cases, 0 wrong results"), "{printed}");
}

#[test]
fn decode_takes_the_rows_of_a_file_a_case_for_each_layer() {
    let directory = tempfile::tempdir().unwrap();
    let file = layers(directory.path());
    let run = |more: &[&str]| -> Value {
        let args =
            [&["bench", "--decode", "--rounds", "1", "--json", "-", "--rows", text(&file)], more].concat();
        serde_json::from_str(&stdout(&args)).unwrap()
    };
    let json = run(&["--seqs", "2"]);
    let cases = json["cases"].as_array().unwrap();
    assert_eq!(cases.iter().map(|case| case["rows"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    for case in cases {
        assert_eq!(case["failed"], serde_json::json!({}));
        assert_eq!((case["len"].as_u64(), case["dtype"].as_str()), (Some(50), Some("f32")));
        // Two sequences of 50 and 49 keys.
        assert_eq!(case["bytes"].as_u64(), Some(2 * 2 * 99 * 64 * 4));
    }
    assert_eq!(run(&["--len", "49", "--dtype", "f16"])["cases"][0]["len"].as_u64(), Some(49));
    for (args, says) in [
        (&["--len", "47"][..], "layer \"a\" has 0 rows that see at most 47 keys, expected one for each of 1"),
        (&["--seqs", "4"], "has 3 rows, expected one for each of 4 sequences"),
        (&["--len", "50", "--family", "sink"], "--family: "),
        (&["--len", "50", "--heads", "4"], "--heads: "),
        (&["--tensor", "c"], "has no tensor \"c\", but \"a\", \"b\""),
        (&["--turns", "unused"], "--turns takes one case, found 2"),
    ] {
        let all = [&["bench", "--decode", "--rows", text(&file)], args].concat();
        let error = stderr(1, &all);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn another_program_can_take_turns_on_the_same_scores() {
    let directory = tempfile::tempdir().unwrap();
    let scores = directory.path().join("scores");
    let mut child = Command::new(env!("CARGO_BIN_EXE_critbeta"))
        .args(["bench", "--device", "cpu", "--rows", "2", "--len", "100", "--family", "ascending"])
        .args(["--turns", text(&scores)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut commands, mut lines) =
        (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut line = || lines.next().unwrap().unwrap();
    let ready = line();
    let mut ready: Vec<&str> = ready.strip_prefix("ready: ").unwrap().split(' ').collect();
    ready.sort();
    assert_eq!(ready, methods());
    let bytes = std::fs::read(&scores).unwrap();
    let values: Vec<f32> = bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    let row = (0..100).map(|i| i as f32 / 8.0);
    assert_eq!(values, row.clone().chain(row).collect::<Vec<f32>>());
    for method in ready {
        writeln!(commands, "{method}").unwrap();
        assert!(line().parse::<f64>().unwrap() > 0.0);
    }
    writeln!(commands, "nonsense").unwrap();
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(error.contains("no method \"nonsense\": expected one of copy"), "{error}");
}

#[test]
fn turns_are_for_the_cpu() {
    let output = critbeta(&["bench", "--device", "simt", "--rows", "1", "--len", "9", "--turns", "scores"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    // A build without the simulator says so instead.
    assert!(error.contains("expected --device cpu") || error.contains("is not in this build"), "{error}");
    assert!(!std::path::Path::new("scores").exists());
}
