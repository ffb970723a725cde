//! Bad input gets an error with its numbers, and the output stays as it was.

#[path = "common/attention_probe.rs"]
mod attention_probe;
#[macro_use]
#[path = "common/paged.rs"]
mod paged;

use critbeta::Rescaling;
use critbeta::attention::{BlockTable, DecodeCall, PagedKv, Pages, Queries, Sequences, Strides, decode};
use critbeta::cpu::Measure;
use paged::{Cache, Shape};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const IDENTITY: [Rescaling; 1] = [Rescaling::Identity];

fn cache() -> Cache<f32> {
    let shape = Shape { query_lens: vec![2, 1], ..Shape::new(&[40, 20], [2, 3, 64]) };
    Cache::draw(&shape, 1.0)
}

/// The message of a call that must fail, after `out` was compared.
fn refused(cache: &Cache<f32>, call: &DecodeCall, elements: usize) -> String {
    let mut out = vec![7.0f32; elements];
    let error = decode(&cache.queries(), &cache.kv(), &cache.sequences(), call, &mut out).unwrap_err();
    assert!(out.iter().all(|&o| o == 7.0), "the output was written");
    error.to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn options_out_of_range_are_refused() {
    let (cache, rows) = (cache(), 3 * 6 * 64);
    let says = |call: DecodeCall, parts: &[&str]| assert_says(&refused(&cache, &call, rows), parts);
    for eps in [-1e-9, 1.0, 2.0, f64::NAN, f64::INFINITY] {
        says(call!(&IDENTITY, eps = eps), &["eps", &eps.to_string(), "at least 0 and below 1"]);
    }
    for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        says(call!(&IDENTITY, softcap = Some(cap)), &["softcap", &cap.to_string()]);
    }
    says(call!(&IDENTITY, scale = Some(f64::NAN)), &["scale NaN"]);
    says(call!(&IDENTITY, window = Some(0)), &["window 0", "at least 1"]);
    says(call!(&IDENTITY, measure = Some(Measure::new(-1.0, None))), &["resolve -1"]);
    let two = [Rescaling::Identity, Rescaling::Identity];
    says(call!(&two), &["2 rescalings", "6 query heads"]);
    says(call!(&[]), &["0 rescalings"]);
    let radii = vec![1.0f32; cache.sizes[1][0] * 2];
    says(call!(&IDENTITY, v_radius = Some(&radii[1..])), &["radii", "x 2 kv heads"]);
    for bad in [-1.0, f32::NAN] {
        let mut radii = radii.clone();
        let page = cache.table[0] as usize;
        radii[page * 2 + 1] = bad;
        let page = format!("page {page}, kv head 1");
        says(call!(&IDENTITY, v_radius = Some(&radii[..])), &["radius", &page, "sequence 0"]);
    }
    says(call!(&IDENTITY, centre = Some(&[0.0; 127])), &["centre of 127", "2 kv heads x 64"]);
    let mut centre = [0.0; 128];
    centre[70] = f32::INFINITY;
    says(call!(&IDENTITY, centre = Some(&centre)), &["element 70", "inf"]);
    assert_says(
        &refused(&cache, &call!(&IDENTITY), rows - 1),
        &["output of 1151", "3 tokens x 6 heads x 64"],
    );
}

#[test]
fn tables_and_lengths_that_do_not_fit_are_refused() {
    let call = call!(&IDENTITY);
    let says = |change: &dyn Fn(&mut Cache<f32>), parts: &[&str]| {
        let mut cache = cache();
        change(&mut cache);
        assert_says(&refused(&cache, &call, 3 * 6 * 64), parts);
    };
    says(&|c| c.table[1] = -1, &["page -1 in entry 1 of sequence 0", "length 40", "pool has 8 pages"]);
    says(&|c| c.table[5] = 8, &["page 8 in entry 1 of sequence 1", "length 20"]);
    says(&|c| c.lens[0] = 65, &["length 65 of sequence 0", "4 pages of 16 slots"]);
    says(&|c| c.lens[1] = -3, &["length -3 of sequence 1"]);
    says(&|c| c.query_lens[1] = 9, &["query length 9 of sequence 1", "0 to 8"]);
    says(&|c| c.query_lens[0] = -1, &["query length -1 of sequence 0"]);
    says(&|c| c.query_lens[0] = 1, &["3 query tokens", "2 in all"]);
    // An entry that the length does not need may hold anything.
    let mut unused = cache();
    unused.table[3] = i32::MAX;
    unused.decode(&call);
}

#[test]
fn heads_that_do_not_match_are_refused() {
    let cache = cache();
    let (kv, sequences) = (cache.kv(), cache.sequences());
    let lens = &cache.query_lens[..];
    let mut out = vec![0.0f32; 4096];
    let mut says = |data: &[f32], sizes: [usize; 3], parts: &[&str]| {
        let queries = Queries::dense(data, sizes).unwrap().with_lens(lens);
        let error = decode(&queries, &kv, &sequences, &call!(&IDENTITY), &mut out).unwrap_err();
        assert_says(&error.to_string(), parts);
    };
    says(&[0.0; 3 * 6 * 72], [3, 6, 72], &["queries of 72", "keys have 64"]);
    says(&[0.0; 3 * 5 * 64], [3, 5, 64], &["5 query heads", "2 kv heads"]);
    says(&[], [3, 0, 64], &["0 query heads"]);
    says(&vec![0.0; 3 * 258 * 64], [3, 258, 64], &["258 query heads", "1 to 128"]);
}

#[test]
fn views_beyond_their_memory_are_refused() {
    let data = vec![0.0f32; 4 * 16 * 2 * 64];
    let message = |r: critbeta::Result<Pages<f32>>| r.unwrap_err().to_string();
    assert_says(&message(Pages::nhd(&data, [5, 16, 2, 64])), &["5 pages x 16 slots x 2 heads x 64", "8192"]);
    assert_says(&message(Pages::nhd(&data, [3, 16, 2, 64])), &["3 pages", "8192"]);
    assert_says(&message(Pages::hnd(&data, [4, 2, 17, 64])), &["17 slots"]);
    assert_says(&message(Pages::nhd(&data, [0, 16, 2, 64])), &["at least 1"]);
    for dim in [8, 56, 65, 100, 264] {
        let says = message(Pages::nhd(&vec![0.0; 16 * 2 * dim], [1, 16, 2, dim]));
        assert_says(&says, &[&format!("{dim} elements"), "multiple of 8 in 64..=256"]);
    }
    let strides = |page, slot, element| Strides { page, slot, head: 64, element };
    let strided = |strides| Pages::strided(&data, [4, 16, 2, 64], strides);
    let broadcast = Strides { page: 64, slot: 64, head: 0, element: 1 };
    assert_says(&message(Pages::strided(&data, [1, 1, 65_537, 64], broadcast)), &["65537 heads", "65536"]);
    assert_says(&message(strided(strides(usize::MAX, 128, 1))), &["beyond", "8192"]);
    assert_says(&message(strided(strides(2048, 129, 1))), &["beyond"]);
    assert_says(&message(strided(strides(2048, 128, 0))), &["would overlap"]);
    assert_says(&message(strided(strides(2048, 0, 1))), &["would overlap"]);
    assert_says(&message(strided(strides(2048, 63, 1))), &["slots 63", "would overlap"]);
    let (k, v) = (Pages::nhd(&data, [4, 16, 2, 64]).unwrap(), Pages::nhd(&data, [8, 16, 1, 64]).unwrap());
    assert_says(&PagedKv::new(k, v).unwrap_err().to_string(), &["keys of 4 pages", "values have 8 pages"]);

    let table = |r: critbeta::Result<BlockTable>| r.unwrap_err().to_string();
    assert_says(&table(BlockTable::rows(&[0; 7], [2, 4], 4)), &["2 x 4", "7 entries"]);
    assert_says(&table(BlockTable::rows(&[0; 8], [2, 4], 3)), &["stride 3"]);
    assert_says(&table(BlockTable::rows(&[0; 8], [usize::MAX, 4], usize::MAX)), &["do not fit"]);
    assert_says(&table(BlockTable::ragged(&[0, 2, 1], &[0; 4])), &["entry 2 is 1, below 2"]);
    assert_says(&table(BlockTable::ragged(&[0, 5], &[0; 4])), &["0..5", "4 indices"]);
    assert_says(&table(BlockTable::ragged(&[-1, 2], &[0; 4])), &["-1..2"]);
    assert_says(&table(BlockTable::ragged(&[0], &[])), &["two at least"]);
    let two = BlockTable::rows(&[0; 8], [2, 4], 4).unwrap();
    let lens = Sequences::new(two, &[1i32][..]).unwrap_err().to_string();
    assert_says(&lens, &["1 lengths", "2 sequences"]);
    let queries = Queries::dense(&[0.0f32; 100], [1, 2, 64]).unwrap_err().to_string();
    assert_says(&queries, &["1 tokens x 2 heads x 64", "100 elements"]);
    let strided = Queries::strided(&[0.0f32; 128], [2, 1, 64], [65, 64, 1]).unwrap_err().to_string();
    assert_says(&strided, &["beyond", "128"]);
}

#[test]
fn ragged_tables_and_strided_queries_are_the_same_call() {
    let cache = cache();
    let (expected, _) = cache.decode(&call!(&IDENTITY));
    let indices: Vec<i32> = [&cache.table[..3], &cache.table[4..6]].concat();
    let table = BlockTable::ragged(&[0, 3, 5], &indices).unwrap();
    let lens = [40usize, 20];
    let sequences = Sequences::new(table, &lens[..]).unwrap();
    // [heads, tokens, dim] with a gap behind every vector.
    let mut moved = vec![f32::NAN; 6 * 3 * 70];
    for (token, head) in (0..3).flat_map(|t| (0..6).map(move |h| (t, h))) {
        let from = &cache.queries[(token * 6 + head) * 64..][..64];
        moved[(head * 3 + token) * 70..][..64].copy_from_slice(from);
    }
    let query_lens = [2usize, 1];
    let queries = Queries::strided(&moved, [3, 6, 64], [70, 210, 1]).unwrap().with_lens(&query_lens[..]);
    let mut out = vec![0.0f32; expected.len()];
    decode(&queries, &cache.kv(), &sequences, &call!(&IDENTITY), &mut out).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn nothing_is_asked_of_nobody() {
    let data = [0.0f32; 64];
    let page = Pages::nhd(&data, [1, 1, 1, 64]).unwrap();
    let kv = PagedKv::new(page, page).unwrap();
    let sequences = Sequences::new(BlockTable::rows(&[], [0, 0], 0).unwrap(), &[0i32; 0][..]).unwrap();
    let queries = Queries::<f32>::dense(&[], [0, 4, 64]).unwrap();
    let rows = decode::<f32, f32, f32>(&queries, &kv, &sequences, &call!(&IDENTITY), &mut []).unwrap();
    assert!(rows.is_empty());
}

/// The body of a fuzz target, on seeded bytes.
#[test]
fn any_call_is_refused_or_right() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
    let (mut rows, mut refused) = (0, std::collections::BTreeSet::new());
    for _ in 0..4000 {
        let bytes: Vec<u8> = (0..rng.random_range(0..400)).map(|_| rng.random()).collect();
        match attention_probe::call_anything(&bytes) {
            Ok(found) => rows += found,
            Err(error) => {
                refused.insert(error.to_string().chars().filter(|c| c.is_alphabetic()).collect::<String>());
            }
        }
    }
    assert!(rows > 5000 && refused.len() >= 10, "{rows} rows, refused {refused:?}");
}
