//! Measuring attention rows over pages in device memory, on the simulator or with CRITBETA_REQUIRE_GPU=1 on a
//! GPU, beside the CPU path and the definition.

#[path = "common/device.rs"]
mod device;
#[path = "common/paged.rs"]
mod paged;
#[path = "common/paged_device.rs"]
mod paged_device;

use critbeta::attention::reference;
use critbeta::cpu::{self, Measure};
use critbeta::cuda::{Arch, DeviceMemory, Engine, MeasureCall, RowReport, SimtOptions, Workspace};
use critbeta::{Element, Error, Rescaling, Scores};
use device::engine_of;
use half::{bf16, f16};
use paged::{Cache, Layout, Shape};
use paged_device::{Uploaded, cache_of, engine, ragged, shapes, upload};

const RULE: &str = "critical:ratio=1.3,cap=20,resolve=0.7";

#[derive(Debug, PartialEq)]
struct Found {
    betas: Vec<u32>,
    /// In 64-bit words, so that NaN is equal to itself.
    reports: Vec<[u64; size_of::<RowReport>() / 8]>,
    scores: Vec<Vec<u32>>,
}

impl Found {
    fn report(&self, row: usize) -> RowReport {
        bytemuck::cast(self.reports[row])
    }
}

fn run(
    engine: &Engine,
    uploaded: &mut Uploaded,
    rule: &str,
    set: impl FnOnce(&mut MeasureCall),
) -> Result<Found, Error> {
    let rescaling: Rescaling = rule.parse().unwrap();
    let rows = (uploaded.queries.tokens * uploaded.queries.heads) as usize;
    let mut betas = engine.zeroed(4 * rows)?;
    let mut report = engine.zeroed(size_of::<RowReport>() * rows)?;
    let Uploaded { queries, keys, sequences, .. } = *uploaded;
    let mut call = MeasureCall::new(queries, keys, sequences, &rescaling, betas.address());
    (call.report, call.on_chip) = (Some(report.address()), false);
    set(&mut call);
    let bytes = call.workspace_bytes()?;
    let mut workspace = engine.zeroed(bytes as usize)?;
    let of = Workspace { address: workspace.address(), bytes };
    let others = [&mut betas, &mut report, &mut workspace];
    let mut memory: Vec<&mut DeviceMemory> = uploaded.memory.iter_mut().chain(others).collect();
    engine.measure_within(&call, of, &mut memory)?;
    let mut found = Found { betas: vec![0; rows], reports: vec![[0; 9]; rows], scores: Vec::new() };
    engine.download(&betas, 0, bytemuck::cast_slice_mut(&mut found.betas))?;
    engine.download(&report, 0, bytemuck::cast_slice_mut(&mut found.reports))?;
    let [at, stride] = call.scores_in_workspace().map(|n| n as usize);
    for row in 0..rows {
        // They are all there if the launch had one wave.
        let len = if at + 4 * rows * stride <= bytes as usize { found.report(row).len as usize } else { 0 };
        let mut scores = vec![0u32; len];
        if len > 0 {
            engine.download(&workspace, at + 4 * row * stride, bytemuck::cast_slice_mut(&mut scores))?;
        }
        found.scores.push(scores);
    }
    Ok(found)
}

/// Given the kernel's own scores, everything else is that of the CPU path; and the scores are those of the
/// definition, of f32 to the bit of the CPU path.
fn agrees<T: Element>(engine: &Engine) {
    for shape in shapes() {
        let cache = cache_of::<T>(&shape, 2.0);
        for (window, softcap, scale) in [(None, None, None), (Some(37u64), Some(30.0), Some(0.3))] {
            let mut uploaded = upload(engine, &cache, ragged(&shape));
            let found = run(engine, &mut uploaded, RULE, |call| {
                (call.window, call.softcap, call.scale, call.both) = (window, softcap, scale, true);
            });
            let found = found.unwrap();
            let rules = [RULE.parse().unwrap()];
            let mut call = critbeta::attention::DecodeCall::new(&rules);
            (call.window, call.softcap, call.scale) = (window.map(|w| w as usize), softcap, scale);
            call.measure = Some(Measure::new(0.7, None));
            let rows = reference::rows(&cache.queries(), &cache.keys(), &cache.sequences(), &call).unwrap();
            let scores =
                critbeta::attention::scores(&cache.queries(), &cache.keys(), &cache.sequences(), &call);
            for (i, (row, ours)) in rows.iter().zip(scores.unwrap()).enumerate() {
                let what = format!("{} of {shape:?}, window {window:?}, row {i}", T::DTYPE);
                let theirs: Vec<f32> = found.scores[i].iter().map(|&bits| f32::from_bits(bits)).collect();
                assert_eq!(theirs.len(), row.scores.len(), "{what}");
                for (at, (score, exact)) in theirs.iter().zip(&row.scores).enumerate() {
                    let bound = (shape.dim + 8) as f64 * 2f64.powi(-23) * row.sizes[at] + 1e-30;
                    assert!((f64::from(*score) - exact).abs() <= bound, "{what}, key {at}: {score} {exact}");
                }
                if T::DTYPE == critbeta::DType::F32 && softcap.is_none() {
                    assert_eq!(theirs, ours, "{what}");
                }
                agrees_on(&found, i, &theirs, row.position, &what);
            }
        }
    }
}

fn agrees_on(found: &Found, row: usize, scores: &[f32], position: u64, what: &str) {
    let (report, beta) = (found.report(row), f32::from_bits(found.betas[row]));
    let rule: Rescaling = RULE.parse().unwrap();
    let ours = cpu::row_report(scores, 1.0, Measure::new(0.7, None));
    let top = ours.top;
    let wanted = (top.len, top.ties, top.argmax, top.poisoned);
    let found = (report.len.into(), report.ties.into(), report.argmax.into(), report.poisoned != 0);
    assert_eq!(found, wanted, "{what}");
    assert_eq!([report.max, report.second].map(value), [top.max, top.second].map(value), "{what}");
    if !top.poisoned {
        for (found, ours) in [(report.critical, ours.critical), (report.resolved, ours.resolved)] {
            let contact = (f64::from(found.gap), u64::from(found.rank));
            assert_eq!(contact, (ours.contact_gap, ours.contact_rank), "{what}");
        }
    }
    let view = Scores::dense(scores, 1, scores.len()).unwrap();
    let mut probs = vec![0.0f32; scores.len()];
    let of_rule = cpu::softmax(&view, &rule, Some(&[position as u32]), &mut probs).unwrap()[0];
    assert_eq!(value(beta), value(of_rule.beta as f32), "{what}");
}

/// What stays on chip is measured as what crosses device memory, to the bit.
#[test]
fn rows_on_chip_have_the_same_reports() {
    let Some(engine) = engine("rows_on_chip_have_the_same_reports", 1, false) else { return };
    fn agree<T: Element>(engine: &Engine) {
        for (i, shape) in shapes().iter().enumerate() {
            let cache = cache_of::<T>(shape, 2.0);
            let law = if i == 0 { "velickovic" } else { ["identity", "rem:c=0.5"][i % 2] };
            for (rule, window, softcap) in [(RULE, None, None), (law, Some(37u64), Some(30.0))] {
                let mut uploaded = upload(engine, &cache, ragged(shape));
                uploaded.sequences.max_len = uploaded.sequences.blocks * uploaded.keys.page;
                let stored = || engine.traffic().map_or(0, |traffic| traffic.store_bytes);
                let mut of = |on_chip| {
                    let before = stored();
                    let found = run(engine, &mut uploaded, rule, |call| {
                        (call.window, call.softcap, call.both, call.on_chip) =
                            (window, softcap, true, on_chip);
                    });
                    (found.unwrap(), stored() - before)
                };
                let ((found, fewer), (wanted, bytes)) = (of(true), of(false));
                let what = format!("{} of {shape:?}, {rule}, window {window:?}", T::DTYPE);
                // Rows that share no key while it is in registers are not taken.
                let most = if T::DTYPE == critbeta::DType::F32 { 8 } else { 16 };
                let taken = shape.group * shape.query_lens.iter().max().unwrap() <= most;
                assert!(
                    fewer < bytes || !taken || !engine.is_simulated(),
                    "{what}: {fewer} of {bytes} bytes"
                );
                for (row, bits) in found.betas.iter().enumerate() {
                    assert_eq!(*bits, wanted.betas[row], "beta of row {row}, {what}");
                    assert_eq!(found.reports[row], wanted.reports[row], "report of row {row}, {what}");
                }
            }
        }
    }
    agree::<f32>(&engine);
    agree::<f16>(&engine);
    agree::<bf16>(&engine);
}

/// Every NaN is one.
fn value(number: f32) -> u32 {
    if number.is_nan() { f32::NAN.to_bits() } else { number.to_bits() }
}

#[test]
fn rows_agree_with_the_cpu_and_the_definition() {
    let Some(engine) = engine("rows_agree_with_the_cpu_and_the_definition", 1, false) else { return };
    agrees::<f32>(&engine);
    agrees::<f16>(&engine);
    agrees::<bf16>(&engine);
}

/// attention.md sections 7 and 9: bits that depend on the batch, the splits, the page or the layout.
#[test]
fn bits_depend_on_nothing_but_the_row() {
    let name = "bits_depend_on_nothing_but_the_row";
    let base = Shape { query_lens: vec![2, 1], ..Shape::new(&[300, 40], [2, 3, 80]) };
    let of = |seed, sms, shape: &Shape, batch: &[usize]| {
        let mut options = SimtOptions::of(Arch::named("sm_90").unwrap());
        (options.seed, options.arch.sm_count) = (seed, sms);
        let engine = engine_of(name, options)?;
        let mut shape = shape.clone();
        shape.lens.extend(batch);
        shape.query_lens.extend(batch.iter().map(|_| 1));
        let mut uploaded = upload(&engine, &cache_of::<bf16>(&shape, 2.0), true);
        let mut found = run(&engine, &mut uploaded, RULE, |_| ()).unwrap();
        // The rows of the first two sequences.
        found.betas.truncate(18);
        found.reports.truncate(18);
        found.scores.truncate(18);
        Some(found)
    };
    let Some(one) = of(1, 3, &base, &[]) else { return };
    for page in [1, 3, 64, 400] {
        for layout in [Layout::Nhd, Layout::Hnd, Layout::Interleaved] {
            let shape = Shape { page, layout, ..base.clone() };
            assert_eq!(of(2, 3, &shape, &[]).unwrap(), one, "pages of {page}, {layout:?}");
        }
    }
    assert_eq!(of(3, 40, &base, &[]).unwrap(), one, "more splits");
    assert_eq!(of(4, 3, &base, &[77, 1, 500]).unwrap(), one, "a larger batch");
}

/// A graph that was captured for long sequences is replayed for short ones, padding and all.
#[test]
fn a_launch_for_longer_sequences_gives_the_same_bits() {
    let Some(engine) = engine("a_launch_for_longer_sequences", 1, false) else { return };
    let shape = Shape { page: 64, ..Shape::new(&[300, 0, 40], [2, 3, 64]) };
    let mut cache = cache_of::<f32>(&shape, 2.0);
    let ones =
        [false, true].map(|ragged| run(&engine, &mut upload(&engine, &cache, ragged), RULE, |_| ()).unwrap());
    // A million keys a row: each wave has the rows of one token.
    let blocks = (1 << 20) / 64;
    let mut table = vec![-1; 3 * blocks];
    for seq in 0..3 {
        table[seq * blocks..][..cache.blocks]
            .copy_from_slice(&cache.table[seq * cache.blocks..][..cache.blocks]);
    }
    (cache.table, cache.blocks) = (table, blocks);
    // Z is added up in the order of the kernel that its width asks for.
    let exact = |found: &Found| found.reports.iter().map(|words| words[..7].to_vec()).collect::<Vec<_>>();
    for (ragged, one) in [false, true].into_iter().zip(&ones) {
        let mut uploaded = upload(&engine, &cache, ragged);
        uploaded.sequences.max_len = 1 << 20;
        let long = run(&engine, &mut uploaded, RULE, |_| ()).unwrap();
        assert_eq!((&long.betas, exact(&long)), (&one.betas, exact(one)), "ragged {ragged}");
    }
}

/// What only the device holds may be anything. Rows with it are NaN, and no other row notices.
#[test]
fn wrong_lengths_and_pages_poison_their_own_rows() {
    let Some(engine) = engine("wrong_lengths_and_pages", 1, true) else { return };
    let shape = Shape::new(&[70, 80, 90, 100, 30], [2, 2, 64]);
    let cache = cache_of::<bf16>(&shape, 2.0);
    for on_chip in [false, true] {
        poisons(&engine, &cache, on_chip);
    }
}

fn poisons(engine: &Engine, cache: &Cache<bf16>, on_chip: bool) {
    let right = run(engine, &mut upload(engine, cache, false), RULE, |_| ()).unwrap();
    let mut wrong = cache.clone();
    wrong.lens[0] = -3;
    wrong.lens[1] = i32::MAX;
    wrong.table[2 * wrong.blocks + 1] = -1;
    wrong.table[3 * wrong.blocks + 2] = wrong.sizes[0][0] as i32;
    let mut uploaded = upload(engine, &wrong, false);
    uploaded.sequences.max_len = 100;
    let found = run(engine, &mut uploaded, RULE, |call| call.on_chip = on_chip).unwrap();
    for row in 0..20 {
        let (seq, report) = (row / 4, found.report(row));
        if seq == 4 {
            assert_eq!((found.betas[row], found.reports[row]), (right.betas[row], right.reports[row]));
            continue;
        }
        assert_eq!(report.poisoned, 1, "sequence {seq}");
        assert!(f32::from_bits(found.betas[row]).is_nan(), "sequence {seq}");
        let first = [0, 0, 16, 32][seq];
        assert_eq!(report.argmax, first, "sequence {seq}");
    }
}

/// attention.md section 9: each byte of a key is read once, and so is each score.
#[test]
fn every_key_is_read_once() {
    let Some(engine) = engine("every_key_is_read_once", 1, false) else { return };
    if !engine.is_simulated() {
        eprintln!("skipped every_key_is_read_once: a GPU does not count");
        return;
    }
    for (group, query_len) in [(1, 1), (8, 1), (4, 8)] {
        let read = |dim: usize| {
            let query_lens = vec![query_len; 2];
            let shape = Shape { query_lens, ..Shape::new(&[512, 1024], [2, group, dim]) };
            let before = engine.traffic().unwrap();
            let cache = cache_of::<bf16>(&shape, 2.0);
            run(&engine, &mut upload(&engine, &cache, false), RULE, |_| ()).unwrap();
            engine.traffic().unwrap().load_bytes - before.load_bytes
        };
        // All else is the same for keys of twice as many elements: so this is the bytes of 64 elements of
        // each key of two heads, and of the queries of a head in each of 24 CTAs.
        let keys = (512 + 1024) * 2 * 64 * 2;
        let queries = 24 * query_len * group * 64 * 2;
        assert_eq!(read(128) - read(64), (keys + queries) as u64, "group {group}, {query_len} query tokens");
    }
}

/// What the host can see is an error with the numbers, before anything is enqueued.
#[test]
fn what_does_not_fit_together_is_refused() {
    let Some(engine) = engine("what_does_not_fit_together_is_refused", 1, false) else { return };
    let cache = cache_of::<bf16>(&Shape::new(&[70, 80], [2, 3, 64]), 2.0);
    type Edit = fn(&mut MeasureCall);
    let cases: [(Edit, &str); 21] = [
        (|c| c.keys.dtype = critbeta::DType::F64, "no kernel reads f64"),
        (|c| c.keys.dim = 60, "keys of 60 elements, expected a multiple of 8 in 64..=256"),
        (|c| c.keys.dim = 264, "keys of 264 elements"),
        (|c| c.keys.heads = 1 << 17, "131072 key heads, expected 1 to 65536"),
        (|c| c.keys.heads = 4, "6 query heads: 4 key heads must divide them into groups of 1 to 128"),
        (|c| c.queries.query_len = 9, "9 query tokens of a sequence, expected 1 to 8"),
        (|c| c.queries.tokens = 3, "3 query tokens, expected 1 for each of 2 sequences"),
        (|c| c.sequences.seqs = 0, "0 sequences and 2 query tokens"),
        (|c| c.keys.pages = 1 << 31, "2147483648 pages of 16 slots"),
        (|c| c.sequences.max_len = 97, "max_len 97, expected 1 to 16777216 and no more than 6 pages"),
        (|c| c.sequences.max_len = 0, "max_len 0"),
        (|c| c.sequences.stride = 5, "a table of 6 entries in rows 5 entries apart"),
        (|c| c.window = Some(0), "window 0, expected at least 1"),
        (|c| c.scale = Some(f64::NAN), "scale NaN, expected a finite number"),
        (|c| c.softcap = Some(-1.0), "softcap -1, expected a finite number above 0"),
        (|c| c.keys.strides.head = 68, "keys with a stride of 68 elements from head to head"),
        (|c| c.queries.strides[0] = 385, "queries with a stride of 385 elements from token to token"),
        (|c| c.keys.strides.element = 2, "keys with slots 128 and elements 2 apart"),
        (|c| c.keys.address += 2, "are not aligned to 16 bytes"),
        (|c| c.betas = Some(0), "betas are at address 0"),
        (|c| c.betas = Some(c.queries.address), "overlap"),
    ];
    for (edit, expected) in cases {
        let mut uploaded = upload(&engine, &cache, false);
        let error = run(&engine, &mut uploaded, RULE, edit).unwrap_err();
        assert!(matches!(error, Error::Launch { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}, expected {expected}");
    }
    let mut uploaded = upload(&engine, &cache, false);
    let misaligned = run(&engine, &mut uploaded, RULE, |call| call.report = Some(call.report.unwrap() + 4));
    assert!(misaligned.unwrap_err().to_string().contains("reports at"));
}
