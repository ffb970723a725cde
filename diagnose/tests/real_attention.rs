//! Compares four layers of a trained model with the answers of an independent float64 program.
//!
//! `data/expected.py` wrote `data/smollm2_gpl3.expected.json`: it sorts every gap with NumPy.

#[path = "common/records.rs"]
mod records;

use critbeta::reference::Row;
use critbeta_diagnose::input::{Input, QkPair, Selection, Source, open};
use critbeta_diagnose::{Diagnosis, RowRecord, Settings, scan};
use records::records;
use serde::Deserialize;
use std::path::Path;

/// Of every sixth row, in the order that the program writes.
#[derive(Deserialize)]
struct Answer {
    layer: String,
    head: u64,
    row: u64,
    position: u64,
    n: u64,
    max: f64,
    ties: u64,
    contact_rank: u64,
    critical_beta: f64,
    contact_gap: f64,
    alpha: f64,
    /// At [`RESOLVE`].
    resolved: f64,
    log_partition: f64,
    entropy: f64,
    top_two: f64,
    max_weight: f64,
}

/// Of all rows of a head.
#[derive(Deserialize)]
struct HeadAnswer {
    layer: String,
    head: u64,
    median: f64,
    /// The share of rows whose critical beta is below 1.
    above: f64,
}

#[derive(Deserialize)]
struct Expected {
    heads: Vec<HeadAnswer>,
    rows: Vec<Answer>,
}

const HEADS: usize = 12;
const ROWS: usize = 646;
const STRIDE: usize = 6;
const RESOLVE: f64 = 0.69;

fn attention() -> Input {
    open(Path::new("../examples/data/smollm2_gpl3.safetensors"), &Selection::default()).unwrap()
}

fn expected() -> Expected {
    serde_json::from_str(&std::fs::read_to_string("tests/data/smollm2_gpl3.expected.json").unwrap()).unwrap()
}

/// The scores of one row in f64, and a bound on the error of each in f32. There are head_dim products and
/// sums with a relative error of 2^-24 each, times the largest sum of absolute products.
fn exact_scores(pair: &QkPair, head: usize, row: usize, keys: &[f32]) -> (Vec<f64>, f64) {
    let mut query = Vec::new();
    pair.read_q(head, row, &mut query);
    let visible = pair.position(row) as usize + 1;
    let keys = keys.chunks_exact(pair.head_dim()).take(visible);
    let mut largest = 0.0f64;
    let score = |key: &[f32]| {
        let products = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
        largest = products.clone().map(f64::abs).sum::<f64>().max(largest);
        products.sum::<f64>() * pair.scale()
    };
    let scores = keys.map(score).collect();
    (scores, (pair.head_dim() + 2) as f64 * 2f64.powi(-24) * pair.scale() * largest)
}

/// The largest log k / (D_k + shift) over the row. Lambda can reach it if every gap errs by up to |shift|.
fn shifted_critical_beta(row: &Row, shift: f64) -> f64 {
    let ranked = row.gaps().iter().enumerate().skip(1);
    let ratios = ranked.map(|(i, gap)| ((i + 1) as f64).ln() / (gap + shift).max(1e-30));
    ratios.fold(0.0, f64::max)
}

#[test]
fn rows_of_the_model_have_the_answers_of_the_float64_program() {
    let input = attention();
    let (records, expected) = (records(&input), expected().rows);
    assert_eq!((records.len(), expected.len()), (HEADS * ROWS, HEADS * ROWS.div_ceil(STRIDE)));
    let mut at = answered(&records).zip(&expected);
    let mut keys = Vec::new();
    for source in &input.sources {
        let Source::Pair(pair) = source else { panic!("{:?} is no pair", source.layer()) };
        for head in 0..pair.heads() {
            pair.read_k(pair.kv_head(head), 0..pair.keys(), &mut keys);
            for row in (0..pair.rows()).step_by(STRIDE) {
                let (record, e) = at.next().unwrap();
                let (scores, score_error) = exact_scores(pair, head, row, &keys);
                check(record, e, &Row::new(&scores), 2.0 * score_error);
            }
        }
    }
    assert!(at.next().is_none());
}

/// The records that have an answer.
fn answered(records: &[RowRecord]) -> impl Iterator<Item = &RowRecord> {
    records.chunks_exact(ROWS).flat_map(|head| head.iter().step_by(STRIDE))
}

fn check(record: &RowRecord, e: &Answer, exact: &Row, gap_error: f64) {
    let place = format!("{} head {} position {}", record.layer, record.head, record.position);
    assert_eq!((&*record.layer, record.head), (&*e.layer, e.head), "{place}");
    assert_eq!((record.row, record.position), (e.row, e.position), "{place}");
    assert_eq!((record.n, record.ties, record.poisoned), (e.n, e.ties, false), "{place}");

    // Both programs use float64. Ranks are equal; the rest agrees to the rounding of sums of up to 7,658
    // terms.
    let critical = exact.critical_beta();
    assert_eq!(critical.contact_rank, e.contact_rank, "{place}");
    let same = |a: f64, b: f64, what: &str| {
        assert!((a - b).abs() <= 1e-10 * b.abs().max(1.0), "{place}: {what} {a}, expected {b}");
    };
    same(exact.max(), e.max, "max");
    same(critical.beta, e.critical_beta, "critical beta");
    same(critical.contact_gap, e.contact_gap, "contact gap");
    same(exact.alpha(), e.alpha, "alpha");
    same(exact.resolved_critical_beta(RESOLVE).beta, e.resolved, "resolved");
    same(exact.log_partition(1.0), e.log_partition, "log partition");
    same(exact.entropy(1.0), e.entropy, "entropy");
    same(exact.top_two(1.0), e.top_two, "top two");
    same(exact.max_weight(1.0), e.max_weight, "max weight");

    // The working path reads f32 scores. It may differ by what these errors of its gaps allow, and no more.
    let widest = exact.gaps().last().unwrap() + gap_error;
    let near = |a: f64, b: f64, allowed: f64, what: &str| {
        assert!((a - b).abs() <= allowed, "{place}: {what} {a}, expected {b} within {allowed:e}");
    };
    near(record.max, e.max, gap_error, "max");
    let (low, high) = (shifted_critical_beta(exact, gap_error), shifted_critical_beta(exact, -gap_error));
    assert!(
        low <= record.critical_beta && record.critical_beta <= high,
        "{place}: {low} .. {high}, {record:?}"
    );
    assert_eq!(record.resolved_beta, record.critical_beta, "{place}");
    if record.contact_rank == e.contact_rank {
        near(record.contact_gap, e.contact_gap, gap_error, "contact gap");
        near(record.alpha, e.alpha, 1e-12, "alpha");
    } else {
        let ratio = (record.contact_rank as f64).ln() / exact.gaps()[record.contact_rank as usize - 1];
        assert!(low <= ratio, "{place}: contact rank {}, expected {}", record.contact_rank, e.contact_rank);
    }
    // |dF| <= |dD|, |dH| <= 2 sd(D) |dD| and sd(D) <= widest / 2. The error of a weight is relative to it.
    near(record.log_partition, e.log_partition, gap_error, "log partition");
    near(record.entropy, e.entropy, gap_error * widest.max(1.0), "entropy");
    near(record.top_two, e.top_two, 2.0 * gap_error, "top two");
    near(record.max_weight, e.max_weight, 2.0 * gap_error * e.max_weight, "max weight");
}

#[test]
fn contact_ranks_agree_but_for_near_ties() {
    let records = records(&attention());
    let expected = expected().rows;
    let same = answered(&records).zip(&expected).filter(|(r, e)| r.contact_rank == e.contact_rank).count();
    let (all, deep) = (expected.len(), expected.iter().filter(|e| e.contact_rank > 100).count());
    assert!(deep > 50, "{deep} of {all} rows have their contact beyond rank 100");
    assert!(same >= all - 2, "{same} of {all}");
}

#[test]
fn a_top_k_count_is_exact_where_it_says_so() {
    let input = attention();
    let full = records(&input);
    for k in [16, 256, 2048] {
        let mut settings = Settings::default();
        settings.measure.top_k = Some(k);
        let (mut certified, mut wrong) = (0, 0);
        let mut full = full.iter();
        scan(std::slice::from_ref(&input), &settings, |records| {
            for record in records {
                let full = full.next().unwrap();
                assert!(record.critical_beta <= full.critical_beta);
                if record.certified == Some(true) {
                    certified += 1;
                    assert_eq!(record.critical_beta, full.critical_beta);
                    assert_eq!(record.contact_rank, full.contact_rank);
                } else {
                    wrong += usize::from(record.critical_beta != full.critical_beta);
                }
            }
            Ok(())
        })
        .unwrap();
        assert!(certified > 0 && certified < HEADS * ROWS, "k {k}: {certified}");
        assert!(k > 16 || wrong > 0, "k {k}: no row needs more than the certificate admits");
    }
}

#[test]
fn the_summary_does_not_depend_on_threads_and_matches_its_records() {
    let input = attention();
    let summary = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut diagnosis = Diagnosis::new(std::slice::from_ref(&input), Settings::default(), 3);
            scan(std::slice::from_ref(&input), &Settings::default(), |records| {
                diagnosis.add(records);
                Ok(())
            })
            .unwrap();
            diagnosis.summary()
        })
    };
    let (one, three) = (summary(1), summary(3));
    assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&three).unwrap());
    let expected = expected().heads;
    assert_eq!((one.heads.len(), expected.len()), (HEADS, HEADS));
    for (head, e) in one.heads.iter().zip(&expected) {
        assert_eq!((&*head.layer, head.head), (&*e.layer, e.head));
        let median = head.critical_beta.q50;
        assert!((median / e.median - 1.0).abs() < 1e-4, "{median}, expected {}", e.median);
        let rows = ROWS as u64;
        assert_eq!((head.rows, head.measured, head.n), (rows, rows, Some([64, 7658])));
        assert!((head.share_above_critical - e.above).abs() < 0.01);
    }
}
