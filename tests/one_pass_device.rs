//! Decode attention in one pass, for betas that are known before the scores are: on the simulator, or with
//! CRITBETA_REQUIRE_GPU=1 on a GPU, beside the definition in f64.

#[path = "common/decoded.rs"]
mod decoded;
#[path = "common/device.rs"]
mod device;
#[path = "common/paged.rs"]
mod paged;
#[path = "common/paged_device.rs"]
mod paged_device;

use critbeta::Element;
use critbeta::cuda::{DecodeCall, Engine};
use decoded::{Found, bits_of_rows, check, run};
use half::{bf16, f16};
use paged::{Cache, Shape, bits};
use paged_device::{cache_of, engine, ragged, shapes, upload};

/// 0 times a power that overflows.
const NAN_RULE: &str = "asentmax:delta=1,b=0,g=1e9";
const RULES: [&str; 4] = ["identity", "fixed:1.7", "rem:c=0.4", "qwen-logn:train=64"];

fn agrees<T: Element>(engine: &Engine) {
    for (i, shape) in shapes().iter().enumerate() {
        let cache = cache_of::<T>(shape, 2.0);
        let (rule, window) = (RULES[i % RULES.len()], (i % 3 == 1).then_some(37));
        let mut uploaded = upload(engine, &cache, ragged(shape));
        let found = run(engine, &mut uploaded, rule, |call| call.rows.window = window).unwrap();
        check(&cache, &found, window, &format!("{} of {shape:?}, {rule}, window {window:?}", T::DTYPE));
        assert!(found.skips.iter().all(|skip| (skip.dropped, skip.unread, skip.repaired) == (0, 0, 0)));
        let phases = run(engine, &mut uploaded, rule, |call| {
            (call.rows.window, call.one_pass) = (window, false);
        });
        assert_eq!(bits(&phases.unwrap().betas), bits(&found.betas), "{shape:?}, {rule}");
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
    bits_of_rows("bits_depend_on_nothing_but_the_row", "rem:c=0.5", 3.0, true);
}

/// What stays unread is within eps, in exact integers, and it is not loaded. Where nothing stays unread, the
/// bits are those of reading everything.
#[test]
fn values_stay_unread_within_eps() {
    let Some(engine) = engine("values_stay_unread_within_eps", 1, false) else { return };
    let shape = Shape { query_lens: vec![1, 2], ..Shape::new(&[1500, 700], [2, 3, 64]) };
    for peak in [0.0, 1.0, 8.0] {
        let cache = cache_of::<f16>(&shape, peak);
        let mut uploaded = upload(&engine, &cache, true);
        let dense = run(&engine, &mut uploaded, "identity", |_| ()).unwrap();
        for eps in [1e-12, 1e-4, 1e-3, 1e-2, 0.5, 1.0 - 2f64.powi(-40)] {
            let found = run(&engine, &mut uploaded, "identity", |call| call.eps = eps).unwrap();
            let what = format!("peak {peak}, eps {eps}: {:?}", found.skips);
            for (skip, keys) in found.skips.iter().zip([1500, 1500, 700, 700]) {
                assert!(f64::from(skip.dropped) <= eps * 2f64.powi(32), "{what}");
                assert!(skip.keys == keys && skip.unread < keys, "{what}");
                assert!(skip.repaired == 0 || skip.unread == 0, "{what}");
            }
            check(&cache, &found, None, &what);
            let unread: u32 = found.skips.iter().map(|skip| skip.unread).sum();
            if unread == 0 {
                assert_eq!(found.bits(), dense.bits(), "{what}");
            }
            // A value has 128 bytes. Each thread of the second launch asks whether the head failed.
            let repaired = found.skips.iter().any(|skip| skip.repaired > 0);
            if engine.is_simulated() && unread > 0 && !repaired {
                assert!(found.bytes + u64::from(unread) * 128 <= dense.bytes + (16 << 10), "{what}");
            }
            // Of equal masses all are read.
            let enough = if peak == 0.0 { unread == 0 } else { peak < 8.0 || eps < 1e-5 || unread > 300 };
            assert!(enough, "{what}");
        }
    }
}

/// Of more rows than share a value all values are read: a report counts a key once.
#[test]
fn many_rows_read_all_values() {
    let Some(engine) = engine("many_rows_read_all_values", 1, false) else { return };
    for (group, query_len) in [(16, 1), (40, 1), (6, 3)] {
        let shape = Shape { query_lens: vec![query_len], ..Shape::new(&[1000], [1, group, 64]) };
        let cache = cache_of::<bf16>(&shape, 12.0);
        let mut uploaded = upload(&engine, &cache, false);
        let found = run(&engine, &mut uploaded, "fixed:2", |call| call.eps = 0.05).unwrap();
        check(&cache, &found, None, &format!("{group} heads, {query_len} tokens"));
        let skip = found.skips[0];
        assert_eq!((skip.unread > 0, skip.keys), (group * query_len <= 16, 1000), "{group}: {skip:?}");
        assert!(skip.unread < skip.keys, "{group}: {skip:?}");
    }
}

/// A cache of one key head whose keys have these scores for a row, of every sequence.
fn scored(rows: &[Vec<f32>], group: usize) -> Cache<f32> {
    let lens: Vec<usize> = rows.iter().map(Vec::len).collect();
    let mut cache = cache_of::<f32>(&Shape::new(&lens, [1, group, 64]), 0.0);
    for (seq, row) in rows.iter().enumerate() {
        for (at, score) in row.iter().enumerate() {
            // 1 / sqrt(64) of it.
            cache.set_key(
                seq,
                0,
                at,
                &std::array::from_fn::<f32, 64, _>(|e| if e == 0 { 8.0 * score } else { 0.0 }),
            );
        }
    }
    cache.queries.chunks_exact_mut(64).for_each(|query| query[0] = 1.0);
    cache
}

/// attention.md 3.3: what is left unread first may be too much. Then the head is read again, whole, and no
/// other is.
#[test]
fn too_much_is_repaired() {
    let Some(engine) = engine("too_much_is_repaired", 1, true) else { return };
    let (n, eps) = (1000, 0.01);
    // One key has nearly all, and each other key `times` the share of it that is within eps.
    let row = |times: f64, at: usize| -> Vec<f32> {
        let bulk = (times * eps / n as f64).ln() as f32;
        (0..n).map(|i| if i == at { 0.0 } else { bulk }).collect()
    };
    // Within eps; too much; more than any key may have; too much, but no seed knows of the largest.
    let cache = scored(&[row(0.9, 3), row(2.0, 3), row(8.0, 3), row(2.0, 500)], 2);
    let mut uploaded = upload(&engine, &cache, false);
    let dense = run(&engine, &mut uploaded, "identity", |_| ()).unwrap();
    let found = run(&engine, &mut uploaded, "identity", |call| call.eps = eps).unwrap();
    let told: Vec<_> = found.skips.iter().map(|skip| (skip.unread > 900, skip.repaired)).collect();
    assert_eq!(told, [(true, 0), (false, 1), (false, 0), (false, 0)], "{:?}", found.skips);
    check(&cache, &found, None, "repaired");
    let rows = |found: &Found| -> Vec<Vec<u32>> { found.out.chunks(64 * 2).map(bits).collect() };
    for (i, (ours, all)) in rows(&found).iter().zip(rows(&dense)).enumerate() {
        assert_eq!(*ours == all, i == 1 || i == 2, "sequence {i}");
    }
}

/// attention.md section 9: the largest score comes last, or rises all the time, or all mass is in one split.
#[test]
fn seeds_may_know_nothing() {
    let Some(engine) = engine("seeds_may_know_nothing", 1, true) else { return };
    let n = 1400;
    let rising: Vec<f32> = (0..n).map(|i| i as f32 * 0.05).collect();
    let falling: Vec<f32> = rising.iter().rev().copied().collect();
    let middle: Vec<f32> =
        (0..n).map(|i| if (600..660).contains(&i) { 40.0 } else { i as f32 * 1e-3 }).collect();
    let cache = scored(&[rising, falling, middle], 3);
    let mut uploaded = upload(&engine, &cache, false);
    for eps in [0.0, 1e-3] {
        let found = run(&engine, &mut uploaded, "identity", |call| call.eps = eps).unwrap();
        check(&cache, &found, None, &format!("eps {eps}"));
        assert!(found.skips.iter().all(|skip| (skip.unread > 0) == (eps > 0.0)), "{:?}", found.skips);
    }
}

/// Betas that have no ordinary weights: all keys count the same, or the largest alone.
#[test]
fn extreme_betas_agree() {
    let Some(engine) = engine("extreme_betas_agree", 1, false) else { return };
    let cache = cache_of::<bf16>(&Shape::new(&[600, 3], [1, 2, 64]), 2.0);
    for rule in ["fixed:0", "fixed:1e-25", "fixed:1e25", "fixed:1e300"] {
        for eps in [0.0, 1e-3] {
            let mut uploaded = upload(&engine, &cache, false);
            let found = run(&engine, &mut uploaded, rule, |call| call.eps = eps).unwrap();
            let phases = run(&engine, &mut uploaded, rule, |call| call.one_pass = false).unwrap();
            for (ours, theirs) in found.out.iter().zip(&phases.out) {
                assert!((ours - theirs).abs() < 1e-4 + 4.0 * eps as f32, "{rule}: {ours}, {theirs}");
            }
        }
    }
}

/// A law may give a beta that is no number. Then the row is none, whatever its values are.
#[test]
fn a_beta_that_is_nan_makes_rows_of_nan() {
    let Some(engine) = engine("a_beta_that_is_nan_makes_rows_of_nan", 1, false) else { return };
    let mut cache = cache_of::<f32>(&Shape::new(&[600], [1, 2, 64]), 2.0);
    (0..600).for_each(|at| cache.set_value(0, 0, at, &[0.0; 64]));
    let found = run(&engine, &mut upload(&engine, &cache, false), NAN_RULE, |_| ()).unwrap();
    assert!(found.out.iter().chain(&found.betas).all(|value| value.is_nan()), "{:?}", found.betas);
}

/// attention.md section 9: each byte of a key and of a value is read once, and the seeds by each split again.
#[test]
fn keys_and_values_are_read_once() {
    let Some(engine) = engine("keys_and_values_are_read_once", 1, false) else { return };
    if !engine.is_simulated() {
        eprintln!("skipped keys_and_values_are_read_once: a GPU does not count");
        return;
    }
    for (group, query_len) in [(1, 1), (8, 1), (2, 8)] {
        let read = |v_dim, dim| {
            let query_lens = vec![query_len; 2];
            let shape = Shape { v_dim, query_lens, ..Shape::new(&[512, 1024], [2, group, dim]) };
            let mut uploaded = upload(&engine, &cache_of::<bf16>(&shape, 2.0), false);
            run(&engine, &mut uploaded, "identity", |_| ()).unwrap().bytes
        };
        let (keys, rows) = (2 * (512 + 1024), 2 * 2 * group * query_len);
        // Another 64 elements of each value: the values, and of each row its sums of all chunks. Tokens take
        // turns in the last unit.
        let (values, others) = (keys * 64 * 2, rows * 3 * 64 * 4 / 2);
        let again = 2 * 2 * 64 * (query_len - 1) * 64 * 2;
        let found = read(128, 64) - read(64, 64);
        assert!(found >= (values + others) as u64, "group {group}: {found} bytes");
        assert!(found <= (values + others + again) as u64, "group {group}: {found} bytes");
        // Another 64 elements of each key: the keys, the seeds of 1 and 2 splits, and the queries of each.
        let (seeds, queries) = (2 * 3 * 128, rows / 2 * (1 + 2));
        let most = 2 * (keys + seeds + 2 * queries + rows) * 64;
        let found = read(64, 128) - read(64, 64);
        assert!(found >= (keys * 64 * 2) as u64 && found <= most as u64, "group {group}: {found}, {most}");
    }
}

/// A value that only the last token of a sequence sees is its own affair, and so is a row that is poisoned.
#[test]
fn nan_stays_in_its_rows() {
    let Some(engine) = engine("nan_stays_in_its_rows", 1, true) else { return };
    let shape = Shape { query_lens: vec![3, 3], ..Shape::new(&[70, 80], [1, 2, 64]) };
    let cache = cache_of::<bf16>(&shape, 2.0);
    let rows = |found: &Found| -> Vec<Vec<u32>> { found.out.chunks(64).map(bits).collect() };
    let nan = |row: &[u32]| row.iter().all(|&bits| f32::from_bits(bits).is_nan());
    for eps in [0.0, 0.3] {
        let of = |cache: &Cache<bf16>| {
            let mut uploaded = upload(&engine, cache, false);
            uploaded.sequences.max_len = 80;
            run(&engine, &mut uploaded, "rem:c=0.5", |call| call.eps = eps).unwrap()
        };
        let right = of(&cache);
        // Three tokens of two heads each: the last two rows of the first sequence.
        let (mut key, mut value, mut len, mut page) =
            (cache.clone(), cache.clone(), cache.clone(), cache.clone());
        key.set_key(0, 0, 69, &[f32::NAN; 64]);
        value.set_value(0, 0, 69, &[f32::NAN; 64]);
        len.lens[0] = i32::MAX;
        page.table[0] = -1;
        for (wrong, rows_of, what) in
            [(key, 4..6, "key"), (value, 4..6, "value"), (len, 0..6, "length"), (page, 0..6, "page")]
        {
            let found = of(&wrong);
            for (i, (ours, before)) in rows(&found).iter().zip(rows(&right)).enumerate() {
                let poisoned = rows_of.contains(&i);
                // What stays unread depends on the rows that share a value.
                let same = eps > 0.0 && i < 6 || *ours == before;
                assert!(
                    if poisoned { what == "value" && eps > 0.0 || nan(ours) } else { same },
                    "{what}, row {i}, eps {eps}"
                );
                assert_eq!(
                    found.betas[i].is_nan(),
                    poisoned && what != "value",
                    "{what}, row {i}, eps {eps}"
                );
            }
        }
    }
}

/// The workspace of one call serves the next, whatever its shape; the shadow and other orders of threads have
/// nothing to say.
#[test]
fn thread_orders_do_not_change_a_bit() {
    let shape = Shape { query_lens: vec![2, 0, 1], ..Shape::new(&[1100, 0, 65], [2, 5, 64]) };
    let cache = cache_of::<f16>(&shape, 3.0);
    let of = |seed, eps| {
        let engine = engine("thread_orders_do_not_change_a_bit", seed, true)?;
        let set = |call: &mut DecodeCall| call.eps = eps;
        let found = run(&engine, &mut upload(&engine, &cache, true), "ssmax:s=0.2,b=0.4", set).unwrap();
        Some((found.bits(), found.skips))
    };
    for eps in [0.0, 0.02] {
        let Some(one) = of(1, eps) else { return };
        for seed in 2..6 {
            assert_eq!(of(seed, eps).unwrap(), one, "seed {seed}");
        }
    }
}
