//! Calibrations, from a diagnosis to a file to the rescaling of each head, and row records of odd inputs.

#[path = "common/files.rs"]
mod build;

use build::{safetensors, write};
use critbeta::Rescaling;
use critbeta::calibration::HeadRescalings;
use critbeta_diagnose::input::{Selection, open};
use critbeta_diagnose::{Diagnosis, RowRecord, Settings, Summary, scan};
use std::path::Path;

fn diagnose(file: &Path, settings: Settings) -> (Vec<RowRecord>, Summary) {
    let inputs = [open(file, &Selection::default()).unwrap()];
    let mut diagnosis = Diagnosis::new(&inputs, settings, 1);
    let mut rows = Vec::new();
    scan(&inputs, &settings, |records| {
        diagnosis.add(records);
        rows.extend_from_slice(records);
        Ok(())
    })
    .unwrap();
    (rows, diagnosis.summary())
}

fn f32s(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Two heads of causal rows of 8 to 512 keys. A row has a maximum over equal keys; each head has its own gap.
fn two_heads(directory: &Path) -> std::path::PathBuf {
    let score = |head: usize, row: usize, j: usize| match j {
        0 => [2.0, 5.0][head],
        j if j < 8 * (row + 1) => 0.0,
        _ => f32::NEG_INFINITY,
    };
    let heads =
        (0..2).flat_map(|head| (0..64).flat_map(move |row| (0..512).map(move |j| score(head, row, j))));
    write(directory, "a.safetensors", &safetensors(&[("a", "F32", &[2, 64, 512], f32s(heads))], None))
}

#[test]
fn every_head_gets_its_own_law_of_the_chosen_quantity() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.measure.resolve = 0.5;
    let (_, summary) = diagnose(&two_heads(directory.path()), settings);
    let calibration = summary.calibration().unwrap();
    // Lambda = log n / gap and Lambda(r) = (log n - r) / gap.
    for (head, gap) in calibration.heads.iter().zip([2.0, 5.0]) {
        let (critical, resolved) = (head.critical.as_ref().unwrap(), head.resolved.as_ref().unwrap());
        assert!((critical.c * gap - 1.0).abs() < 0.02 && (critical.xi - 1.0).abs() < 0.02, "{critical:?}");
        assert!(resolved.xi > 1.05 && resolved.c < 0.95 * critical.c, "{resolved:?}");
        assert!(critical.conclusive && resolved.conclusive);
    }
    let file = directory.path().join("c.json");
    std::fs::write(&file, serde_json::to_string(&calibration).unwrap()).unwrap();
    let load =
        |more: &str| HeadRescalings::load(format!("calibrated:{}{more}", file.display()).parse().unwrap());
    for (more, resolved) in [("", false), (",of=resolved,anchor=100", true)] {
        let rescalings = load(more).unwrap();
        for head in &calibration.heads {
            let law = if resolved { &head.resolved } else { &head.critical }.as_ref().unwrap();
            let Rescaling::Calibrated(found) = rescalings.of("a", head.head).unwrap() else { panic!() };
            assert_eq!((found.c, found.xi, found.anchor), (law.c, law.xi, resolved.then_some(100.0)));
        }
    }
    for (from, to, says) in [
        ("\"head\":1", "\"head\":0", "layer \"a\" head 0 is given twice"),
        ("\"c\":", "\"c\":-", "c must be above 0"),
        ("\"xi\":", "\"xi\":1e999,\"x\":", "not a calibration"),
        ("\"exclude_sink\":0", "\"exclude_sink\":4", "--exclude-sink 4"),
    ] {
        let text = serde_json::to_string(&calibration).unwrap().replacen(from, to, 9);
        std::fs::write(&file, text).unwrap();
        let error = load("").unwrap_err().to_string();
        assert!(error.contains("c.json") && error.contains(says), "{error}");
    }
    settings.measure.top_k = Some(64);
    let (_, summary) = diagnose(&two_heads(directory.path()), settings);
    assert!(summary.calibration().unwrap_err().to_string().contains("not the 64 largest"));
}

#[test]
fn rows_of_about_one_length_are_calibrated_by_their_median_and_tied_ones_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let row = |gap: f32| [gap, 0.0, 0.0, 0.0];
    let rows = [2.0, 4.0, 8.0].map(row).into_iter().flatten();
    let tied = [0.0; 12].into_iter();
    let tensors = [("one", "F32", &[3, 4][..], f32s(rows)), ("tied", "F32", &[3, 4], f32s(tied))];
    let file = write(directory.path(), "a.safetensors", &safetensors(&tensors, None));
    let calibration = diagnose(&file, Settings::default()).1.calibration().unwrap();
    let law = calibration.heads[0].critical.as_ref().unwrap();
    assert_eq!((law.c, law.xi, law.interval, law.conclusive), (4f64.ln() / 4.0, 0.0, None, false));
    assert_eq!((&calibration.heads[1].critical, &calibration.heads[1].resolved), (&None, &None));

    // Over 40 to 64 keys the fit's exponent is a slope of noise, so it is not written.
    let gap = |row: usize| 1.0 + (row * 7 % 5) as f32;
    let score = |row: usize, j: usize| match j {
        0 => gap(row),
        j if j < 40 + row => 0.0,
        _ => f32::NEG_INFINITY,
    };
    let scores = f32s((0..25).flat_map(|row| (0..64).map(move |j| score(row, j))));
    let file =
        write(directory.path(), "b.safetensors", &safetensors(&[("a", "F32", &[25, 64], scores)], None));
    let (_, summary) = diagnose(&file, Settings::default());
    assert!(summary.heads[0].length_law.critical_beta.is_some());
    let calibration = summary.calibration().unwrap();
    let law = calibration.heads[0].critical.as_ref().unwrap();
    assert_eq!((law.c, law.xi, law.interval), (summary.heads[0].critical_beta.q50, 0.0, None));
}

#[test]
fn records_carry_the_positions_and_the_offset_of_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let scores: Vec<u8> =
        [1e9, 1e9 - 0.5, 3.0, -1e9, 2.0, 1.0].iter().flat_map(|s: &f64| s.to_le_bytes()).collect();
    let tensors = [("a", "F64", &[2, 3][..], scores), ("positions", "U16", &[2], vec![7, 0, 1, 1])];
    let file = write(directory.path(), "a.safetensors", &safetensors(&tensors, None));
    let (rows, _) = diagnose(&file, Settings::default());
    assert_eq!([rows[0].max, rows[1].max], [1e9, 2.0]);
    assert_eq!([rows[0].position, rows[1].position], [7, 257]);
    assert_eq!((rows[0].critical_beta, rows[0].contact_gap), (2f64.ln() / 0.5, 0.5));
}

#[test]
fn a_dot_product_that_overflows_poisons_its_row_and_masks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = [
        ("a.q", "F32", &[1, 2, 1][..], f32s([3e38f32, 0.5].into_iter())),
        ("a.k", "F32", &[1, 3, 1], f32s([-3e38f32, 0.5, 0.25].into_iter())),
    ];
    let file = write(directory.path(), "a.safetensors", &safetensors(&tensors, None));
    let (rows, _) = diagnose(&file, Settings::default());
    assert!(rows[0].poisoned && rows[0].n == 2 && rows[0].entropy.is_nan());
    assert!(!rows[1].poisoned && rows[1].n == 3);
}
