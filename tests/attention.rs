//! Attention on CPUs against its definition in f64, for every shape, layout and element type.

mod common;
#[macro_use]
#[path = "common/paged.rs"]
mod paged;

use critbeta::attention::{self, DecodeCall, reference};
use critbeta::cpu::Measure;
use critbeta::rescaling::RowFacts;
use critbeta::{DType, Element, Rescaling};
use half::{bf16, f16};
use paged::{Cache, LAYOUTS, Layout, Shape, bits};

fn rule(text: &str) -> [Rescaling; 1] {
    [text.parse().unwrap()]
}

/// Checks everything about a call: scores, counts, beta, LSE, outputs, and what stayed unread.
fn agrees<T: Element>(case: &str, shape: &Shape, peak: f32, call: &DecodeCall) {
    let cache = Cache::<T>::draw(shape, peak);
    agrees_on(case, &cache, call);
}

fn agrees_on<T: Element>(case: &str, cache: &Cache<T>, call: &DecodeCall) {
    let case = &format!("{case} {:?} {}", cache.shape, T::DTYPE);
    let radii = cache.radii();
    let measure = Measure::new(0.5, None);
    let mut call = *call;
    (call.v_radius, call.measure) = (Some(&radii[..]), Some(measure));
    let call = &call;
    let (queries, kv, sequences) = (cache.queries(), cache.kv(), cache.sequences());
    let scores = attention::scores(&queries, &cache.keys(), &sequences, call).unwrap();
    let expected = reference::rows(&queries, &cache.keys(), &sequences, call).unwrap();
    let reports = attention::measure(&queries, &cache.keys(), &sequences, call).unwrap();
    let (out, found) = cache.decode(call);
    assert_eq!(scores.len(), expected.len(), "{case}");
    let dims = (cache.shape.dim as f64, cache.shape.v_dim);
    for (i, (scores, expected)) in scores.iter().zip(&expected).enumerate() {
        let case = &format!("{case}: row {i}");
        assert_eq!(scores.len(), expected.scores.len(), "{case}");
        for (j, &score) in scores.iter().enumerate() {
            let error = (f64::from(score) - expected.scores[j]).abs();
            let most = dims.0 * 2f64.powi(-24) * expected.sizes[j] + 1e-40;
            assert!(error <= most, "{case} key {j}: {score}, not {} +- {most}", expected.scores[j]);
        }
        let row = critbeta::reference::Row::from_f32(scores);
        let (report, found) = (&reports[i], &found[i]);
        let found_report = found.report.unwrap();
        assert_eq!(format!("{report:?}"), format!("{found_report:?}"), "{case}");
        assert_eq!(report.critical, row.critical_beta(), "{case}");
        assert_eq!(report.resolved, row.resolved_critical_beta(0.5), "{case}");
        assert_eq!(report.top.len, scores.len() as u64, "{case}");
        let rescaling = &call.rescaling[if call.rescaling.len() == 1 { 0 } else { expected.head }];
        let mut facts = RowFacts::new(row.n(), expected.position);
        facts.critical = row.resolved_critical_beta(rescaling.resolve().unwrap_or(0.0)).beta;
        assert_eq!(found.row.beta, rescaling.beta(&facts), "{case}");
        let (beta, n) = (found.row.beta, scores.len() as f64);
        let z = beta * row.max();
        let lse = if n == 0.0 { f64::NEG_INFINITY } else { z + row.log_partition(beta) };
        assert!(
            found.lse() == lse || (found.lse() - lse).abs() <= 1e-6 + 1e-15 * z.abs(),
            "{case}: {found:?}"
        );
        assert!(found.dropped as f64 <= call.eps * 2f64.powi(32), "{case}: {found:?}");
        assert!(found.kept <= scores.len() as u64, "{case}: {found:?}");
        let out = &out[i * dims.1..][..dims.1];
        if scores.is_empty() {
            assert!(out.iter().all(|&o| o == 0.0), "{case}: an empty row gives {out:?}");
            continue;
        }
        let wide: Vec<f64> = scores.iter().map(|&s| s.into()).collect();
        let exact = reference::output(expected, &wide, beta, &kv, &sequences, cache.shape.group);
        let mut norm = 0.0;
        // 1,024 additions in f32, the rounding of a weight, and that of the output.
        let rounding = n.min(1024.0) * 2f64.powi(-24) + 2f64.powi(-20);
        let largest = radii.iter().fold(0.0f64, |a, &b| a.max(b.into()));
        for (&o, exact) in out.iter().zip(&exact) {
            let off = ((f64::from(o) - exact).abs() - rounding * largest).max(0.0);
            norm += off * off;
        }
        assert!(norm.sqrt() <= found.bound, "{case}: off by {} beyond {found:?}", norm.sqrt());
    }
}

fn agrees_as_every_type(case: &str, shape: &Shape, peak: f32, call: &DecodeCall) {
    agrees::<f32>(case, shape, peak, call);
    agrees::<f16>(case, shape, peak, call);
    agrees::<bf16>(case, shape, peak, call);
}

#[test]
fn every_layout_and_type_agrees_with_the_definition() {
    let rules = rule("critical:ratio=1.2,cap=50,resolve=0.5");
    for layout in LAYOUTS {
        for eps in [0.0, 1e-3, 0.1] {
            let shape = Shape { layout, v_dim: 72, ..Shape::new(&[100, 33, 0, 1], [2, 3, 64]) };
            agrees_as_every_type("layouts", &shape, 1.0, &call!(&rules, eps = eps));
        }
    }
}

/// attention.md section 7: lengths that are no multiple of a tile or a page, length 0.
#[test]
fn lengths_around_tiles_and_pages_agree() {
    let rules = rule("identity");
    for page in [1, 3, 16, 64, 256] {
        let lens = [0, 1, 15, 16, 17, page - 1, page, page + 1, 1023, 1024, 1025];
        for eps in [0.0, 0.01] {
            let shape = Shape { page, ..Shape::new(&lens, [1, 2, 64]) };
            agrees::<bf16>("lengths", &shape, 1.0, &call!(&rules, eps = eps));
        }
    }
    let shape = Shape { page: 64, ..Shape::new(&[4095, 4096, 4097], [1, 1, 64]) };
    agrees::<f16>("long", &shape, 1.5, &call!(&rules, eps = 1e-3));
}

/// attention.md section 7: groups that are no power of two, or above 16.
#[test]
fn every_group_agrees() {
    let rules = rule("fixed:1.1");
    for group in [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 71, 128] {
        let shape = Shape::new(&[70], [2, group, 64]);
        agrees::<bf16>("groups", &shape, 1.0, &call!(&rules, eps = 0.02));
    }
}

/// attention.md section 7: head_dim 72, 80, 96, 112, 192, and dv != d.
#[test]
fn every_head_dim_agrees() {
    let rules = rule("critical:cap=9");
    for dim in (64..=256).step_by(8) {
        let v_dim = 64 + (dim * 5 + 8) % 200 / 8 * 8;
        let shape = Shape { v_dim, ..Shape::new(&[50, 19], [1, 5, dim]) };
        agrees_as_every_type("dims", &shape, 1.0, &call!(&rules, eps = 0.02));
    }
}

/// attention.md section 7: 1 to 8 query tokens, a causal edge for each, ragged, zero tokens, and more tokens
/// than keys.
#[test]
fn every_number_of_query_tokens_agrees() {
    let rules = rule("critical:ratio=0.8,cap=20");
    for (window, eps) in [(None, 0.0), (None, 0.01), (Some(1), 0.01), (Some(20), 0.0), (Some(20), 0.05)] {
        let mut shape = Shape::new(&[60, 61, 5, 40, 0, 1037, 3], [2, 3, 64]);
        shape.query_lens = vec![8, 1, 8, 0, 2, 5, 3];
        agrees::<f32>("tokens", &shape, 1.0, &call!(&rules, window = window, eps = eps));
        agrees::<bf16>("tokens", &shape, 1.0, &call!(&rules, window = window, eps = eps));
    }
}

/// attention.md section 7: softcap is not dropped, does not overflow, and comes before the mask.
#[test]
fn softcap_agrees_for_small_and_huge_scores() {
    let rules = rule("critical:cap=30");
    for peak in [0.01, 1.0, 1e4] {
        let shape = Shape::new(&[90], [1, 4, 64]);
        for softcap in [0.5, 30.0, 1e4] {
            let call = call!(&rules, softcap = Some(softcap), eps = 1e-3);
            agrees::<f32>("softcap", &shape, peak, &call);
        }
        let call = call!(&rules, scale = Some(-0.3));
        agrees::<bf16>("scale", &shape, peak, &call);
    }
}

#[test]
fn every_head_can_have_its_own_rule() {
    let texts = ["identity", "fixed:0", "critical", "su", "llama4"];
    let mut rules: Vec<Rescaling> = texts.map(|text| text.parse().unwrap()).to_vec();
    rules.push(Rescaling::Fixed(f64::INFINITY));
    let shape = Shape::new(&[300], [1, rules.len(), 64]);
    for eps in [0.0, 0.01] {
        agrees::<f32>("rules", &shape, 1.0, &call!(&rules, eps = eps));
    }
}

/// attention.md section 7: NaN in the unused tail, table entries behind the end, and shared pages. The caches
/// of these tests are NaN and -1 wherever nobody may read, so here the same sequence reads clean memory.
#[test]
fn unused_slots_and_table_entries_change_nothing() {
    let rules = rule("critical:cap=20");
    let call = call!(&rules, eps = 0.01, window = Some(40));
    let dirty = Cache::<bf16>::draw(&Shape { page: 16, ..Shape::new(&[100], [2, 2, 64]) }, 1.0);
    let mut clean = dirty.clone();
    clean.k.iter_mut().chain(&mut clean.v).for_each(|v| *v = if v.is_nan() { bf16::ONE } else { *v });
    assert_eq!(bits(&dirty.decode(&call).0), bits(&clean.decode(&call).0));
    // Pages that the window has left may be freed: entries of -1 and of 9999.
    let mut freed = dirty.clone();
    (freed.table[0], freed.table[1]) = (-1, 9999);
    assert_eq!(bits(&freed.decode(&call).0), bits(&clean.decode(&call).0));
    // The table may end with the last entry that is in use.
    let mut tight = dirty.clone();
    tight.table.truncate(7);
    tight.blocks = 7;
    assert_eq!(bits(&tight.decode(&call).0), bits(&clean.decode(&call).0));
}

/// Sequences share pages under prefix caching, and a table may name a page twice.
#[test]
fn shared_pages_serve_every_sequence() {
    let rules = rule("critical:cap=20");
    let call = call!(&rules, eps = 0.01);
    let mut cache = Cache::<f16>::draw(&Shape::new(&[44, 60], [1, 4, 64]), 1.0);
    let (alone, _) = cache.decode(&call);
    // The second sequence is now the first one, with its queries.
    for block in 0..3 {
        cache.table[cache.blocks + block] = cache.table[block];
    }
    cache.lens[1] = 44;
    cache.shape.lens[1] = 44;
    let (first, second) = cache.queries.split_at_mut(4 * 64);
    second.copy_from_slice(first);
    let (both, _) = cache.decode(&call);
    assert_eq!(bits(&both[..4 * 64]), bits(&alone[..4 * 64]));
    assert_eq!(bits(&both[4 * 64..]), bits(&alone[..4 * 64]));
    // A page twice in one table: the reference follows the table too.
    cache.table[1] = cache.table[0];
    agrees_on("a page twice", &cache, &call);
}

/// attention.md section 7: a poisoned key poisons the rows that see it and no other.
#[test]
fn a_poisoned_key_poisons_the_rows_that_see_it() {
    let rules = rule("critical:cap=20");
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (at, window) in [(49, None), (47, None), (20, Some(26)), (46, Some(1))] {
            let mut shape = Shape::new(&[50, 30], [2, 2, 64]);
            shape.query_lens = vec![4, 1];
            let clean = Cache::<f32>::draw(&shape, 1.0);
            let mut dirty = clean.clone();
            dirty.set_key(0, 1, at, &[poison; 64]);
            for eps in [0.0, 0.01] {
                let call = call!(&rules, window = window, eps = eps);
                let ((good, _), (bad, rows)) = (clean.decode(&call), dirty.decode(&call));
                for row in 0..5 * 4 {
                    let (token, head) = (row / 4, row % 4);
                    let first = window.map_or(0, |window| 47 + token - window);
                    let sees = token < 4 && head >= 2 && (first..47 + token).contains(&at);
                    let (good, bad) = (&good[row * 64..][..64], &bad[row * 64..][..64]);
                    match sees {
                        true => assert!(bad.iter().all(|v| v.is_nan()) && rows[row].lse().is_nan(), "{row}"),
                        // A row that is not poisoned may keep other keys, because its group does.
                        false if eps > 0.0 => assert!(bad.iter().all(|v| v.is_finite()), "{row} {at}"),
                        false => assert_eq!(bits(good), bits(bad), "{row} {at} {poison}"),
                    }
                }
            }
        }
    }
}

/// A poisoned value poisons the rows that see its key, and not the other tokens of its group.
#[test]
fn a_poisoned_value_poisons_the_rows_that_see_its_key() {
    let rules = rule("identity");
    let mut shape = Shape::new(&[50], [1, 3, 64]);
    shape.query_lens = vec![4];
    let mut cache = Cache::<f32>::draw(&shape, 1.0);
    cache.set_value(0, 0, 48, &[f32::NAN; 64]);
    let (out, _) = cache.decode(&DecodeCall::new(&rules));
    for row in 0..12 {
        assert_eq!(out[row * 64].is_nan(), row / 3 >= 2, "{row}");
    }
}

/// attention.md section 7: block id x stride beyond 2^31 elements.
#[test]
fn pages_beyond_two_billion_elements_are_found() {
    use critbeta::attention::{BlockTable, PagedKv, Pages, Queries, Sequences, decode};
    // Zeroed memory that is never touched takes no room.
    let per_page = 16 * 64;
    let pages = (1usize << 31) / per_page + 2;
    let mut k = vec![0u16; pages * per_page];
    let last = (pages - 1) * per_page;
    k[last..].fill(bf16::ONE.to_bits());
    let pool: &[bf16] = bytemuck::cast_slice(&k);
    let view = Pages::nhd(pool, [pages, 16, 1, 64]).unwrap();
    let kv = PagedKv::new(view, view).unwrap();
    let ids = [pages as i32 - 1];
    let sequences = Sequences::new(BlockTable::rows(&ids, [1, 1], 1).unwrap(), &[16usize][..]).unwrap();
    let query = [1.0f32; 64];
    let mut out = [0.0f32; 64];
    let queries = Queries::dense(&query, [1, 1, 64]).unwrap();
    let rules = rule("identity");
    let rows = decode(&queries, &kv, &sequences, &DecodeCall::new(&rules), &mut out).unwrap();
    assert_eq!((rows[0].row.top.max, out), (8.0, [1.0; 64]));
}

#[test]
fn outputs_have_any_type_and_are_rounded_from_f32() {
    let rules = rule("critical:cap=9");
    let cache = Cache::<bf16>::draw(&Shape::new(&[77], [1, 4, 64]), 1.0);
    let (wide, _) = cache.decode(&DecodeCall::new(&rules));
    let mut narrow = vec![f16::ZERO; wide.len()];
    let call = DecodeCall::new(&rules);
    attention::decode(&cache.queries(), &cache.kv(), &cache.sequences(), &call, &mut narrow).unwrap();
    assert!(wide.iter().zip(&narrow).all(|(w, n)| f16::from_f32(*w) == *n));
    assert_eq!(f32::DTYPE, DType::F32);
    assert_eq!(LAYOUTS[0], Layout::Nhd);
}
