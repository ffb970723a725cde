//! The ways of `critbeta::bench` under criterion, device time by CUDA events: what a change did to them. Ratios to peers are
//! `critbeta bench` and `benches/peers`.
//!
//! `cargo bench --bench gpu -- softmax` measures, on the first GPU, a few cases of the ladder.

use critbeta::bench::{Case, Setup, Way};
use critbeta::cuda::Engine;
use critbeta::{DType, Device};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::time::Duration;

fn cases() -> critbeta::Result<Vec<Case>> {
    [
        Case::many(1 << 12, DType::F32, "gaussian"),
        Case::many(1 << 15, DType::F32, "gaussian"),
        Case::many(1 << 15, DType::Bf16, "gaussian"),
        Case::many(1 << 15, DType::F32, "sink"),
        Case::many(1 << 18, DType::F32, "gaussian"),
        Case::new(1, 1 << 20, DType::F32, "gaussian"),
    ]
    .into_iter()
    .collect()
}

fn measure(criterion: &mut Criterion, device: &Device) -> critbeta::Result<()> {
    for case in cases()? {
        let mut setup = Setup::new(device, case, 1)?;
        let mut group = criterion.benchmark_group(format!(
            "{} x {} {} {}",
            case.rows,
            case.n,
            case.dtype,
            case.law_name()
        ));
        group.throughput(Throughput::Bytes(case.moved_bytes()));
        for &way in Way::of(device) {
            if let Some(wrong) = setup.checked(way)? {
                println!("WRONG {}: {wrong}; not timed", way.name());
                continue;
            }
            group.bench_function(BenchmarkId::from_parameter(way.name()), |bencher| {
                bencher.iter_custom(|times| {
                    let one = |_| setup.seconds(way).expect("what ran once runs again");
                    Duration::from_secs_f64((0..times).map(one).sum())
                });
            });
        }
        group.finish();
    }
    Ok(())
}

fn main() {
    let device = match Engine::cuda(0) {
        Ok(engine) => Device::Cuda(engine),
        Err(error) if std::env::var("CRITBETA_REQUIRE_GPU").is_ok_and(|value| value == "1") => {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
        Err(error) => return println!("skipped benches/gpu: {error}"),
    };
    let mut criterion = Criterion::default().configure_from_args();
    if let Err(error) = measure(&mut criterion, &device) {
        println!("error: {error}");
        std::process::exit(1);
    }
    criterion.final_summary();
}
