//! The predictions of plans: what they must get right whatever the constants are.

use critbeta::DType;
use critbeta::cuda::{Arch, Bound, Plan, Prediction, Problem};

fn h200() -> Arch {
    Arch::named("sm_90").unwrap()
}

fn softmax(rows: u64, cols: u64, dtype: DType) -> Vec<Prediction> {
    Plan::choose(&Problem::softmax(rows, cols, dtype), &h200()).unwrap().predictions()
}

fn many(cols: u64, dtype: DType) -> Vec<Prediction> {
    softmax((256 << 20) / cols / dtype.size_bytes() as u64, cols, dtype)
}

#[test]
fn no_launch_is_faster_than_its_bytes_and_the_expected_time_lies_between_the_bounds() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for power in 0..=20 {
            for rows in [1, 3, 8, 100, 5000] {
                let cols = 1 << power;
                let plans = [Problem::softmax, Problem::statistics].map(|problem| problem(rows, cols, dtype));
                for plan in plans.map(|problem| Plan::choose(&problem, &h200()).unwrap()) {
                    let found = plan.predictions();
                    assert!(found.is_empty() != plan.fits_on_chip(), "{plan}");
                    for of in found {
                        assert!(of.fastest <= of.seconds && of.seconds <= of.slowest, "{plan}\n{of}");
                        assert!(of.copy > 0.0 && of.copy < of.fastest && of.slowest < 1.0, "{plan}\n{of}");
                        assert!(of.share() < 1.0, "{plan}\n{of}");
                    }
                }
            }
        }
    }
}

#[test]
fn each_family_has_its_paths_in_order() {
    let names = |found: Vec<Prediction>| found.iter().map(|of| of.path).collect::<Vec<_>>();
    assert_eq!(names(many(4096, DType::F32)), ["plain", "near the top", "sink", "student t"]);
    let statistics = Plan::choose(&Problem::statistics(10, 100, DType::F32), &h200()).unwrap();
    let of_statistics = ["critical beta", "critical beta of a sink", "statistics", "statistics of a sink"];
    assert_eq!(names(statistics.predictions()), of_statistics);
}

#[test]
fn more_work_takes_longer() {
    for dtype in [DType::F32, DType::Bf16] {
        for cols in [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18] {
            let found = many(cols, dtype);
            assert!(found[0].seconds < found[1].seconds && found[1].seconds < found[2].seconds);
            let rows = (256 << 20) / cols / dtype.size_bytes() as u64;
            assert!(softmax(2 * rows, cols, dtype)[0].seconds > 1.8 * found[0].seconds);
        }
    }
}

#[test]
fn a_prediction_says_what_bounds_it() {
    let sink = many(1 << 14, DType::Bf16)[2];
    assert_eq!(sink.bound, Bound::Issue, "{sink}");
    let alone = softmax(1, 1 << 16, DType::F32)[0];
    assert_eq!(alone.bound, Bound::Latency, "{alone}");
    let text = alone.to_string();
    assert!(text.starts_with("plain ") && text.ends_with("bound by latency"), "{text}");
}

#[test]
fn no_other_gpu_gets_a_prediction() {
    let problem = Problem::softmax(1000, 4096, DType::F32);
    for name in Arch::names().filter(|&name| name != "sm_90") {
        assert!(Plan::choose(&problem, &Arch::named(name).unwrap()).unwrap().predictions().is_empty());
    }
    let named = |name: &str, sms| {
        let mut arch = h200();
        (arch.name, arch.sm_count) = (name.to_owned(), sms);
        Plan::choose(&problem, &arch).unwrap().predictions().len()
    };
    assert_eq!(named("NVIDIA H200", 132), 4);
    assert_eq!(named("NVIDIA H100 80GB HBM3", 132), 0);
    assert_eq!(named("NVIDIA H200 MIG 1g.18gb", 16), 0);
}
