//! The betas of query tokens over keys in pages: a kernel writes their scores, and the kernels for rows of
//! scores do the rest.

use super::views::{DevicePages, DeviceQueries, DeviceSequences};
use crate::cuda::arch::Arch;
use crate::cuda::attention_params::{AttentionParams, QUERY_ROWS, UNIT, WIDE_QUERY_ROWS};
use crate::cuda::call::{Call, Checked, DeviceRows, Params, Workspace};
#[cfg(doc)]
use crate::cuda::engine::Engine;
use crate::cuda::params::{GROUP_BYTES, RowReport, SLOT_BYTES, SPLIT_CTAS};
use crate::cuda::plan::Launch;
use crate::cuda::spans::Span;
use crate::cuda::variants::{Family, Variant};
use crate::{DType, Error, Rescaling, Result};
use bytemuck::Zeroable;

/// A launch works on as many sequences at once as have so many bytes of scores, or on one. They then stay in
/// the L2 cache of an H200 until they are read again.
const SCORE_BYTES: u64 = 32 << 20;
/// What the kernels for rows need at most, at the begin of the workspace. So every shape has it there.
const ROW_BYTES: u64 = (SPLIT_CTAS * (SLOT_BYTES + GROUP_BYTES)) as u64;
/// Key heads that one pass works on at once, at most: each has an audit in the workspace.
pub(super) const AUDITS: u64 = 4096;
const AUDIT_BYTES: u64 = 24;
/// Where the audits are, behind what the kernels for rows need.
const AUDITS_AT: u64 = ROW_BYTES.next_multiple_of(256);
/// CTAs of a launch for each SM: four share one, and each begins and ends at its own time.
const CTAS_PER_SM: u64 = 8;

/// The measured inverse temperatures of query tokens over keys in pages, in device memory.
///
/// A row is one query token and head, in the order `[tokens, heads]`. It sees the keys up to its token's own
/// position, which is `len - q_len + i` for token `i` of a sequence. A score is as in
/// [`crate::attention::DecodeCall`]; of f32 it has the same bits, of 16 bits it is within (dim + 8) 2^-23 of
/// the sum of |q k|. All scores of a row have the same bits whatever else is in the batch, and wherever its
/// keys lie.
///
/// Nothing is read outside of what the call describes, whatever the device memory says. A row is poisoned
/// whose sequence has a length below 0 or above `max_len`, or a page that the pool does not have: its beta is
/// NaN, and the report's `argmax` is the first key that is not there.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MeasureCall<'a> {
    /// The queries.
    pub queries: DeviceQueries,
    /// The keys.
    pub keys: DevicePages,
    /// The pages and the length of every sequence.
    pub sequences: DeviceSequences,
    /// The factor of q.k; 1 / sqrt(dim) if it is `None`.
    pub scale: Option<f64>,
    /// The bound of softcapped scores, above 0.
    pub softcap: Option<f64>,
    /// The number of keys that a query token sees, itself included; at least 1.
    pub window: Option<u64>,
    /// The rule whose betas are wanted.
    pub rescaling: &'a Rescaling,
    /// Device address of one f32 per row, `[tokens, heads]`: its beta. It is NaN for a poisoned row.
    pub betas: Option<u64>,
    /// Device address of one [`RowReport`] per row, 8-byte aligned.
    pub report: Option<u64>,
    /// r of the Lambda(r) that is reported, as [`Call::resolve`].
    pub resolve: Option<f64>,
    /// Whether the report holds Lambda beside Lambda(resolve), as [`Call::both`].
    pub both: bool,
    /// Whether the report holds Z and the entropy at the row's beta, as [`Call::sums`]. By default it does.
    pub sums: bool,
    /// Whether the scores stay in the shared memory of a cluster where they have room. By default they do:
    /// at most 16 query rows of a key head (8 of f32), on a GPU with clusters, with enough key heads to keep
    /// half of its SMs busy, and so few that no CTA that needs its SM for itself follows another one.
    pub on_chip: bool,
}

/// What one wave works on.
pub(super) struct Wave {
    pub token_first: u64,
    pub token_count: u64,
    pub seq_first: u64,
    pub seqs: u64,
}

impl<'a> MeasureCall<'a> {
    /// Of the [`Workspace`], bytes from the begin that the caller fills with zeros once. A launch over pages
    /// writes the others before it reads them. So a graph may zero no more than these at each replay.
    pub const ZEROED_BYTES: u64 = AUDITS_AT + AUDITS * AUDIT_BYTES;

    /// A call that writes the beta of every query token and head to `betas`.
    pub fn new(
        queries: DeviceQueries,
        keys: DevicePages,
        sequences: DeviceSequences,
        rescaling: &'a Rescaling,
        betas: u64,
    ) -> MeasureCall<'a> {
        MeasureCall {
            queries,
            keys,
            sequences,
            scale: None,
            softcap: None,
            window: None,
            rescaling,
            betas: Some(betas),
            report: None,
            resolve: None,
            both: false,
            sums: true,
            on_chip: true,
        }
    }

    /// Bytes of device memory that [`Engine::launch_measure`] needs as [`Workspace`].
    ///
    /// Errors: [`Error::Launch`] for sizes that do not fit together.
    pub fn workspace_bytes(&self) -> Result<u64> {
        self.check_sizes()?;
        Ok(self.layout().bytes)
    }

    /// Where the scores of the last wave lie in the workspace, unless they stay on chip, and elements from
    /// one row to the next. Tests compare them with the reference.
    #[doc(hidden)]
    pub fn scores_in_workspace(&self) -> [u64; 2] {
        let layout = self.layout();
        [layout.scores, layout.stride]
    }

    pub(super) fn rows(&self) -> u64 {
        self.queries.tokens * self.queries.heads
    }

    /// The most keys that a query token sees.
    pub(super) fn cols(&self) -> u64 {
        self.sequences.max_len.min(self.window.unwrap_or(u64::MAX))
    }

    pub(super) fn fail(&self, detail: String) -> Error {
        let DeviceQueries { tokens, heads, .. } = self.queries;
        Error::Launch { rows: tokens.saturating_mul(heads), cols: self.sequences.max_len, detail }
    }

    pub(super) fn layout(&self) -> Layout {
        // Rows begin at whole vectors.
        let stride = self.cols().next_multiple_of(4);
        let of_token = self.queries.heads * stride * size_of::<f32>() as u64;
        let tokens = (SCORE_BYTES / of_token / self.queries.query_len).max(1) * self.queries.query_len;
        let tokens = tokens.min(self.queries.tokens);
        let rows = tokens * self.queries.heads;
        let scores = Self::ZEROED_BYTES.next_multiple_of(256);
        let lens = scores + (rows * stride * size_of::<f32>() as u64).next_multiple_of(256);
        let positions = lens + (rows * size_of::<u32>() as u64).next_multiple_of(256);
        let bytes = positions + rows * size_of::<u32>() as u64;
        Layout { stride, tokens, audits: AUDITS_AT, scores, lens, positions, bytes }
    }

    pub(super) fn waves(&self, tokens: u64) -> impl Iterator<Item = Wave> {
        let DeviceQueries { tokens: all, query_len, starts, .. } = self.queries;
        let seqs = self.sequences.seqs;
        (0..all).step_by(tokens.max(1) as usize).map(move |token_first| {
            let token_count = tokens.min(all - token_first);
            let (seq_first, seqs) = match starts {
                Some(_) => (0, seqs),
                None => (token_first / query_len, token_count / query_len),
            };
            Wave { token_first, token_count, seq_first, seqs }
        })
    }

    /// Every launch of this call, in order.
    ///
    /// Errors: [`Error::Launch`] with the numbers that do not fit; [`Error::Spec`] for a rule that the
    /// kernels cannot apply.
    pub(in crate::cuda) fn check(&self, arch: &Arch, workspace: Workspace) -> Result<Vec<Checked>> {
        self.check_sizes()?;
        if self.betas.is_none() && self.report.is_none() {
            return Err(self.fail("neither betas nor reports are asked for".into()));
        }
        let layout = self.layout();
        let spans = self.spans(layout.bytes, workspace, Vec::new())?;
        if let Some(launches) = self.betas_on_chip(arch, workspace, &spans)? {
            return Ok(launches);
        }
        let mut launches = Vec::new();
        for wave in self.waves(layout.tokens) {
            let params = self.params(&layout, workspace.address, &wave, arch);
            launches.push(self.launch_of(
                Family::AttentionScores,
                params,
                self.shared_bytes(),
                &wave,
                &spans,
            )?);
            launches.push(self.row_launch(
                self.row_call(&layout, workspace.address, &wave),
                arch,
                workspace,
            )?);
        }
        Ok(launches)
    }

    /// A launch of an attention kernel: `splits` CTAs for every key head.
    pub(super) fn launch_of(
        &self,
        family: Family,
        params: AttentionParams,
        shared_bytes: u32,
        wave: &Wave,
        spans: &[Span],
    ) -> Result<Checked> {
        let dtype = if family == Family::AttentionMasses { DType::F32 } else { self.keys.dtype };
        let variant = Variant::of(family, dtype).next();
        let variant =
            variant.ok_or_else(|| self.fail(format!("no kernel of {} for {dtype}", family.name())))?;
        let grid = wave.seqs * u64::from(params.kv_heads) * u64::from(params.splits);
        let Some(grid) = u32::try_from(grid).ok().filter(|&grid| grid <= i32::MAX as u32) else {
            return Err(self.fail(format!("a grid of {grid} CTAs: launch fewer sequences")));
        };
        let launch = Launch {
            variant,
            grid,
            shared_bytes,
            ctas: 1,
            resident: 0,
            groups: grid,
            workspace_bytes: 0,
            ctas_per_sm: 1,
        };
        let size = (wave.token_count * self.queries.heads, self.cols());
        Ok(Checked { launch, size, params: Params::Attention(params), spans: spans.to_vec() })
    }

    /// The launch of a call on the rows of a wave.
    pub(super) fn row_launch(&self, call: Call<'_>, arch: &Arch, workspace: Workspace) -> Result<Checked> {
        call.check(arch, Some(Workspace { address: workspace.address, bytes: ROW_BYTES }))
    }

    /// CTAs for every key head, so that all together have `ctas_per_sm` for each SM, but no more than `most`.
    pub(super) fn splits(&self, wave: &Wave, arch: &Arch, ctas_per_sm: u64, most: u64) -> u32 {
        let whole = u64::from(arch.sm_count) * ctas_per_sm;
        whole.div_ceil(wave.seqs * self.keys.heads).clamp(1, most.max(1)) as u32
    }

    pub(super) fn params(
        &self,
        layout: &Layout,
        workspace: u64,
        wave: &Wave,
        arch: &Arch,
    ) -> AttentionParams {
        let DeviceQueries { address, heads, strides, query_len, starts, .. } = self.queries;
        let DevicePages { address: keys, pages, page, heads: kv_heads, dim, strides: apart, .. } = self.keys;
        let DeviceSequences { table, stride, lens, max_len, .. } = self.sequences;
        AttentionParams {
            queries: address,
            keys,
            table,
            lens,
            starts: starts.unwrap_or(0),
            scores: workspace + layout.scores,
            row_lens: workspace + layout.lens,
            positions: workspace + layout.positions,
            query_token: strides[0],
            query_head: strides[1],
            key_page: apart.page as u64,
            key_slot: apart.slot as u64,
            key_head: apart.head as u64,
            table_stride: stride,
            score_stride: layout.stride,
            scale: self.scale.unwrap_or(1.0 / (dim as f64).sqrt()),
            softcap: self.softcap.unwrap_or(0.0),
            token_first: wave.token_first as u32,
            token_count: wave.token_count as u32,
            seq_first: wave.seq_first as u32,
            seqs: wave.seqs as u32,
            kv_heads: kv_heads as u32,
            group: (heads / kv_heads) as u32,
            dim: dim as u32,
            page: page as u32,
            pages: pages as u32,
            query_len: query_len as u32,
            max_len: max_len as u32,
            cols: self.cols() as u32,
            splits: self.splits(wave, arch, CTAS_PER_SM, self.cols().div_ceil(UNIT.into()) + 1),
            page_factor: page_factor(page as u32),
            page_shift: page_shift(page as u32),
            padding: u32::from(starts.is_some()),
            ..AttentionParams::zeroed()
        }
    }

    /// Shared memory of a CTA of scores.
    pub(super) fn shared_bytes(&self) -> u32 {
        self.query_bytes(if self.keys.dtype == DType::F32 { WIDE_QUERY_ROWS } else { QUERY_ROWS })
    }

    /// So many queries in whole blocks of 32 elements, and 16 bytes for each.
    pub(super) fn query_bytes(&self, rows: u32) -> u32 {
        let blocks = (self.keys.dim as u32).div_ceil(32);
        let vectors = if self.keys.dtype == DType::F32 { 8 * blocks } else { 4 * (blocks | 1) };
        rows * 16 * (vectors + 1)
    }

    pub(super) fn row_call(&self, layout: &Layout, workspace: u64, wave: &Wave) -> Call<'a> {
        let first = wave.token_first * self.queries.heads;
        let mut scores = DeviceRows::dense(
            workspace + layout.scores,
            DType::F32,
            wave.token_count * self.queries.heads,
            self.cols(),
        );
        scores.stride = layout.stride;
        scores.lens = Some(workspace + layout.lens);
        let mut call = Call::statistics(scores, 0, self.rescaling);
        call.report = self.report.map(|report| report + first * size_of::<RowReport>() as u64);
        call.positions = Some(workspace + layout.positions);
        call.by_columns = true;
        call.betas_out = self.betas.map(|betas| betas + first * size_of::<f32>() as u64);
        (call.resolve, call.both, call.sums) = (self.resolve, self.both, self.sums);
        call
    }
}

/// The least power of two that is no smaller than a page, as its logarithm.
fn page_shift(page: u32) -> u32 {
    page.next_power_of_two().ilog2()
}

/// The 32 bits behind the leading one of 2^(32 + shift) / page, rounded up: so a kernel divides by the size
/// of a page with one multiplication. To divide took 140 of the 550 slots of 16 keys (2026-11-30).
fn page_factor(page: u32) -> u32 {
    let rest = (1u64 << page_shift(page)) - u64::from(page);
    ((rest << 32) / u64::from(page) + 1) as u32
}

/// Where the parts of the workspace lie, in bytes from its begin.
pub(super) struct Layout {
    /// Elements from a row of scores to the next.
    pub stride: u64,
    /// Query tokens of a wave.
    pub tokens: u64,
    pub audits: u64,
    pub scores: u64,
    pub lens: u64,
    pub positions: u64,
    pub bytes: u64,
}
