//! The ways of `critbeta::bench` under criterion, device time by CUDA events: what a change did to them. Ratios to peers are
//! `critbeta bench` and `benches/peers`.
//!
//! `cargo bench --bench gpu -- softmax` measures, on the first GPU, a few cases of the ladder.

mod common;

use critbeta::bench::{Case, Setup, Way};
use critbeta::cuda::Engine;
use critbeta::{DType, Device};
use criterion::Criterion;

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

fn measure(criterion: &mut Criterion, device: &Device) -> critbeta::Result<usize> {
    let mut wrong = 0;
    for case in cases()? {
        let mut setup = Setup::new(device, case, 1)?;
        wrong += common::measure(criterion, case, &mut setup, Way::of(device).iter().copied())?;
    }
    Ok(wrong)
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
    let measured = measure(&mut criterion, &device);
    common::finish(&criterion, measured);
}
