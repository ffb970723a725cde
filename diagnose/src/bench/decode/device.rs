//! A decode case on a GPU or its simulator.

use super::case::DecodeCase;
use super::runs::{Cache, Runs};
use super::{CRITICAL, DecodeMethod};
use critbeta::attention::reference;
use critbeta::cuda::{
    DecodeCall, DeviceAttention, DeviceMemory, DevicePages, DeviceQueries, DeviceSequences, Engine,
    MeasureCall, SkipReport, Workspace,
};
use critbeta::reference::Row;
use critbeta::{DType, Element, Rescaling, Result};

/// Larger than the L2 cache of any GPU.
const FLUSH_BYTES: usize = 256 << 20;
/// What is compared at a time.
const COMPARED_BYTES: usize = 16 << 20;

/// One case in device memory, ready to be run with any method and any number of times.
pub(super) struct EngineCache<'e, T: Element> {
    engine: &'e Engine,
    host: Cache<T>,
    /// The rows of the last sequence in f64.
    rows: Vec<reference::Row>,
    queries: DeviceMemory,
    /// All keys, then all values from `values_at` on.
    cache: DeviceMemory,
    values_at: usize,
    table: DeviceMemory,
    lens: DeviceMemory,
    copy: DeviceMemory,
    out: DeviceMemory,
    betas: DeviceMemory,
    skips: DeviceMemory,
    workspace: DeviceMemory,
    flush: DeviceMemory,
    /// Of the last run that was checked.
    keep: f64,
    /// Bytes that the kernels of the last run read, on the simulator.
    loaded: u64,
}

impl<'e, T: Element> EngineCache<'e, T> {
    pub(super) fn new(engine: &'e Engine, case: &DecodeCase, seed: u64) -> Result<Self> {
        let host = Cache::<T>::new(case, seed, None)?;
        let DecodeCase { seqs, heads, kv_heads, head_dim, .. } = *case;
        let values_at = size_of_val(host.pool(0)).next_multiple_of(256);
        let mut cache = engine.zeroed(values_at + size_of_val(host.pool(1)))?;
        engine.upload(&mut cache, 0, bytemuck::cast_slice(host.pool(0)))?;
        engine.upload(&mut cache, values_at, bytemuck::cast_slice(host.pool(1)))?;
        let lens: Vec<i32> = host.lens.iter().map(|&len| len as i32).collect();
        let mut placed = EngineCache {
            engine,
            rows: Vec::new(),
            queries: engine.uploaded(bytemuck::cast_slice(&host.queries))?,
            values_at,
            table: engine.uploaded(bytemuck::cast_slice(&host.ids))?,
            lens: engine.uploaded(bytemuck::cast_slice(&lens))?,
            copy: engine.zeroed(cache.bytes())?,
            cache,
            out: engine.zeroed(seqs * heads * head_dim * size_of::<T>())?,
            betas: engine.zeroed(seqs * heads * size_of::<f32>())?,
            skips: engine.zeroed(seqs * kv_heads * size_of::<SkipReport>())?,
            workspace: engine.zeroed(1)?,
            flush: engine.zeroed(if engine.is_simulated() { 1 } else { FLUSH_BYTES })?,
            keep: f64::NAN,
            loaded: 0,
            host,
        };
        let mut needed = 1;
        for &method in DecodeMethod::of_gpus() {
            let call = placed.decode(method, &placed.host.rule(method)[0]);
            needed = needed.max(call.workspace_bytes()?).max(call.rows.workspace_bytes()?);
        }
        placed.workspace = engine.zeroed(needed as usize)?;
        // Behind the check of the sizes, because it takes as long as a decode by one thread.
        placed.rows = placed.host.last_rows()?;
        Ok(placed)
    }

    fn decode<'r>(&self, method: DecodeMethod, rule: &'r Rescaling) -> DecodeCall<'r> {
        let DecodeCase { seqs, heads, head_dim, dtype, eps, .. } = self.host.case;
        let sizes = self.host.sizes().map(|size| size as u64);
        let pages = |at: usize| DevicePages::nhd(self.cache.address() + at as u64, dtype, sizes);
        let [seqs, heads, dim] = [seqs, heads, head_dim].map(|size| size as u64);
        let blocks = [seqs, self.host.blocks as u64];
        let longest = self.host.lens.iter().copied().max().unwrap_or(0) as u64;
        let mut call = DecodeCall::new(
            DeviceQueries::dense(self.queries.address(), [seqs, heads, dim]),
            pages(0),
            pages(self.values_at),
            DeviceSequences::dense(self.table.address(), blocks, self.lens.address(), longest),
            rule,
            DeviceAttention::dense(self.out.address(), dtype, [heads, dim]),
        );
        call.eps = if method.skips() { eps } else { 0.0 };
        call.skips = (call.eps > 0.0).then_some(self.skips.address());
        call.rows.betas = method.is_critical().then_some(self.betas.address());
        call
    }

    fn measure<'r>(&self, rule: &'r Rescaling) -> MeasureCall<'r> {
        let mut call = self.decode(DecodeMethod::Measure, rule).rows;
        call.betas = Some(self.betas.address());
        call
    }

    /// Betas of all rows.
    fn betas(&self) -> Result<Vec<f32>> {
        let mut betas = vec![0f32; self.betas.bytes() / size_of::<f32>()];
        self.engine.download(&self.betas, 0, bytemuck::cast_slice_mut(&mut betas))?;
        Ok(betas)
    }

    /// Measures the last sequence alone, and returns the scores of a head and its beta.
    fn measured_alone(&mut self, heads: &[usize]) -> Result<Vec<(Vec<f32>, f32)>> {
        let rule: Rescaling = CRITICAL.parse()?;
        let last = self.host.case.seqs as u64 - 1;
        let mut call = self.measure(&rule);
        let of_token = call.queries.heads * call.keys.dim * size_of::<T>() as u64;
        call.queries.address += last * of_token;
        call.sequences.table += last * call.sequences.stride * size_of::<i32>() as u64;
        call.sequences.lens += last * size_of::<i32>() as u64;
        (call.queries.tokens, call.sequences.seqs) = (1, 1);
        let EngineCache { engine, queries, cache, table, lens, betas, workspace, .. } = self;
        let of = Workspace { address: workspace.address(), bytes: workspace.bytes() as u64 };
        engine.measure_within(&call, of, &mut [queries, cache, table, lens, betas, workspace])?;
        let [at, stride] = call.scores_in_workspace().map(|number| number as usize);
        let len = self.host.lens[last as usize];
        let betas = self.betas()?;
        let of_head = |&head: &usize| {
            let mut scores = vec![0f32; len];
            let at = at + head * stride * size_of::<f32>();
            self.engine.download(&self.workspace, at, bytemuck::cast_slice_mut(&mut scores))?;
            Ok((scores, betas[head]))
        };
        heads.iter().map(of_head).collect()
    }

    /// What is wrong with the last run, which was `method`.
    ///
    /// A score is within (dim + 8) 2^-23 of the sum of its |q k|. A critical beta is exactly that of the
    /// scores, rounded to f32. An output is within its own rounding and a share of the largest value: what
    /// its scores may move weights by, 2^-15 for the weights of 16 bits and 2^-20 of f32, and what was left
    /// unread. No row lost more than eps.
    fn wrong(&mut self, method: DecodeMethod) -> Result<Option<String>> {
        if method == DecodeMethod::Copy {
            return self.wrong_copy();
        }
        let found = self.betas()?;
        let DecodeCase { seqs, heads, kv_heads, head_dim, dtype, .. } = self.host.case;
        let dropped = match self.read_skips(method)? {
            Ok(dropped) => dropped,
            Err(wrong) => return Ok(Some(wrong)),
        };
        let looked = [0, heads - 1];
        for (head, (scores, alone)) in looked.into_iter().zip(self.measured_alone(&looked)?) {
            let row = &self.rows[head];
            let size = row.sizes.iter().copied().fold(0.0, f64::max);
            let of_score = (head_dim + 8) as f64 * 2f64.powi(-23);
            let wrong = scores.iter().zip(&row.scores).zip(&row.sizes).position(|((score, exact), size)| {
                let is_near = (f64::from(*score) - exact).abs() <= of_score * size + 1e-30;
                !is_near
            });
            if let Some(at) = wrong {
                let (found, expected) = (scores[at], row.scores[at]);
                return Ok(Some(format!(
                    "head {head}: the score of key {at} is {found}, expected {expected}"
                )));
            }
            let mut beta = 1.0;
            if method == DecodeMethod::Measure || method.is_critical() {
                let resolve = self.host.rule(DecodeMethod::FullCritical)[0].resolve().unwrap_or(0.0);
                let expected = Row::from_f32(&scores).resolved_critical_beta(resolve).beta as f32;
                let found = found[(seqs - 1) * heads + head];
                if [found, alone] != [expected; 2] {
                    let detail = format!("beta {found}, and {alone} of the sequence alone");
                    return Ok(Some(format!("head {head}: {detail}, expected {expected}")));
                }
                beta = f64::from(found);
            }
            if method == DecodeMethod::Measure {
                continue;
            }
            let narrow = 2f64.powi(if dtype == DType::F32 { -20 } else { -15 });
            let lost = dropped[(seqs - 1) * kv_heads + head / (heads / kv_heads)];
            let share = 2.0 * beta * of_score * size + narrow + lost;
            let mut out = vec![T::zeroed(); head_dim];
            let at = ((seqs - 1) * heads + head) * size_of_val(&out[..]);
            self.engine.download(&self.out, at, bytemuck::cast_slice_mut(&mut out))?;
            let wrong = self.host.wrong_output(row, beta, share, &out)?;
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
        Ok(None)
    }

    /// What each key head of each sequence lost, or what is wrong with that. It notes how many values were
    /// read.
    fn read_skips(&mut self, method: DecodeMethod) -> Result<Result<Vec<f64>, String>> {
        let DecodeCase { seqs, kv_heads, eps, .. } = self.host.case;
        self.keep = 1.0;
        if !(method.skips() && eps > 0.0) {
            return Ok(Ok(vec![0.0; seqs * kv_heads]));
        }
        let mut skips: Vec<SkipReport> = vec![bytemuck::Zeroable::zeroed(); seqs * kv_heads];
        self.engine.download(&self.skips, 0, bytemuck::cast_slice_mut(&mut skips))?;
        let dropped = |skip: &SkipReport| f64::from(skip.dropped) * 2f64.powi(-32);
        for (at, skip) in skips.iter().enumerate() {
            let (seq, head) = (at / kv_heads, at % kv_heads);
            let len = self.host.lens[seq];
            if skip.keys as usize != len || skip.unread > skip.keys || dropped(skip) > eps {
                let expected = format!("expected {len} keys, and 2^-32 dropped at most {eps}");
                return Ok(Err(format!("sequence {seq}, key head {head}: {skip:?}, {expected}")));
            }
        }
        let sum = |of: fn(&SkipReport) -> u32| skips.iter().map(|skip| f64::from(of(skip))).sum::<f64>();
        self.keep = 1.0 - sum(|skip| skip.unread) / sum(|skip| skip.keys).max(1.0);
        Ok(Ok(skips.iter().map(dropped).collect()))
    }

    fn wrong_copy(&self) -> Result<Option<String>> {
        let mut found = Vec::new();
        for (pool, begin) in [(0, 0), (1, self.values_at)] {
            let bytes: &[u8] = bytemuck::cast_slice(self.host.pool(pool));
            for (at, expected) in bytes.chunks(COMPARED_BYTES).enumerate() {
                found.resize(expected.len(), 0);
                let at = begin + at * COMPARED_BYTES;
                self.engine.download(&self.copy, at, &mut found)?;
                if found != expected {
                    let last = at + expected.len();
                    return Ok(Some(format!("bytes {at} to {last} are others than those of the cache")));
                }
            }
        }
        Ok(None)
    }
}

impl<T: Element> Runs for EngineCache<'_, T> {
    fn seconds(&mut self, method: DecodeMethod) -> Result<f64> {
        let rule = self.host.rule(method)[0].clone();
        let (decode, critical) = (self.decode(method, &rule), CRITICAL.parse()?);
        let measure = self.measure(&critical);
        let before = self.engine.traffic();
        let EngineCache { engine, queries, cache, table, lens, copy, out, betas, skips, .. } = self;
        let (workspace, flush) = (&mut self.workspace, &mut self.flush);
        let of = Workspace { address: workspace.address(), bytes: workspace.bytes() as u64 };
        let memory = &mut [queries, cache, table, lens, out, betas, skips, workspace];
        let seconds = match method {
            DecodeMethod::Copy => engine.time_copy(memory[1], copy, flush),
            DecodeMethod::Measure => engine.time_measure(&measure, of, memory, flush),
            _ if DecodeMethod::of_gpus().contains(&method) => engine.time_decode(&decode, of, memory, flush),
            _ => Err(method.not_of("CPUs")),
        }?;
        let loaded =
            self.engine.traffic().zip(before).map(|(after, before)| after.load_bytes - before.load_bytes);
        self.loaded = loaded.unwrap_or(0);
        Ok(seconds)
    }

    fn checked(&mut self, method: DecodeMethod) -> Result<Option<String>> {
        // A method that writes nothing must not pass by what another one wrote: this is a NaN of every dtype.
        for memory in [&mut self.out, &mut self.betas, &mut self.skips] {
            self.engine.upload(memory, 0, &vec![0xff; memory.bytes()])?;
        }
        self.seconds(method)?;
        self.wrong(method)
    }

    fn keep(&self) -> f64 {
        self.keep
    }

    fn loaded(&self) -> Option<u64> {
        (self.loaded > 0).then_some(self.loaded)
    }

    fn safetensors(&self) -> Vec<u8> {
        self.host.safetensors()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::decode::DecodeShape;
    use critbeta::cuda::{Arch, SimtOptions};

    /// Each check is made on what another method left, which must be wrong.
    #[test]
    fn a_check_finds_what_another_method_left() {
        let Ok(engine) = Engine::simulated(SimtOptions::of(Arch::named("sm_90").unwrap())) else {
            eprintln!("skipped a_check_finds_what_another_method_left: no simulator in this build");
            return;
        };
        let shape = DecodeShape { seqs: 2, page: 16, eps: 0.3 };
        let case = DecodeCase::of_family(shape, [4, 2, 300, 64], DType::F32, "gaussian").unwrap();
        let mut cache = EngineCache::<f32>::new(&engine, &case, 1).unwrap();
        use DecodeMethod::*;
        for (run, checked, says) in [
            (Full, Copy, "bytes 0 to"),
            (Full, Decode, "SkipReport"),
            (Full, FullCritical, "beta NaN"),
            (Full, Measure, "beta NaN"),
            (FullCritical, Full, "element 0"),
            (Decode, Full, "element"),
            (Measure, Full, "element 0: NaN"),
        ] {
            assert_eq!(cache.checked(run).unwrap(), None, "{run:?}");
            let wrong = cache.wrong(checked).unwrap();
            assert!(wrong.as_ref().is_some_and(|wrong| wrong.contains(says)), "{run:?}: {wrong:?}");
        }
        assert_eq!(cache.checked(Copy).unwrap(), None);
        assert!(cache.seconds(Stream).unwrap_err().to_string().contains("stream is a method of CPUs"));
    }
}
