//! What stays unread: never more than eps in any row, truly unread, and within the certificate.

#[macro_use]
#[path = "common/paged.rs"]
mod paged;

use critbeta::Rescaling;
use critbeta::attention::{self, DecodeCall, PagedKv, Pages, Queries, reference};
use half::bf16;
use paged::{Cache, Layout, Shape, bits};
use proptest::prelude::*;

const IDENTITY: [Rescaling; 1] = [Rescaling::Identity];

/// exp(-beta gap), with the limits that a row needs.
fn weight(gap: f64, beta: f64) -> f64 {
    if gap == 0.0 || beta == 0.0 { 1.0 } else { (-beta * gap).exp() }
}

/// A cache of one sequence whose query head h has the scores `rows[h]`, exactly.
fn with_scores(rows: &[Vec<f32>]) -> Cache<f32> {
    let shape = Shape { page: 7, ..Shape::new(&[rows[0].len()], [1, rows.len(), 64]) };
    let mut cache = Cache::draw(&shape, 1.0);
    cache.queries.fill(0.0);
    for (head, row) in rows.iter().enumerate() {
        // 8 / sqrt(64) = 1.
        cache.queries[head * 64 + head] = 8.0;
        for (at, score) in row.iter().enumerate() {
            let start = cache.strides[0].page * cache.table[at / 7] as usize + at % 7 * 64;
            cache.k[start + head] = *score;
        }
    }
    cache
}

/// The probabilities of each row in f64, from the kernel's own scores.
fn probs(cache: &Cache<f32>, call: &DecodeCall) -> Vec<Vec<f64>> {
    let scores = attention::scores(&cache.queries(), &cache.keys(), &cache.sequences(), call).unwrap();
    let (_, rows) = cache.decode(call);
    let of = |(scores, beta): (&Vec<f32>, f64)| {
        let row = critbeta::reference::Row::from_f32(scores);
        let z = row.partition(beta);
        scores.iter().map(|s| weight(f64::from(row.max() as f32 - s), beta) / z).collect()
    };
    scores.iter().zip(rows.iter().map(|row| row.row.beta)).map(of).collect()
}

/// Which keys are read, found from outside: a NaN in a value reaches the output if and only if it is read.
fn read_keys(cache: &Cache<f32>, call: &DecodeCall) -> Vec<bool> {
    let n = cache.shape.lens[0];
    let reaches = |at| {
        let mut poisoned = cache.clone();
        poisoned.set_value(0, 0, at, &[f32::NAN; 64]);
        poisoned.decode(call).0[0].is_nan()
    };
    (0..n).map(reaches).collect()
}

/// Checks a call on one sequence against what it reads. Returns how many values it leaves unread.
fn check(case: &str, cache: &Cache<f32>, call: &DecodeCall) -> usize {
    let radii = cache.radii();
    let mut call = *call;
    call.v_radius = Some(&radii);
    let (out, rows) = cache.decode(&call);
    let read = read_keys(cache, &call);
    let left: Vec<usize> = (0..read.len()).filter(|&at| !read[at]).collect();
    // All of them at once must not reach the output either.
    let mut poisoned = cache.clone();
    left.iter().for_each(|&at| poisoned.set_value(0, 0, at, &[f32::NAN; 64]));
    assert_eq!(bits(&poisoned.decode(&call).0), bits(&out), "{case}");
    let expected = reference::rows(&cache.queries(), &cache.keys(), &cache.sequences(), &call).unwrap();
    for (row, probs) in probs(cache, &call).iter().enumerate() {
        let found = &rows[row];
        let mass: f64 = left.iter().map(|&at| probs[at]).sum();
        let share = found.dropped as f64 / 2f64.powi(32);
        assert!(mass <= call.eps && share <= call.eps, "{case} row {row}: {mass} in {found:?}");
        // A mass is rounded up to a unit and errs by 2^-18 relative.
        assert!(mass * (1.0 - 2f64.powi(-18)) <= share, "{case} row {row}: {mass} in {found:?}");
        let most = mass * (1.0 + 2f64.powi(-18)) + left.len() as f64 * 2f64.powi(-32);
        assert!(share <= most, "{case} row {row}: {mass} in {found:?}");
        assert_eq!(found.kept as usize, read.len() - left.len(), "{case} row {row}");
        // The bound holds, and is the sum of mass times radius.
        let (kv, sequences) = (cache.kv(), cache.sequences());
        let scores: Vec<f64> = attention::scores(&cache.queries(), &cache.keys(), &sequences, &call).unwrap()
            [row]
            .iter()
            .map(|s| f64::from(*s))
            .collect();
        let exact =
            reference::output(&expected[row], &scores, found.row.beta, &kv, &sequences, cache.shape.group);
        let out = &out[row * 64..][..64];
        let off: f64 = out.iter().zip(&exact).map(|(o, e)| (f64::from(*o) - e).powi(2)).sum::<f64>().sqrt();
        assert!(off <= found.bound + 1e-5, "{case} row {row}: off by {off}, {found:?}");
        let page = |at: usize| cache.table[at / cache.shape.page] as usize;
        let bound: f64 = left.iter().map(|&at| probs[at] * f64::from(radii[page(at)])).sum();
        let most = bound * 1.00001 + left.len() as f64 * 1e-8;
        assert!(bound <= found.bound && found.bound <= most, "{case} row {row}: {bound}, {found:?}");
    }
    left.len()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]
    #[test]
    fn no_row_leaves_more_than_eps(
        n in 1usize..80,
        group in 1usize..6,
        peak in prop::sample::select(vec![0.0f32, 0.5, 2.0, 6.0, 40.0]),
        eps in prop_oneof![Just(0.0), Just(1e-30), Just(0.5), Just(0.999999), -9.0f64..0.0],
        seed in 0u64..1000,
        rule in prop::sample::select(vec!["identity", "fixed:0", "critical", "critical:cap=30"]),
    ) {
        let eps = if eps < 0.0 { 10f64.powf(eps) } else { eps };
        let rules = [rule.parse().unwrap()];
        let shape = Shape { page: 5, seed, ..Shape::new(&[n], [1, group, 64]) };
        let cache = Cache::<f32>::draw(&shape, peak);
        let left = check("random", &cache, &call!(&rules, eps = eps));
        prop_assert!(eps >= 2f64.powi(-32) || left == 0);
    }
}

#[test]
fn adversaries_of_the_bins_stay_within_eps() {
    let uniform = vec![0.5f32; 400];
    // A uniform row cannot spare a key unless eps covers more than one in four.
    assert_eq!(
        check("uniform", &with_scores(std::slice::from_ref(&uniform)), &call!(&IDENTITY, eps = 0.05)),
        0
    );
    assert_eq!(check("one key", &with_scores(&[vec![3.0]]), &call!(&IDENTITY, eps = 0.999)), 0);
    // Two levels whose masses lie at, just below and just above the edge of a bin.
    for edge in [1.0f64, 1.25, 1.5, 1.75] {
        for nudge in [-1e-6, 0.0, 1e-6] {
            let low = (edge * 2f64.powi(-12)).ln() + nudge;
            let mut row = vec![low as f32; 100];
            row[37] = 0.0;
            for eps in [0.01, 0.03, 0.2] {
                let left = check(
                    "two levels",
                    &with_scores(std::slice::from_ref(&row)),
                    &call!(&IDENTITY, eps = eps),
                );
                // All the low keys go, or none: they are in one bin.
                assert!(left == 0 || left == 99, "{left}");
                assert!(eps < 0.05 || left == 99);
            }
        }
    }
    // Rows of a group with disjoint supports: what one can spare, the other needs.
    let half = |first: bool| (0..100).map(|j| if (j < 50) == first { 1.0 } else { -30.0 }).collect();
    let both = with_scores(&[half(true), half(false)]);
    assert_eq!(check("disjoint", &both, &call!(&IDENTITY, eps = 0.01)), 0);
    let one = with_scores(&[half(true), half(true)]);
    assert_eq!(check("joint", &one, &call!(&IDENTITY, eps = 0.01)), 50);
}

#[test]
fn budgets_at_the_sum_of_masses_are_kept() {
    // A geometric row: each prefix of masses is a sum that eps can hit.
    let row: Vec<f32> = (0..120).map(|j| -0.3 * j as f32).collect();
    let cache = with_scores(&[row]);
    let mut eps = 0.3f64;
    for _ in 0..12 {
        let (_, rows) = cache.decode(&call!(&IDENTITY, eps = eps));
        let exact = rows[0].dropped as f64 / 2f64.powi(32);
        for eps in [exact.next_down(), exact, exact.next_up(), exact * (1.0 + 2f64.powi(-17))] {
            let (_, rows) = cache.decode(&call!(&IDENTITY, eps = eps));
            assert!(rows[0].dropped as f64 <= eps * 2f64.powi(32), "{eps}: {rows:?}");
        }
        eps = exact / 3.0;
    }
    check("geometric", &cache, &call!(&IDENTITY, eps = 0.01));
}

/// attention.md section 7: skip features that silently do nothing. Values that nobody needs lie in pages that
/// are NaN throughout, and the output has the bits of a clean cache.
#[test]
fn a_skip_skips_whole_pages() {
    for layout in [Layout::Nhd, Layout::Hnd, Layout::Gaps] {
        let shape = Shape { layout, ..Shape::new(&[4000], [1, 3, 64]) };
        let mut cache = Cache::<f32>::draw(&shape, 1.0);
        // Three keys take nearly all the weight: q itself, scaled.
        for head in 0..3 {
            let q: Vec<f32> = cache.queries[head * 64..][..64].to_vec();
            let size: f32 = q.iter().map(|q| q * q).sum();
            cache.set_key(
                0,
                0,
                1500 + 900 * head,
                &q.iter().map(|q| q * 8.0 * 14.0 / size).collect::<Vec<_>>(),
            );
        }
        let call = call!(&IDENTITY, eps = 0.02);
        let (clean, rows) = cache.decode(&call);
        assert!(rows.iter().all(|row| row.kept < 1000 && row.dropped > 0), "{:?}", rows[0]);
        let reads = |cache: &Cache<f32>, page: usize| {
            let mut poisoned = cache.clone();
            (0..16).for_each(|slot| poisoned.set_value(0, 0, page * 16 + slot, &[f32::NAN; 64]));
            bits(&poisoned.decode(&call).0) != bits(&clean)
        };
        let skipped: Vec<usize> = (0..250).step_by(5).filter(|&page| !reads(&cache, page)).collect();
        assert!(skipped.len() > 10, "{} of 50 pages", skipped.len());
        for page in skipped {
            (0..16).for_each(|slot| cache.set_value(0, 0, page * 16 + slot, &[f32::NAN; 64]));
        }
        assert_eq!(bits(&cache.decode(&call).0), bits(&clean));
    }
}

/// A centre takes the common part of the values: the output stays near, and the bound with it.
#[test]
fn a_centre_stands_for_what_stays_unread() {
    let shape = Shape::new(&[900], [2, 2, 64]);
    let mut cache = Cache::<f32>::draw(&shape, 2.5);
    let centre: Vec<f32> = (0..128).map(|e| 3.0 + (e % 7) as f32).collect();
    for (at, head) in (0..900).flat_map(|at| [(at, 0), (at, 1)]) {
        let value: Vec<f32> = cache.value(0, head, at).iter().map(|v| *v as f32).collect();
        let moved: Vec<f32> = value.iter().zip(&centre[head * 64..]).map(|(v, c)| v + c).collect();
        cache.set_value(0, head, at, &moved);
    }
    let mut around = cache.radii();
    around.fill(0.0);
    for (at, head) in (0..900).flat_map(|at| [(at, 0), (at, 1)]) {
        let value = cache.value(0, head, at);
        let far: f64 = value.iter().zip(&centre[head * 64..]).map(|(v, c)| (v - f64::from(*c)).powi(2)).sum();
        let radius = &mut around[cache.table[at / 16] as usize * 2 + head];
        *radius = radius.max((far.sqrt() as f32).next_up());
    }
    let radii = cache.radii();
    let (exact, _) = cache.decode(&call!(&IDENTITY));
    let (plain, plain_rows) = cache.decode(&call!(&IDENTITY, eps = 0.02, v_radius = Some(&radii[..])));
    let call = call!(&IDENTITY, eps = 0.02, v_radius = Some(&around[..]), centre = Some(&centre[..]));
    let (shifted, rows) = cache.decode(&call);
    let off = |out: &[f32], row: usize| {
        let pairs = out[row * 64..][..64].iter().zip(&exact[row * 64..]);
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    for row in 0..4 {
        assert!(rows[row].dropped > 0 && rows[row].dropped == plain_rows[row].dropped);
        assert!(off(&plain, row) <= plain_rows[row].bound + 1e-5);
        assert!(off(&shifted, row) <= rows[row].bound + 1e-5, "{} {:?}", off(&shifted, row), rows[row]);
        assert!(off(&shifted, row) < 0.3 * off(&plain, row));
        assert!(rows[row].bound < 0.5 * plain_rows[row].bound);
    }
}

/// attention.md goal D7: the certificate is at most 15 times the error, in the median.
#[test]
fn the_certificate_is_near_the_error() {
    let mut ratios = Vec::new();
    for seed in 0..30 {
        let shape = Shape { seed, ..Shape::new(&[1500], [1, 3, 64]) };
        let cache = Cache::<f32>::draw(&shape, 3.0 + seed as f32 / 10.0);
        let radii = cache.radii();
        let (exact, _) = cache.decode(&call!(&IDENTITY));
        let (out, rows) = cache.decode(&call!(&IDENTITY, eps = 0.01, v_radius = Some(&radii[..])));
        for (row, found) in rows.iter().enumerate().filter(|(_, row)| row.dropped > 0) {
            let pairs = out[row * 64..][..64].iter().zip(&exact[row * 64..]);
            let off = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            assert!(off <= found.bound + 1e-5, "{off} {found:?}");
            ratios.push(found.bound / off);
        }
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios.len() > 60, "{}", ratios.len());
    println!("certificate / error: median {}", ratios[ratios.len() / 2]);
    assert!(ratios[ratios.len() / 2] <= 15.0, "{ratios:?}");
}

#[test]
fn eps_zero_and_below_a_unit_have_the_bits_of_the_dense_path() {
    let shape = Shape { query_lens: vec![3], ..Shape::new(&[3000], [1, 3, 72]) };
    let cache = Cache::<half::bf16>::draw(&shape, 4.0);
    let (dense, rows) = cache.decode(&call!(&IDENTITY));
    assert!(rows.iter().all(|row| (row.dropped, row.bound) == (0, 0.0) && row.kept == row.row.top.len));
    for eps in [1e-300, 2f64.powi(-33)] {
        assert_eq!(bits(&cache.decode(&call!(&IDENTITY, eps = eps)).0), bits(&dense));
    }
    // Without radii, there is no absolute bound, and it says so.
    let (_, rows) = cache.decode(&call!(&IDENTITY, eps = 0.1));
    assert!(rows.iter().all(|row| row.dropped > 0 && row.bound.is_nan()), "{:?}", rows[0]);
}

/// The keys (`which` is 0) or values (1) of one head.
fn one_head(cache: &Cache<bf16>, which: usize, head: usize) -> Pages<'_, bf16> {
    let ([pages, page, _, dim], strides) = (cache.sizes[which], cache.strides[which]);
    let pool = if which == 0 { &cache.k } else { &cache.v };
    Pages::strided(&pool[head * strides.head..], [pages, page, 1, dim], strides).unwrap()
}

/// A call takes all key heads of a sequence together. Each has its own cut, radii and centre.
#[test]
fn key_heads_choose_on_their_own() {
    for layout in [Layout::Nhd, Layout::Hnd, Layout::Transposed, Layout::Gaps] {
        let shape = Shape { layout, query_lens: vec![2], ..Shape::new(&[1100], [5, 2, 72]) };
        heads_agree(&shape, 0.0);
        let kept = heads_agree(&shape, 0.05);
        assert!(kept.iter().any(|of| *of != kept[0]), "{kept:?}");
    }
    // More rows than 16 bits count, in one bundle.
    heads_agree(&Shape { query_lens: vec![8], ..Shape::new(&[8], [65, 128, 64]) }, 0.0);
}

/// Compares some key heads with what each gives alone. Returns how many keys their first rows keep.
fn heads_agree(shape: &Shape, eps: f64) -> Vec<u64> {
    let Shape { kv_heads, group, dim, .. } = *shape;
    let tokens = shape.query_lens[0];
    let cache = Cache::<bf16>::draw(shape, 3.0);
    let (radii, centre) = (cache.radii(), vec![0.25; kv_heads * dim]);
    let rules = ["critical".parse().unwrap()];
    let call = call!(&rules, eps = eps, v_radius = Some(&radii[..]), centre = Some(&centre[..]));
    let (out, rows) = cache.decode(&call);
    let mut kept = Vec::new();
    for head in [0, 1, kv_heads - 2, kv_heads - 1] {
        let kv = PagedKv::new(one_head(&cache, 0, head), one_head(&cache, 1, head)).unwrap();
        let (first, strides) = (head * group * dim, [kv_heads * group * dim, dim, 1]);
        let queries = Queries::strided(&cache.queries[first..], [tokens, group, dim], strides).unwrap();
        let queries = queries.with_lens(&cache.query_lens[..]);
        let radii: Vec<f32> = radii.iter().skip(head).step_by(kv_heads).copied().collect();
        let centre = &centre[head * dim..][..dim];
        let call = call!(&rules, eps = eps, v_radius = Some(&radii[..]), centre = Some(centre));
        let mut own = vec![0.0f32; tokens * group * dim];
        let found = attention::decode(&queries, &kv, &cache.sequences(), &call, &mut own).unwrap();
        for token in 0..tokens {
            let at = (token * kv_heads + head) * group;
            assert_eq!(rows[at..][..group], found[token * group..][..group], "{shape:?}, {head}");
            assert_eq!(out[at * dim..][..group * dim], own[token * group * dim..][..group * dim], "{head}");
        }
        kept.push(found[0].kept);
    }
    kept
}
