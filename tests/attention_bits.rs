//! Every result has the same bits on any threads, instruction set, page size, layout and batch.

#[macro_use]
#[path = "common/paged.rs"]
mod paged;

use critbeta::attention::DecodeCall;
use critbeta::cpu::{InstructionSet, Measure};
use critbeta::{Element, Rescaling};
use half::{bf16, f16};
use paged::{Cache, LAYOUTS, Shape, bits};

fn rules() -> [Rescaling; 1] {
    ["critical:ratio=1.3,cap=20,resolve=0.7".parse().unwrap()]
}

/// Output and rows in a form that can be compared.
fn of<T: Element>(cache: &Cache<T>, call: &DecodeCall) -> (Vec<u32>, Vec<String>) {
    let (out, rows) = cache.decode(call);
    (bits(&out), rows.iter().map(|row| format!("{row:?}")).collect())
}

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// attention.md section 7: splits. NaN by an automatic count, an idle split that overwrites the LSE.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let rules = rules();
    // A single long sequence is shared by all threads; so are few of different lengths. Short ones are not.
    for (lens, query_lens, kv_heads) in [
        (vec![70_001], vec![1], 1),
        (vec![9000, 1, 0, 3000], vec![2, 1, 1, 3], 3),
        (vec![600, 1, 400, 550, 700, 650], vec![1, 1, 0, 2, 1, 1], 4),
        // One of many has more than the part of a thread.
        ([vec![700; 9], vec![9000]].concat(), vec![1; 10], 2),
    ] {
        for (eps, window) in [(0.0, None), (1e-3, None), (0.02, Some(5000))] {
            let shape = Shape { query_lens: query_lens.clone(), ..Shape::new(&lens, [kv_heads, 2, 64]) };
            let cache = Cache::<bf16>::draw(&shape, 2.0);
            let radii = cache.radii();
            let measure = Some(Measure::default());
            let call =
                call!(&rules, eps = eps, window = window, v_radius = Some(&radii[..]), measure = measure);
            let one = on_threads(1, || of(&cache, &call));
            for threads in [2, 3, 8] {
                assert_eq!(on_threads(threads, || of(&cache, &call)), one, "{threads} threads, {lens:?}");
            }
        }
    }
    // Few rows with many keys share columns.
    let cache = Cache::<bf16>::draw(&Shape::new(&[140_000], [1, 1, 64]), 2.0);
    let call = call!(&rules, eps = 1e-3);
    assert_eq!(on_threads(4, || of(&cache, &call)), on_threads(1, || of(&cache, &call)));
}

#[test]
fn any_page_and_layout_gives_the_same_bits() {
    let rules = rules();
    let base = Shape { query_lens: vec![2, 1], v_dim: 96, ..Shape::new(&[1500, 40], [2, 3, 80]) };
    for eps in [0.0, 0.01] {
        let call = call!(&rules, eps = eps);
        let one = of(&Cache::<f16>::draw(&base, 2.0), &call);
        for layout in LAYOUTS {
            for page in [1, 3, 16, 64, 256, 2000] {
                let shape = Shape { layout, page, ..base.clone() };
                assert_eq!(of(&Cache::<f16>::draw(&shape, 2.0), &call), one, "{layout:?}, pages of {page}");
            }
        }
    }
}

/// attention.md section 7: bits that depend on the batch.
#[test]
fn any_batch_gives_the_same_bits() {
    let rules = rules();
    let alone = Shape::new(&[777], [2, 3, 64]);
    let rows = 6;
    for eps in [0.0, 0.01] {
        let call = call!(&rules, eps = eps);
        let one = of(&Cache::<f32>::draw(&alone, 2.0), &call);
        for lens in [vec![777, 1], vec![5, 777, 4000, 0], vec![0, 0, 0, 0, 777]] {
            let at = lens.iter().position(|&len| len == 777).unwrap();
            let many = of(&Cache::<f32>::draw(&Shape::new(&lens, [2, 3, 64]), 2.0), &call);
            assert_eq!(many.0[at * rows * 64..][..rows * 64], one.0, "{lens:?}");
            assert_eq!(many.1[at * rows..][..rows], one.1, "{lens:?}");
        }
    }
}

/// With eps 0, a query token has the same bits alone and beside others of its sequence.
#[test]
fn other_query_tokens_change_no_bit_of_a_dense_row() {
    let rules = rules();
    for window in [None, Some(700)] {
        let shape = Shape { query_lens: vec![5], ..Shape::new(&[3000], [1, 3, 64]) };
        let cache = Cache::<bf16>::draw(&shape, 2.0);
        let (together, _) = of(&cache, &call!(&rules, window = window));
        let mut last = cache.clone();
        last.shape.query_lens = vec![1];
        last.query_lens = vec![1];
        last.queries.drain(..4 * 3 * 64);
        let (alone, _) = of(&last, &call!(&rules, window = window));
        assert_eq!(together[4 * 3 * 64..], alone);
    }
}

/// A process has one instruction set. This test runs the binary again for each, with `CRITBETA_LANES` set.
#[test]
fn every_instruction_set_gives_the_same_bits() {
    const PRINTS: &str = "CRITBETA_TEST_PRINTS_BITS";
    if std::env::var_os(PRINTS).is_some() {
        println!("bits {:?}", everything());
        return;
    }
    let of_set = |name: &str| {
        let test = "every_instruction_set_gives_the_same_bits";
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(PRINTS, "1")
            .env(InstructionSet::VARIABLE, name)
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().find(|line| line.contains("bits ")).expect("printed bits").to_owned()
    };
    let sets = InstructionSet::supported();
    let first = of_set(sets[0].name());
    assert!(first.len() > 1000);
    for set in &sets[1..] {
        assert_eq!(of_set(set.name()), first, "{set}");
    }
}

fn everything() -> Vec<(Vec<u32>, Vec<String>)> {
    fn all<T: Element>(found: &mut Vec<(Vec<u32>, Vec<String>)>) {
        let rules = rules();
        for dim in [64, 72, 128] {
            for group in [1, 2, 3, 7] {
                let shape = Shape { query_lens: vec![1, 2], ..Shape::new(&[100, 37], [1, group, dim]) };
                let cache = Cache::<T>::draw(&shape, 3.0);
                found.push(of(&cache, &call!(&rules, eps = 0.01)));
                found.push(of(&cache, &call!(&rules, softcap = Some(3.0))));
            }
        }
        let poisoned = Shape::new(&[60], [1, 2, 64]);
        let mut cache = Cache::<T>::draw(&poisoned, 1.0);
        cache.set_key(0, 0, 30, &[f32::INFINITY; 64]);
        found.push(of(&cache, &call!(&rules)));
    }
    let mut found = Vec::new();
    all::<f32>(&mut found);
    all::<f16>(&mut found);
    all::<bf16>(&mut found);
    found
}
