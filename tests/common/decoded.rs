//! Decode attention over pages in device memory, and its comparison with the definition.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use crate::device::engine_of;
use crate::paged::{Cache, Layout, Shape, bits};
use crate::paged_device::{Uploaded, cache_of, upload};
use critbeta::attention::reference;
use critbeta::cuda::{
    Arch, DecodeCall, DeviceAttention, DeviceMemory, Engine, MeasureCall, SimtOptions, SkipReport, Workspace,
};
use critbeta::{DType, Element, Error, Rescaling};
use half::{bf16, f16};

#[derive(Debug, PartialEq)]
pub struct Found {
    pub out: Vec<f32>,
    pub betas: Vec<f32>,
    pub skips: Vec<SkipReport>,
    /// Bytes that the kernels loaded, and those that they stored.
    pub bytes: u64,
    pub stored: u64,
}

impl Found {
    pub fn bits(&self) -> (Vec<u32>, Vec<u32>) {
        (bits(&self.out), bits(&self.betas))
    }
}

pub fn run(
    engine: &Engine,
    uploaded: &mut Uploaded,
    rule: &str,
    set: impl FnOnce(&mut DecodeCall),
) -> Result<Found, Error> {
    let rescaling: Rescaling = rule.parse().unwrap();
    let Uploaded { queries, keys, values, sequences, .. } = *uploaded;
    let rows = (queries.tokens * queries.heads) as usize;
    let groups = (sequences.seqs * keys.heads) as usize;
    let elements = rows * values.dim as usize;
    let mut out = engine.uploaded(&vec![0x77; 4 * elements])?;
    let mut betas = engine.zeroed(4 * rows)?;
    let mut skips = engine.zeroed(size_of::<SkipReport>() * groups)?;
    let to = DeviceAttention::dense(out.address(), DType::F32, [queries.heads, values.dim]);
    let mut call = DecodeCall::new(queries, keys, values, sequences, &rescaling, to);
    (call.rows.betas, call.skips) = (Some(betas.address()), Some(skips.address()));
    set(&mut call);
    let bytes = call.workspace_bytes()?;
    let mut workspace = engine.zeroed(bytes as usize)?;
    let of = Workspace { address: workspace.address(), bytes };
    let others = [&mut out, &mut betas, &mut skips, &mut workspace];
    let mut memory: Vec<&mut DeviceMemory> = uploaded.memory.iter_mut().chain(others).collect();
    let traffic = || engine.traffic().map_or([0; 2], |all| [all.load_bytes, all.store_bytes]);
    let before = traffic();
    engine.decode_within(&call, of, &mut memory)?;
    let after = traffic();
    // What one pass knows of its key heads is 0 again, for the next launch.
    let mut audits = vec![1u8; 4096 * 24];
    let at = MeasureCall::ZEROED_BYTES as usize - audits.len();
    engine.download(&workspace, at, &mut audits)?;
    assert!(audits.iter().all(|&byte| byte == 0), "audits are left");
    let mut found = Found {
        out: vec![0.0; elements],
        betas: vec![0.0; rows],
        skips: vec![bytemuck::Zeroable::zeroed(); groups],
        bytes: after[0] - before[0],
        stored: after[1] - before[1],
    };
    if call.out.dtype == DType::F32 {
        engine.download(&out, 0, bytemuck::cast_slice_mut(&mut found.out))?;
    } else {
        let mut narrow = vec![0u16; elements];
        engine.download(&out, 0, bytemuck::cast_slice_mut(&mut narrow))?;
        let wide = |&bits: &u16| match call.out.dtype {
            DType::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        };
        found.out = narrow.iter().map(wide).collect();
    }
    engine.download(&betas, 0, bytemuck::cast_slice_mut(&mut found.betas))?;
    engine.download(&skips, 0, bytemuck::cast_slice_mut(&mut found.skips))?;
    Ok(found)
}

/// Every output element is that of the definition at the beta that was found, within what scores,
/// probabilities and weights may be off, and what was left unread.
pub fn check<T: Element>(cache: &Cache<T>, found: &Found, window: Option<u64>, what: &str) {
    let rules = ["identity".parse().unwrap()];
    let mut call = critbeta::attention::DecodeCall::new(&rules);
    call.window = window.map(|window| window as usize);
    let rows = reference::rows(&cache.queries(), &cache.keys(), &cache.sequences(), &call).unwrap();
    let shape = &cache.shape;
    for (i, (row, out)) in rows.iter().zip(found.out.chunks_exact(shape.v_dim)).enumerate() {
        let beta = f64::from(found.betas[i]);
        let (kv, sequences) = (cache.kv(), cache.sequences());
        let wanted = reference::output(row, &row.scores, beta, &kv, &sequences, shape.group);
        let head = row.head / shape.group;
        let keys = row.first_key..row.first_key + row.scores.len();
        let values = keys.flat_map(|at| cache.value(row.seq, head, at));
        let largest = values.fold(0.0, |most: f64, value| most.max(value.abs()));
        // Of 16 bits a score is within this of the definition, and a weight within 2^-16.
        let of_score =
            (shape.dim + 8) as f64 * 2f64.powi(-23) * row.sizes.iter().copied().fold(0.0, f64::max);
        let narrow = if T::DTYPE == DType::F32 { 2f64.powi(-20) } else { 2f64.powi(-15) };
        let dropped = f64::from(found.skips[row.seq * shape.kv_heads + head].dropped) * 2f64.powi(-32);
        let bound = (2.0 * beta * of_score + narrow + dropped) * largest;
        for (e, (ours, wanted)) in out.iter().zip(&wanted).enumerate() {
            let error = (f64::from(*ours) - wanted).abs();
            assert!(error <= bound, "{what}, row {i}, element {e}: {ours}, wanted {wanted} +- {bound:e}");
        }
    }
}

/// Asserts that the bits of rows under `rule` depend on no other sequence, split, page or layout.
/// `peak`: the deviation of scores, at which some values stay unread at eps 0.01.
pub fn bits_of_rows(test: &str, rule: &str, peak: f32, on_chip: bool) {
    let base = Shape { query_lens: vec![2, 1], ..Shape::new(&[1300, 40], [2, 3, 80]) };
    let of = |seed, sms, shape: &Shape, batch: &[usize], eps: f64| {
        let mut options = SimtOptions::of(Arch::named("sm_90").unwrap());
        (options.seed, options.arch.sm_count) = (seed, sms);
        let engine = engine_of(test, options)?;
        let mut shape = shape.clone();
        shape.lens.extend(batch);
        shape.query_lens.extend(batch.iter().map(|_| 1));
        let mut uploaded = upload(&engine, &cache_of::<bf16>(&shape, peak), true);
        let mut found = run(&engine, &mut uploaded, rule, |call| {
            (call.eps, call.rows.on_chip) = (eps, on_chip);
            call.rows.sequences.max_len = call.rows.sequences.blocks * call.rows.keys.page;
        })
        .unwrap();
        // The rows of the first two sequences.
        found.out.truncate(18 * 80);
        found.betas.truncate(18);
        Some((found.bits(), found.skips[..4].to_vec()))
    };
    for eps in [0.0, 0.01] {
        let Some(one) = of(1, 3, &base, &[], eps) else { return };
        for (page, layout) in
            [(1, Layout::Hnd), (3, Layout::Interleaved), (64, Layout::Nhd), (400, Layout::Hnd)]
        {
            let shape = Shape { page, layout, ..base.clone() };
            assert_eq!(of(2, 3, &shape, &[], eps).unwrap(), one, "pages of {page}, {layout:?}, eps {eps}");
        }
        assert_eq!(of(3, 40, &base, &[], eps).unwrap(), one, "more splits, eps {eps}");
        assert_eq!(of(4, 3, &base, &[77, 1, 500], eps).unwrap(), one, "a larger batch, eps {eps}");
        assert_eq!(one.1.iter().any(|skip| skip.unread > 0), eps > 0.0, "{:?}", one.1);
    }
}
