//! One launch over borrowed device memory. This file describes what it reads and writes, and checks it
//! beforehand.

use super::arch::Arch;
use super::attention_params::{AttentionParams, OnChipParams};
use super::params::*;
use super::plan::{Launch, Plan};
use super::problem::Problem;
use super::rule::{Beta, Rule};
use super::spans::{Span, Spans};
use super::variants::Family;
use crate::cpu::Measure;
use crate::{DType, Error, Result};

/// Score rows in device memory. Row `r` begins at element `r * stride`. A score of -inf is masked.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DeviceRows {
    /// Device address of the first score. It needs the alignment of one element, and no more.
    pub address: u64,
    /// Element type: f32, f16 or bf16.
    pub dtype: DType,
    /// Rows, 1 to 2^31 - 1.
    pub rows: u64,
    /// Allocated width in elements, 1 to 2^24.
    pub cols: u64,
    /// Elements from the begin of one row to the begin of the next, at least `cols`.
    pub stride: u64,
    /// Device address of one u32 per row, the length of the row. Nothing behind the length is read. A length
    /// above `cols` counts as `cols`: the lengths lie in device memory, so the launch cannot check them.
    pub lens: Option<u64>,
}

impl DeviceRows {
    /// Full rows that follow each other without a space between them.
    pub fn dense(address: u64, dtype: DType, rows: u64, cols: u64) -> DeviceRows {
        DeviceRows { address, dtype, rows, cols, stride: cols, lens: None }
    }
}

/// Where the probabilities go. They have the rows and columns of the scores, and are 0 behind the length of a
/// row.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DeviceOutput {
    /// Device address of the first probability. The address, dtype and stride of the scores compute in place.
    pub address: u64,
    /// Element type: f32, or the dtype of the scores.
    pub dtype: DType,
    /// Elements from the begin of one row to the begin of the next, at least the columns of the scores.
    pub stride: u64,
    /// Nobody reads the probabilities soon. They then leave the L2 cache before other data. By default they
    /// stay for the kernel that comes next.
    pub streamed: bool,
}

impl DeviceOutput {
    /// Probabilities at `address`, whose rows begin `stride` elements apart.
    pub fn new(address: u64, dtype: DType, stride: u64) -> DeviceOutput {
        DeviceOutput { address, dtype, stride, streamed: false }
    }
}

/// One launch: it measures every row, and with an output it also writes the probabilities.
///
/// [`Call::softmax`] and [`Call::statistics`] make one. A caller then sets the other fields that it needs.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Call<'a> {
    /// The rows.
    pub scores: DeviceRows,
    /// Where the probabilities go. Without an output, `report` or `betas_out` must be set.
    pub out: Option<DeviceOutput>,
    /// Inverse temperature of each row.
    pub beta: Beta<'a>,
    /// Device address of one u32 per row, the 0-based position of its query. Without it, a row of n unmasked
    /// scores has the position n - 1. That is its last visible key, unless keys before that one are masked.
    pub positions: Option<u64>,
    /// r of the Lambda(r) that is reported, in nats, finite and >= 0. `None` is 0. A critical rescaling has
    /// an r of its own, and then this must be `None`. With an output, only a critical rescaling measures
    /// Lambda(r).
    pub resolve: Option<f64>,
    /// Counts gaps among this many largest scores only, at least 1. The report then carries a certificate.
    pub top_k: Option<usize>,
    /// Measures Lambda beside Lambda(resolve). Where resolve > 0 this is one more search. It needs `out` to
    /// be `None`.
    pub both: bool,
    /// Device address of one [`RowReport`] per row, 8-byte aligned.
    pub report: Option<u64>,
    /// Whether the report holds Z and the entropy. Without them a launch that writes no probabilities passes
    /// over the scores once less: `sum` and `gap_sum` are then not written. Beside probabilities only
    /// `gap_sum` is missing.
    pub sums: bool,
    /// Device address of one f32 per row, 4-byte aligned, for the beta that `beta` gives to the row. A caller
    /// who wants no more than that needs no report. It is NaN for a poisoned row.
    pub betas_out: Option<u64>,
    /// Whether the probabilities behind the length of a row are written, as 0.
    pub(super) fills: bool,
    /// Whether the plan depends on the columns alone, so that the bits of a row do not depend on the batch.
    pub(super) by_columns: bool,
}

/// Device memory of the caller that a launch uses as scratch.
///
/// The caller fills it with zeros once, before the first launch that uses it ([`Engine::zeroed`] does). Every
/// launch that runs to its end leaves it ready for the next one, which may have any other shape and dtype, or
/// be the replay of a CUDA graph. Launches that may run at the same time need one each.
///
/// A launch that returns an error before anything is enqueued ([`Engine::launch`] names them) leaves it as it
/// was. Where a kernel itself failed, zeros must be written again: after [`Error::Simulated`], and after a
/// CUDA error that the context survives. Other contents than these make a launch wait for ever, or compute
/// wrong betas. A launch cannot check them: they are in device memory.
///
/// [`Engine::zeroed`]: super::Engine::zeroed
/// [`Engine::launch`]: super::Engine::launch
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workspace {
    /// Device address, 256-byte aligned.
    pub address: u64,
    /// Its size in bytes, at least [`Call::workspace_bytes`].
    pub bytes: u64,
}

/// A launch that passed every check.
pub(super) struct Checked {
    pub launch: Launch,
    /// What a message says of its size: rows, and columns of each.
    pub size: (u64, u64),
    // A build without GPU code checks a call and does nothing else with it.
    #[cfg_attr(not(any(feature = "cuda", critbeta_simulator)), allow(dead_code))]
    pub params: Params,
    pub spans: Vec<Span>,
}

impl Checked {
    pub fn fail(&self, detail: String) -> Error {
        Error::Launch { rows: self.size.0, cols: self.size.1, detail }
    }
}

/// The arguments of a kernel.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(any(feature = "cuda", critbeta_simulator)), allow(dead_code))]
pub(super) enum Params {
    Rows(RowParams),
    Attention(AttentionParams),
    OnChip(OnChipParams),
}

#[cfg(any(feature = "cuda", critbeta_simulator))]
impl Params {
    /// Where they begin. A kernel takes as many bytes as it knows.
    pub fn address(&self) -> *const std::ffi::c_void {
        match self {
            Params::Rows(params) => std::ptr::from_ref(params).cast(),
            Params::Attention(params) => std::ptr::from_ref(params).cast(),
            Params::OnChip(params) => std::ptr::from_ref(params).cast(),
        }
    }
}

impl<'a> Call<'a> {
    /// A call that writes the probabilities of `scores` at `beta` to `out`. It reports nothing unless
    /// [`Call::report`] is set.
    pub fn softmax(scores: DeviceRows, out: DeviceOutput, beta: impl Into<Beta<'a>>) -> Call<'a> {
        Call { out: Some(out), report: None, ..Call::statistics(scores, 0, beta) }
    }

    /// A call that writes a [`RowReport`] on every row of `scores` at `beta` to device address `report`. It
    /// writes no probabilities.
    pub fn statistics(scores: DeviceRows, report: u64, beta: impl Into<Beta<'a>>) -> Call<'a> {
        Call {
            scores,
            out: None,
            beta: beta.into(),
            positions: None,
            resolve: None,
            top_k: None,
            both: false,
            report: Some(report),
            sums: true,
            betas_out: None,
            fills: true,
            by_columns: false,
        }
    }

    /// What the reports of this call measure. The resolve is that of its critical rescaling, or else its own.
    pub fn measure(&self) -> Measure {
        let of_rule = match self.beta {
            Beta::Rescaling(rescaling) => rescaling.resolve(),
            Beta::Each(_) => None,
        };
        Measure { resolve: of_rule.or(self.resolve).unwrap_or(0.0), top_k: self.top_k }
    }

    /// The part of this call that its plan depends on.
    pub fn problem(&self) -> Problem {
        let DeviceRows { rows, cols, dtype, .. } = self.scores;
        let family = if self.out.is_some() { Family::CriticalSoftmax } else { Family::GapProfile };
        Problem { rows, cols, dtype, family }
    }

    fn plan(&self, arch: &Arch) -> Result<Plan> {
        let choose = if self.by_columns { Plan::of_columns } else { Plan::choose };
        choose(&self.problem(), arch)
    }

    /// Bytes of workspace that a launch of this call on `arch` needs, often 0.
    ///
    /// Errors: those of [`Plan::choose`].
    pub fn workspace_bytes(&self, arch: &Arch) -> Result<u64> {
        Ok(self.plan(arch)?.workspace_bytes())
    }

    /// Errors: [`Error::Launch`] with the numbers that do not fit; [`Error::Spec`] for a rule that the
    /// kernels cannot apply.
    pub(super) fn check(&self, arch: &Arch, workspace: Option<Workspace>) -> Result<Checked> {
        let DeviceRows { address, dtype, rows, cols, stride, lens } = self.scores;
        let plan = self.plan(arch)?;
        let fail = |detail: String| Error::Launch { rows, cols, detail };
        let size = dtype.size_bytes() as u64;
        let mut spans = Spans::new(fail);
        let block =
            |stride: u64, size: u64| (rows - 1).checked_mul(stride)?.checked_add(cols)?.checked_mul(size);
        if stride < cols {
            return Err(fail(format!("scores of rows {stride} elements apart would overlap")));
        }
        spans.add("scores", address, size, block(stride, size), false)?;
        if let Some(out) = self.out {
            if out.dtype != dtype && out.dtype != DType::F32 {
                return Err(fail(format!(
                    "probabilities as {}: expected f32 or the scores' {dtype}",
                    out.dtype
                )));
            }
            if out.stride < cols {
                return Err(fail(format!(
                    "probabilities of rows {} elements apart would overlap",
                    out.stride
                )));
            }
            let size = out.dtype.size_bytes() as u64;
            spans.add("probabilities", out.address, size, block(out.stride, size), true)?;
            if self.both {
                return Err(fail(
                    "Lambda beside Lambda(resolve) is measured without probabilities only: launch twice"
                        .into(),
                ));
            }
        } else if self.report.is_none() && self.betas_out.is_none() {
            return Err(fail("neither probabilities nor reports nor betas are asked for".into()));
        }
        let each = |size: usize| Some(rows * size as u64);
        let betas = match self.beta {
            Beta::Each(address) => Some(address),
            Beta::Rescaling(_) => None,
        };
        for (name, address) in [("lens", lens), ("betas", betas), ("positions", self.positions)] {
            if let Some(address) = address {
                spans.add(name, address, 4, each(4), false)?;
            }
        }
        if let Some(address) = self.report {
            spans.add("reports", address, 8, each(size_of::<RowReport>()), true)?;
        }
        if let Some(address) = self.betas_out {
            spans.add("betas of the rule", address, 4, each(4), true)?;
        }
        let given = workspace.map_or(0, |workspace| workspace.bytes);
        if given < plan.workspace_bytes() {
            return Err(fail(format!("a workspace of {given} bytes, expected {}", plan.workspace_bytes())));
        }
        if let Some(workspace) = workspace.filter(|_| plan.workspace_bytes() > 0) {
            spans.add("workspace", workspace.address, 256, Some(plan.workspace_bytes()), true)?;
        }
        // Probabilities exactly in place of the scores are allowed.
        let in_place =
            self.out.is_some_and(|out| (out.address, out.dtype, out.stride) == (address, dtype, stride));
        let spans = spans.apart(
            |a, b| in_place && (a.name, b.name) == ("scores", "probabilities"),
            "; probabilities may only be in place of the scores at the same address, dtype and stride",
        )?;
        let params = self.params(&plan, workspace)?;
        Ok(Checked { launch: plan.launch, size: (rows, cols), params: Params::Rows(params), spans })
    }

    /// The arguments for a kernel that makes the scores itself and keeps the probabilities.
    ///
    /// Errors: [`Error::Launch`] and [`Error::Spec`] as of [`Call::check`].
    pub(super) fn row_params(&self, arch: &Arch) -> Result<RowParams> {
        let params = self.params(&self.plan(arch)?, None)?;
        Ok(RowParams { scores: 0, out: 0, resident: 0, ctas: 1, ..params })
    }

    fn params(&self, plan: &Plan, workspace: Option<Workspace>) -> Result<RowParams> {
        let DeviceRows { address, dtype, rows, cols, stride, lens } = self.scores;
        let fail = |detail: String| Err(Error::Launch { rows, cols, detail });
        let rule = Rule::of(self.beta)?;
        if let (Some(own), Some(of_rule)) = (self.resolve, rule.resolve) {
            return fail(format!("resolve {own} beside a critical rescaling, whose resolve is {of_rule}"));
        }
        let Measure { resolve, top_k } = self.measure();
        if !(resolve.is_finite() && resolve >= 0.0) {
            return fail(format!("resolve must be finite and at least 0 nats, found {resolve}"));
        }
        let top_k = match top_k {
            None => 0,
            Some(0) => return fail("top-k must be at least 1, found 0".into()),
            // A k above the columns counts every score.
            Some(k) => k.min(cols as usize) as u32,
        };
        let exceeding = smallest_exceeding(resolve);
        Ok(RowParams {
            scores: address,
            out: self.out.map_or(0, |out| out.address),
            lens: lens.unwrap_or(0),
            betas: rule.betas,
            positions: self.positions.unwrap_or(0),
            report: self.report.unwrap_or(0),
            betas_out: self.betas_out.unwrap_or(0),
            workspace: workspace.filter(|_| plan.workspace_bytes() > 0).map_or(0, |w| w.address),
            score_stride: stride,
            out_stride: self.out.map_or(0, |out| out.stride),
            p: rule.p,
            resolve,
            rows: rows as u32,
            cols: cols as u32,
            ctas: plan.launch.ctas,
            resident: plan.launch.resident,
            groups: plan.launch.groups,
            out_f32: u32::from(self.out.is_some_and(|out| out.dtype == DType::F32 && dtype != DType::F32)),
            rule: rule.kind,
            law: rule.law,
            top_k,
            both: u32::from(self.both),
            exceeding,
            excess: f64::from(exceeding).ln() - resolve,
            sums: u32::from(self.report.is_some() && self.sums),
            out_streamed: u32::from(self.out.is_some_and(|out| out.streamed)),
            out_open: u32::from(!self.fills),
        })
    }
}

/// The smallest count whose logarithm exceeds `resolve` >= 0. The host computes it, because the logarithm of
/// a GPU differs in the last bit (from that of glibc at 1,163 of the counts up to 2^24, first at 9,170).
fn smallest_exceeding(resolve: f64) -> u32 {
    // No row can have this many scores.
    const MOST: u32 = u32::MAX;
    let near = (resolve.exp() as u32).saturating_sub(2).max(1);
    (near..near.saturating_add(5)).find(|&count| f64::from(count).ln() > resolve).unwrap_or(MOST)
}
