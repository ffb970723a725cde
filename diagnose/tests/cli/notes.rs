//! Numbers that are no scores, and heads that come last, do not pass without a word.

use super::build::{Named, npy, safetensors};
use super::*;
use serde_json::Value;
use std::path::PathBuf;

const NOTHING: f64 = f64::NEG_INFINITY;

fn element(dtype: &str, value: f64) -> Vec<u8> {
    match dtype {
        "F64" => value.to_le_bytes().to_vec(),
        "F32" => (value as f32).to_le_bytes().to_vec(),
        "F16" => half::f16::from_f64(value).to_le_bytes().to_vec(),
        _ => half::bf16::from_f64(value).to_le_bytes().to_vec(),
    }
}

fn file(directory: &Path, dtype: &str, shape: &[usize], values: &[f64]) -> PathBuf {
    let bytes = values.iter().flat_map(|&value| element(dtype, value)).collect();
    let file = safetensors(&[("attn", dtype, shape, bytes)], None);
    build::write(directory, "scores.safetensors", &file)
}

fn summary(file: &Path) -> Value {
    serde_json::from_str(&stdout(&["diagnose", text(file), "--json", "-"])).unwrap()
}

/// The one note, which the tables have too.
fn note(file: &Path) -> String {
    let json = summary(file);
    let [note] = &json["notes"].as_array().expect("notes")[..] else { panic!("{}", json["notes"]) };
    let note = note.as_str().unwrap().to_owned();
    assert!(stdout(&["diagnose", text(file)]).contains(&format!("\nnote: {note}\n")), "{note}");
    note
}

#[track_caller]
fn no_note(file: &Path) {
    let json = summary(file);
    assert!(json.get("notes").is_none(), "{}", json["notes"]);
    assert!(!stdout(&["diagnose", text(file)]).contains("note:"));
}

fn logit(row: usize, key: usize) -> f64 {
    2.0 * ((row * 7919 + key * 104_729) as f64 * 0.37).sin()
}

/// A causal head of `rows` scores; `masked` stands behind the diagonal.
fn causal(rows: usize, masked: impl Fn(f64) -> f64) -> Vec<f64> {
    let score = |row, key| if key <= row { logit(row, key) } else { masked(logit(row, key)) };
    (0..rows).flat_map(|row| (0..rows).map(move |key| (row, key))).map(|(r, k)| score(r, k)).collect()
}

fn softmax(rows: &[f64], n: usize) -> Vec<f64> {
    let of_row = |row: &[f64]| {
        let sum: f64 = row.iter().map(|s| s.exp()).sum();
        row.iter().map(|s| s.exp() / sum).collect::<Vec<f64>>()
    };
    rows.chunks(n).flat_map(of_row).collect()
}

#[test]
fn probabilities_given_as_scores_are_noticed_in_every_dtype() {
    let directory = tempfile::tempdir().unwrap();
    let n = 40;
    let masked = softmax(&causal(n, |_| NOTHING), n);
    let full = softmax(&causal(n, |score| score), n);
    let said = "rows hold probabilities (each number lies from 0 to 1, and a row adds up to 1): give logits";
    for dtype in ["F64", "F32", "F16", "BF16"] {
        for values in [&masked, &full] {
            let scores = file(directory.path(), dtype, &[1, n, n], values);
            let found = note(&scores);
            assert!(found.starts_with("\"attn\": 40 of 40 ") && found.contains(said), "{dtype}: {found}");
        }
        // NumPy has no bf16: its numbers arrive in f32.
        let rounded: Vec<f64> = masked.iter().map(|&p| half::bf16::from_f64(p).to_f64()).collect();
        assert!(note(&file(directory.path(), "F32", &[1, n, n], &rounded)).contains(said));
        let logs: Vec<f64> = masked.iter().map(|p| p.ln()).collect();
        no_note(&file(directory.path(), dtype, &[1, n, n], &logs));
        let doubled: Vec<f64> = masked.iter().map(|p| 2.0 * p).collect();
        no_note(&file(directory.path(), dtype, &[1, n, n], &doubled));
    }
    let scores = file(directory.path(), "F32", &[1, n, n], &masked);
    let [page, out] = ["page.html", "out.safetensors"].map(|name| directory.path().join(name));
    stdout(&["diagnose", text(&scores), "--html", text(&page)]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<strong>Note</strong>: ") && page.contains("40 of 40 rows hold probabilities"));
    let args = ["softmax", text(&scores), "--out", text(&out), "--rescaling", "identity"];
    let found = critbeta(&args);
    assert!(found.status.success() && String::from_utf8(found.stderr).unwrap().contains(said));
    assert!(stdout(&[&args[..], &["--quiet"]].concat()).contains("40 rows"));
    // A sink that is left out is a part of the sum.
    let table = stdout(&["diagnose", text(&scores), "--exclude-sink", "1"]);
    assert!(table.contains(said), "{table}");
}

#[test]
fn masks_of_finite_numbers_that_count_as_visible_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let n = 12;
    let said = "rows have scores more than 1,000 below their largest one, which count as visible keys: if \
                these are masked, give -inf";
    let lows = [
        ("F32", -1e9),
        ("F32", -1e4),
        ("F32", -65504.0),
        ("F64", -1e9),
        ("F16", -1e4),
        ("BF16", -1e9),
        ("BF16", -65504.0),
    ];
    for (dtype, low) in lows {
        for added in [0.0, 1.0] {
            let values = causal(n, |score| low + added * score);
            let scores = file(directory.path(), dtype, &[1, n, n], &values);
            let found = note(&scores);
            // The last row sees all keys.
            assert_eq!(found, format!("\"attn\": 11 of 12 {said}"), "{dtype} {low}");
            assert_eq!(summary(&scores)["heads"][0]["n"], serde_json::json!([12, 12]));
        }
    }
    // f64 has the border of f32.
    let f32_min = f64::from(f32::MIN);
    let hidden = [("F16", -65504.0), ("F32", f32_min), ("F64", f32_min), ("F64", f64::MIN), ("F32", NOTHING)];
    for (dtype, low) in hidden {
        let scores = file(directory.path(), dtype, &[1, n, n], &causal(n, |_| low));
        no_note(&scores);
        assert_eq!(summary(&scores)["heads"][0]["n"], serde_json::json!([2, 12]));
    }
    // Scores that are merely low.
    no_note(&file(directory.path(), "F32", &[1, n, n], &causal(n, |score| score - 990.0)));
    let scores = file(directory.path(), "F32", &[1, n, n], &causal(n, |_| -1e4));
    let out = directory.path().join("out.safetensors");
    let found = critbeta(&["softmax", text(&scores), "--out", text(&out), "--rescaling", "ssmax:s=1"]);
    assert!(found.status.success() && String::from_utf8(found.stderr).unwrap().contains(said));
}

#[test]
fn notes_are_the_same_on_every_device_and_absent_where_nothing_is_odd() {
    let directory = tempfile::tempdir().unwrap();
    let scores = file(directory.path(), "F32", &[1, 12, 12], &causal(12, |_| -1e4));
    let on = |device| {
        let json = stdout(&["diagnose", text(&scores), "--json", "-", "--device", device]);
        serde_json::from_str::<Value>(&json).unwrap()["notes"].clone()
    };
    if cfg!(feature = "simt") {
        assert_eq!(on("simt"), on("cpu"));
    }
    assert_eq!(on("cpu").as_array().unwrap().len(), 1);
    let example: Value = serde_json::from_str(&stdout(&["diagnose", EXAMPLE, "--json", "-"])).unwrap();
    assert!(example.get("notes").is_none());
}

/// The shapes of queries and keys, and positions.
type Pair<'a> = (&'a [usize], &'a [usize], Option<&'a [u64]>);

fn heads_last(q: &[usize], k: &[usize], positions: Option<&[u64]>) -> Vec<u8> {
    let values = |shape: &[usize]| -> Vec<u8> {
        (0..shape.iter().product()).flat_map(|i: usize| ((i as f32 * 0.37).sin()).to_le_bytes()).collect()
    };
    let mut tensors: Vec<Named> = vec![("a.q", "F32", q, values(q)), ("a.k", "F32", k, values(k))];
    let shape = [positions.map_or(0, <[u64]>::len)];
    if let Some(positions) = positions {
        let bytes = positions.iter().flat_map(|p| p.to_le_bytes()).collect();
        tensors.push(("a.positions", "I64", &shape, bytes));
    }
    safetensors(&tensors, None)
}

#[test]
fn queries_and_keys_whose_heads_come_last_are_refused_by_name_where_shapes_show_it() {
    let directory = tempfile::tempdir().unwrap();
    let all: Vec<u64> = (0..60).collect();
    let cases: [Pair; 9] = [
        // Grouped queries: one text, a part of its rows, the last row.
        (&[60, 8, 4], &[60, 2, 4], None),
        (&[1, 60, 8, 4], &[1, 60, 2, 4], None),
        (&[1, 7, 8, 4], &[1, 60, 2, 4], None),
        (&[1, 1, 8, 4], &[1, 60, 2, 4], None),
        // As many key heads: fewer rows than keys.
        (&[1, 7, 8, 4], &[1, 60, 8, 4], None),
        // Positions show it too.
        (&[1, 60, 8, 4], &[1, 60, 8, 4], Some(&all)),
        (&[1, 60, 8, 4], &[1, 60, 2, 4], Some(&all)),
        (&[1, 7, 8, 4], &[1, 60, 2, 4], Some(&all[53..])),
        (&[1, 8, 8, 4], &[1, 8, 2, 4], Some(&all[..8])),
    ];
    for (q, k, positions) in cases {
        let file = build::write(directory.path(), "a.safetensors", &heads_last(q, k, positions));
        let found = stderr(1, &["diagnose", text(&file)]);
        assert!(
            found.contains("a.q") && found.contains("its heads come last: expected [heads, rows"),
            "{found}"
        );
        assert!(!found.contains("position"), "{found}");
    }
    let good: [Pair; 6] = [
        (&[8, 60, 4], &[2, 60, 4], None),
        (&[8, 1, 4], &[2, 60, 4], None),
        (&[8, 7, 4], &[8, 60, 4], None),
        (&[1, 60, 4], &[1, 60, 4], None),
        (&[8, 60, 4], &[8, 60, 4], Some(&all)),
        // More rows than keys.
        (&[8, 60, 4], &[8, 30, 4], Some(&[3; 60])),
    ];
    for (q, k, positions) in good {
        no_note(&build::write(directory.path(), "a.safetensors", &heads_last(q, k, positions)));
    }
}

#[test]
fn heads_that_may_come_last_are_noted() {
    let directory = tempfile::tempdir().unwrap();
    let pair =
        build::write(directory.path(), "a.safetensors", &heads_last(&[1, 60, 8, 4], &[1, 60, 8, 4], None));
    assert_eq!(
        note(&pair),
        "\"a\": 60 key heads with 8 keys each: if its heads come last, turn it to [heads, rows, head_dim]"
    );
    // Scores [rows, heads, n]: square but for the rows, and by their mask.
    let (rows, heads) = (30, 4);
    let score = |row, key, masked: bool| if masked && key > row { NOTHING } else { logit(row, key) };
    let turned = |rows: std::ops::Range<usize>, n: usize, masked: bool| -> Vec<f64> {
        let places = rows.flat_map(|row| (0..heads).map(move |_| row));
        places.flat_map(|row| (0..n).map(move |key| score(row, key, masked))).collect()
    };
    let square = turned(0..rows, rows, false);
    for shape in [&[30, 4, 30][..], &[1, 30, 4, 30]] {
        let found = note(&file(directory.path(), "F32", shape, &square));
        assert!(
            found.starts_with("\"attn\": 30 heads of 4 rows with 30 keys each: if its heads come last"),
            "{found}"
        );
    }
    let last = turned(50..53, 60, true);
    let found = note(&file(directory.path(), "F32", &[3, 4, 60], &last));
    assert!(found.ends_with("so heads come last: expected [..., heads, rows, n]"), "{found}");
    let positions = |at: Vec<u64>| {
        let bytes: Vec<u8> = last.iter().flat_map(|&value| element("F32", value)).collect();
        let shape = [at.len()];
        let at = at.iter().flat_map(|p| p.to_le_bytes()).collect();
        let tensors: [Named; 2] = [("attn", "F32", &[3, 4, 60], bytes), ("positions", "I64", &shape, at)];
        build::write(directory.path(), "p.safetensors", &safetensors(&tensors, None))
    };
    let found = stderr(1, &["diagnose", text(&positions(vec![50, 51, 52]))]);
    assert!(found.contains("its heads come last: expected [..., heads, rows, n]"), "{found}");
    let found = stderr(1, &["diagnose", text(&positions(vec![50, 51]))]);
    assert!(found.contains("expected [4], one position per row"), "{found}");
    // Heads first are in order.
    no_note(&file(directory.path(), "F32", &[4, 30, 30], &causal(30, |_| NOTHING).repeat(4)));
    let npy = npy("<f4", false, "(4, 2)", &2f32.to_le_bytes().repeat(8));
    no_note(&build::write(directory.path(), "twos.npy", &npy));
}
