//! Rows of queries and keys give the same records to the last bit on any number of threads.

#[path = "common/files.rs"]
mod files;

use critbeta_diagnose::input::safetensors::SafetensorsFile;
use critbeta_diagnose::input::{Input, QkPair, Selection, Source, Values, open};
use critbeta_diagnose::{RowRecord, Settings, scan};
use files::{safetensors, write};
use half::f16;
use std::path::Path;

/// A pair with two query heads per key head, more rows than one block takes, in no order, and a number of
/// keys that no tile divides.
fn grouped(directory: &Path, dtype: &str, dim: usize) -> Input {
    let (heads, kv_heads, rows, keys) = (4, 2, 1100usize, 1531usize);
    let value =
        |i: usize| (i as f32 * 0.754_877_7).fract().powi(4) * if i.is_multiple_of(5) { -9.0 } else { 2.0 };
    let floats = |count: usize, from: usize| -> Vec<u8> {
        let values = (from..from + count).map(value);
        match dtype {
            "F16" => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        }
    };
    let positions = (0..rows).flat_map(|row| ((row * 7919 % keys) as u32).to_le_bytes()).collect();
    let tensors = [
        ("a.q", dtype, &[heads, rows, dim][..], floats(heads * rows * dim, 0)),
        ("a.k", dtype, &[kv_heads, keys, dim], floats(kv_heads * keys * dim, 977)),
        ("positions", "U32", &[rows], positions),
    ];
    open(&write(directory, "a.safetensors", &safetensors(&tensors, None)), &Selection::default()).unwrap()
}

fn records(input: &Input, threads: usize) -> Vec<RowRecord> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut all = Vec::new();
    let keep = |records: &[RowRecord]| {
        all.extend_from_slice(records);
        Ok(())
    };
    pool.install(|| scan(std::slice::from_ref(input), &Settings::default(), keep)).unwrap();
    all
}

/// Every field of every record. A number has enough digits to differ from its neighbours.
fn fields(records: &[RowRecord]) -> Vec<String> {
    records.iter().map(|record| format!("{record:?}")).collect()
}

#[test]
fn records_are_the_same_on_one_two_and_three_threads() {
    let directory = tempfile::tempdir().unwrap();
    let real = open(Path::new("../examples/data/smollm2_gpl3.safetensors"), &Selection::default()).unwrap();
    for input in [grouped(directory.path(), "F32", 64), grouped(directory.path(), "F16", 40), real] {
        let one = fields(&records(&input, 1));
        assert!(one.len() > 1000);
        for threads in [2, 3] {
            for (one, other) in one.iter().zip(&fields(&records(&input, threads))) {
                assert_eq!(one, other, "{threads} threads");
            }
        }
    }
}

#[test]
fn a_query_head_reads_the_key_head_of_its_group_as_far_as_its_row_sees() {
    let directory = tempfile::tempdir().unwrap();
    for (dtype, dim) in [("F32", 64), ("F16", 40)] {
        let input = grouped(directory.path(), dtype, dim);
        let critbeta_diagnose::input::Source::Pair(pair) = &input.sources[0] else { panic!("no pair") };
        let records = records(&input, 2);
        assert_eq!(records.len(), 4 * 1100);
        let (mut query, mut keys) = (Vec::new(), Vec::new());
        for record in records.iter().step_by(13) {
            let (head, row) = (record.head as usize, record.row as usize);
            assert_eq!(record.n, (row * 7919 % 1531) as u64 + 1);
            pair.read_q(head, row, &mut query);
            pair.read_k(head / 2, 0..record.n as usize, &mut keys);
            // These are exact scores, and the error that f32 sums may add.
            let (mut max, mut error) = (f64::NEG_INFINITY, 0.0f64);
            for key in keys.chunks(dim) {
                let products = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
                error = error.max(products.clone().map(f64::abs).sum::<f64>());
                max = max.max(products.sum::<f64>() * pair.scale());
            }
            let allowed = (dim + 2) as f64 * 2f64.powi(-24) * pair.scale() * error;
            let off = (record.max - max).abs();
            assert!(off <= allowed, "head {head} row {row}: {off:e}, allowed {allowed:e}");
        }
    }
}

#[test]
fn a_pair_in_memory_has_the_records_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let input = grouped(directory.path(), "F16", 40);
    let file = SafetensorsFile::open(&input.path).unwrap();
    let values = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let shape = tensor.shape[..].try_into().unwrap();
        Values { dtype: tensor.float().unwrap(), shape, bytes: tensor.bytes.to_vec() }
    };
    let positions: Vec<u64> = (0..1100).map(|row| row * 7919 % 1531).collect();
    let pair = |q, positions, scale| QkPair::new("a", q, values("a.k"), positions, scale);
    let memory = pair(values("a.q"), Some(positions.clone()), None).unwrap();
    let memory = Input { path: "memory".into(), sources: vec![Source::Pair(memory)], skipped: Vec::new() };
    assert_eq!(fields(&records(&memory, 2)), fields(&records(&input, 2)));

    // Without positions the rows are the last ones.
    let last: Vec<u64> = (431..1531).collect();
    let [given, not] = [Some(last), None].map(|positions| pair(values("a.q"), positions, Some(0.5)).unwrap());
    assert!((0..1100).all(|row| given.position(row) == not.position(row)));

    let message = |q, positions, scale| pair(q, positions, scale).unwrap_err().to_string();
    let other = |shape| Values { shape, ..values("a.q") };
    for (found, says) in [
        (message(other([4, 1100, 39]), None, None), "\"a.k\" F16 [2, 1531, 40]: head_dim 40, expected 39"),
        (
            message(other([3, 1100, 40]), None, None),
            "\"a.q\" F16 [3, 1100, 40]: 3 heads, expected a multiple",
        ),
        (message(other([4, 1101, 40]), None, None), "holds 352000 bytes, expected 352320"),
        (message(other([0, 1100, 40]), None, None), "holds 352000 bytes, expected 0"),
        (message(Values { bytes: Vec::new(), ..other([4, 0, 40]) }, None, None), "has no rows"),
        (message(values("a.q"), Some(vec![0]), None), "1 positions, expected one per row"),
        (
            message(values("a.q"), Some(vec![1531; 1100]), None),
            "positions[0] is 1531, expected below the 1531",
        ),
        (message(values("a.q"), Some(positions), Some(f64::NAN)), "scale must be finite and above 0"),
    ] {
        assert!(found.contains(says), "{found}");
    }
}
