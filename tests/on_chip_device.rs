//! Attention whose scores stay in the shared memory of a cluster, on the simulator or with
//! CRITBETA_REQUIRE_GPU=1 on a GPU. tests/decode_device.rs and tests/attention_device.rs compare it with what
//! crosses device memory on all shapes; here are the sizes of clusters, and what moves.

#[path = "common/decoded.rs"]
mod decoded;
#[path = "common/device.rs"]
mod device;
#[path = "common/paged.rs"]
mod paged;
#[path = "common/paged_device.rs"]
mod paged_device;

use critbeta::cuda::{Arch, DecodeCall, Engine, SimtOptions};
use critbeta::{DType, Element};
use decoded::{Found, bits_of_rows, check, run};
use device::engine_of;
use half::{bf16, f16};
use paged::Shape;
use paged_device::{cache_of, upload};

const RULE: &str = "critical:ratio=1.3,cap=20,resolve=0.7";

/// An engine of so many SMs, each with so many bytes of shared memory.
fn engine(test: &str, seed: u64, sms: u32, shared: Option<u32>) -> Option<Engine> {
    let mut options = SimtOptions::of(Arch::named("sm_90").unwrap());
    (options.seed, options.arch.sm_count, options.shadow) = (seed, sms, seed > 1);
    if let Some(bytes) = shared {
        (options.arch.shared_per_sm_bytes, options.arch.shared_per_block_bytes) = (bytes + 1024, bytes);
    }
    engine_of(test, options)
}

fn simulated(test: &str) -> bool {
    let engine = engine(test, 1, 3, None);
    let simulated = engine.as_ref().is_some_and(Engine::is_simulated);
    if engine.is_some() && !simulated {
        eprintln!("skipped {test}: a GPU neither counts nor has other sizes");
    }
    simulated
}

#[test]
fn bits_depend_on_nothing_but_the_row() {
    bits_of_rows("bits_depend_on_nothing_but_the_row", RULE, 2.0, true);
}

fn agrees<T: Element>(test: &str, group: usize) {
    let shape = Shape { query_lens: vec![2, 1, 1], ..Shape::new(&[1100, 0, 70], [2, group, 64]) };
    let cache = cache_of::<T>(&shape, 2.0);
    let of = |sms, seed, shared, eps, on_chip| {
        let engine = engine(test, seed, sms, shared).unwrap();
        let found = run(&engine, &mut upload(&engine, &cache, true), RULE, |call| {
            (call.eps, call.rows.on_chip) = (eps, on_chip);
        });
        found.unwrap()
    };
    for eps in [0.0, 0.02] {
        let wanted = of(3, 1, None, eps, false);
        check(&cache, &wanted, None, &format!("{}, group {group}, eps {eps}", T::DTYPE));
        // Six key heads: clusters of 1, 2, 4, 8 and 16 fill so many SMs (16 rows have room in 4 CTAs only).
        for (sms, seed) in [(6, 2), (12, 3), (24, 4), (48, 5), (96, 6)] {
            let found = of(sms, seed, None, eps, true);
            let what = format!("{}, group {group}, eps {eps}, {sms} SMs", T::DTYPE);
            assert!(found.stored < wanted.stored, "{what}: {} and {}", found.stored, wanted.stored);
            assert_eq!(found.bits(), wanted.bits(), "{what}");
            assert_eq!(found.skips, wanted.skips, "{what}");
        }
    }
}

#[test]
fn clusters_of_every_size_agree() {
    let test = "clusters_of_every_size_agree";
    if !simulated(test) {
        return;
    }
    agrees::<f32>(test, 3);
    agrees::<f16>(test, 1);
    agrees::<bf16>(test, 8);
}

/// Where shared memory is scarce, rows of a key head spread over more CTAs, one CTA has its SM for itself, or
/// the scores cross device memory. No bit depends on it.
#[test]
fn scarce_memory_changes_no_bit() {
    let test = "scarce_memory_changes_no_bit";
    if !simulated(test) {
        return;
    }
    let cache = cache_of::<bf16>(&Shape::new(&[1500], [2, 4, 64]), 2.0);
    let of = |shared, sms| {
        let engine = engine(test, 2, sms, shared)?;
        run(&engine, &mut upload(&engine, &cache, false), RULE, |_| ()).ok()
    };
    let wanted = of(None, 2).unwrap();
    // Values take 37 KB in 8 rows of 64, the records 7 KB, and each of the 4 rows 6 KB.
    let mut stored = Vec::new();
    for (shared, sms) in [(140_000, 2), (72_000, 8), (60_000, 8), (52_000, 8), (46_000, 8)] {
        let found = of(Some(shared), sms).unwrap();
        assert_eq!(found.bits(), wanted.bits(), "{shared} bytes");
        stored.push(found.stored);
    }
    let scores = 2 * 4 * 1500 * 4;
    assert!(stored[..3].iter().all(|&bytes| bytes == wanted.stored), "{stored:?}, {}", wanted.stored);
    assert!(stored[4] >= wanted.stored + scores, "{stored:?}: {scores} bytes of scores");
}

/// Keys and values are read once each, no value that stays unread is loaded, and no score is stored.
#[test]
fn no_score_leaves_the_chip() {
    let test = "no_score_leaves_the_chip";
    if !simulated(test) {
        return;
    }
    // 16 rows have no room in half of an SM, so two CTAs share them, and each reads their queries.
    for (group, query_len, ctas) in [(1, 1, 1), (8, 1, 1), (2, 8, 2)] {
        let of = |dim: usize, v_dim: usize, eps: f64| -> Found {
            let engine = engine(test, 1, 4, None).unwrap();
            let query_lens = vec![query_len; 2];
            let shape = Shape { dim, v_dim, query_lens, ..Shape::new(&[512, 1024], [2, group, 64]) };
            let mut uploaded = upload(&engine, &cache_of::<bf16>(&shape, 3.0), false);
            let set = |call: &mut DecodeCall| (call.eps, call.out.dtype) = (eps, DType::F32);
            run(&engine, &mut uploaded, RULE, set).unwrap()
        };
        let (keys, rows) = (2 * (512 + 1024u64), (2 * 2 * group * query_len) as u64);
        let base = of(64, 64, 0.0);
        // For another 64 elements of each key: the key, and of each row its query.
        let found = of(128, 64, 0.0).bytes - base.bytes;
        assert_eq!(found, (keys + ctas * rows) * 64 * 2, "group {group}");
        // For another 64 elements of each value: the value, and of each row its sums of all chunks. Tokens
        // take turns in the last unit of each sequence.
        let (found, values) = (of(64, 128, 0.0).bytes - base.bytes, keys * 128 + rows * 3 * 64 * 2);
        let again = 2 * 2 * 64 * (query_len as u64 - 1) * 128;
        assert!((values..=values + again).contains(&found), "group {group}: {found}, {values} and {again}");
        // What is stored: sums of chunks, outputs, betas, reports on what stays unread.
        let chunks = rows / 2 * (1 + 2) * 64 * 4;
        let stored = chunks + rows * (64 * 4 + 4) + 2 * 2 * 16;
        assert_eq!(base.stored, stored, "group {group}");
        let few = of(64, 64, 0.05);
        let unread: u64 = few.skips.iter().map(|skip| u64::from(skip.unread)).sum();
        assert!(unread > 0 && few.stored == stored, "group {group}: {unread} keys, {} bytes", few.stored);
        assert!(base.bytes - few.bytes >= unread * 128, "group {group}");
    }
}

/// Where sequences of different lengths need several launches, each works on tokens of its own.
#[test]
fn waves_agree() {
    let test = "waves_agree";
    if !simulated(test) {
        return;
    }
    // 128 tokens have 32 MiB of scores of 32,768 keys, so the last four sequences lie in a second launch, but
    // for a token of the first of them.
    let mut query_lens = vec![8; 20];
    query_lens[3] = 7;
    let shape = Shape { page: 512, query_lens, ..Shape::new(&[20; 20], [1, 2, 64]) };
    let mut cache = cache_of::<bf16>(&shape, 2.0);
    let blocks = 64;
    let mut table = vec![-1; 20 * blocks];
    for (seq, pages) in cache.table.chunks(cache.blocks).enumerate() {
        table[seq * blocks..][..cache.blocks].copy_from_slice(pages);
    }
    (cache.table, cache.blocks) = (table, blocks);
    let of = |on_chip| {
        let engine = engine(test, 1, 640, None).unwrap();
        let mut uploaded = upload(&engine, &cache, true);
        uploaded.sequences.max_len = 1 << 15;
        run(&engine, &mut uploaded, RULE, |call| (call.eps, call.rows.on_chip) = (0.1, on_chip)).unwrap()
    };
    let (found, wanted) = (of(true), of(false));
    assert!(found.stored < wanted.stored, "{} and {}", found.stored, wanted.stored);
    assert_eq!(found.bits(), wanted.bits());
    assert_eq!(found.skips, wanted.skips);
}

/// Sequences that begin anywhere, and share tokens: rows may hold anything, but every launch ends, and a row
/// that one sequence alone has is right.
#[test]
fn starts_may_be_anything() {
    let Some(engine) = engine("starts_may_be_anything", 1, 6, None) else { return };
    let shape = Shape { query_lens: vec![1, 2, 1, 2], ..Shape::new(&[70, 300, 90, 40], [2, 3, 64]) };
    let cache = cache_of::<bf16>(&shape, 2.0);
    let right = run(&engine, &mut upload(&engine, &cache, true), RULE, |_| ()).unwrap();
    for (query_lens, alone) in
        [([1, 2, -3, 0], 0..0), ([1, 4, -2, 3], 0..1), ([-5, 9, 0, i32::MAX - 4], 0..0)]
    {
        for on_chip in [true, false] {
            let mut wrong = cache.clone();
            wrong.query_lens = query_lens.to_vec();
            let found = run(&engine, &mut upload(&engine, &wrong, true), RULE, |call| {
                (call.rows.on_chip, call.rows.queries.query_len) = (on_chip, 2);
            });
            let (found, rows) = (found.unwrap(), alone.start * 6 * 64..alone.end * 6 * 64);
            assert_eq!(found.out[rows.clone()], right.out[rows], "{query_lens:?}, on chip {on_chip}");
        }
    }
}

/// Tokens behind those of the last sequence are those of a graph that was captured for more.
#[test]
fn tokens_of_no_sequence_are_zero() {
    let Some(engine) = engine("tokens_of_no_sequence_are_zero", 2, 6, None) else { return };
    let shape = Shape { query_lens: vec![1, 2, 1, 2], ..Shape::new(&[70, 300, 90, 40], [2, 3, 64]) };
    let mut cache = cache_of::<bf16>(&shape, 2.0);
    cache.query_lens = vec![1, 2, 0, 0];
    for rule in [RULE, "velickovic"] {
        let [found, wanted] = [true, false].map(|on_chip| {
            let set = |call: &mut DecodeCall| call.rows.on_chip = on_chip;
            run(&engine, &mut upload(&engine, &cache, true), rule, set).unwrap()
        });
        assert_eq!(found.bits(), wanted.bits(), "{rule}");
        let (rows, padding) = found.out.split_at(3 * 6 * 64);
        assert!(padding.iter().all(|&v| v == 0.0) && rows.iter().any(|&v| v != 0.0), "{rule}");
    }
}
