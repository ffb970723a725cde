//! What a decode step on a GPU would launch, and what it should take on paper.

use super::decode::{DecodeCall, DeviceAttention};
use super::slots;
use super::views::{DevicePages, DeviceQueries, DeviceSequences};
use crate::cuda::arch::Arch;
use crate::cuda::call::{Checked, Workspace};
use crate::cuda::model;
use crate::cuda::plan::Plan;
use crate::cuda::problem::Problem;
use crate::cuda::variants::Family;
use crate::{DType, Error, Rescaling, Result};
use std::fmt;

/// The share of the speed of a copy at which values are gathered that are not all read. Assumed.
const GATHER: f64 = 0.85;

/// The shape of a decode step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeShape {
    /// Sequences.
    pub seqs: u64,
    /// Query tokens of each.
    pub query_len: u64,
    /// Query heads.
    pub heads: u64,
    /// Key heads.
    pub kv_heads: u64,
    /// Elements of a head, of keys and of values.
    pub dim: u64,
    /// Keys of each sequence.
    pub len: u64,
    /// Slots of a page.
    pub page: u64,
    /// Element type of queries, keys, values and output.
    pub dtype: DType,
    /// The share of probabilities whose values may stay unread.
    pub eps: f64,
    /// The share of values that is then read. It depends on the rows: a guess.
    pub keep: f64,
}

/// A launch of a decode step.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    name: &'static str,
    kernel: String,
    grid: u32,
    shared_bytes: u32,
    /// Bytes that it moves from device memory, and lane slots that it issues; 0 for rows.
    bytes: f64,
    slots: f64,
    /// Seconds at a given beta and at a critical one, without the launch.
    seconds: Option<[f64; 2]>,
}

/// The launches of a decode step, its workspace and what it should take. It prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodePlan {
    shape: DecodeShape,
    arch: Arch,
    steps: Vec<Step>,
    waves: usize,
    workspace_bytes: u64,
}

impl DecodeShape {
    fn group_rows(&self) -> u64 {
        self.heads / self.kv_heads * self.query_len
    }

    fn keys(&self) -> f64 {
        (self.seqs * self.kv_heads * self.len) as f64
    }

    /// Bytes of the keys, or of the values.
    fn bytes(&self) -> f64 {
        self.keys() * (self.dim as usize * self.dtype.size_bytes()) as f64
    }

    /// Lane slots of a key on sm_90.
    fn slots(&self, family: Family) -> f64 {
        let share = if family == Family::AttentionValues { self.keep } else { 1.0 };
        slots::of_key(family, self.dtype, [self.dim, self.group_rows(), self.len], share)
    }
}

impl DecodePlan {
    /// The plan of `shape` on `arch`.
    ///
    /// Errors: [`Error::Launch`] for sizes that do not fit together, and for a GPU that is too small.
    pub fn choose(shape: &DecodeShape, arch: &Arch) -> Result<DecodePlan> {
        let DecodeShape { seqs, query_len, heads, kv_heads, dim, len, page, dtype, .. } = *shape;
        if page == 0 || query_len == 0 || heads == 0 || kv_heads == 0 || !(0.0..=1.0).contains(&shape.keep) {
            let detail = format!(
                "pages of {page} slots, {query_len} query tokens, {heads} query heads, {kv_heads} key heads, \
                 {} of the values read: expected at least 1 of each, and a share",
                shape.keep
            );
            return Err(Error::Settings { detail });
        }
        // Nothing is launched: the addresses only lie apart.
        let place = |number: u64| number << 44;
        let blocks = len.div_ceil(page);
        let sizes = [seqs.saturating_mul(blocks), page, kv_heads, dim];
        let tokens = seqs.saturating_mul(query_len);
        let mut queries = DeviceQueries::dense(place(1), [tokens, heads, dim]);
        queries.query_len = query_len;
        let keys = DevicePages::nhd(place(2), dtype, sizes);
        let values = DevicePages::nhd(place(3), dtype, sizes);
        let sequences = DeviceSequences::dense(place(4), [seqs, blocks], place(5), len);
        let identity = Rescaling::Identity;
        let out = DeviceAttention::dense(place(6), dtype, [heads, dim]);
        let mut call = DecodeCall::new(queries, keys, values, sequences, &identity, out);
        call.eps = shape.eps;
        let bytes = call.workspace_bytes()?;
        let launches = call.check(arch, Workspace { address: place(7), bytes })?;
        let family = |launch: &Checked| launch.launch.variant.family();
        let waves = launches.iter().filter(|launch| family(launch) == Family::AttentionScores).count();
        let of_wave = launches.len() / waves.max(1);
        let wave = launches.first().map_or((0, 0), |launch| launch.size);
        let share = wave.0 as f64 / (tokens * heads) as f64;
        let step = |launch: &Checked| -> Result<Step> {
            let family = family(launch);
            let (name, bytes) = match family {
                Family::AttentionScores => ("scores", shape.bytes()),
                Family::AttentionMasses => ("masses", 0.0),
                Family::AttentionValues => {
                    ("values", shape.bytes() * shape.keep / if shape.keep < 1.0 { GATHER } else { 1.0 })
                }
                _ => ("rows", 0.0),
            };
            let (bytes, slots) = (share * bytes, share * shape.keys() * shape.slots(family));
            let seconds = match name {
                "rows" => {
                    // Their scores are in the L2 cache, and the model counts them as device memory.
                    let plan = Plan::choose(&Problem::softmax(wave.0, wave.1, DType::F32), arch)?;
                    let of = |path: usize| plan.predictions().get(path).map(|of| of.seconds - model::LAUNCH);
                    of(0).zip(of(1)).map(|(plain, near)| [plain, near])
                }
                _ => model::kernel_seconds(arch, launch.launch.grid, bytes, slots).map(|of| [of; 2]),
            };
            let (grid, shared_bytes) = (launch.launch.grid, launch.launch.shared_bytes);
            Ok(Step {
                name,
                kernel: launch.launch.variant.to_string(),
                grid,
                shared_bytes,
                bytes,
                slots,
                seconds,
            })
        };
        let steps = launches.iter().take(of_wave).map(step).collect::<Result<_>>()?;
        Ok(DecodePlan { shape: *shape, arch: arch.clone(), steps, waves, workspace_bytes: bytes })
    }

    /// Seconds at a given beta and at a critical one near the top, by the model; `None` for a GPU that it
    /// does not know.
    pub fn seconds(&self) -> Option<[f64; 2]> {
        let sum = |path: usize| -> Option<f64> {
            let seconds = self.steps.iter().map(|step| Some(step.seconds?[path])).sum::<Option<f64>>()?;
            Some(model::LAUNCH + self.waves as f64 * seconds)
        };
        Some([sum(0)?, sum(1)?])
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DecodeShape { seqs, query_len, heads, kv_heads, dim, len, dtype, eps, keep, .. } = self.shape;
        writeln!(
            f,
            "decode: {seqs} x {query_len} tokens, {heads} query heads, {kv_heads} key heads of {dim} \
             {dtype}, {len} keys, eps {eps}, on {}, {} SMs",
            self.arch.name, self.arch.sm_count
        )?;
        for step in &self.steps {
            let Step { name, kernel, grid, shared_bytes, bytes, slots, .. } = step;
            write!(f, "  {name:10} {kernel}: {grid} CTAs, {shared_bytes} bytes of shared memory each")?;
            if *bytes > 0.0 {
                write!(f, ", {:.1} MB", bytes / 1e6)?;
            }
            if *slots > 0.0 {
                write!(f, ", {:.0} M lane slots", slots / 1e6)?;
            }
            writeln!(f)?;
        }
        let each = if self.waves > 1 { "; the lines above are of the first" } else { "" };
        writeln!(f, "  waves      {}, each with 32 MiB of scores at most{each}", self.waves)?;
        writeln!(f, "  workspace  {} bytes", self.workspace_bytes)?;
        let read = 100.0 * keep;
        match self.seconds() {
            None => write!(f, "  predicted  nothing: the model knows an H200"),
            Some([given, critical]) => write!(
                f,
                "  predicted  by a model that no GPU has confirmed, with {read:.0} % of the values read\n\
                 {:13}given beta {:24.1} us\n{:13}critical beta, near the top {:7.1} us",
                "",
                given * 1e6,
                "",
                critical * 1e6
            ),
        }
    }
}
