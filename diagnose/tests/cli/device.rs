//! The devices that compute rows, and the text of a plan.

use super::{critbeta, stderr, stdout, text};
use crate::build::{f16s, npy, pair, safetensors, write};
use serde_json::Value;

/// Whether this build simulates the kernels. If not, it prints the name of the skipped test.
fn simulates(test: &str) -> bool {
    let built = stdout(&["doctor", "--device", "cpu"]).contains("in this build (--device simt)");
    if !built {
        eprintln!("skipped {test}: no simulator in this build");
    }
    built
}

fn records(file: &str, rows: &str, device: &str, more: &[&str]) -> Vec<Value> {
    let args = ["diagnose", file, "--device", device, "--rows", rows, "--json", "-"];
    stdout(&[&args, more].concat());
    std::fs::read_to_string(rows).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn diagnose_says_the_same_on_the_kernels() {
    if !simulates("diagnose_says_the_same_on_the_kernels") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (directory.path().join("ours.jsonl"), directory.path().join("theirs.jsonl"));
    let qk = write(directory.path(), "qk.safetensors", &safetensors(&pair(), None));
    let scores = write(directory.path(), "scores.npy", &npy("<f2", false, "(2, 4, 300)", &f16s(2400)));
    for (file, more) in [
        (&qk, &["--resolve", "0.7"][..]),
        (&qk, &["--exclude-sink", "1", "--beta", "2"]),
        (&scores, &["--resolve", "0.7"]),
        (&scores, &["--top-k", "7"]),
    ] {
        let cpu = records(text(file), text(&theirs), "cpu", more);
        let simt = records(text(file), text(&ours), "simt", more);
        assert_eq!(cpu.len(), simt.len());
        for (cpu, simt) in cpu.iter().zip(&simt) {
            for (key, value) in cpu.as_object().unwrap() {
                let near = ["log_partition", "entropy", "top_two", "max_weight"].contains(&key.as_str());
                match (value.as_f64(), simt[key].as_f64()) {
                    (Some(a), Some(b)) if near => assert!((a - b).abs() < 1e-5, "{key}: {a} {b}"),
                    _ => assert_eq!(value, &simt[key], "{key} of {cpu}"),
                }
            }
        }
    }
}

#[test]
fn softmax_writes_the_same_on_the_kernels() {
    if !simulates("softmax_writes_the_same_on_the_kernels") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let scores = write(directory.path(), "scores.npy", &npy("<f2", false, "(3, 90)", &f16s(270)));
    let mut probs = Vec::new();
    for device in ["cpu", "simt"] {
        let out = directory.path().join(format!("{device}.npy"));
        let (rule, dtype) = (["--rescaling", "critical:resolve=0.7,cap=9"], ["--dtype", "f32"]);
        let paths = ["softmax", text(&scores), "--out", text(&out), "--device", device];
        let printed = stdout(&[&paths[..], &rule, &dtype].concat());
        assert!(printed.contains("3 rows, beta"), "{printed}");
        let bytes = std::fs::read(&out).unwrap();
        let values =
            bytes[bytes.len() - 270 * 4..].chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()));
        probs.push(values.collect::<Vec<f32>>());
    }
    for (cpu, simt) in probs[0].iter().zip(&probs[1]) {
        assert!((cpu - simt).abs() <= cpu * 1e-4 + 1e-30, "{cpu} {simt}");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error_of_its_own() {
    let printed = stderr(1, &["diagnose", super::EXAMPLE, "--device", "cuda:4096"]);
    assert!(printed.contains("--device cpu") || printed.contains("--features cuda"), "{printed}");
    let printed = stderr(2, &["diagnose", super::EXAMPLE, "--device", "gpu"]);
    assert!(printed.contains("expected auto, cpu, cuda:N or simt"), "{printed}");
    // doctor still shows what it found.
    let output = critbeta(&["doctor", "--device", "cuda:4096"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("exact path against reference"));
}

#[test]
fn doctor_checks_the_kernels_of_a_device() {
    if simulates("doctor_checks_the_kernels_of_a_device") {
        let printed = stdout(&["doctor", "--device", "simt"]);
        let line = printed.lines().find(|line| line.contains("device against reference")).unwrap();
        assert!(line.contains("equal (critical beta"), "{line}");
    }
}

#[test]
fn bench_checks_the_kernels_of_a_device() {
    if !simulates("bench_checks_the_kernels_of_a_device") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bench.json");
    for family in ["sink", "equal"] {
        let case = ["bench", "--device", "simt", "--rows", "2", "--len", "3000", "--family", family];
        let printed = stdout(&[&case[..], &["--json", text(&file)]].concat());
        assert!(
            printed.contains("times mean nothing") && printed.contains("1 cases, 0 wrong results"),
            "{printed}"
        );
        let json: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let seconds = json["cases"][0]["seconds"].as_object().unwrap();
        let methods = ["copy", "critical_softmax", "softmax", "stats", "topk"];
        assert_eq!(seconds.keys().collect::<Vec<_>>(), methods);
        assert_eq!(
            (&json["simulated"], &json["cases"][0]["family"]),
            (&Value::from(true), &Value::from(family))
        );
    }
}

#[test]
fn a_decode_bench_checks_the_kernels_of_a_device() {
    if !simulates("a_decode_bench_checks_the_kernels_of_a_device") {
        return;
    }
    let device = ["bench", "--decode", "--device", "simt"];
    let methods = ["copy", "decode", "decode_critical", "decode_critical_full", "decode_full", "measure"];
    let shape = ["--seqs", "2", "--heads", "6", "--kv-heads", "2", "--len", "300", "--head-dim", "72"];
    for (dtype, family) in [("f32", "sink"), ("f16", "needles"), ("bf16", "gaussian"), ("bf16", "equal")] {
        let more = ["--page", "7", "--eps", "0.01", "--dtype", dtype, "--family", family, "--json", "-"];
        let json: Value = serde_json::from_str(&stdout(&[&device[..], &shape, &more].concat())).unwrap();
        let case = &json["cases"][0];
        assert_eq!((&json["simulated"], &case["failed"]), (&Value::from(true), &serde_json::json!({})));
        assert_eq!(case["seconds"].as_object().unwrap().keys().collect::<Vec<_>>(), methods);
        // Each key is read once, and each value that is kept; the rest are queries and scores.
        let bytes = case["bytes"].as_f64().unwrap();
        let loads = |method: &str| case["loaded"][method].as_f64().unwrap() / bytes;
        let keep = case["keep"].as_f64().unwrap();
        assert!((1.0..1.5).contains(&loads("decode_full")), "{case}");
        assert!((0.5..0.8).contains(&loads("measure")), "{case}");
        assert!((loads("decode") - loads("decode_full") - 0.5 * (keep - 1.0)).abs() < 0.25, "{case}");
        // One pass knows of a sink from the keys near it, and from the first and last ones.
        assert_eq!(keep < 0.95, family == "sink" || family == "needles", "{case}");
        assert!(case["loaded"].get("copy").is_none(), "{case}");
    }
    let printed = stdout(&device);
    for part in ["times mean nothing", "critical unread", "measure loads", "3 cases, 0 wrong results"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    let directory = tempfile::tempdir().unwrap();
    let turns = directory.path().join("inputs.safetensors");
    for (args, says) in [
        (&["--turns", text(&turns)][..], "--turns is for the CPU, expected --device cpu"),
        (&["--head-dim", "264"], "264 elements, expected a multiple of 8 in 64..=256"),
        (&["--eps", "1"], "eps 1, expected 0 <= eps < 1"),
        (&["--heads", "258", "--kv-heads", "2"], "groups of 1 to 128"),
    ] {
        let error = stderr(1, &[&device[..], &["--len", "99"], args].concat());
        assert!(error.contains(says) && error.lines().count() == 1, "{args:?}: {error}");
    }
    assert!(super::names(directory.path()).is_empty());
    // A layer of a file has queries, keys, dtype and lengths of its own.
    let qk = super::bench::layers(directory.path());
    let printed = stdout(&[&device[..], &["--rows", text(&qk), "--seqs", "2", "--len", "49"]].concat());
    assert!(printed.contains("2 cases, 0 wrong results"), "{printed}");
}

#[test]
fn plan_needs_no_gpu_and_gives_its_reasons() {
    let printed = stdout(&["plan", "--len", "32768", "--rows", "4096", "--arch", "sm_90"]);
    for part in
        ["critical softmax: 4096 rows x 32768 f32 on sm_90", "why", "1 global read, 1 write", "workspace"]
    {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    let printed =
        stdout(&["plan", "--len", "9", "--rows", "1", "--dtype", "bf16", "--arch", "sm_120", "--profile"]);
    assert!(printed.contains("gap_profile_bf16_warp") && printed.contains("no write"), "{printed}");
    assert!(stderr(1, &["plan", "--len", "9", "--rows", "0"]).contains("expected 1 to 2147483647 rows"));
    assert!(
        stderr(1, &["plan", "--len", "9", "--rows", "1", "--dtype", "f64"]).contains("no kernel reads f64")
    );
    assert!(stderr(1, &["plan", "--len", "9", "--rows", "1", "--arch", "sm_70"]).contains("expected sm_80"));
    assert!(stderr(2, &["plan", "--len", "9"]).contains("--rows"));
    let printed = stdout(&["plan", "--decode", "--len", "4096", "--heads", "8", "--kv-heads", "2"]);
    assert!(printed.contains("attention_values_bf16") && printed.contains("workspace"), "{printed}");
    assert!(stderr(2, &["plan", "--decode", "--len", "9", "--rows", "1"]).contains("--rows"));
    assert!(stderr(1, &["plan", "--slots", "x", "--len", "9", "--rows", "1"]).contains("for --table alone"));
    assert!(stderr(1, &["plan", "--slots", "no such file", "--table"]).contains("no such file"));
    let printed = stdout(&["plan", "--device", "cpu", "--threads", "2", "--len", "1048576", "--rows", "1"]);
    assert!(printed.starts_with("1 x 1048576 f32 on 2 threads: every row split into 64 parts"), "{printed}");
    let f64 = ["plan", "--device", "cpu", "--len", "9", "--rows", "1", "--dtype", "f64"];
    assert!(stderr(1, &f64).contains("f32, f16 or bf16"));
    assert!(
        stderr(2, &["plan", "--len", "9", "--rows", "1", "--softmax", "--profile"]).contains("--profile")
    );
}
