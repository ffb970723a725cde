//! Decode attention in one pass over keys and values, for betas that are known before the scores are.

use super::decode::DecodeCall;
use super::measure::{AUDITS, Wave};
use super::views::DeviceQueries;
use crate::cuda::arch::Arch;
use crate::cuda::attention_params::*;
use crate::cuda::call::{Checked, Workspace};
use crate::cuda::ladder::STATIC_BYTES;
use crate::cuda::params::{RULE_CALIBRATED, RULE_FIXED, RULE_LAW};
use crate::cuda::rule::Rule;
use crate::cuda::spans::Span;
use crate::cuda::variants::Family;
use crate::laws::LAWS;
use crate::{DType, Result};

/// A launch works on as many sequences as have so many bytes of sums of chunks, or on one. They then stay in
/// the L2 cache of an H200 until they are added up.
const PARTIAL_BYTES: u64 = 32 << 20;
/// CTAs of a launch for each SM: as many as share one, because each begins with the same seeds.
const CTAS_PER_SM: u64 = 2;

impl DecodeCall<'_> {
    /// The rule, if one pass applies it: it needs neither counts nor the entropy, and nobody asks for more
    /// than the output and the betas.
    pub(super) fn known_rule(&self) -> Result<Option<Rule>> {
        let rule = Rule::of(self.rows.rescaling.into())?;
        let known = match rule.kind {
            RULE_LAW => !LAWS[rule.law as usize].needs_entropy,
            kind => kind == RULE_FIXED || kind == RULE_CALIBRATED,
        };
        let fits = self.rows.keys.heads <= AUDITS;
        Ok((known && fits && self.one_pass && self.rows.report.is_none()).then_some(rule))
    }

    /// As [`DecodeCall::budget`]. Against a largest score that rises from unit to unit, up to 512 times in a
    /// chunk, what is known of Z is rounded each time: in all by less than 2^-12 of it.
    fn one_pass_budget(&self) -> u32 {
        (self.eps * (1.0 - 2f64.powi(-12)) * 2f64.powi(32)) as u32
    }

    /// f32 sums of the chunks of a sequence: of each row its elements, its largest score and its Z.
    fn partial_bytes(&self) -> u64 {
        let DeviceQueries { heads, query_len, .. } = self.rows.queries;
        query_len * heads * self.chunks() * (self.values.dim + 2) * 4
    }

    fn seqs_at_once(&self) -> u64 {
        let by_audits = AUDITS / self.rows.keys.heads;
        (PARTIAL_BYTES / self.partial_bytes()).min(by_audits).clamp(1, self.rows.sequences.seqs)
    }

    /// Where the sums lie in the workspace, and where it ends.
    pub(super) fn one_pass_parts(&self) -> [u64; 2] {
        let partials = self.rows.layout().scores;
        [partials, partials + self.seqs_at_once() * self.partial_bytes()]
    }

    /// Every launch, in order. Where values may stay unread, each is followed by one that does again what
    /// left too much unread.
    pub(super) fn one_pass_launches(
        &self,
        rule: &Rule,
        arch: &Arch,
        workspace: Workspace,
        spans: &[Span],
    ) -> Result<Vec<Checked>> {
        let (rows, layout) = (&self.rows, self.rows.layout());
        let (seqs, at_once) = (rows.sequences.seqs, self.seqs_at_once());
        let (value_rows, shared_bytes) = self.one_pass_rows(arch)?;
        let mut launches = Vec::new();
        for seq_first in (0..seqs).step_by(at_once as usize) {
            let wave = Wave {
                token_first: 0,
                token_count: rows.queries.tokens,
                seq_first,
                seqs: at_once.min(seqs - seq_first),
            };
            let mut params = rows.params(&layout, workspace.address, &wave, arch);
            self.set_values(&mut params);
            params.budget = self.one_pass_budget();
            params.partials = workspace.address + self.one_pass_parts()[0];
            params.audits = workspace.address + layout.audits;
            params.betas_out = rows.betas.unwrap_or(0);
            params.value_rows = value_rows;
            (params.rule, params.law, params.p) = (rule.kind, rule.law, rule.p);
            params.padding = u32::from(rows.queries.starts.is_some() && seq_first + wave.seqs == seqs);
            params.splits = rows.splits(&wave, arch, CTAS_PER_SM, self.chunks());
            let family = Family::AttentionOnePass;
            launches.push(rows.launch_of(family, params, shared_bytes, &wave, spans)?);
            if params.budget > 0 {
                (params.budget, params.padding, params.repairs) = (0, 0, 1);
                launches.push(rows.launch_of(family, params, shared_bytes, &wave, spans)?);
            }
        }
        Ok(launches)
    }

    /// Query rows that a CTA has room for, and its shared memory.
    fn one_pass_rows(&self, arch: &Arch) -> Result<(u32, u32)> {
        let DeviceQueries { heads, query_len, .. } = self.rows.queries;
        let most = if self.values.dtype == DType::F32 { WIDE_QUERY_ROWS } else { VALUE_ROWS };
        let all = (heads / self.rows.keys.heads * query_len) as u32;
        let beside = self.rows.query_bytes(most) + 8 * all + ONE_PASS_BYTES;
        let room = arch.shared_per_block_bytes.saturating_sub(STATIC_BYTES + beside) / self.bytes_of_row();
        match (room / 8 * 8).min(most).min(all.next_multiple_of(8)) {
            0 => Err(self.rows.fail(format!("{} has too little shared memory for values", arch.name))),
            rows => Ok((rows, (beside + rows * self.bytes_of_row()).next_multiple_of(16))),
        }
    }
}
