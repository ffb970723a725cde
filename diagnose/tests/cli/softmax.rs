//! `critbeta softmax`.

use super::build::{npy, safetensors};
use super::*;
use critbeta::reference::Row;
use critbeta_diagnose::input::safetensors::SafetensorsFile;

const NOTHING: f64 = f64::NEG_INFINITY;

/// Two heads of three rows: plain, masked, tied; empty, poisoned, a sink.
const ROWS: [[f64; 4]; 6] = [
    [0.5, 2.0, -1.0, 1.0],
    [3.0, NOTHING, 2.5, NOTHING],
    [1.5, 1.5, 0.0, NOTHING],
    [NOTHING; 4],
    [0.0, f64::NAN, 1.0, 2.0],
    [20.0, 0.5, 0.25, 0.0],
];

fn elements(dtype: &str) -> Vec<u8> {
    let element = |&s: &f64| match dtype {
        "F64" => s.to_le_bytes().to_vec(),
        "F32" => (s as f32).to_le_bytes().to_vec(),
        "F16" => half::f16::from_f64(s).to_le_bytes().to_vec(),
        _ => half::bf16::from_f64(s).to_le_bytes().to_vec(),
    };
    ROWS.as_flattened().iter().flat_map(element).collect()
}

fn values(dtype: &str, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        "F64" => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        "F32" => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
        "F16" => bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).into()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).into()).collect(),
    }
}

/// Compares with the reference at `beta` of the row; `epsilon` is the unit of the dtype.
fn check(found: &[f64], beta: impl Fn(&Row) -> f64, epsilon: f64) {
    for (scores, probs) in ROWS.iter().zip(found.chunks_exact(4)) {
        let row = Row::new(scores);
        let beta = beta(&row);
        for (&score, &prob) in scores.iter().zip(probs) {
            if row.is_poisoned() {
                assert!(prob.is_nan());
            } else if score == NOTHING {
                assert_eq!(prob, 0.0);
            } else {
                let gap = row.max() - score;
                let weight = if gap == 0.0 { 1.0 } else { (-beta * gap).exp() };
                let expected = weight / row.partition(beta);
                // Halves below the least normal number are spaced 2^-24 apart.
                assert!((prob - expected).abs() <= epsilon * expected + 2f64.powi(-25), "{prob} {expected}");
            }
        }
    }
}

const EPSILONS: [(&str, f64); 4] = [("F64", 1e-12), ("F32", 6e-8), ("F16", 5e-4), ("BF16", 4e-3)];

#[test]
fn every_dtype_is_kept_or_changed_and_positions_stay() {
    let directory = tempfile::tempdir().unwrap();
    let positions = build::i64s(&[5, 6, 7]);
    for (dtype, epsilon) in EPSILONS {
        let file = build::write(
            directory.path(),
            "in.safetensors",
            &safetensors(
                &[("positions", "I64", &[3], positions.clone()), ("a", dtype, &[2, 3, 4], elements(dtype))],
                Some("kept"),
            ),
        );
        let out = directory.path().join("out.safetensors");
        for (given, written) in [(None, dtype), (Some("f32"), "F32")] {
            let mut args = vec!["softmax", text(&file), "--out", text(&out), "--rescaling", "fixed:1.5"];
            args.extend(given.iter().flat_map(|dtype| ["--dtype", dtype]));
            let line = stdout(&args);
            assert!(
                line.ends_with("6 rows, beta 1.500..1.500, 1 empty, 1 poisoned by NaN or +inf\n"),
                "{line}"
            );
            let found = SafetensorsFile::open(&out).unwrap();
            assert_eq!(found.metadata()["scale"], "kept");
            assert_eq!(found.tensor("positions").unwrap().bytes[..], positions);
            let probs = found.tensor("a").unwrap();
            assert_eq!((probs.dtype.to_string().as_str(), &probs.shape[..]), (written, &[2, 3, 4][..]));
            let epsilon = if given.is_some() { 6e-8 } else { epsilon };
            check(&values(written, &probs.bytes), |_| 1.5, epsilon);
        }
    }
}

#[test]
fn npy_in_either_order_is_written_in_c_order() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let c_order = build::write(directory.path(), "c.npy", &npy("<f4", false, "(2, 3, 4)", &elements("F32")));
    let fortran: Vec<u8> = (0..24)
        .map(|i| (i % 2) * 12 + (i / 2 % 3) * 4 + i / 6)
        .flat_map(|from| (ROWS.as_flattened()[from] as f32).to_le_bytes())
        .collect();
    let fortran = build::write(directory.path(), "f.npy", &npy("<f4", true, "(2, 3, 4)", &fortran));
    for (file, out) in [(&c_order, at("c_out.npy")), (&fortran, at("f_out.npy"))] {
        stdout(&["softmax", text(file), "--out", text(&out), "--rescaling", "critical:resolve=0.7"]);
    }
    let bytes = std::fs::read(at("c_out.npy")).unwrap();
    assert_eq!(bytes, std::fs::read(at("f_out.npy")).unwrap());
    assert!(bytes.starts_with(b"\x93NUMPY") && (bytes.len() - 96).is_multiple_of(32));
    let probs = values("F32", &bytes[bytes.len() - 96..]);
    check(&probs, |row| row.resolved_critical_beta(0.7).beta, 6e-8);
}

#[test]
fn a_diagnosis_calibrates_the_softmax_of_the_same_heads() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // Rows are evenly spaced and 4 to 512 long. Lambda is exactly ln 2 / step, so c is that and xi is 0.
    let (rows, cols) = (64, 512);
    let score = |r: usize, j: usize| if j < 8 * (r + 1) { 0.25 * j as f32 } else { f32::NEG_INFINITY };
    let bytes: Vec<u8> =
        (0..rows).flat_map(|r| (0..cols).flat_map(move |j| score(r, j).to_le_bytes())).collect();
    let file = build::write(directory.path(), "even.npy", &npy("<f4", false, "(64, 512)", &bytes));
    let (calibration, out) = (at("cal, = 1.json"), at("out.npy"));
    stdout(&["diagnose", text(&file), "--calibration", text(&calibration), "--quiet"]);
    let written: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&calibration).unwrap()).unwrap();
    let law = &written["heads"][0]["critical"];
    assert!((law["c"].as_f64().unwrap() - 2f64.ln() / 0.25).abs() < 1e-9, "{written}");
    assert!(law["xi"].as_f64().unwrap().abs() < 1e-9, "{written}");
    let spec = format!("calibrated:{}", serde_json::to_string(text(&calibration)).unwrap());
    let line = stdout(&["softmax", text(&file), "--out", text(&out), "--rescaling", &spec]);
    assert!(line.ends_with("64 rows, beta 2.773..2.773\n"), "{line}");
    let anchored = format!("{spec},anchor=100");
    let line = stdout(&["softmax", text(&file), "--out", text(&out), "--rescaling", &anchored]);
    assert!(line.ends_with("beta 1.000..1.000\n"), "{line}");

    let other = build::write(directory.path(), "other.npy", &npy("<f4", false, "(64, 512)", &bytes));
    let missing = stderr(1, &["softmax", text(&other), "--out", text(&at("x.npy")), "--rescaling", &spec]);
    assert!(missing.contains("layer \"other\" head 0: not among the 1 heads"), "{missing}");
    assert!(!at("x.npy").exists());
}

#[test]
fn laws_of_position_read_the_positions_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let with = |positions: &[i64]| {
        let tensors = [
            ("positions", "I64", &[3][..], build::i64s(positions)),
            ("a", "F32", &[2, 3, 4], elements("F32")),
        ];
        let file = build::write(directory.path(), "in.safetensors", &safetensors(&tensors, None));
        let out = at("out.safetensors");
        stdout(&["softmax", text(&file), "--out", text(&out), "--rescaling", "qwen-logn:train=4"])
    };
    assert!(with(&[1, 2, 3]).contains("beta 1.000..1.000"), "up to the training length");
    assert!(with(&[15, 15, 63]).contains("beta 2.000..3.000"), "beyond it");
}

#[test]
fn what_is_written_can_be_diagnosed_again() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let tensors = [
        ("a", "F64", &[2, 3, 4][..], elements("F64")),
        ("a.positions", "I64", &[3], build::i64s(&[1, 2, 3])),
        ("b", "F16", &[2, 3, 4], elements("F16")),
        ("b.positions", "I64", &[3], build::i64s(&[3, 2, 1])),
        ("none", "F32", &[2, 0, 4], Vec::new()),
    ];
    let file = build::write(directory.path(), "in.safetensors", &safetensors(&tensors, None));
    for (more, expected) in [
        (&[][..], &["a", "a.positions", "b", "b.positions", "none"][..]),
        (&["--tensor", "b"], &["b", "b.positions"]),
    ] {
        let out = at("out.safetensors");
        stdout(&[&["softmax", text(&file), "--out", text(&out), "--rescaling", "identity"], more].concat());
        let written = SafetensorsFile::open(&out).unwrap();
        let mut names: Vec<&str> = written.tensors().iter().map(|tensor| &*tensor.name).collect();
        names.sort();
        assert_eq!(names, expected);
        stdout(&["diagnose", text(&out)]);
    }
}

#[test]
fn a_calibration_that_does_not_fit_the_softmax_is_refused_or_said() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let file = build::write(directory.path(), "in.npy", &npy("<f8", false, "(2, 3, 4)", &elements("F64")));
    let (calibration, out) = (at("c.json"), at("out.npy"));
    let spec = format!("calibrated:{}", text(&calibration));
    let softmax = ["softmax", text(&file), "--out", text(&out), "--rescaling", &spec];
    stdout(&["diagnose", text(&file), "--exclude-sink", "1", "--calibration", text(&calibration)]);
    let error = stderr(1, &softmax);
    assert!(error.contains("c.json") && error.contains("--exclude-sink 1"), "{error}");
    std::fs::write(
        &calibration,
        r#"{"critbeta": "0", "resolve": 0, "exclude_sink": 0, "heads": [
            {"layer": "in", "head": 0, "critical": {"c": 1, "xi": 0, "conclusive": true, "interval": null}, "resolved": null},
            {"layer": "in", "head": 1, "critical": {"c": 2, "xi": 0, "conclusive": false, "interval": null}, "resolved": null}]}"#,
    )
    .unwrap();
    let output = critbeta(&softmax);
    assert!(output.status.success());
    let note = String::from_utf8(output.stderr).unwrap();
    assert_eq!(note, "note: 1 of the 2 laws of this calibration are inconclusive\n");
    assert!(stdout(&[&softmax[..], &["--quiet"]].concat()).contains("beta 1.000..2.000"));
    let resolved =
        stderr(1, &["softmax", text(&file), "--out", text(&out), "--rescaling", &(spec + ",of=resolved")]);
    assert!(resolved.contains("layer \"in\" head 0: has no finite median resolved beta"), "{resolved}");
}

#[test]
fn a_row_without_a_beta_is_nan_masked_scores_included() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let scores: Vec<u8> =
        [3.0f32, 1.0, 2.0, f32::NEG_INFINITY].iter().flat_map(|s| s.to_le_bytes()).collect();
    let file = build::write(directory.path(), "in.npy", &npy("<f4", false, "(1, 4)", &scores));
    // This is 0 times the largest power.
    let spec = "asentmax:delta=1,b=0,g=100000";
    let printed = stdout(&["softmax", text(&file), "--out", text(&at("out.npy")), "--rescaling", spec]);
    assert!(printed.contains("1 rows, 1 NaN: the rescaling has no beta for them"), "{printed}");
    let bytes = std::fs::read(at("out.npy")).unwrap();
    assert!(values("F32", &bytes[bytes.len() - 16..]).iter().all(|p| p.is_nan()));
}
