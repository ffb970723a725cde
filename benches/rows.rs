//! The ways of `critbeta::bench` on the CPU under criterion, over `benches/cases.toml`: what a change did to them. Ratios to peers
//! are `critbeta bench` and `benches/peers/cpu.py`.
//!
//! `cargo bench --bench rows -- 'sink.*65536'` measures the cases of that name; `-- --quick` all of them in some minutes. A case
//! whose checksum is not the file's, or whose results are wrong, is named and not timed, and the run fails.

#[path = "../tests/common/cases.rs"]
mod cases;
mod common;

use critbeta::Device;
use critbeta::bench::{Setup, Way};
use criterion::Criterion;
use std::time::Duration;

const WAYS: [Way; 4] = [Way::CopyNt, Way::Softmax, Way::CriticalSoftmax, Way::Stats];

/// How many cases are wrong.
fn measure(criterion: &mut Criterion) -> critbeta::Result<usize> {
    let mut wrong = 0;
    for cases::Expected { case, checksum } in cases::read() {
        let counted = cases::counted(&case.draw(cases::SEED));
        let name = format!("{} {} x {}", case.told_law(), case.rows, case.n);
        if counted != checksum {
            println!("WRONG {name}: checksum {counted}, expected {checksum}; not timed");
            wrong += 1;
            continue;
        }
        let mut setup = Setup::new(&Device::Cpu, case, cases::SEED)?;
        let ways = WAYS.into_iter().filter(|way| Way::of(&Device::Cpu).contains(way));
        wrong += common::measure(criterion, case, &mut setup, ways)?;
    }
    Ok(wrong)
}

fn main() {
    let short = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(200));
    let mut criterion = short.measurement_time(Duration::from_secs(1)).configure_from_args();
    let measured = measure(&mut criterion);
    common::finish(&criterion, measured);
}
