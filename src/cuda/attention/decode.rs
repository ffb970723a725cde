//! Attention of query tokens over keys and values in pages: scores as a measuring call makes them, their
//! probabilities in their place, and a kernel that adds the values.

use super::check::{Other, reach};
use super::measure::{Layout, MeasureCall, Wave};
use super::views::{DevicePages, DeviceQueries, DeviceSequences};
#[cfg(doc)]
use crate::Error;
use crate::cuda::arch::Arch;
use crate::cuda::attention_params::*;
use crate::cuda::call::{Call, Checked, DeviceOutput, Workspace};
#[cfg(doc)]
use crate::cuda::engine::Engine;
use crate::cuda::ladder::STATIC_BYTES;
use crate::cuda::variants::Family;
use crate::{DType, Rescaling, Result};

/// Threads of the kernel of masses, which takes so many keys at a time.
const MASS_THREADS: u64 = 256;
/// CTAs of it for each SM, and of the kernel of values.
const CTAS_PER_SM: u64 = 4;

/// The output of attention in device memory, `[tokens, heads, dim]`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DeviceAttention {
    /// Device address of the first element.
    pub address: u64,
    /// Element type: f32, or that of the values.
    pub dtype: DType,
    /// From a token to the next and from a head to the next, in elements, so that no two vectors overlap.
    pub strides: [u64; 2],
}

impl DeviceAttention {
    /// A dense output of `heads` vectors of `dim` elements for each token.
    pub fn dense(address: u64, dtype: DType, [heads, dim]: [u64; 2]) -> DeviceAttention {
        DeviceAttention { address, dtype, strides: [heads * dim, dim] }
    }
}

/// The attention of query tokens over keys and values in pages, in device memory.
///
/// The probabilities are those of the rescaling over scores as in [`MeasureCall`]. Values of 16 bits are
/// multiplied by a weight that is the sum of two numbers of 16 bits, within 2^-16 of it, and added in f32.
/// A row without keys gives 0. A poisoned row gives NaN, and an infinite value gives NaN or infinity in the
/// rows that see it; no other row does. No value is read that no row sees. The bits of a row do not depend
/// on other sequences, nor on where its pages lie. Of several query tokens of a sequence they depend on its
/// others, and with a window or `eps` above 0 too on where a launch cuts them; with `eps` also on the heads
/// that share its keys.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DecodeCall<'a> {
    /// The queries, keys, sequences and rule. Betas and reports are optional here; a report's critical beta
    /// is measured only if the rule is critical.
    pub rows: MeasureCall<'a>,
    /// The values: the dtype, pages, slots and heads of the keys.
    pub values: DevicePages,
    /// Where the output goes.
    pub out: DeviceAttention,
    /// The share of each row's probabilities whose values may stay unread, 0 <= eps < 1. At 0 all are read.
    pub eps: f64,
    /// Device address of one [`SkipReport`] per sequence and key head, 4-byte aligned.
    pub skips: Option<u64>,
    /// Whether keys and values are read in one pass where every beta is known before the scores are. By
    /// default they are. A rule that measures needs the scores first, and so does a report. In one pass all
    /// values are read of a sequence that has more than 16 query rows for a key head (8 of f32). An element
    /// above 3.4e38 over the keys of a chunk may overflow, because sums are divided by Z at the end.
    pub one_pass: bool,
}

/// Where the parts of the workspace lie that only values need.
struct Parts {
    partials: u64,
    arrivals: u64,
    masses: u64,
    histogram: u64,
    bytes: u64,
}

impl<'a> DecodeCall<'a> {
    /// A call that reads all values.
    pub fn new(
        queries: DeviceQueries,
        keys: DevicePages,
        values: DevicePages,
        sequences: DeviceSequences,
        rescaling: &'a Rescaling,
        out: DeviceAttention,
    ) -> DecodeCall<'a> {
        let rows = MeasureCall { betas: None, ..MeasureCall::new(queries, keys, sequences, rescaling, 0) };
        DecodeCall { rows, values, out, eps: 0.0, skips: None, one_pass: true }
    }

    /// Bytes of device memory that [`Engine::launch_decode`] needs as [`Workspace`], whatever the rule is.
    ///
    /// Errors: [`Error::Launch`] for sizes that do not fit together.
    pub fn workspace_bytes(&self) -> Result<u64> {
        self.check_sizes()?;
        Ok(self.bytes(&self.parts(&self.rows.layout())))
    }

    fn bytes(&self, parts: &Parts) -> u64 {
        let [.., on_chip] = self.rows.on_chip_parts(self.partial_bytes_of_row());
        parts.bytes.max(self.one_pass_parts()[1]).max(on_chip)
    }

    /// Masses that may stay unread. One that is not rounded up to 1 has a relative error below 2^-18.
    fn budget(&self) -> u32 {
        (self.eps * (1.0 - 2f64.powi(-18)) * 2f64.powi(32)) as u32
    }

    /// The most keys that any query token of a sequence sees.
    fn keys(&self) -> u64 {
        self.rows.cols() + self.rows.queries.query_len
    }

    pub(super) fn chunks(&self) -> u64 {
        (self.keys() / u64::from(VALUE_THREADS / 32 * UNIT)).min(CHUNKS.into()) + 2
    }

    fn parts(&self, rows: &Layout) -> Parts {
        let DeviceQueries { heads, query_len, starts, .. } = self.rows.queries;
        let seqs = if starts.is_some() { self.rows.sequences.seqs } else { rows.tokens / query_len };
        let groups = seqs * self.rows.keys.heads;
        let mut bytes = rows.bytes;
        let mut next = |size: u64| {
            let at = bytes.next_multiple_of(256);
            bytes = at + size;
            at
        };
        let partials = next(rows.tokens * heads * self.partial_bytes_of_row());
        let arrivals = next(groups * 4);
        let skipping = u64::from(self.budget() > 0);
        let masses = next(skipping * groups * self.keys() * 4);
        let histogram = next(skipping * groups * u64::from(MASS_BINS) * 16);
        Parts { partials, arrivals, masses, histogram, bytes }
    }

    fn check_sizes(&self) -> Result<()> {
        let (rows, values, out) = (&self.rows, &self.values, &self.out);
        rows.check_sizes()?;
        let fail = |detail: String| Err(rows.fail(detail));
        let shape = |of: &DevicePages| (of.dtype, of.pages, of.page, of.heads);
        if shape(values) != shape(&rows.keys) {
            let text = |of: &DevicePages| {
                let (dtype, pages, page, heads) = shape(of);
                format!("{pages} pages of {page} slots of {heads} heads of {dtype}")
            };
            return fail(format!("values in {}, expected {} as of the keys", text(values), text(&rows.keys)));
        }
        rows.check_vectors("values", values)?;
        if out.dtype != DType::F32 && out.dtype != values.dtype {
            return fail(format!("an output of {}, expected f32 or the values' {}", out.dtype, values.dtype));
        }
        let DeviceQueries { tokens, heads, .. } = rows.queries;
        let mut axes = [(heads, out.strides[1]), (tokens, out.strides[0])];
        axes.sort_by_key(|&(count, stride)| (stride, count));
        let inner = axes[0].1.saturating_mul(axes[0].0 - 1).saturating_add(values.dim);
        if (axes[0].0 > 1 && axes[0].1 < values.dim) || (axes[1].0 > 1 && axes[1].1 < inner) {
            return fail(format!(
                "an output of {tokens} tokens and {heads} heads {:?} elements apart would overlap",
                out.strides
            ));
        }
        if rows.both {
            return fail(
                "Lambda beside Lambda(resolve) is measured without values only: launch twice".into(),
            );
        }
        if !(0.0..1.0).contains(&self.eps) {
            return fail(format!("eps {}, expected 0 <= eps < 1", self.eps));
        }
        Ok(())
    }

    /// Every launch of this call, in order.
    ///
    /// Errors: as of [`MeasureCall::check`].
    pub(in crate::cuda) fn check(&self, arch: &Arch, workspace: Workspace) -> Result<Vec<Checked>> {
        self.check_sizes()?;
        let rows = &self.rows;
        let layout = rows.layout();
        let parts = self.parts(&layout);
        let spans = rows.spans(self.bytes(&parts), workspace, self.others())?;
        if let Some(rule) = self.known_rule()? {
            return self.one_pass_launches(&rule, arch, workspace, &spans);
        }
        if let Some(launches) = self.on_chip_launches(arch, workspace, &spans)? {
            return Ok(launches);
        }
        let value_rows = self.value_rows(arch)?;
        let mut launches = Vec::new();
        for wave in rows.waves(layout.tokens) {
            let mut params = rows.params(&layout, workspace.address, &wave, arch);
            self.set(&mut params, &parts, workspace.address, value_rows);
            launches.push(rows.launch_of(
                Family::AttentionScores,
                params,
                rows.shared_bytes(),
                &wave,
                &spans,
            )?);
            launches.push(rows.row_launch(
                self.row_call(&layout, workspace.address, &wave),
                arch,
                workspace,
            )?);
            if params.budget > 0 {
                params.splits = rows.splits(&wave, arch, CTAS_PER_SM, self.keys().div_ceil(MASS_THREADS));
                let bytes = 12 * MASS_BINS;
                launches.push(rows.launch_of(Family::AttentionMasses, params, bytes, &wave, &spans)?);
            }
            params.splits = rows.splits(&wave, arch, CTAS_PER_SM, self.chunks());
            let bytes = (VALUE_BYTES + self.bytes_of_row() * value_rows).next_multiple_of(16);
            launches.push(rows.launch_of(Family::AttentionValues, params, bytes, &wave, &spans)?);
        }
        Ok(launches)
    }

    /// The memory that a measuring call does not have.
    fn others(&self) -> Vec<Other> {
        let DeviceQueries { tokens, heads, .. } = self.rows.queries;
        let size = self.out.dtype.size_bytes() as u64;
        let axes = [(tokens, self.out.strides[0]), (heads, self.out.strides[1])];
        let mut others = vec![
            ("values", self.values.address, 16, self.values.reach(), false),
            ("output", self.out.address, size, reach(&axes, self.values.dim, size), true),
        ];
        if let Some(skips) = self.skips {
            let groups = self.rows.sequences.seqs * self.rows.keys.heads;
            others.push(("skip reports", skips, 4, Some(groups * size_of::<SkipReport>() as u64), true));
        }
        others
    }

    /// Shared memory of a query row.
    pub(super) fn bytes_of_row(&self) -> u32 {
        VALUE_BYTES_OF_ROW + VALUE_BYTES_OF_ELEMENT * self.values.dim as u32
    }

    /// Query rows that a CTA has room for.
    fn value_rows(&self, arch: &Arch) -> Result<u32> {
        let DeviceQueries { heads, query_len, .. } = self.rows.queries;
        let all = (heads / self.rows.keys.heads * query_len).next_multiple_of(8);
        let room =
            arch.shared_per_block_bytes.saturating_sub(STATIC_BYTES + VALUE_BYTES) / self.bytes_of_row();
        match (room / 8 * 8).min(VALUE_ROWS) {
            0 => Err(self.rows.fail(format!("{} has too little shared memory for values", arch.name))),
            most => Ok(most.min(all as u32)),
        }
    }

    /// What all kernels that add values need.
    pub(super) fn set_values(&self, params: &mut AttentionParams) {
        let apart = self.values.strides;
        params.values = self.values.address;
        (params.value_page, params.value_slot, params.value_head) =
            (apart.page as u64, apart.slot as u64, apart.head as u64);
        params.value_dim = self.values.dim as u32;
        params.out = self.out.address;
        [params.out_token, params.out_head] = self.out.strides;
        params.out_f32 = u32::from(self.out.dtype == DType::F32 && self.values.dtype != DType::F32);
        params.skips = self.skips.unwrap_or(0);
        params.chunks = self.chunks() as u32;
        params.budget = self.budget();
    }

    fn set(&self, params: &mut AttentionParams, parts: &Parts, workspace: u64, value_rows: u32) {
        self.set_values(params);
        params.partials = workspace + parts.partials;
        params.arrivals = workspace + parts.arrivals;
        params.masses = workspace + parts.masses;
        params.histogram = workspace + parts.histogram;
        params.mass_stride = self.keys();
        params.value_rows = value_rows;
    }

    /// The probabilities in place of the scores.
    fn row_call(&self, layout: &Layout, workspace: u64, wave: &Wave) -> Call<'a> {
        let mut call = self.rows.row_call(layout, workspace, wave);
        call.fills = false;
        call.out = Some(DeviceOutput::new(call.scores.address, DType::F32, call.scores.stride));
        call
    }
}
