//! Two batches of borrowed device rows run at the same time, on two streams of the caller.
//!
//! `cargo run --release --example 04_streams` needs a GPU.
#![allow(unsafe_code)]

use critbeta::cuda::{Call, DeviceMemory, DeviceOutput, DeviceRows, Engine, Workspace};
use critbeta::{DType, Rescaling};
use cudarc::driver::CudaContext;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::cuda(0)?;
    println!("on {}", engine.description());
    // This is the primary context, which PyTorch and candle use too. So their streams work here as well.
    let context = CudaContext::new(0)?;
    let (rows, cols) = (64u64, 40_000u64);
    let rule: Rescaling = "critical:cap=8".parse()?;
    let mut batches: Vec<[DeviceMemory; 3]> = Vec::new();
    let mut streams = Vec::new();
    for batch in 0..2 {
        let wave = |i: u64| (i as f32 * (0.3 + 0.1 * batch as f32)).sin() * 4.0;
        let scores: Vec<f32> = (0..rows * cols).map(wave).collect();
        let scores = engine.uploaded(bytemuck::cast_slice(&scores))?;
        let probs = engine.zeroed((rows * cols * 4) as usize)?;
        let from = DeviceRows::dense(scores.address(), DType::F32, rows, cols);
        let to = DeviceOutput::new(probs.address(), DType::F32, cols);
        let call = Call::softmax(from, to, &rule);
        let bytes = call.workspace_bytes(engine.arch())?;
        let workspace = engine.zeroed(bytes as usize)?; // zeros, once; each stream has its own
        let stream = context.new_stream()?;
        let given = Some(Workspace { address: workspace.address(), bytes });
        // SAFETY: `batches` keeps the memory until both streams have run, and nobody else touches it.
        unsafe { engine.launch(&call, given, stream.cu_stream() as u64)? };
        batches.push([scores, probs, workspace]);
        streams.push(stream);
    }
    for (stream, [_, probs, _]) in streams.iter().zip(&batches) {
        stream.synchronize()?;
        let mut first = vec![0.0f32; cols as usize];
        engine.download(probs, 0, bytemuck::cast_slice_mut(&mut first))?;
        println!("first row sums to {}", first.iter().sum::<f32>());
    }
    Ok(())
}
