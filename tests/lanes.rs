//! Compares every instruction set of this machine with the reference and with the others, bit for bit.
//!
//! A process has one instruction set. One test therefore runs this binary again for each, with
//! `CRITBETA_LANES` set.

mod common;

use common::{RESOLVES, draw, every_family, prob_error, sum_error};
use critbeta::cpu::{self, InstructionSet, Measure, Plan, Sharing};
use critbeta::families::Family;
use critbeta::reference::Row;
use critbeta::{Element, Rescaling, Scores, ScoresMut};
use half::{bf16, f16};

const CRITICAL: &str = "critical:ratio=1.5,cap=50";

fn rule() -> Rescaling {
    CRITICAL.parse().unwrap()
}

/// Checks Lambda, the top, and every probability of one row that begins `offset` elements into a buffer.
fn agrees<T: Element>(row: &[f32], offset: usize, case: &str) {
    let mut buffer = vec![T::from_f32(f32::NAN); offset];
    buffer.extend(row.iter().map(|&s| T::from_f32(s)));
    let stored = &buffer[offset..];
    let wide: Vec<f32> = stored.iter().map(|s| s.score()).collect();
    let reference = Row::from_f32(&wide);
    let view = Scores::dense(stored, 1, row.len()).unwrap();
    for resolve in RESOLVES {
        let report = cpu::row_reports(&view, 1.0, Measure::new(resolve, None))[0];
        assert_eq!(report.critical, reference.critical_beta(), "{case}");
        assert_eq!(report.resolved, reference.resolved_critical_beta(resolve), "{case}, r = {resolve}");
        assert_eq!(report.top, critbeta::stats::RowMax::of(&wide, 0), "{case}");
    }
    let mut out = vec![f32::NAN; offset + row.len()];
    let beta = cpu::softmax(&view, &rule(), Some(&[0]), &mut out[offset..]).unwrap()[0].beta;
    let max = wide.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let z_of = |s: f32| if s == max || beta == 0.0 { 0.0 } else { beta * f64::from(max - s) };
    let weigh = |s: f32| if s == f32::NEG_INFINITY { 0.0 } else { (-z_of(s)).exp() };
    let sum: f64 = wide.iter().map(|&s| weigh(s)).sum();
    for (at, (&p, &s)) in out[offset..].iter().zip(&wide).enumerate() {
        let weight = weigh(s) / sum;
        let tolerance = prob_error(weight, z_of(s)) + weight * sum_error(row.len());
        assert!((f64::from(p) - weight).abs() <= tolerance, "{case}: score {at} has {p}, expected {weight}");
    }
    // The output in the element type of the scores, and in place, has the f32 probabilities rounded once
    // more.
    let mut narrow = vec![T::from_f32(0.0); row.len()];
    cpu::softmax(&view, &rule(), Some(&[0]), &mut narrow).unwrap();
    let expected: Vec<T> = out[offset..].iter().map(|&p| T::from_f32(p)).collect();
    assert_eq!(bytemuck::cast_slice::<T, u8>(&narrow), bytemuck::cast_slice::<T, u8>(&expected), "{case}");
    let mut in_place = buffer.clone();
    let mut rows = ScoresMut::dense(&mut in_place[offset..], 1, row.len()).unwrap();
    cpu::softmax_in_place(&mut rows, &rule(), Some(&[0])).unwrap();
    let replaced = bytemuck::cast_slice::<T, u8>(&in_place[offset..]);
    assert_eq!(replaced, bytemuck::cast_slice::<T, u8>(&expected), "{case} in place");
}

fn agrees_as_every_type(row: &[f32], offset: usize, case: &str) {
    agrees::<f32>(row, offset, &format!("{case} as f32"));
    agrees::<f16>(row, offset, &format!("{case} as f16"));
    agrees::<bf16>(row, offset, &format!("{case} as bf16"));
}

/// Empty and all-masked rows have no maximum to compare with here. tests/seeds.rs checks them.
fn has_scores(row: &[f32]) -> bool {
    row.iter().any(|&s| s > f32::NEG_INFINITY)
}

#[test]
fn every_length_to_three_vectors_and_around_chunks_agrees() {
    let chunk = 1 << 14;
    let around = [127, 128, 129, 255, 1023, 1024, 1025, chunk - 1, chunk, chunk + 1, 2 * chunk + 63];
    for n in (1..=70).chain(around) {
        for (family, row) in every_family(n, n as u64).filter(|(_, row)| has_scores(row)) {
            agrees_as_every_type(&row, 0, &format!("{family} n = {n}"));
        }
    }
}

#[test]
fn every_misalignment_agrees() {
    for offset in 0..16 {
        for (family, row) in every_family(193, offset as u64).filter(|(_, row)| has_scores(row)) {
            agrees_as_every_type(&row, offset, &format!("{family} at {offset}"));
        }
    }
}

#[test]
fn long_rows_whose_contact_is_in_the_bulk_agree() {
    for (n, seed) in [(5000, 1), (40_000, 2), (300_000, 3)] {
        for name in ["sink", "student-t", "log-grid", "masked", "bf16", "gaussian", "simplex", "equal"] {
            let family: Family = name.parse().unwrap();
            let mut row = draw(family, n, seed);
            // Every seventh score in turn is an order that no family has.
            agrees::<f32>(&row, 3, &format!("{family} n = {n}"));
            row = (0..n).map(|i| row[i * 7919 % n]).collect();
            agrees::<f32>(&row, 1, &format!("{family} n = {n}, shuffled"));
            // In a sorted row the rank of a score is its place.
            row.sort_by(f32::total_cmp);
            agrees::<f32>(&row, 2, &format!("{family} n = {n}, ascending"));
            row.reverse();
            agrees::<f32>(&row, 0, &format!("{family} n = {n}, descending"));
        }
    }
}

/// Rows with clusters in clusters, at the ends of the range of floats, and gaps that no bins separate.
#[test]
fn rows_that_bins_do_not_divide_agree() {
    let n = 20_000;
    type Score = Box<dyn Fn(usize) -> f32>;
    let far =
        |i: usize| if i.is_multiple_of(313) { -1e6 * f32::powi(10.0, (i / 313 % 24) as i32) } else { 0.0 };
    let log = |i: usize| -(1.0 + (i * 7919 % 20_000) as f32).ln();
    let rows: [(&str, Score); 13] = [
        ("a sink over one value", Box::new(|i| if i == 5 { 8.0 } else { 0.0 })),
        ("a sink over masked and one value", Box::new(|i| [0.0, f32::NEG_INFINITY, 8.0][i % 2 + i / 19_999])),
        ("a sink over five values", Box::new(|i| if i == 5 { 20.0 } else { (i % 5) as f32 / 8.0 })),
        ("log grid with far scores", Box::new(move |i| if far(i) < 0.0 { far(i) } else { log(i) })),
        ("log grid out of reach", Box::new(move |i| log(i) * 1e-38)),
        ("two values", Box::new(|i| if i == 5 { 0.0 } else { -20.0 - (i % 2) as f32 })),
        (
            "clusters",
            Box::new(|i| if i == 5 { 0.0 } else { -20.0 - (i % 3) as f32 * 1e-5 - (i % 5) as f32 * 5.0 }),
        ),
        ("next floats", Box::new(|i| f32::from_bits(1.0f32.to_bits() + (i * 7919 % 20_000) as u32))),
        ("subnormal", Box::new(|i| -f32::from_bits((i * 7919 % 20_000) as u32))),
        ("huge", Box::new(|i| if i == 5 { 3e38 } else { -1.6e38 + (i % 1000) as f32 * 1e33 })),
        ("overflowing", Box::new(|i| if i % 2 == 0 { 3e38 - (i as f32) * 1e33 } else { -1.6e38 })),
        ("geometric", Box::new(|i| -f32::exp2((i % 250) as f32 - 125.0) * (1.0 + i as f32 * 1e-6))),
        ("log grid far out", Box::new(|i| 1000.0 - (1.0 + (i * 7919 % 20_000) as f32).ln())),
    ];
    for (name, score) in rows {
        let row: Vec<f32> = (0..n).map(score).collect();
        let reference = Row::from_f32(&row);
        for resolve in RESOLVES {
            let found = cpu::critical_beta(&row, resolve);
            assert_eq!(found, reference.resolved_critical_beta(resolve), "{name}, r = {resolve}");
        }
    }
}

/// A block with everything that may occur: strides, lengths, masks and a poisoned row.
struct Block {
    scores: Vec<f32>,
    lens: Vec<u32>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Block {
    fn new(rows: usize, cols: usize) -> Block {
        let stride = cols + 5;
        let mut scores = vec![f32::NAN; rows * stride];
        let len = |r| if r % 3 == 0 { cols } else { cols - r * 37 % cols };
        let lens: Vec<u32> = (0..rows).map(|r| len(r) as u32).collect();
        for (r, &len) in lens.iter().enumerate() {
            let len = len as usize;
            let row = draw(Family::ALL[r % Family::ALL.len()], len, r as u64);
            scores[r * stride..][..len].copy_from_slice(&row);
        }
        scores[2 * stride] = f32::NAN;
        Block { scores, lens, rows, cols, stride }
    }

    /// The bits of every result for this block.
    fn bits(&self) -> Vec<u32> {
        let view =
            Scores::strided(&self.scores, self.rows, self.cols, self.stride).unwrap().with_lens(&self.lens);
        let view = view.unwrap();
        let positions = vec![0; self.rows];
        let mut out = vec![f32::NAN; self.rows * self.cols];
        let mut bits = Vec::new();
        let betas: Vec<f32> =
            (0..self.rows).map(|r| [1.0, 0.0, f32::INFINITY, 1e-30, f32::NAN][r % 5]).collect();
        for pass in 0..2 {
            let reports = match pass {
                0 => cpu::softmax(&view, &rule(), Some(&positions), &mut out),
                _ => cpu::softmax_at(&view, &betas, &mut out),
            };
            for report in reports.unwrap() {
                let numbers = [
                    report.beta.to_bits(),
                    report.log_partition.to_bits(),
                    report.top.argmax,
                    report.top.len,
                ];
                bits.extend(numbers.iter().flat_map(|b| [*b as u32, (b >> 32) as u32]));
            }
            bits.extend(out.iter().map(|p| if p.is_nan() { u32::MAX } else { p.to_bits() }));
        }
        let mut in_place = self.scores.clone();
        let mut rows = ScoresMut::strided(&mut in_place, self.rows, self.cols, self.stride).unwrap();
        rows = rows.with_lens(&self.lens).unwrap();
        cpu::softmax_in_place(&mut rows, &rule(), Some(&positions)).unwrap();
        for r in 0..self.rows {
            let row = &in_place[r * self.stride..][..self.cols];
            bits.extend(row.iter().map(|p| if p.is_nan() { u32::MAX } else { p.to_bits() }));
            let between = &in_place[(r * self.stride + self.cols)..((r + 1) * self.stride)];
            assert!(between.iter().all(|s| s.is_nan()), "what lies between rows was written");
        }
        bits
    }
}

fn blocks() -> [Block; 3] {
    [Block::new(40, 257), Block::new(7, 5000), Block::new(3, 70_000)]
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    for block in blocks() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| block.bits())
        };
        let alone = on(1);
        for threads in [2, 3, 7] {
            assert!(on(threads) == alone, "{} columns on {threads} threads", block.cols);
        }
    }
    let split = Plan::choose(3, 70_000, critbeta::DType::F32, 2).sharing;
    assert!(matches!(split, Sharing::Columns { .. }), "the long rows above were not split");
}

/// Prints FNV-1a of all bits for the test below.
#[test]
fn bits_of_this_instruction_set() {
    let bits = blocks().iter().flat_map(Block::bits).collect::<Vec<u32>>();
    let sum =
        bits.iter().fold(0xcbf29ce484222325u64, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x100000001b3));
    println!("{} bits {sum:016x}", InstructionSet::chosen().unwrap());
}

#[test]
fn every_instruction_set_passes_and_has_the_same_bits() {
    if std::env::var_os(InstructionSet::VARIABLE).is_some() {
        return; // the loop below started this process
    }
    let mut sums = Vec::new();
    for set in InstructionSet::supported() {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--test-threads=2"])
            .env(InstructionSet::VARIABLE, set.name())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{set}: {text}{}", String::from_utf8_lossy(&run.stderr));
        let mark = format!("{set} bits ");
        let at =
            text.find(&mark).unwrap_or_else(|| panic!("{set} was not the one used: {text}")) + mark.len();
        sums.push(text[at..][..16].to_string());
    }
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{:?}: {sums:?}", InstructionSet::supported());
}

#[test]
fn an_instruction_set_that_is_not_there_is_named_with_those_that_are() {
    if std::env::var_os("CRITBETA_LANES_CHILD").is_some() {
        let error =
            cpu::softmax(&Scores::dense(&[1.0f32], 1, 1).unwrap(), &rule(), Some(&[0]), &mut [0.0f32])
                .unwrap_err();
        println!("refused: {error}");
        // Functions that cannot fail use the fastest instruction set.
        assert_eq!(cpu::critical_beta(&[1.0, 0.0], 0.0).beta, 2f64.ln());
        return;
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture", "--exact", "an_instruction_set_that_is_not_there_is_named_with_those_that_are"])
        .env(InstructionSet::VARIABLE, "avx1024")
        .env("CRITBETA_LANES_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{text}");
    assert!(text.contains("CRITBETA_LANES is \"avx1024\": this machine has"), "{text}");
    assert!(text.contains("portable"), "{text}");
}

/// A row longer than any cache has a NaN, a +inf or only masks, and then a short row follows on the same
/// thread.
#[test]
fn a_row_without_probabilities_leaves_the_next_one_alone() {
    let n = 70_000;
    let short = [0.0f32, 1.0, 2.0, 3.0];
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let softmax = |scores: &[f32], lens: &[u32]| {
        let view = Scores::dense(scores, lens.len(), scores.len() / lens.len()).unwrap();
        let view = view.with_lens(lens).unwrap();
        let mut out = vec![9.0f32; scores.len()];
        let betas = vec![1.0; lens.len()];
        let reports = alone.install(|| cpu::softmax_at(&view, &betas, &mut out)).unwrap();
        (reports.last().unwrap().log_partition, out[scores.len() - scores.len() / lens.len()..][..4].to_vec())
    };
    let expected = softmax(&short, &[4]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut scores = vec![if bad == f32::NEG_INFINITY { bad } else { 0.5 }; 2 * n];
        scores[77] = bad;
        scores[n..][..4].copy_from_slice(&short);
        assert_eq!(softmax(&scores, &[n as u32, 4]), expected, "behind {bad}");
        softmax(&scores[..n], &[n as u32]);
        assert_eq!(softmax(&short, &[4]), expected, "in the call behind {bad}");
    }
}

#[test]
fn what_is_no_inverse_temperature_or_resolve_has_no_result() {
    let row: Vec<f32> = (0..5000).map(|i| (i * 7919 % 5000) as f32 * -0.01).collect();
    for resolve in [f64::NAN, -1.0, f64::NEG_INFINITY] {
        assert!(cpu::critical_beta(&row, resolve).beta.is_nan(), "{resolve}");
        assert!(Row::from_f32(&row).resolved_critical_beta(resolve).beta.is_nan(), "{resolve}");
        let seen = cpu::row_report(&row, 1.0, Measure::new(resolve, Some(64)));
        assert!(seen.resolved.beta.is_nan() && seen.critical.beta > 0.0, "{resolve}");
    }
    assert_eq!(cpu::critical_beta(&row, f64::INFINITY).beta, 0.0);
    let view = Scores::dense(&row, 1, row.len()).unwrap();
    let mut out = vec![0.0f32; row.len()];
    for beta in [f32::NAN, -1.0, f32::NEG_INFINITY] {
        assert!(cpu::softmax_at(&view, &[beta], &mut out).unwrap()[0].beta.is_nan(), "{beta}");
        assert!(out.iter().all(|p| p.is_nan()), "{beta}");
    }
}

#[test]
fn rows_without_columns_have_reports_in_place_too() {
    let mut nothing = [0.0f32; 0];
    let mut rows = ScoresMut::dense(&mut nothing, 3, 0).unwrap();
    assert_eq!(cpu::softmax_in_place(&mut rows, &rule(), Some(&[0; 3])).unwrap().len(), 3);
}
