//! Rows of every kind on the CPU, each measured against peers in one alternating run.
//!
//! `cargo bench --bench rows` prints, per family and length, the median time of a copy of the row and
//! of a sort-based critical beta, divided into the median time of ours; and the spread of that ratio over
//! the rounds (25 % and 75 % quantiles). Absolute times of shared machines mean nothing.

#[path = "../tests/common/mod.rs"]
mod common;

use common::draw;
use critbeta::cpu;
use critbeta::families::Family;
use critbeta::reference::Row;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 31;
/// Scores per timing: one long row or several short ones, 4 MiB of f32.
const SCORES: usize = 1 << 20;

/// Seconds of one pass over the rows.
fn seconds(rows: &[Vec<f32>], mut of: impl FnMut(&[f32])) -> f64 {
    let start = Instant::now();
    rows.iter().for_each(|row| of(row));
    start.elapsed().as_secs_f64()
}

fn quantile(sorted: &[f64], p: f64) -> f64 {
    sorted[(p * (sorted.len() - 1) as f64).round() as usize]
}

fn main() {
    println!("{:18} {:>8} {:>30} {:>30}", "family", "n", "times of a copy", "times of a sort-based one");
    for family in Family::ALL {
        for n in [1 << 12, 1 << 16, 1 << 20] {
            let rows: Vec<Vec<f32>> = (0..SCORES / n).map(|i| draw(family, n, i as u64)).collect();
            for row in &rows {
                assert_eq!(cpu::critical_beta(row, 0.0), Row::from_f32(row).critical_beta(), "{family} {n}");
            }
            let mut target = vec![0.0f32; n];
            let (mut to_copy, mut to_sort) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let copy = seconds(&rows, |row| black_box(&mut target).copy_from_slice(black_box(row)));
                let ours = seconds(&rows, |row| {
                    black_box(cpu::critical_beta(black_box(row), 0.0));
                });
                let sort = seconds(&rows, |row| {
                    black_box(Row::from_f32(black_box(row)).critical_beta());
                });
                to_copy.push(ours / copy);
                to_sort.push(ours / sort);
            }
            let told = [to_copy, to_sort].map(|mut ratios| {
                ratios.sort_by(f64::total_cmp);
                let [low, middle, high] = [0.25, 0.5, 0.75].map(|p| quantile(&ratios, p));
                format!("{middle:.3} ({low:.3} .. {high:.3})")
            });
            println!("{:18} {n:8} {:>30} {:>30}", family.to_string(), told[0], told[1]);
        }
    }
}
