//! Rescaled softmax of host rows on a GPU: upload, one launch, download.
//!
//! `cargo run --release --example 03_cuda -- auto`; also `cuda:1`, `cpu`, or `simt`, the kernels' simulator.

use critbeta::cuda::{Family, Plan, Problem};
use critbeta::{DType, Device, DeviceSpec, Rescaling, Scores};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec: DeviceSpec = std::env::args().nth(1).as_deref().unwrap_or("auto").parse()?;
    let device = Device::open(spec, &mut |note| eprintln!("note: {note}"))?;
    println!("on {}", device.description());

    // Four rows over 5,000 keys: a sink ever higher above a wave.
    let (rows, cols) = (4, 5000);
    let score = |row: usize, col: usize| if col == 0 { 4.0 * row as f32 } else { (col as f32 * 0.37).sin() };
    let scores: Vec<f32> = (0..rows * cols).map(|i| score(i / cols, i % cols)).collect();
    let view = Scores::dense(&scores, rows, cols)?;

    if let Device::Cuda(engine) = &device {
        let (rows, cols) = (rows as u64, cols as u64);
        let problem = Problem { rows, cols, dtype: DType::F32, family: Family::CriticalSoftmax };
        println!("{}", Plan::choose(&problem, engine.arch())?);
    }

    // Every row at its own critical beta, ties resolved at log 2, and no sharper than 8.
    let rule: Rescaling = "critical:resolve=0.69,cap=8".parse()?;
    let mut probs = vec![0.0f32; rows * cols];
    let positions = vec![cols as u64 - 1; rows];
    for (row, told) in device.softmax(&view, &rule, &positions, &mut probs)?.iter().enumerate() {
        let sum: f64 = probs[row * cols..][..cols].iter().map(|&p| f64::from(p)).sum();
        let sink = probs[row * cols];
        println!("row {row}: beta {:.4}, weight of the sink {sink:.4}, sum {sum:.6}", told.beta);
    }
    Ok(())
}
