//! A host process may have subnormal numbers flushed to zero, or other directions of rounding. Nothing here
//! may depend on it, and the host keeps its modes.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

use critbeta::attention::{BlockTable, DecodeCall, DecodeRow, PagedKv, Pages, Queries, Sequences, decode};
use critbeta::cpu::{self, Measure, Workspace};
use critbeta::{Rescaling, Scores, ScoresMut};
use std::arch::asm;
use std::fmt::Debug;

/// Flush-to-zero and denormals-are-zeros; the same with rounding up.
const HOSTS: [u32; 2] = [0x8040, 0xc040];

fn modes() -> u32 {
    let mut modes = 0u32;
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut modes, options(nostack)) };
    modes & 0xe040
}

fn set(modes: u32) {
    let modes = 0x1f80 | modes;
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const modes, options(nostack)) };
}

/// Rows whose gaps are subnormal, and rows of subnormal scores, among normal ones.
fn rows(cols: usize) -> Vec<f32> {
    let tiny = f32::from_bits(1);
    let score = |row: usize, j: usize| match row {
        0 => (j * 7 % cols) as f32 * tiny,
        1 => 2.0 * f32::MIN_POSITIVE - (j % 100) as f32 * tiny,
        2 => ((j * 31 % 1009) as f32).sin(),
        _ => {
            if j == cols / 2 {
                1e-38
            } else {
                -(j as f32) * 1e-41
            }
        }
    };
    (0..4 * cols).map(|i| score(i / cols, i % cols)).collect()
}

/// What the CPU path found. It is printed later, because printing depends on the modes as well.
type Found = Vec<Box<dyn Debug + Send>>;

/// Everything that the CPU path finds.
fn everything(data: &[f32], cols: usize, rule: &Rescaling) -> Found {
    let scores = Scores::dense(data, 4, cols).unwrap();
    let mut out = vec![0f32; data.len()];
    let mut found: Found = vec![
        Box::new(cpu::critical_betas(&scores, 0.7)),
        Box::new(cpu::row_reports(&scores, 1.3, Measure::new(0.7, None))),
        Box::new(cpu::softmax(&scores, rule, None, &mut out).unwrap()),
        Box::new(out.clone()),
        Box::new(cpu::softmax_at(&scores, &[1.0, 1e30, 0.0, 1e38], &mut out).unwrap()),
        Box::new(out),
    ];
    let mut inside = data.to_vec();
    let mut view = ScoresMut::dense(&mut inside, 4, cols).unwrap();
    found.push(Box::new(cpu::softmax_in_place(&mut view, rule, None).unwrap()));
    found.push(Box::new(inside));
    let (mut workspace, mut wide) = (Workspace::default(), Vec::new());
    for row in data.chunks(cols) {
        found.push(Box::new(cpu::critical_beta(row, 0.0)));
        found.push(Box::new(cpu::row_report(row, 2.0, Measure::default())));
        found.push(Box::new(workspace.report(row, 0.5, Measure::default())));
        let rules = std::slice::from_ref(rule);
        found.push(Box::new(workspace.reports_under(row, rules, 3, Measure::default())));
        found.push(Box::new(workspace.softmax_f64(row, rule, 3, &mut wide)));
        found.push(Box::new(wide.clone()));
    }
    found.push(Box::new(decoded(data, rule)));
    found
}

/// Attention whose queries, keys and values are these numbers: its scores and outputs are subnormal too.
fn decoded(data: &[f32], rule: &Rescaling) -> (Vec<DecodeRow>, Vec<f32>) {
    let n = (data.len() / 64).min(5000);
    let pages = Pages::nhd(&data[..n * 64], [n, 1, 1, 64]).unwrap();
    let ids: Vec<i32> = (0..n as i32).collect();
    let sequences =
        Sequences::new(BlockTable::rows(&ids, [1, n], n).unwrap(), std::slice::from_ref(&n)).unwrap();
    let queries = Queries::dense(&data[..128], [1, 2, 64]).unwrap();
    let mut call = DecodeCall::new(std::slice::from_ref(rule));
    (call.scale, call.eps) = (Some(1.0), 0.01);
    let mut out = vec![0.0; 128];
    let kv = PagedKv::new(pages, pages).unwrap();
    (decode(&queries, &kv, &sequences, &call, &mut out).unwrap(), out)
}

#[test]
fn results_do_not_depend_on_the_modes_of_the_host() {
    let rule: Rescaling = "critical:resolve=0.69".parse().unwrap();
    // Rows that one thread takes, and rows that all threads share.
    for cols in [37, 5000, 1 << 17] {
        let data = rows(cols);
        let expected = format!("{:?}", everything(&data, cols, &rule));
        let first = cpu::critical_beta(&data[..cols], 0.0);
        assert!(first.beta > 1e38 && first.contact_rank > 1, "{first:?}");
        for host in HOSTS {
            // Threads inherit the modes of the one that makes them.
            set(host);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let found = pool.install(|| {
                assert_eq!(modes(), host);
                let found = everything(&data, cols, &rule);
                assert_eq!(modes(), host);
                found
            });
            let own = everything(&data, cols, &rule);
            let kept = modes();
            set(0);
            assert_eq!(kept, host);
            for found in [found, own] {
                assert!(format!("{found:?}") == expected, "cols {cols}, modes {host:x}");
            }
        }
    }
}
