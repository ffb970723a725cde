//! Compares a diagnosis of queries and keys with the matrix product alone, on one thread, in one alternating
//! run.
//!
//! `cargo bench -p critbeta-diagnose --bench qk` prints two ratios per shape, dtype and order of rows. The
//! first is the median time of `scan` over that of one product of all rows and keys (times the share of it
//! that causal rows see).
//! The second is the same for the reports alone, on scores in memory. Their difference is the time to make
//! the scores. For the rows of `examples/data` it prints the critical softmax over that at beta = 1. Brackets
//! hold the 25 % and 75 % quantiles over the rounds. Absolute times of shared machines mean nothing.

#[path = "../tests/common/files.rs"]
mod files;
#[path = "../tests/common/records.rs"]
mod records;

use critbeta::cpu::{Measure, row_reports, softmax};
use critbeta::{DType, Rescaling, Scores};
use critbeta_diagnose::input::{QkPair, Selection, Source, open};
use half::bf16;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StudentT};
use records::records;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 15;
/// Rows, keys, head_dim.
const SHAPES: [[usize; 3]; 3] = [[2048, 2048, 64], [512, 8192, 128], [64, 65536, 64]];

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn printed(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let [low, middle, high] =
        [0.25, 0.5, 0.75].map(|p| ratios[(p * (ratios.len() - 1) as f64).round() as usize]);
    format!("{middle:.3} ({low:.3} .. {high:.3})")
}

fn product(q: &[f32], k: &[f32], [rows, keys, dim]: [usize; 3], scores: &mut [f32]) {
    let q = ArrayView2::from_shape((rows, dim), q).unwrap();
    let k = ArrayView2::from_shape((keys, dim), k).unwrap();
    general_mat_mul(1.0, &q, &k.t(), 0.0, &mut ArrayViewMut2::from_shape((rows, keys), scores).unwrap());
}

fn ratios(shape: [usize; 3], dtype: DType, causal: bool) -> [String; 2] {
    let [rows, keys, dim] = shape;
    let mut rng = StdRng::seed_from_u64(7);
    let scores = StudentT::new(4.0).unwrap();
    // The file has f32 or its upper half, so the product gets the values of the file.
    let cut = 4 - dtype.size_bytes();
    let mut drawn = |count: usize| {
        let round = |v: f64| if cut == 0 { v as f32 } else { bf16::from_f64(v).to_f32() };
        let values: Vec<f32> = (0..count).map(|_| round(scores.sample(&mut rng))).collect();
        (values.iter().flat_map(|v| v.to_le_bytes().into_iter().skip(cut)).collect::<Vec<u8>>(), values)
    };
    let (q_bytes, q) = drawn(rows * dim);
    let (k_bytes, k) = drawn(keys * dim);
    let len = |row| if causal { keys - rows + row + 1 } else { keys };
    let lens: Vec<u32> = (0..rows).map(|row| len(row) as u32).collect();
    let positions = lens.iter().flat_map(|&len| (len - 1).to_le_bytes()).collect();
    let name = dtype.name().to_uppercase();
    let tensors = [
        ("a.q", &*name, &[1, rows, dim][..], q_bytes),
        ("a.k", &name, &[1, keys, dim], k_bytes),
        ("positions", "U32", &[rows], positions),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = files::write(directory.path(), "a.safetensors", &files::safetensors(&tensors, None));
    let input = open(&path, &Selection::default()).unwrap();

    let mut scores = vec![0.0; rows * keys];
    product(&q, &k, shape, &mut scores);
    let scale = 1.0 / (dim as f64).sqrt();
    let scaled: Vec<f32> = scores.iter().map(|&s| (f64::from(s) * scale) as f32).collect();
    let view = Scores::dense(&scaled, rows, keys).unwrap().with_lens(&lens).unwrap();
    let (found, reports) = (records(&input), row_reports(&view, 1.0, Measure::default()));
    assert_eq!(found.len(), reports.len());
    for (record, report) in found.iter().zip(&reports) {
        assert_eq!((record.n, record.max), (report.top.len, report.top.max.into()), "row {}", record.row);
        assert_eq!(record.critical_beta, report.critical.beta, "row {}", record.row);
    }
    let share = f64::from(lens.iter().sum::<u32>()) / (rows * keys) as f64;
    let [mut whole, mut measured] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let alone = share * seconds(|| product(black_box(&q), black_box(&k), shape, black_box(&mut scores)));
        whole.push(seconds(|| drop(black_box(records(black_box(&input))))) / alone);
        measured.push(seconds(|| drop(black_box(row_reports(&view, 1.0, Measure::default())))) / alone);
    }
    [whole, measured].map(printed)
}

/// The scores of every row of a pair, head by head, and how many of them each row sees.
fn scores_of(pair: &QkPair) -> (Vec<f32>, Vec<u32>) {
    let [rows, keys, dim] = [pair.rows(), pair.keys(), pair.head_dim()];
    let (mut scores, mut lens) = (vec![0.0; pair.heads() * rows * keys], Vec::new());
    for (head, scores) in scores.chunks_mut(rows * keys).enumerate() {
        let (mut q, mut row_of_q, mut k) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..rows {
            pair.read_q(head, row, &mut row_of_q);
            q.extend_from_slice(&row_of_q);
            lens.push(pair.position(row) as u32 + 1);
        }
        pair.read_k(pair.kv_head(head), 0..keys, &mut k);
        product(&q, &k, [rows, keys, dim], scores);
        scores.iter_mut().for_each(|s| *s = (f64::from(*s) * pair.scale()) as f32);
    }
    (scores, lens)
}

/// The critical softmax over the softmax at beta = 1, on the rows of a trained model.
fn real_ratios(pair: &QkPair) -> String {
    let (scores, lens) = scores_of(pair);
    let view = Scores::dense(&scores, lens.len(), pair.keys()).unwrap().with_lens(&lens).unwrap();
    let mut out = vec![0.0f32; scores.len()];
    let mut run = |rule: &Rescaling| {
        seconds(|| drop(black_box(softmax(black_box(&view), rule, None, &mut out).unwrap())))
    };
    let critical: Rescaling = "critical".parse().unwrap();
    let round = |_| {
        // The first run of each finds the caches that the other left.
        run(&Rescaling::Identity);
        let plain = run(&Rescaling::Identity);
        run(&critical);
        run(&critical) / plain
    };
    printed((0..5 * ROUNDS).map(round).collect())
}

fn main() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    println!(
        "{:20} {:5} {:8} {:>25} {:>25}",
        "rows keys head_dim", "dtype", "rows see", "diagnosed", "reports alone"
    );
    for shape in SHAPES {
        for dtype in [DType::F32, DType::Bf16] {
            for causal in [false, true] {
                let [whole, measured] = one.install(|| ratios(shape, dtype, causal));
                let [rows, keys, dim] = shape;
                let (shape, seen) =
                    (format!("{rows} {keys} {dim}"), if causal { "causally" } else { "all keys" });
                println!("{shape:20} {:5} {seen:8} {whole:>25} {measured:>25}", dtype.name());
            }
        }
    }
    println!("examples/data, critical softmax / softmax");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/smollm2_gpl3.safetensors");
    for source in open(example.as_ref(), &Selection::default()).unwrap().sources {
        let Source::Pair(pair) = source else { panic!("{} is no pair", source.layer()) };
        println!("{:20} {}", pair.layer(), one.install(|| real_ratios(&pair)));
    }
}
