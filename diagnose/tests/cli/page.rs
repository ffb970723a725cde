//! `critbeta diagnose --html`: the page says the same as the summary.

use super::build::{f32s, npy, safetensors};
use super::*;
use serde_json::Value;
use std::fs;

/// The page and the summary of one run of `diagnose`.
pub fn diagnosed(args: &[&str]) -> (String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let [html, json] = ["page.html", "summary.json"].map(|name| directory.path().join(name));
    stdout(&[&["diagnose"], args, &["--html", text(&html), "--json", text(&json)]].concat());
    assert_eq!(names(directory.path()), ["page.html", "summary.json"]);
    (fs::read_to_string(html).unwrap(), serde_json::from_slice(&fs::read(json).unwrap()).unwrap())
}

/// The text between two marks.
#[track_caller]
fn between<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = page.split_once(from).unwrap_or_else(|| panic!("no {from}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to} after {from}")).0
}

/// Text without its elements.
fn plain(html: &str) -> String {
    let mut pieces = html.split('<');
    let first = pieces.next().unwrap_or("").to_owned();
    let text = pieces.map(|piece| piece.split_once('>').map_or("", |(_, text)| text));
    let unescaped = text.fold(first, |all, text| all + text);
    unescaped.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// Cells of the rows of a table without closing tags.
fn rows(table: &str) -> Vec<Vec<String>> {
    let rows = table.split("<tr><th scope=row>").skip(1);
    rows.map(|row| {
        let cells = row.split("<td").map(|cell| {
            cell.split_once('>').filter(|_| !cell.starts_with('<')).map_or(cell, |(_, text)| text)
        });
        // The first one has no `<td`: it may hold a link.
        std::iter::once(plain(row.split("<td").next().unwrap())).chain(cells.skip(1).map(plain)).collect()
    })
    .collect()
}

/// Checks that a number on the page is this value of the summary, to the digits shown. Null is infinite or
/// none.
#[track_caller]
fn same(shown: &str, value: &Value) {
    let Some(value) = value.as_f64() else {
        assert!(["∞", "–"].contains(&shown), "{shown}: {value}");
        return;
    };
    let (number, unit) = match shown.strip_suffix(" %") {
        Some(percent) => (percent, 0.01),
        None => (shown, 1.0),
    };
    let number = number.replace('−', "-").replace(',', "");
    let found: f64 = number.parse().unwrap_or_else(|_| panic!("{shown} is no number"));
    let places =
        number.split('e').next().unwrap().split_once('.').map_or(0, |(_, places)| places.len()) as i32;
    let power = number.split_once('e').map_or(0, |(_, power)| power.parse().unwrap());
    let half = 0.5 * 10f64.powi(power - places) * unit;
    assert!((found * unit - value).abs() <= half * (1.0 + 1e-9), "{shown}, expected {value}");
}

#[track_caller]
pub fn numbers_are_those_of(page: &str, summary: &Value) {
    let heads = summary["heads"].as_array().unwrap();
    let table = rows(between(page, "<table class=values id=values>", "</table>"));
    assert_eq!(table.len(), heads.len());
    for (cells, head) in table.iter().zip(heads) {
        assert_eq!(cells[1], head["head"].to_string());
        same(&cells[2], &head["rows"]);
        same(&cells[3], &head["operating_ratio"]["q50"]);
        same(&cells[4], &head["critical_beta"]["q50"]);
        same(&cells[5], &head["resolved_beta"]["q50"]);
        let fit = &head["length_law"]["critical_beta"];
        same(&cells[6], &fit["xi"]);
        match cells[7].split_once(" to ") {
            Some((low, high)) => {
                same(low, &fit["interval"][0]);
                same(high, &fit["interval"][1]);
            }
            None => assert!(fit.is_null(), "{cells:?}"),
        }
        same(&cells[8], &head["median_alpha"]);
        same(&cells[9], &head["median_relative_entropy"]);
        same(&cells[10], &head["median_top_two"]);
        same(&cells[11], &head["share_tied"]);
        same(&cells[12], &head["poisoned"]);
    }
    let sum =
        |of: &dyn Fn(&Value) -> &Value| heads.iter().map(|head| of(head).as_u64().unwrap()).sum::<u64>();
    let measured = sum(&|head| &head["measured"]);
    if measured > 0 {
        for regime in ["below", "near", "above"] {
            let share = sum(&|head| &head["regimes"][regime]) as f64 / measured as f64;
            same(&plain(between(page, &format!("<strong id=\"{regime}\">"), "</strong>")), &share.into());
        }
        same(between(page, "<span id=\"measured\">", "</span>"), &measured.into());
        same(
            between(page, "<b class=\"violations\">", "</b>"),
            &sum(&|head| &head["bound_violations"]).into(),
        );
    }
    for (i, head) in heads.iter().enumerate() {
        let article = between(page, &format!("id=\"h{i}\""), "</article>");
        let verdict = head["length_law"]["verdict"].as_str().unwrap();
        assert!(plain(article).contains(verdict) || head["measured"] == 0, "{i}: {verdict}");
        let Some(outcomes) = head["what_if"].as_array().filter(|all| all[0]["rows"] != 0) else {
            assert!(article.contains("class=\"missing\""), "{i}");
            continue;
        };
        let table = rows(between(article, "<table class=\"values rules\">", "</table>"));
        for cells in &table {
            for spec in cells[0].split(", ") {
                let outcome = outcomes
                    .iter()
                    .find(|outcome| outcome["spec"] == spec)
                    .unwrap_or_else(|| panic!("{spec}"));
                same(&cells[1], &outcome["beta"]["q50"]);
                same(&cells[2], &outcome["relative_entropy"]["q50"]);
                same(&cells[3], &outcome["top_two"]["q50"]);
            }
        }
        let specs: usize = table.iter().map(|cells| cells[0].split(", ").count()).sum();
        assert_eq!(specs, outcomes.len(), "{i}");
    }
}

/// Checks that a browser would fetch nothing, and that no name became markup.
#[track_caller]
pub fn stands_alone(page: &str) {
    for forbidden in [
        "http:",
        "https:",
        "//www",
        "@import",
        "url(",
        "src=",
        "<img",
        "<iframe",
        "<object",
        "javascript:",
        "onerror=\"",
    ] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert_eq!(page.matches("<script").count(), page.matches("</script>").count());
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
}

#[test]
fn numbers_in_the_page_are_those_of_the_json() {
    let (page, summary) = diagnosed(&[EXAMPLE]);
    numbers_are_those_of(&page, &summary);
    stands_alone(&page);
    for section in [
        "The answer",
        "Where in the model",
        "Gap count of a row",
        "Phase plot",
        "Length",
        "What if",
        "Provenance",
        "Glossary",
        "Citation",
    ] {
        assert!(page.contains(section), "{section}");
    }
    assert!(page.contains("c997cd17c3b2f6b34ce899cf8e09fddf0084788e168e509de0965d8e143db2b8"));
    assert!(page.contains("queries and keys f16, scale 0.125"));
    assert_eq!(page.matches("<svg class=c").count(), 12 * 6);
    assert!(page.len() < 300_000, "{}", page.len());

    let (page, summary) = diagnosed(&[EXAMPLE, "--resolve", "0.69", "--exclude-sink", "1", "--beta", "1.5"]);
    numbers_are_those_of(&page, &summary);
    let spec = plain(between(&page, "<code id=\"row-spec\">", "</code>"));
    assert!(spec.starts_with("critical:ratio=") && spec.ends_with(",resolve=0.69"), "{spec}");
    spec.parse::<critbeta::calibration::RescalingSpec>().unwrap();
    assert!(plain(&page).contains("fixed:1.5"));
}

#[test]
fn a_page_says_the_same_at_every_number_of_threads_and_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.html");
    let written = |threads: &str| {
        stdout(&["diagnose", EXAMPLE, "--html", text(&page), "--threads", threads]);
        fs::read_to_string(&page).unwrap().replace(&format!("--threads {threads}"), "")
    };
    assert_eq!(written("1"), written("3"));
}

#[test]
fn the_calibration_to_paste_is_the_one_that_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let [html, json] = ["page.html", "calibration.json"].map(|name| directory.path().join(name));
    stdout(&["diagnose", EXAMPLE, "--html", text(&html), "--calibration", text(&json)]);
    let page = fs::read_to_string(html).unwrap();
    let pasted: Value =
        serde_json::from_str(&plain(between(&page, "<pre id=\"calibration\">", "</pre>"))).unwrap();
    assert_eq!(pasted, serde_json::from_slice::<Value>(&fs::read(json).unwrap()).unwrap());
}

#[test]
fn the_advice_is_for_the_beta_that_the_rows_were_run_at() {
    let (page, _) = diagnosed(&[EXAMPLE, "--beta", "2"]);
    let spec = plain(between(&page, "<code id=\"spec\">", "</code>"));
    assert_eq!(spec, "calibrated:calibration.json,anchor=8192");
    assert!(plain(&page).contains("anchor=8192 as a factor on β = 2"));
    // Rows of one length tell no law.
    let directory = tempfile::tempdir().unwrap();
    let scores = (0..20 * 50).map(|i| (i as f32 * 0.618_034).fract() * 160.0).flat_map(f32::to_le_bytes);
    let scores = build::npy("<f4", false, "(1, 20, 50)", &scores.collect::<Vec<u8>>());
    let file = build::write(directory.path(), "in.npy", &scores);
    let (page, _) = diagnosed(&[text(&file), "--beta", "2"]);
    let spec = between(&page, "<code id=\"spec\">", "</code>");
    assert_eq!(spec, "fixed:2");
    let row_spec = between(&page, "<code id=\"row-spec\">", "</code>");
    let rule: critbeta::Rescaling = row_spec.parse().unwrap();
    assert!(matches!(rule, critbeta::Rescaling::Critical(rule) if rule.ratio > 1.0), "{row_spec}");
    // At beta = 0 all keys are equal, so there is no ratio.
    let (page, _) = diagnosed(&[EXAMPLE, "--beta", "0"]);
    assert!(!page.contains("id=\"row-spec\""));
}

#[test]
fn what_if_is_of_rows_whatever_comes_at_its_own_pace() {
    // Every third of 9,000 rows is poisoned. A stride of three would look at no other.
    let directory = tempfile::tempdir().unwrap();
    let scores: Vec<u8> = (0..9000 * 4)
        .map(|i| if i % 12 == 0 { f32::NAN } else { (i as f32 * 0.618_034).fract() * 4.0 })
        .flat_map(f32::to_le_bytes)
        .collect();
    let file = build::write(directory.path(), "in.npy", &build::npy("<f4", false, "(1, 9000, 4)", &scores));
    let (page, summary) = diagnosed(&[text(&file)]);
    let rows = summary["heads"][0]["what_if"][0]["rows"].as_u64().unwrap();
    assert!((2000..3500).contains(&rows), "{rows} of 6,000 measured rows");
    assert!(page.contains("rows drawn from its 6,000 measured ones"));
}

#[test]
fn names_are_shown_as_text() {
    let directory = tempfile::tempdir().unwrap();
    let hostile = "<script>alert(1)</script><b onerror=\"x\">&amp;'\u{202e}\u{1b}[2J";
    let long = "W".repeat(5000);
    let tensors = vec![(hostile, "F32", &[2, 3, 4][..], f32s(24)), (&long, "F32", &[1, 3, 4][..], f32s(12))];
    let file = build::write(directory.path(), "a<i>b&c.safetensors", &safetensors(&tensors, None));
    let (page, summary) = diagnosed(&[text(&file)]);
    stands_alone(&page);
    numbers_are_those_of(&page, &summary);
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
    for markup in ["<b onerror", "<i>b&c", "\u{202e}", "\u{1b}"] {
        assert!(!page.contains(markup), "{markup:?}");
    }
    assert!(page.contains("a&lt;i&gt;b&amp;c.safetensors") && page.contains("&lt;script&gt;alert(1)"));
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"no \xff utf-8.npy");
        let file = directory.path().join(name);
        let bytes: Vec<u8> = (0..32).flat_map(|i| (i as f32).to_le_bytes()).collect();
        fs::write(&file, npy("<f4", false, "(4, 8)", &bytes)).unwrap();
        let html = directory.path().join("page.html");
        let output = Command::new(env!("CARGO_BIN_EXE_critbeta"))
            .arg("diagnose")
            .arg(&file)
            .args(["--html", text(&html)])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let page = fs::read_to_string(html).unwrap();
        assert!(
            page.contains(r"no \xff utf-8.npy") && !page.contains('\u{fffd}'.to_string().repeat(2).as_str())
        );
    }
}

/// A page of these score rows of 4 columns, as one head.
fn of_rows(rows: &[[f32; 4]]) -> (String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = rows.as_flattened().iter().flat_map(|s| s.to_le_bytes()).collect();
    let shape = format!("({}, 4)", rows.len());
    let file = build::write(directory.path(), "few.npy", &npy("<f4", false, &shape, &bytes));
    diagnosed(&[text(&file)])
}

#[test]
fn rows_that_say_nothing_make_a_page_that_says_so() {
    let inf = f32::INFINITY;
    let cases: [(&str, Vec<[f32; 4]>); 6] = [
        ("<strong id=\"above\">100.0 %</strong>", vec![[5.0, 1.0, 0.0, -1.0]]),
        ("4 keys tied: critical β ∞", vec![[1.0; 4]; 30]),
        ("None of the 7 rows can be measured: 7 hold a NaN or +∞", vec![[f32::NAN, 0.0, 1.0, 2.0]; 7]),
        ("None of the 3 rows can be measured: 0 hold a NaN", vec![[-inf; 4]; 3]),
        ("3 have fewer than two visible keys", vec![[2.0, -inf, -inf, -inf]; 3]),
        ("1 of 2 rows hold a NaN", vec![[3.0, 2.0, 1.0, 0.0], [f32::NAN; 4]]),
    ];
    for (says, rows) in cases {
        let (page, summary) = of_rows(&rows);
        stands_alone(&page);
        numbers_are_those_of(&page, &summary);
        assert!(page.contains(says), "{says}");
        for nonsense in ["NaN to", ">NaN", "inf ", "NaN%"] {
            assert!(!page.contains(nonsense), "{says}: {nonsense}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (rows, html) = (directory.path().join("none.jsonl"), directory.path().join("page.html"));
    fs::write(&rows, "").unwrap();
    stdout(&["report", text(&rows), "--html", text(&html)]);
    let page = fs::read_to_string(html).unwrap();
    stands_alone(&page);
    assert!(page.contains("There are no rows: nothing was measured."));
}

#[test]
fn thirty_layers_of_32_heads_stay_under_3_mb() {
    // A head has as many rows as the charts show, and more steps and points, so more rows add nothing.
    let directory = tempfile::tempdir().unwrap();
    let (rows, cols) = (72usize, 160usize);
    let mut state = 1u32;
    let mut score = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        half::f16::from_f32((state >> 16) as f32 / 9000.0)
    };
    let mut values = |layer: usize| -> Vec<u8> {
        let masked = half::f16::NEG_INFINITY;
        let row = |r: usize| (0..cols).map(move |j| j <= 2 * r + 8);
        let factor = half::f16::from_f32(0.2 + layer as f32 / 10.0);
        (0..32 * rows)
            .flat_map(|r| row(r % rows).collect::<Vec<_>>())
            .map(|seen| if seen { score() * factor } else { masked })
            .flat_map(half::f16::to_le_bytes)
            .collect()
    };
    let names: Vec<String> = (0..30).map(|layer| format!("model.layers.{layer}.self_attn")).collect();
    let shape = [32, rows, cols];
    let tensors: Vec<_> =
        names.iter().enumerate().map(|(i, name)| (name.as_str(), "F16", &shape[..], values(i))).collect();
    let file = build::write(directory.path(), "grid.safetensors", &safetensors(&tensors, None));
    let (page, summary) = diagnosed(&[text(&file), "--resolve", "0.69"]);
    assert_eq!(summary["heads"].as_array().unwrap().len(), 960);
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    stands_alone(&page);
    assert!(page.contains("thinned") && page.contains("Phase plots show 31 rows a head"));
    assert_eq!(page.matches("<td><a href=#h").count(), 960, "cells");
}
