//! A decode case in host memory: copies of a paged cache, and one run of a method on the next of them.

use super::case::{DecodeCase, Drawn, draw};
use super::{CRITICAL, DecodeMethod};
use crate::input::safetensors::stored;
use critbeta::attention::{
    self, BlockTable, DecodeCall, DecodeRow, PagedKv, Pages, Queries, Sequences, reference,
};
use critbeta::cpu::RowReport;
use critbeta::reference::Row;
use critbeta::{DType, Element, Error, Rescaling, Result};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use std::hint::black_box;
use std::time::Instant;

/// The copies of a cache have at least this many bytes, so that no run finds what it reads in a cache of the
/// CPU.
pub(super) const COLD_BYTES: usize = 256 << 20;
/// A thread reads this many bytes at a time.
const READ_BYTES: usize = 1 << 20;

/// What a bench asks of a case, whatever its dtype is.
pub(super) trait Runs {
    fn seconds(&mut self, method: DecodeMethod) -> Result<f64>;
    fn checked(&mut self, method: DecodeMethod) -> Result<Option<String>>;
    /// The share of the values that the last run read.
    fn keep(&self) -> f64;
    /// Bytes that the kernels of the last run read, where they are counted.
    fn loaded(&self) -> Option<u64> {
        None
    }
    fn safetensors(&self) -> Vec<u8>;
}

/// A cache line, where buffers begin. Vectors of keys would lie across lines otherwise.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Copies of a paged cache.
pub(super) struct Cache<T: Element> {
    pub(super) case: DecodeCase,
    drawn: Vec<Drawn<T>>,
    pub(super) queries: Vec<T>,
    /// Keys and values, copy after copy.
    pools: [Vec<Line>; 2],
    /// Page numbers [copies, seqs, blocks].
    pub(super) ids: Vec<i32>,
    pub(super) lens: Vec<usize>,
    pub(super) blocks: usize,
    copies: usize,
    /// The copy of the next run.
    next: usize,
    rules: [Rescaling; 2],
    out: Vec<T>,
    rows: Vec<DecodeRow>,
    reports: Vec<RowReport>,
    /// The first score of every row.
    firsts: Vec<f32>,
    sum: u64,
}

fn lines(case: &DecodeCase, bytes: Option<usize>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let count = bytes.map(|bytes| bytes.div_ceil(size_of::<Line>()));
    if count.is_none_or(|count| lines.try_reserve_exact(count).is_err()) {
        let detail = format!("no memory for a decode bench of {}", case.label());
        return Err(Error::Settings { detail });
    }
    lines.resize(count.unwrap_or(0), bytemuck::Zeroable::zeroed());
    Ok(lines)
}

impl<T: Element> Cache<T> {
    /// As many copies as have `cold_bytes`, and two at least; one without.
    pub(super) fn new(case: &DecodeCase, seed: u64, cold_bytes: Option<usize>) -> Result<Self> {
        let DecodeCase { seqs, heads, kv_heads, len, head_dim, page, .. } = *case;
        let blocks = len.div_ceil(page);
        let vector = kv_heads.checked_mul(head_dim);
        let size = vector.and_then(|size| size.checked_mul(page)).and_then(|size| size.checked_mul(blocks));
        let size =
            size.and_then(|size| size.checked_mul(seqs)).and_then(|size| size.checked_mul(size_of::<T>()));
        let copies = size.zip(cold_bytes).map_or(1, |(size, bytes)| bytes.div_ceil(2 * size).max(2));
        let all = size.and_then(|size| size.checked_mul(copies));
        let mut pools = [lines(case, all)?, lines(case, all)?];
        let drawn = draw::<T>(case, seed);
        let lens = case.lens();

        // Pages of a copy lie together in random order, as those of a server do after some time.
        let pages = seqs * blocks;
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut ids = Vec::with_capacity(copies * pages);
        for copy in 0..copies {
            let mut of_copy: Vec<i32> = (0..pages).map(|page| (copy * pages + page) as i32).collect();
            of_copy.shuffle(&mut rng);
            ids.extend(of_copy);
        }
        for (which, pool) in pools.iter_mut().enumerate() {
            let pool = bytemuck::cast_slice_mut::<Line, T>(pool);
            for (at, &id) in ids.iter().enumerate() {
                let (seq, block) = (at / blocks % seqs, at % blocks);
                let Drawn { k, v, .. } = &drawn[seq % drawn.len()];
                let (from, len) = (if which == 0 { k } else { v }, lens[seq]);
                let page_start = id as usize * page * kv_heads * head_dim;
                for slot in 0..page.min(len.saturating_sub(block * page)) {
                    for head in 0..kv_heads {
                        let to = page_start + (slot * kv_heads + head) * head_dim;
                        let from = &from[(head * len + block * page + slot) * head_dim..][..head_dim];
                        pool[to..to + head_dim].copy_from_slice(from);
                    }
                }
            }
        }
        let queries = (0..seqs).flat_map(|seq| drawn[seq % drawn.len()].q.iter().copied()).collect();
        let rules = [Rescaling::Identity, CRITICAL.parse()?];
        let out = vec![T::zeroed(); seqs * heads * head_dim];
        Ok(Cache {
            case: case.clone(),
            drawn,
            queries,
            pools,
            ids,
            lens,
            blocks,
            copies,
            next: 0,
            rules,
            out,
            rows: Vec::new(),
            reports: Vec::new(),
            firsts: Vec::new(),
            sum: 0,
        })
    }

    /// The shape of the pages of a pool: [pages, page, kv_heads, head_dim].
    pub(super) fn sizes(&self) -> [usize; 4] {
        let DecodeCase { seqs, kv_heads, head_dim, page, .. } = self.case;
        [self.copies * seqs * self.blocks, page, kv_heads, head_dim]
    }

    /// The elements of a pool.
    pub(super) fn pool(&self, pool: usize) -> &[T] {
        &bytemuck::cast_slice(&self.pools[pool])[..self.sizes().iter().product()]
    }

    fn pages(&self, pool: usize) -> Result<Pages<'_, T>> {
        Pages::nhd(self.pool(pool), self.sizes())
    }

    /// The keys, or the keys and values, of a copy.
    fn read(&self, copy: usize, pools: usize) -> u64 {
        let DecodeCase { seqs, kv_heads, head_dim, page, .. } = self.case;
        let bytes = seqs * self.blocks * page * kv_heads * head_dim * size_of::<T>();
        let of_pool = |pool: &Vec<Line>| {
            let copy = &bytemuck::cast_slice::<Line, u8>(pool)[copy * bytes..][..bytes];
            copy.par_chunks(READ_BYTES).map(words).reduce(|| 0, u64::wrapping_add)
        };
        self.pools[..pools].iter().map(of_pool).fold(0, u64::wrapping_add)
    }

    pub(super) fn rule(&self, method: DecodeMethod) -> &[Rescaling] {
        std::slice::from_ref(&self.rules[usize::from(method.is_critical())])
    }

    fn sequences<'a>(&'a self, copy: usize, seqs: std::ops::Range<usize>) -> Result<Sequences<'a>> {
        let first = (copy * self.case.seqs + seqs.start) * self.blocks;
        let ids = &self.ids[first..][..seqs.len() * self.blocks];
        Sequences::new(BlockTable::rows(ids, [seqs.len(), self.blocks], self.blocks)?, &self.lens[seqs])
    }

    /// The rows of the last sequence in f64, at any rule.
    pub(super) fn last_rows(&self) -> Result<Vec<reference::Row>> {
        let (queries, sequences) = self.last(0)?;
        let call = DecodeCall::new(&self.rules[..1]);
        reference::rows(&queries, &self.pages(0)?, &sequences, &call)
    }

    /// The last sequence of `copy`.
    fn last(&self, copy: usize) -> Result<(Queries<'_, T>, Sequences<'_>)> {
        let DecodeCase { seqs, heads, head_dim, .. } = self.case;
        let last = seqs - 1;
        let queries = Queries::dense(&self.queries[last * heads * head_dim..], [1, heads, head_dim])?;
        Ok((queries, self.sequences(copy, last..seqs)?))
    }

    /// What is wrong with the output of `row`, a head of the last sequence, at `beta`: an element that is
    /// further from f64 than its own rounding and `share` of the largest value.
    pub(super) fn wrong_output(
        &self,
        row: &reference::Row,
        beta: f64,
        share: f64,
        out: &[T],
    ) -> Result<Option<String>> {
        let DecodeCase { seqs, heads, kv_heads, dtype, .. } = self.case;
        let kv = PagedKv::new(self.pages(0)?, self.pages(1)?)?;
        let (_, sequences) = self.last(0)?;
        let expected = reference::output(row, &row.scores, beta, &kv, &sequences, heads / kv_heads);
        let v = &self.drawn[(seqs - 1) % self.drawn.len()].v;
        let largest = v.iter().map(|v| f64::from(v.to_f32().abs())).fold(0.0, f64::max);
        let rounding = match dtype {
            DType::F16 => 2f64.powi(-11),
            DType::Bf16 => 2f64.powi(-8),
            DType::F32 | DType::F64 => 2f64.powi(-24),
        };
        let wrong = out.iter().zip(&expected).position(|(out, expected)| {
            let allowed = largest * share + rounding * expected.abs() + 1e-7;
            // This form makes a NaN wrong too.
            let is_near = (f64::from(out.to_f32()) - expected).abs() <= allowed;
            !is_near
        });
        Ok(wrong.map(|at| {
            format!("head {} element {at}: {}, expected {}", row.head, out[at].to_f32(), expected[at])
        }))
    }

    /// What is wrong with the last run on `copy`, which was `method`. It looks at the first and the last head
    /// of the last sequence.
    fn wrong(&self, method: DecodeMethod, copy: usize) -> Result<Option<String>> {
        let DecodeCase { seqs, heads, head_dim, .. } = self.case;
        let (queries, sequences) = self.last(copy)?;
        let call = DecodeCall::new(self.rule(method));
        let scores = attention::scores(&queries, &self.pages(0)?, &sequences, &call)?;
        let rows = self.last_rows()?;
        for head in [0, heads - 1] {
            let at = (seqs - 1) * heads + head;
            if method == DecodeMethod::Keys {
                let (found, expected) = (self.firsts[at], scores[head][0]);
                if found != expected {
                    return Ok(Some(format!("head {head}: the first score is {found}, expected {expected}")));
                }
                continue;
            }
            let exact = Row::from_f32(&scores[head]);
            if method == DecodeMethod::Measure {
                let found = self.reports[at].critical;
                let expected = exact.critical_beta();
                if found.beta != expected.beta {
                    return Ok(Some(format!("head {head}: {found:?}, expected {expected:?}")));
                }
                continue;
            }
            let resolve = self.rule(method)[0].resolve();
            let beta = resolve.map_or(1.0, |resolve| exact.resolved_critical_beta(resolve).beta);
            // The peer reports nothing.
            let found = self.rows.get(at).map_or((beta, 0), |found| (found.row.beta, found.dropped));
            if found.0 != beta {
                return Ok(Some(format!("head {head}: beta {}, expected {beta}", found.0)));
            }
            let size = rows[head].sizes.iter().copied().fold(0.0, f64::max);
            // A score errs by head_dim 2^-24 of its products, and a weight by beta times that.
            let weights = beta * size * head_dim as f64 * 2f64.powi(-24) + 1e-5;
            let dropped = found.1 as f64 / 2f64.powi(32);
            let out = &self.out[at * head_dim..][..head_dim];
            let wrong = self.wrong_output(&rows[head], beta, 2.0 * (weights + dropped), out)?;
            if wrong.is_some() {
                return Ok(wrong);
            }
            let most = self.case.eps * 2f64.powi(32);
            if found.1 as f64 > if method.skips() { most } else { 0.0 } {
                return Ok(Some(format!("head {head}: {dropped} of the weights stayed unread")));
            }
        }
        Ok(None)
    }
}

impl<T: Element> Runs for Cache<T> {
    fn seconds(&mut self, method: DecodeMethod) -> Result<f64> {
        let copy = self.next;
        self.next = (copy + 1) % self.copies;
        let DecodeCase { seqs, heads, head_dim, eps, .. } = self.case;
        let mut out = std::mem::take(&mut self.out);
        let queries = Queries::dense(&self.queries, [seqs, heads, head_dim])?;
        let kv = PagedKv::new(self.pages(0)?, self.pages(1)?)?;
        let keys = self.pages(0)?;
        let sequences = self.sequences(copy, 0..seqs)?;
        let mut call = DecodeCall::new(self.rule(method));
        call.eps = if method.skips() { eps } else { 0.0 };
        let (mut rows, mut reports, mut firsts, mut sum) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let start = Instant::now();
        match method {
            DecodeMethod::Copy => return Err(method.not_of("GPUs")),
            DecodeMethod::Stream => sum = black_box(self.read(copy, 2)),
            DecodeMethod::StreamKeys => sum = black_box(self.read(copy, 1)),
            DecodeMethod::Keys => firsts = attention::first_scores(&queries, &keys, &sequences, &call)?,
            DecodeMethod::Dense => {
                attention::one_pass(&queries, &kv, &sequences, &call, &mut out)?;
            }
            DecodeMethod::Measure => reports = attention::measure(&queries, &keys, &sequences, &call)?,
            _ => rows = attention::decode(&queries, &kv, &sequences, &call, &mut out)?,
        }
        let seconds = start.elapsed().as_secs_f64();
        (self.out, self.rows, self.reports, self.sum) = (out, rows, reports, sum);
        self.firsts = firsts;
        Ok(seconds)
    }

    fn checked(&mut self, method: DecodeMethod) -> Result<Option<String>> {
        // A method that writes nothing must not pass by what another one wrote.
        self.out.fill(T::from_f32(f32::NAN));
        let copy = self.next;
        self.seconds(method)?;
        let pools = match method {
            DecodeMethod::Stream => 2,
            DecodeMethod::StreamKeys => 1,
            _ => return self.wrong(method, copy),
        };
        let (found, expected) = (self.sum, self.read(self.next, pools));
        Ok((found != expected).then(|| format!("read {found}, expected {expected}")))
    }

    fn keep(&self) -> f64 {
        let seen: u64 = self.rows.iter().map(|row| row.row.top.len).sum();
        self.rows.iter().map(|row| row.kept).sum::<u64>() as f64 / seen.max(1) as f64
    }

    fn safetensors(&self) -> Vec<u8> {
        let DecodeCase { seqs, heads, kv_heads, len, head_dim, dtype, .. } = self.case;
        let dense = |of: fn(&Drawn<T>) -> &Vec<T>| {
            let mut all = vec![T::zeroed(); seqs * kv_heads * len * head_dim];
            for (seq, to) in all.chunks_mut(kv_heads * len * head_dim).enumerate() {
                let from = of(&self.drawn[seq % self.drawn.len()]);
                let own = self.lens[seq] * head_dim;
                for (to, from) in to.chunks_mut(len * head_dim).zip(from.chunks(own)) {
                    to[..own].copy_from_slice(from);
                }
            }
            all
        };
        let (k, v) = (dense(|drawn| &drawn.k), dense(|drawn| &drawn.v));
        let cache = vec![seqs, kv_heads, len, head_dim];
        let tensors =
            [("q", vec![seqs, heads, head_dim], &self.queries), ("k", cache.clone(), &k), ("v", cache, &v)];
        let views = tensors.into_iter().map(|(name, shape, data)| {
            let bytes = bytemuck::cast_slice(data);
            (name, TensorView::new(stored(dtype), shape, bytes).expect("the shape of its own elements"))
        });
        let lens = self.lens.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
        let metadata = [("lens".to_owned(), lens)].into_iter().collect();
        safetensors::serialize(views, Some(metadata)).expect("three tensors of known sizes")
    }
}

/// The sum of the words of 8 bytes.
fn words(bytes: &[u8]) -> u64 {
    // Four places at once keep more lines on their way than the hardware requests for one: 7.4 GB/s a thread
    // was the most of one place (2026-11-29). Eight sums a place fill vectors.
    let lines: &[[u64; 8]] = bytemuck::cast_slice(&bytes[..bytes.len() / 64 * 64]);
    let quarter = lines.len() / 4;
    let (mut sums, mut parts) = ([[0u64; 8]; 4], lines.chunks_exact(quarter.max(1)));
    let mut next = || parts.next().unwrap_or_default();
    let places = [next(), next(), next(), next()];
    for at in 0..quarter {
        for (sums, place) in sums.iter_mut().zip(places) {
            sums.iter_mut().zip(place[at]).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
        }
    }
    let rest: &[u64] = bytemuck::cast_slice(&bytes[4 * quarter * 64..]);
    sums.iter().flatten().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}
