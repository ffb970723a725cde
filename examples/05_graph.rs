//! A CUDA graph captures a launch and replays it on new scores. This works because a launch does not allocate
//! or wait.
//!
//! `cargo run --release --example 05_graph` needs a GPU.
#![allow(unsafe_code)]

use critbeta::cuda::{Call, DeviceOutput, DeviceRows, Engine, RowReport, Workspace};
use critbeta::{DType, Rescaling};
use cudarc::driver::{CudaContext, sys::CUgraphInstantiate_flags, sys::CUstreamCaptureMode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::cuda(0)?;
    println!("on {}", engine.description());
    let stream = CudaContext::new(0)?.new_stream()?;
    // Rows so few and long take the split scope, which needs a workspace.
    let (rows, cols) = (2u64, 500_000u64);
    let rule: Rescaling = "critical:resolve=0.69,cap=8".parse()?;
    let mut scores = engine.zeroed((rows * cols * 4) as usize)?;
    let report = engine.zeroed(rows as usize * size_of::<RowReport>())?;
    let from = DeviceRows::dense(scores.address(), DType::F32, rows, cols);
    // The probabilities replace the scores in place.
    let to = DeviceOutput::new(scores.address(), DType::F32, cols);
    let mut call = Call::softmax(from, to, &rule);
    call.report = Some(report.address());
    let bytes = call.workspace_bytes(engine.arch())?;
    let workspace = engine.zeroed(bytes as usize)?;
    let given = Some(Workspace { address: workspace.address(), bytes });

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    // SAFETY: scores, report and workspace outlive the last replay of the graph, and nobody else touches them
    // until then.
    let launched = unsafe { engine.launch(&call, given, stream.cu_stream() as u64) };
    let graph =
        stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
    launched?;
    let graph = graph.ok_or("the capture is empty")?;

    for replay in 1..=3 {
        let wave = |i: u64| (i as f32 * 0.37).sin() * replay as f32;
        let new: Vec<f32> = (0..rows * cols).map(wave).collect();
        engine.upload(&mut scores, 0, bytemuck::cast_slice(&new))?;
        graph.launch()?;
        stream.synchronize()?;
        let mut reports = [bytemuck::Zeroable::zeroed(); 2];
        engine.download(&report, 0, bytemuck::cast_slice_mut::<RowReport, u8>(&mut reports))?;
        println!("replay {replay}: beta {:.4} and {:.4}", reports[0].beta, reports[1].beta);
    }
    Ok(())
}
