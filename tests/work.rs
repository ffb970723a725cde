//! Counts how often the search reads a row to find its contact. The row is split on a GPU that keeps nothing
//! of it on chip, so every pass is a read.
//!
//! `cargo test --test work -- --nocapture` prints the table.

mod common;
#[path = "common/device.rs"]
mod device;

use critbeta::cuda::Beta;
use critbeta::cuda::internals::Scope;
use critbeta::families::Family;
use critbeta::{DType, Rescaling};
use device::{Out, Request, Rows, engine, run, small};

const LENGTHS: [usize; 2] = [1 << 16, 1 << 20];

/// Every row takes three passes, for the maximum, the sum and the probabilities, and the reports are read in
/// between.
const PLAIN: f64 = 3.1;
/// Threads that hold a maximum read their share again. If all scores are tied, these are all threads.
const HOLDERS: f64 = 1.0;
/// Counting is one pass, and gathering the ranked scores is another. Threads that found some take one more.
const NEAR_THE_TOP: f64 = PLAIN + HOLDERS + 3.0;
/// If the contact lies in the bulk, the bins around it are counted again, finer, and ranked in a few pieces.
const IN_THE_BULK: [f64; 2] = [PLAIN + HOLDERS + 6.0, PLAIN + HOLDERS + 32.0];

/// The most reads of a row at each length; `None` if the simulator would take minutes.
const FAMILIES: [(Family, [Option<f64>; 2]); 9] = [
    (Family::Gaussian, [Some(NEAR_THE_TOP); 2]),
    (Family::Needles { height: 30.0 }, [Some(NEAR_THE_TOP); 2]),
    (Family::Masked { share: 0.5 }, [Some(NEAR_THE_TOP); 2]),
    (Family::Bf16, [Some(NEAR_THE_TOP); 2]),
    (Family::Ascending { step: 0.125 }, [Some(NEAR_THE_TOP); 2]),
    (Family::Equal, [Some(PLAIN + HOLDERS); 2]),
    (Family::Sink { height: 20.0 }, [Some(IN_THE_BULK[0]), Some(IN_THE_BULK[1])]),
    (Family::StudentT { nu: 2.0 }, [Some(IN_THE_BULK[0]), Some(IN_THE_BULK[1])]),
    // Every key is a contact: there are pieces of at most 256 gaps with two passes each, and a few counts.
    (Family::LogGrid { beta: 2.5 }, [Some(PLAIN + HOLDERS + 4.0 * (LENGTHS[0] / 256) as f64), None]),
];

#[test]
fn the_search_takes_few_passes_and_never_unbounded_many() {
    let arch = small(Scope::Split, 1, 1, 1);
    let Some(engine) = engine("the_search_takes_few_passes", &arch) else { return };
    if !engine.is_simulated() {
        eprintln!("skipped the_search_takes_few_passes: a GPU does not count");
        return;
    }
    let rule: Rescaling = "critical".parse().unwrap();
    println!("reads of a row, three of them without any search\n{LENGTHS:>38?}");
    for (family, most) in FAMILIES {
        let reads = |(n, most): (usize, Option<f64>)| {
            let most = most?;
            let rows = Rows::dense(DType::F32, &[common::draw(family, n, 7)]);
            let request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
            let done = run(&engine, &rows, &request).unwrap();
            let reads = done.load_bytes as f64 / (4 * n) as f64;
            assert!(
                (3.0..=most).contains(&reads),
                "{family} n = {n}: {reads} reads, at most {most} expected"
            );
            Some(format!("{reads:.2}"))
        };
        let cells: Vec<String> =
            LENGTHS.into_iter().zip(most).map(|at| reads(at).unwrap_or("not run".into())).collect();
        println!("{:22} {:>8} {:>8}", family.to_string(), cells[0], cells[1]);
    }
}
