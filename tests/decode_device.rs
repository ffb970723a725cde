//! Attention over pages in device memory, on the simulator or with CRITBETA_REQUIRE_GPU=1 on a GPU, beside
//! the definition in f64.

#[path = "common/decoded.rs"]
mod decoded;
#[path = "common/device.rs"]
mod device;
#[path = "common/paged.rs"]
mod paged;
#[path = "common/paged_device.rs"]
mod paged_device;

use critbeta::cuda::{DecodeCall, Engine};
use critbeta::{DType, Element};
use decoded::{Found, bits_of_rows, check, run};
use half::{bf16, f16};
use paged::{Cache, Shape, bits};
use paged_device::{cache_of, engine, ragged, shapes, upload};

const RULE: &str = "critical:ratio=1.3,cap=20,resolve=0.7";

fn agrees<T: Element>(engine: &Engine) {
    for (i, shape) in shapes().iter().enumerate() {
        let cache = cache_of::<T>(shape, 2.0);
        let rules = if i < 2 { &["identity", RULE][..] } else { &[["identity", RULE][i % 2]] };
        for &rule in rules {
            let window = (i % 3 == 1).then_some(37);
            let mut uploaded = upload(engine, &cache, ragged(shape));
            let mut of = |on_chip| {
                run(engine, &mut uploaded, rule, |call| {
                    (call.rows.window, call.one_pass, call.rows.on_chip) = (window, false, on_chip);
                })
                .unwrap()
            };
            let found = of(false);
            let what = format!("{} of {shape:?}, {rule}, window {window:?}", T::DTYPE);
            check(&cache, &found, window, &what);
            assert_eq!(of(true).bits(), found.bits(), "{what}, on chip");
            assert!(
                found.skips.iter().all(|skip| (skip.dropped, skip.unread) == (0, 0)),
                "{:?}",
                found.skips
            );
        }
    }
}

#[test]
fn outputs_are_those_of_the_definition() {
    let Some(engine) = engine("outputs_are_those_of_the_definition", 1, false) else { return };
    agrees::<f32>(&engine);
    agrees::<f16>(&engine);
    agrees::<bf16>(&engine);
}

/// attention.md sections 7 and 9: bits that depend on the batch, the splits, the page or the layout.
#[test]
fn bits_depend_on_nothing_but_the_row() {
    bits_of_rows("bits_depend_on_nothing_but_the_row", RULE, 2.0, false);
}

/// What stays unread is within eps, in exact integers, and it is not loaded.
#[test]
fn values_stay_unread_within_eps() {
    let Some(engine) = engine("values_stay_unread_within_eps", 1, false) else { return };
    let shape = Shape { query_lens: vec![1, 2], ..Shape::new(&[1500, 700], [2, 3, 64]) };
    for (peak, on_chip) in [(0.0, false), (1.0, false), (3.0, false), (1.0, true), (3.0, true)] {
        let cache = cache_of::<f16>(&shape, peak);
        let mut uploaded = upload(&engine, &cache, true);
        let known = |call: &mut DecodeCall| (call.one_pass, call.rows.on_chip) = (false, on_chip);
        let dense = run(&engine, &mut uploaded, "identity", known).unwrap();
        let (mut unread, mut bytes) = (0, dense.bytes);
        for eps in [1e-12, 1e-4, 1e-3, 1e-2, 0.5, 1.0 - 2f64.powi(-40)] {
            let found = run(&engine, &mut uploaded, "identity", |call| {
                known(call);
                call.eps = eps;
            });
            let found = found.unwrap();
            if eps == 1e-12 {
                assert_eq!(found.bits(), dense.bits(), "no mass is so small");
                continue;
            }
            for (skip, keys) in found.skips.iter().zip([1500, 1500, 700, 700]) {
                assert!(f64::from(skip.dropped) <= eps * 2f64.powi(32), "eps {eps}: {skip:?}");
                assert!(skip.keys == keys && skip.unread < keys, "eps {eps}: {skip:?}");
            }
            check(&cache, &found, None, &format!("peak {peak}, eps {eps}, on chip {on_chip}"));
            let now: u32 = found.skips.iter().map(|skip| skip.unread).sum();
            assert!(now >= unread, "eps {eps}: {now} keys, {unread} with less");
            // A value has 128 bytes; page numbers and weights come on top.
            if engine.is_simulated() && unread > 0 {
                assert!(bytes - found.bytes >= u64::from(now - unread) * 128, "eps {eps}");
            }
            (unread, bytes) = (now, found.bytes);
        }
        // Of equal masses all are read.
        assert_eq!(unread > 1000, peak > 0.0, "peak {peak}: {unread} keys of 4,400");
    }
}

/// attention.md section 9: each byte of a value is read once.
#[test]
fn every_value_is_read_once() {
    let Some(engine) = engine("every_value_is_read_once", 1, false) else { return };
    if !engine.is_simulated() {
        eprintln!("skipped every_value_is_read_once: a GPU does not count");
        return;
    }
    // Up to 16 query rows share a read.
    for (group, query_len) in [(1, 1), (8, 1), (2, 8)] {
        let read = |v_dim| {
            let query_lens = vec![query_len; 2];
            let shape = Shape { v_dim, query_lens, ..Shape::new(&[512, 1024], [2, group, 64]) };
            let mut uploaded = upload(&engine, &cache_of::<bf16>(&shape, 2.0), false);
            run(&engine, &mut uploaded, RULE, |call| call.rows.on_chip = false).unwrap().bytes
        };
        // For another 64 elements of each value: the values, and of each row its sums of all chunks and one
        // probability for each element. Weights and page numbers are read once.
        let (keys, rows) = (2 * (512 + 1024), 2 * 2 * group * query_len);
        let (values, others) = (keys * 64 * 2, rows * (3 * 64 * 2 + 64 * 4));
        let found = read(128) - read(64);
        if query_len == 1 {
            assert_eq!(found, (values + others) as u64, "group {group}");
        } else {
            // Tokens take turns in the last unit of each sequence.
            let again = 2 * 2 * 64 * (query_len - 1) * 64 * 2;
            assert!(found <= (values + others + again) as u64, "group {group}: {found} bytes");
        }
    }
}

/// A value that only the last token of a sequence sees is its own affair, and so is a row that is poisoned.
#[test]
fn nan_stays_in_its_rows() {
    let Some(engine) = engine("nan_stays_in_its_rows", 1, true) else { return };
    let shape = Shape { query_lens: vec![3, 3], ..Shape::new(&[70, 80], [1, 2, 64]) };
    let cache = cache_of::<bf16>(&shape, 2.0);
    for on_chip in [false, true] {
        nan_stays(&engine, &cache, on_chip);
    }
}

fn nan_stays(engine: &Engine, cache: &Cache<bf16>, on_chip: bool) {
    let of = |cache: &Cache<bf16>, max_len, eps| {
        let mut uploaded = upload(engine, cache, false);
        uploaded.sequences.max_len = max_len;
        run(engine, &mut uploaded, RULE, |call| (call.eps, call.rows.on_chip) = (eps, on_chip)).unwrap()
    };
    let right = of(cache, 80, 0.0);
    let rows = |found: &Found| -> Vec<Vec<u32>> { found.out.chunks(64).map(bits).collect() };
    let nan = |row: &[u32]| row.iter().all(|&bits| f32::from_bits(bits).is_nan());
    // Three tokens of two heads each: the last two rows of the first sequence.
    let mut wrong = cache.clone();
    wrong.set_value(0, 0, 69, &[f32::NAN; 64]);
    let found = of(&wrong, 80, 0.0);
    for (i, (ours, before)) in rows(&found).iter().zip(rows(&right)).enumerate() {
        assert!(if (4..6).contains(&i) { nan(ours) } else { *ours == before }, "row {i}");
    }
    for eps in [0.0, 0.3] {
        let right = of(cache, 80, eps);
        let mut wrong = cache.clone();
        wrong.lens[0] = i32::MAX;
        let found = of(&wrong, 80, eps);
        for (i, (ours, before)) in rows(&found).iter().zip(rows(&right)).enumerate() {
            assert!(if i < 6 { nan(ours) } else { *ours == before }, "row {i}, eps {eps}");
        }
    }
}

/// The workspace of one call serves the next, whatever its shape; the shadow and other orders of threads have
/// nothing to say.
#[test]
fn thread_orders_do_not_change_a_bit() {
    let shape = Shape { query_lens: vec![2, 0, 1], ..Shape::new(&[1100, 0, 65], [2, 5, 64]) };
    let cache = cache_of::<f16>(&shape, 2.0);
    let of = |seed, dtype, on_chip| {
        let engine = engine("thread_orders_do_not_change_a_bit", seed, true)?;
        let found = run(&engine, &mut upload(&engine, &cache, true), RULE, |call| {
            (call.eps, call.out.dtype, call.rows.on_chip) = (0.02, dtype, on_chip);
        });
        let found = found.unwrap();
        Some((found.bits(), found.skips))
    };
    let Some(one) = of(1, DType::F16, false) else { return };
    for seed in 2..6 {
        assert_eq!(of(seed, DType::F16, false).unwrap(), one, "seed {seed}");
        assert_eq!(of(seed, DType::F16, true).unwrap(), one, "seed {seed}, on chip");
    }
    let wide = of(1, DType::F32, false).unwrap();
    let rounded = |bits: &u32| f16::from_f32(f32::from_bits(*bits)).to_f32().to_bits();
    assert_eq!(wide.0.0.iter().map(rounded).collect::<Vec<_>>(), one.0.0);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let Some(engine) = engine("what_does_not_fit_together_is_refused", 1, false) else { return };
    let cache = cache_of::<bf16>(&Shape::new(&[70, 80], [2, 3, 64]), 2.0);
    type Edit = fn(&mut DecodeCall);
    let cases: [(Edit, &str); 12] = [
        (|c| c.values.dtype = DType::F16, "of 16 slots of 2 heads of f16, expected"),
        (|c| c.values.pages += 1, "expected 13 pages of 16 slots of 2 heads of bf16 as of the keys"),
        (|c| c.values.dim = 260, "values of 260 elements, expected a multiple of 8 in 64..=256"),
        (|c| c.values.strides.slot = 65, "values with a stride of 65 elements from slot to slot"),
        (|c| c.values.address += 8, "values at"),
        (|c| c.out.dtype = DType::F16, "an output of f16, expected f32 or the values' bf16"),
        (|c| c.out.strides = [6 * 64, 63], "heads [384, 63] elements apart would overlap"),
        (|c| c.out.strides = [5 * 64, 64], "2 tokens and 6 heads [320, 64] elements apart would overlap"),
        (|c| c.out.address = c.values.address, "overlap"),
        (|c| c.eps = 1.0, "eps 1, expected 0 <= eps < 1"),
        (|c| c.eps = f64::NAN, "eps NaN, expected 0 <= eps < 1"),
        (|c| c.skips = Some(0), "skip reports are at address 0"),
    ];
    for (edit, message) in cases {
        let error = run(&engine, &mut upload(&engine, &cache, false), RULE, edit).unwrap_err().to_string();
        assert!(error.contains(message), "{error}, expected {message}");
    }
    // After them the next call works; heads may lie apart from tokens.
    let found =
        run(&engine, &mut upload(&engine, &cache, false), RULE, |c| c.out.strides = [64, 128]).unwrap();
    assert!(found.out.iter().all(|v| v.is_finite()));
}
