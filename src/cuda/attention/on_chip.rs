//! Attention whose scores stay in the shared memory of a cluster, for rules that measure.

use super::decode::DecodeCall;
use super::measure::MeasureCall;
use super::views::DeviceQueries;
use crate::cuda::arch::Arch;
use crate::cuda::attention_params::*;
use crate::cuda::call::{Checked, Params, Workspace};
use crate::cuda::choice::{groups_at_once, shared_bytes};
use crate::cuda::params::BLOCK_CONTROL_BYTES;
use crate::cuda::spans::Span;
use crate::cuda::variants::Family;
use crate::{DType, Result};

/// A launch works on as many tokens as have so many bytes of sums of chunks, or on those of one sequence.
/// They then stay in the L2 cache of an H200 until they are added up.
const PARTIAL_BYTES: u64 = 32 << 20;

/// CTAs of a cluster. 16 of them need all SMs of a processing cluster, or half of them.
const CTAS: [u32; 5] = [1, 2, 4, 8, 16];

/// How a cluster holds the rows of a key head.
pub(super) struct OnChip {
    /// CTAs of the cluster.
    ctas: u32,
    /// Where the rows begin in the shared memory of each.
    rows_at: u32,
    shared_bytes: u32,
    /// Such CTAs that share an SM.
    ctas_per_sm: u32,
}

impl MeasureCall<'_> {
    /// The cluster of a key head. There is none on a GPU without clusters, for more rows than share a key,
    /// for rows without room, and for so few key heads that most SMs would have no CTA. Nor is there one if
    /// each CTA needs an SM for itself, and one such CTA would follow another there: nothing is read while a
    /// row is measured. By the model 64 sequences of 16K keys then take 1,227 us, and 1,114 in three launches
    /// (2026-12-01). Only on sm_90 the kernels have registers for two CTAs an SM.
    ///
    /// `of_values`: bytes of shared memory for the values.
    fn cluster_of_head(&self, arch: &Arch, of_values: u32) -> Option<OnChip> {
        let DeviceQueries { heads, query_len, .. } = self.queries;
        let most = if self.keys.dtype == DType::F32 { WIDE_QUERY_ROWS } else { VALUE_ROWS };
        let rows = heads / self.keys.heads * query_len;
        if !self.on_chip || !arch.clusters || rows > u64::from(most) {
            return None;
        }
        let rows_at = self.query_bytes(most).max(BLOCK_CONTROL_BYTES + of_values).next_multiple_of(16);
        // One vector more, as a plan counts it: so a row that is at home here has one CTA everywhere.
        let of_row = (self.cols() + 3).next_multiple_of(4) * size_of::<f32>() as u64;
        let bytes = |ctas: u32| u64::from(rows_at) + rows.div_ceil(ctas.into()) * of_row;
        let (heads, sms) = (self.sequences.seqs * self.keys.heads, u64::from(arch.sm_count));
        let all = |ctas: u32| heads * u64::from(ctas);
        let sizes = || CTAS.into_iter().filter(|&ctas| ctas <= arch.max_cluster);
        let found = [2, 1].into_iter().find_map(|ctas_per_sm| {
            let room = u64::from(shared_bytes(arch, ctas_per_sm));
            let fitting = || sizes().filter(|&ctas| bytes(ctas) <= room);
            let ctas = match ctas_per_sm {
                // As few as fill the SMs, or as many as there are.
                2 if arch.sm == 90 => fitting().find(|&ctas| all(ctas) >= sms).or(fitting().max()),
                2 => None,
                _ => fitting().filter(|&ctas| heads <= groups_at_once(arch, 1, ctas).into()).max(),
            }?;
            // An SM draws at most twice its share of the memory.
            (2 * all(ctas) >= sms).then_some((ctas, ctas_per_sm))
        });
        let (ctas, ctas_per_sm) = found?;
        Some(OnChip { ctas, rows_at, shared_bytes: bytes(ctas) as u32, ctas_per_sm })
    }

    /// Query tokens of a wave, where the sums of chunks begin in the workspace, and where it ends. Sequences
    /// of different lengths are cut as in three launches, because bits may depend on it.
    ///
    /// `of_row`: bytes of the sums of chunks of a row.
    pub(super) fn on_chip_parts(&self, of_row: u64) -> [u64; 3] {
        let DeviceQueries { tokens, heads, query_len, starts, .. } = self.queries;
        let layout = self.layout();
        let of_sequence = (heads * of_row * query_len).max(1);
        let whole = ((PARTIAL_BYTES / of_sequence).max(1) * query_len).min(tokens);
        let tokens = if starts.is_some() { layout.tokens } else { whole };
        [tokens, layout.scores, layout.scores + tokens * heads * of_row]
    }

    /// The launches of this call, if its scores stay on chip. `set`: what the values need.
    fn on_chip_launches(
        &self,
        family: Family,
        arch: &Arch,
        workspace: Workspace,
        spans: &[Span],
        (of_values, of_row): (u32, u64),
        set: impl Fn(&mut AttentionParams),
    ) -> Result<Option<Vec<Checked>>> {
        let Some(OnChip { ctas, rows_at, shared_bytes, ctas_per_sm }) = self.cluster_of_head(arch, of_values)
        else {
            return Ok(None);
        };
        let (layout, [tokens, partials, _]) = (self.layout(), self.on_chip_parts(of_row));
        let mut launches = Vec::new();
        for wave in self.waves(tokens) {
            let mut attention = self.params(&layout, workspace.address, &wave, arch);
            attention.partials = workspace.address + partials;
            (attention.scores, attention.row_lens, attention.positions) = (0, 0, 0);
            attention.splits = ctas;
            set(&mut attention);
            let mut rows = self.row_call(&layout, workspace.address, &wave);
            (rows.scores.lens, rows.positions, rows.fills) = (None, None, false);
            let rows = rows.row_params(arch)?;
            let shift = ctas.ilog2();
            let mut checked = self.launch_of(family, attention, shared_bytes, &wave, spans)?;
            checked.launch.ctas = ctas;
            checked.launch.groups /= ctas;
            checked.launch.ctas_per_sm = ctas_per_sm;
            checked.params = Params::OnChip(OnChipParams { attention, rows, rows_at, shift });
            launches.push(checked);
        }
        Ok(Some(launches))
    }

    /// The launches that measure without values, if the scores stay on chip.
    pub(super) fn betas_on_chip(
        &self,
        arch: &Arch,
        workspace: Workspace,
        spans: &[Span],
    ) -> Result<Option<Vec<Checked>>> {
        self.on_chip_launches(Family::AttentionBetas, arch, workspace, spans, (0, 0), |_| ())
    }
}

impl DecodeCall<'_> {
    /// Bytes of the sums of chunks of a row.
    pub(super) fn partial_bytes_of_row(&self) -> u64 {
        self.chunks() * self.values.dim * 4
    }

    /// All launches, if the scores stay on chip.
    pub(super) fn on_chip_launches(
        &self,
        arch: &Arch,
        workspace: Workspace,
        spans: &[Span],
    ) -> Result<Option<Vec<Checked>>> {
        let DeviceQueries { heads, query_len, .. } = self.rows.queries;
        let value_rows = (heads / self.rows.keys.heads * query_len).next_multiple_of(8) as u32;
        let bytes = (value_rows * self.bytes_of_row(), self.partial_bytes_of_row());
        self.rows.on_chip_launches(Family::AttentionOnChip, arch, workspace, spans, bytes, |params| {
            self.set_values(params);
            params.value_rows = value_rows;
        })
    }
}
