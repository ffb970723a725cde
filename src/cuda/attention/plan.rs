//! What a decode step on a GPU would launch, and what it should take on paper.

use super::decode::{DecodeCall, DeviceAttention};
use super::slots;
use super::views::{DevicePages, DeviceQueries, DeviceSequences};
use crate::cuda::arch::Arch;
use crate::cuda::call::{Checked, Workspace};
use crate::cuda::choice::groups_at_once;
use crate::cuda::model;
use crate::cuda::plan::{Launch, Plan};
use crate::cuda::problem::Problem;
use crate::cuda::variants::Family;
use crate::rescaling::Critical;
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
    /// Without the launch.
    seconds: Option<f64>,
}

/// The launches of one wave, and how many waves there are.
#[derive(Debug, Clone, PartialEq)]
struct Path {
    steps: Vec<Step>,
    waves: usize,
    /// The share of the values that is read.
    keep: f64,
}

/// The launches of a decode step at a given and at a critical beta, its workspace and what it should take. It
/// prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodePlan {
    shape: DecodeShape,
    arch: Arch,
    given: Path,
    critical: Path,
    /// The launches at a critical beta whose scores cross device memory, if those of `critical` do not.
    apart: Option<Path>,
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

    /// Lane slots of a key on sm_90, and of its value in one pass.
    fn slots(&self, family: Family) -> f64 {
        let share = if family == Family::AttentionValues { self.keep } else { 1.0 };
        let both = if family == Family::AttentionOnePass { 2.0 } else { 1.0 };
        both * slots::of_key(family, self.dtype, [self.dim, self.group_rows(), self.len], share)
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
        let out = DeviceAttention::dense(place(6), dtype, [heads, dim]);
        let path = |rescaling: &Rescaling, on_chip: bool| -> Result<(Path, u64)> {
            let mut call = DecodeCall::new(queries, keys, values, sequences, rescaling, out);
            (call.eps, call.rows.on_chip) = (shape.eps, on_chip);
            let bytes = call.workspace_bytes()?;
            let launches = call.check(arch, Workspace { address: place(7), bytes })?;
            Ok((Path::of(shape, arch, &launches)?, bytes))
        };
        let rule = Rescaling::Critical(Critical::default());
        let (given, workspace_bytes) = path(&Rescaling::Identity, true)?;
        let [critical, apart] = [path(&rule, true)?.0, path(&rule, false)?.0];
        let apart = (apart != critical).then_some(apart);
        Ok(DecodePlan { shape: *shape, arch: arch.clone(), given, critical, apart, workspace_bytes })
    }

    /// Seconds at a given beta and at a critical one near the top, by the model; `None` for a GPU that it
    /// does not know.
    pub fn seconds(&self) -> Option<[f64; 2]> {
        Some([self.given.seconds()?, self.critical.seconds()?])
    }

    /// Seconds at a critical beta near the top, by the model, if the scores crossed device memory; `None` if
    /// they do.
    pub fn seconds_off_chip(&self) -> Option<f64> {
        self.apart.as_ref()?.seconds()
    }
}

impl Path {
    fn of(shape: &DecodeShape, arch: &Arch, launches: &[Checked]) -> Result<Path> {
        let family = |launch: &Checked| launch.launch.variant.family();
        let first = launches.first().map_or(Family::AttentionScores, family);
        let one_pass = first == Family::AttentionOnePass;
        let repairs = one_pass && shape.eps > 0.0;
        let found = launches.iter().filter(|launch| family(launch) == first).count();
        let waves = (found / if repairs { 2 } else { 1 }).max(1);
        let of_wave = launches.len() / waves;
        // One pass leaves about half as many values unread (python/benches/one_pass_keep.py).
        let keep = if one_pass { (1.0 + shape.keep) / 2.0 } else { shape.keep };
        let value_bytes = shape.bytes() * keep / if keep < 1.0 { GATHER } else { 1.0 };
        let share = 1.0 / waves as f64;
        let step = |(i, launch): (usize, &Checked)| -> Result<Step> {
            let family = family(launch);
            let (name, bytes, slots) = match family {
                Family::AttentionScores => ("scores", shape.bytes(), shape.slots(family)),
                Family::AttentionMasses => ("masses", 0.0, shape.slots(family)),
                Family::AttentionValues => ("values", value_bytes, shape.slots(family)),
                Family::AttentionOnePass if i == 0 => {
                    ("one pass", shape.bytes() + value_bytes, shape.slots(family))
                }
                Family::AttentionOnePass => ("repair", 0.0, 0.0),
                Family::AttentionOnChip => {
                    let parts = [Family::AttentionScores, Family::AttentionMasses, Family::AttentionValues];
                    let used =
                        parts.into_iter().filter(|&of| of != Family::AttentionMasses || shape.eps > 0.0);
                    ("on chip", shape.bytes() + value_bytes, used.map(|of| shape.slots(of)).sum())
                }
                _ => ("rows", 0.0, 0.0),
            };
            let (bytes, slots) = (share * bytes, share * shape.keys() * slots);
            let seconds = match name {
                "rows" => {
                    // Their scores are in the L2 cache, and the model counts them as device memory.
                    let (rows, cols) = launch.size;
                    let plan = Plan::of_columns(&Problem::softmax(rows, cols, DType::F32), arch)?;
                    plan.predictions().get(1).map(|near_the_top| near_the_top.seconds - model::LAUNCH)
                }
                // Its CTAs measure while they read nothing. Two that share an SM may overlap: not counted.
                "on chip" => {
                    let Launch { grid, ctas, ctas_per_sm, .. } = launch.launch;
                    let at_once = groups_at_once(arch, ctas_per_sm, ctas);
                    let turns = u64::from(grid / ctas).div_ceil(at_once.into());
                    let rows = turns * shape.group_rows().div_ceil(ctas.into());
                    model::row_seconds(arch, shape.len)
                        .zip(model::kernel_seconds(arch, grid, bytes, slots))
                        .map(|(row, others)| others + rows as f64 * row + 4.0 * model::CLUSTER_BARRIER)
                }
                _ => model::kernel_seconds(arch, launch.launch.grid, bytes, slots),
            };
            let (grid, shared_bytes) = (launch.launch.grid, launch.launch.shared_bytes);
            let kernel = launch.launch.variant.to_string();
            Ok(Step { name, kernel, grid, shared_bytes, bytes, slots, seconds })
        };
        let steps = launches.iter().take(of_wave).enumerate().map(step).collect::<Result<_>>()?;
        Ok(Path { steps, waves, keep })
    }

    fn seconds(&self) -> Option<f64> {
        let steps = self.steps.iter().map(|step| step.seconds).sum::<Option<f64>>()?;
        Some(model::LAUNCH + self.waves as f64 * steps)
    }

    fn show(&self, beta: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = if self.waves > 1 { ", the lines are of the first" } else { "" };
        writeln!(f, "  {beta}: waves {}{each}", self.waves)?;
        for step in &self.steps {
            let Step { name, kernel, grid, shared_bytes, bytes, slots, .. } = step;
            write!(f, "    {name:9} {kernel}: {grid} CTAs, {shared_bytes} bytes of shared memory each")?;
            if *bytes > 0.0 {
                write!(f, ", {:.1} MB", bytes / 1e6)?;
            }
            if *slots > 0.0 {
                write!(f, ", {:.0} M lane slots", slots / 1e6)?;
            }
            writeln!(f)?;
        }
        match self.seconds() {
            None => writeln!(f, "    predicted nothing: the model knows an H200"),
            Some(seconds) => writeln!(
                f,
                "    predicted {:.1} us with {:.0} % of the values read, by a model that no GPU has confirmed",
                seconds * 1e6,
                100.0 * self.keep
            ),
        }
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DecodeShape { seqs, query_len, heads, kv_heads, dim, len, dtype, eps, .. } = self.shape;
        writeln!(
            f,
            "decode: {seqs} x {query_len} tokens, {heads} query heads, {kv_heads} key heads of {dim} \
             {dtype}, {len} keys, eps {eps}, on {}, {} SMs",
            self.arch.name, self.arch.sm_count
        )?;
        self.given.show("given beta", f)?;
        self.critical.show("critical beta, near the top", f)?;
        if let Some(apart) = &self.apart {
            apart.show("the same off the chip", f)?;
        }
        write!(f, "  workspace {} bytes", self.workspace_bytes)
    }
}
