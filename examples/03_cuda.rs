//! Rescaled softmax of host rows on a GPU: one upload, one launch, one download.
//!
//! `cargo run --release --example 03_cuda -- 0` runs on GPU 0. With `simt` in place of the 0 it runs on the
//! simulator.

use critbeta::cuda::{Arch, Engine, Plan, Problem, SimtOptions};
use critbeta::{DType, Rescaling, Scores};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = match std::env::args().nth(1).as_deref().unwrap_or("0") {
        "simt" => Engine::simulated(SimtOptions::of(Arch::named("sm_90")?))?,
        number => Engine::cuda(number.parse()?)?,
    };
    println!("on {}", engine.description());

    // Four rows over 5,000 keys. Each has a sink above a wave, and the sink rises from row to row.
    let (rows, cols) = (4, 5000);
    let score = |row: usize, col: usize| if col == 0 { 4.0 * row as f32 } else { (col as f32 * 0.37).sin() };
    let scores: Vec<f32> = (0..rows * cols).map(|i| score(i / cols, i % cols)).collect();
    let view = Scores::dense(&scores, rows, cols)?;

    let problem = Problem::softmax(rows as u64, cols as u64, DType::F32);
    println!("{}", Plan::choose(&problem, engine.arch())?);

    // Each row is rescaled to its own critical beta, at most to 8. Ties of two are resolved (log 2).
    let rule: Rescaling = "critical:resolve=0.69,cap=8".parse()?;
    let mut probs = vec![0.0f32; rows * cols];
    for (row, report) in engine.softmax(&view, &rule, None, &mut probs)?.iter().enumerate() {
        let sum: f64 = probs[row * cols..][..cols].iter().map(|&p| f64::from(p)).sum();
        let sink = probs[row * cols];
        println!("row {row}: beta {:.4}, weight of the sink {sink:.4}, sum {sum:.6}", report.beta);
    }
    Ok(())
}
