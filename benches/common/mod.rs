//! The ways of `critbeta::bench` under criterion.

use critbeta::bench::{Case, Setup, Way};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::time::Duration;

/// Measures one case in every one of `ways`, each checked first; a wrong one is named and not timed. How many are wrong.
pub fn measure(
    criterion: &mut Criterion,
    case: Case,
    setup: &mut Setup,
    ways: impl Iterator<Item = Way>,
) -> critbeta::Result<usize> {
    let Case { rows, n, dtype, .. } = case;
    let mut group = criterion.benchmark_group(format!("{} {rows} x {n} {dtype}", case.told_law()));
    group.throughput(Throughput::Bytes(case.moved_bytes()));
    let mut wrong = 0;
    for way in ways {
        if let Some(told) = setup.checked(way)? {
            println!("WRONG {}: {told}; not timed", way.name());
            wrong += 1;
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
    Ok(wrong)
}

/// Ends a bench: with an error where anything was wrong.
pub fn finish(criterion: &Criterion, measured: critbeta::Result<usize>) {
    let error = match measured {
        Ok(0) => return criterion.final_summary(),
        Ok(wrong) => format!("{wrong} wrong"),
        Err(error) => error.to_string(),
    };
    eprintln!("error: {error}");
    std::process::exit(1);
}
