//! The same launch always gives the same bits, by itself and replayed by a CUDA graph. It runs on the
//! simulator, or on the first GPU with CRITBETA_REQUIRE_GPU=1.

#[path = "common/mod.rs"]
mod common;
#[path = "common/device.rs"]
mod device;

use common::every_family;
use critbeta::cuda::{Arch, Beta};
use critbeta::{DType, Rescaling};
use device::{Out, Request, Rows, engine, run};

/// A width for each scope of a large GPU: warp, block, cluster, split.
const WIDTHS: [usize; 4] = [100, 3000, 40_000, 220_000];

fn bits(rows: &Rows, request: &Request, engine: &critbeta::cuda::Engine) -> (Vec<u8>, Vec<u32>) {
    let done = run(engine, rows, request).unwrap_or_else(|error| panic!("{error}"));
    let reports = bytemuck::cast_slice(&done.reports).to_vec();
    (reports, done.probs.concat().iter().map(|p| p.to_bits()).collect())
}

#[test]
fn fifty_runs_give_the_same_bits() {
    let arch = Arch::named("sm_90").unwrap();
    let Some(engine) = engine("fifty_runs_give_the_same_bits", &arch) else { return };
    let rule: Rescaling = "critical:resolve=0.69,cap=9".parse().unwrap();
    // The orders of the simulator are seeded. tests/parity_device.rs shows that they make no difference.
    let (runs, families) = if engine.is_simulated() { (2, 2) } else { (50, usize::MAX) };
    for n in WIDTHS {
        // There are two rows, so few that the whole grid works on each long one.
        let rows: Vec<Vec<f32>> = every_family(n, 7).map(|(_, row)| row).take(families).collect();
        for pair in rows.chunks(2) {
            let rows = Rows::dense(DType::F32, pair);
            let request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
            let first = bits(&rows, &request, &engine);
            for turn in 1..runs {
                assert!(
                    bits(&rows, &request, &engine) == first,
                    "n = {n}: run {turn} differs from the first"
                );
            }
        }
    }
}

/// A serving engine captures once and replays for every token.
#[cfg(feature = "cuda")]
#[test]
#[allow(unsafe_code)]
fn a_captured_launch_replays() {
    use critbeta::cuda::{Call, DeviceOutput, DeviceRows, Engine, RowReport, Workspace};
    use cudarc::driver::{CudaContext, sys};

    const NAME: &str = "a_captured_launch_replays";
    if std::env::var("CRITBETA_REQUIRE_GPU").is_ok_and(|value| value == "1") {
        let engine = Engine::cuda(0).unwrap_or_else(|error| panic!("{error}"));
        // This is the primary context of the device, which the engine uses too.
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let rule: Rescaling = "critical:cap=9".parse().unwrap();
        for n in WIDTHS {
            let rows =
                Rows::dense(DType::F32, &every_family(n, 3).map(|(_, row)| row).take(2).collect::<Vec<_>>());
            let count = rows.rows.len();
            let expected =
                run(&engine, &rows, &Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule)))
                    .unwrap();
            let scores = engine.uploaded(bytemuck::cast_slice(&rows.rows.concat())).unwrap();
            let mut out = engine.zeroed(count * n * 4).unwrap();
            let report = engine.zeroed(count * size_of::<RowReport>()).unwrap();
            let rows = DeviceRows::dense(scores.address(), DType::F32, count as u64, n as u64);
            let to = DeviceOutput::new(out.address(), DType::F32, n as u64);
            let mut call = Call::softmax(rows, to, &rule);
            call.report = Some(report.address());
            let bytes = call.workspace_bytes(engine.arch()).unwrap();
            let workspace = engine.zeroed(bytes.max(1) as usize).unwrap();
            let workspace =
                (bytes > 0).then_some((Workspace { address: workspace.address(), bytes }, workspace));
            stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
            // SAFETY: all memory lives until the stream has run; the stream is alive.
            unsafe { engine.launch(&call, workspace.as_ref().map(|(w, _)| *w), stream.cu_stream() as u64) }
                .unwrap();
            let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("a graph");
            for turn in 0..3 {
                engine.upload(&mut out, 0, &vec![0xC5; count * n * 4]).unwrap();
                graph.launch().unwrap();
                stream.synchronize().unwrap();
                let mut probs = vec![0f32; count * n];
                engine.download(&out, 0, bytemuck::cast_slice_mut(&mut probs)).unwrap();
                assert!(probs == expected.probs.concat(), "n = {n}: replay {turn} differs from a launch");
            }
        }
    } else {
        eprintln!("skipped {NAME}: set CRITBETA_REQUIRE_GPU=1 on a machine with a GPU");
    }
}
