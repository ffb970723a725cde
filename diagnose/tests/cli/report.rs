//! `critbeta report`: the page of records equals that of their diagnosis. Anything but records is refused.

use super::page::{diagnosed, numbers_are_those_of, stands_alone};
use super::*;
use serde_json::Value;
use std::fs;

#[test]
fn records_of_every_format_make_the_page_that_their_diagnosis_makes() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (_, of_scores) = diagnosed(&[EXAMPLE, "--resolve", "0.5"]);
    for name in ["r.jsonl", "r.csv", "r.parquet"] {
        let rows = at(name);
        stdout(&["diagnose", EXAMPLE, "--resolve", "0.5", "--rows", text(&rows)]);
        let [html, json] = [at("page.html"), at("summary.json")];
        let args = ["report", text(&rows), "--html", text(&html), "--json", text(&json), "--resolve", "0.5"];
        stdout(&args);
        let page = fs::read_to_string(&html).unwrap();
        let summary: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        numbers_are_those_of(&page, &summary);
        stands_alone(&page);
        assert!(page.contains("Row records hold no scores"), "{name}");
        let without = |summary: &Value| -> Vec<Value> {
            let mut heads = summary["heads"].as_array().unwrap().clone();
            for head in &mut heads {
                let head = head.as_object_mut().unwrap();
                head.remove("what_if");
                // Records do not say how many tensors they came from.
                head.remove("sources");
            }
            heads
        };
        assert_eq!(without(&summary), without(&of_scores), "{name}");
        let message = stderr(1, &args[..6]);
        assert!(message.contains("--resolve"), "{message}");
        let message = stderr(1, &["report", text(&rows), "--html", text(&html), "--resolve", "0.1"]);
        assert!(message.contains("column resolved_beta was made with a resolve of"), "{message}");
    }
}

#[test]
fn records_that_are_none_are_refused_by_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("good.jsonl");
    stdout(&["diagnose", EXAMPLE, "--tensor", "layer00", "--rows", text(&good)]);
    let good = fs::read_to_string(good).unwrap();
    let line = good.lines().next().unwrap();
    let html = directory.path().join("page.html");
    let refused = |name: &str, content: &str, says: &[&str]| {
        let file = build::write(directory.path(), name, content.as_bytes());
        let message = stderr(1, &["report", text(&file), "--html", text(&html)]);
        for part in says.iter().chain(&[name]) {
            assert!(message.contains(part), "{message}, expected {part}");
        }
        assert!(!html.exists(), "{name} left a page");
    };
    refused("a.jsonl", &format!("{line}\nnonsense\n"), &["line 2", "not a row record"]);
    refused("b.jsonl", &line.replace("\"alpha\":", "\"beth\":"), &["line 1", "column alpha"]);
    let value = |key: &str| serde_json::from_str::<Value>(line).unwrap()[key].to_string();
    let with = |key: &str, other: &str| {
        line.replace(&format!("\"{key}\":{}", value(key)), &format!("\"{key}\":{other}"))
    };
    refused("c.jsonl", &with("top_two", "7"), &["line 1", "column top_two: 7, expected 0 to 1"]);
    refused("d.jsonl", &with("entropy", "null"), &["line 1", "column entropy: null"]);
    let ratio = value("ratio").parse::<f64>().unwrap();
    let other_beta =
        with("beta", "2.0").replace(&format!("\"ratio\":{ratio}"), &format!("\"ratio\":{}", 2.0 * ratio));
    refused("e.jsonl", &format!("{line}\n{other_beta}\n"), &["column beta: 1 and 2 in one file"]);
    refused("f.jsonl", &with("contact_rank", "100000000"), &["column contact_rank"]);
    refused("f0.jsonl", &with("contact_rank", "0"), &["column contact_rank: 0, expected 1 or more"]);
    refused(
        "ratio.jsonl",
        &with("ratio", "1.0"),
        &["line 1", "column ratio: 1, expected beta / critical_beta"],
    );
    refused("g.jsonl", &with("critical_beta", "-1"), &["column critical_beta: -1"]);
    refused("h.parquet", "PAR1 but no more", &["no Parquet file"]);
    refused("i.csv", "layer,head\na,0\n", &["has no column row: expected row records"]);
    refused("j.txt", "", &[".jsonl, .csv or .parquet"]);
    let certified = line
        .replace("\"poisoned\":false", "\"poisoned\":false,\"certified\":true,\"resolved_certified\":true");
    refused("k.jsonl", &certified, &["--top-k"]);
    refused("l.jsonl", &format!("{line}\n{certified}\n"), &["different runs made them"]);
    let missing = directory.path().join("none.parquet");
    assert!(stderr(1, &["report", text(&missing), "--html", text(&html)]).contains("none.parquet"));
    let rows = build::write(directory.path(), "m.jsonl", line.as_bytes());
    let message = stderr(1, &["report", text(&rows), "--html", text(&html), "--resolve", "0.5"]);
    assert!(message.contains("column resolved_beta equals critical_beta"), "{message}");
    let message = stderr(1, &["report", "/dev/null", "--html", text(&html)]);
    assert!(message.contains("expected a regular file"), "{message}");
    assert!(stderr(1, &["report", text(&rows), "--html", text(&rows)]).contains("named twice"));
}

/// Extreme numbers make no page that is endless, or larger than its heads.
#[test]
fn numbers_of_any_size_make_a_small_page() {
    let directory = tempfile::tempdir().unwrap();
    let [good, html] = ["good.jsonl", "page.html"].map(|name| directory.path().join(name));
    stdout(&["diagnose", EXAMPLE, "--tensor", "layer00", "--rows", text(&good)]);
    let records = fs::read_to_string(good).unwrap();
    let record = |change: &dyn Fn(&mut Value)| {
        let mut record: Value = serde_json::from_str(records.lines().next().unwrap()).unwrap();
        change(&mut record);
        record.to_string() + "\n"
    };
    let head = |head: u64| record(&|r| r["head"] = head.into());
    let critical = |critical: f64| {
        record(&|r| {
            (r["critical_beta"], r["resolved_beta"]) = (critical.into(), critical.into());
            r["ratio"] = Value::from(1.0 / critical);
        })
    };
    let cases = [
        head(0) + &head(u64::MAX),
        head(1_000_000_000) + &head(3),
        critical(1e308) + &critical(1e-307),
        critical(5e-324),
    ];
    for case in cases {
        let rows = build::write(directory.path(), "rows.jsonl", case.as_bytes());
        stdout(&["report", text(&rows), "--html", text(&html)]);
        let size = fs::metadata(&html).unwrap().len();
        assert!(size < 200_000, "{size} bytes of {case}");
    }
    let (page, _) = diagnosed(&[EXAMPLE, "--tensor", "layer00", "--beta", "1.7e308"]);
    assert!(page.len() < 300_000);
}
