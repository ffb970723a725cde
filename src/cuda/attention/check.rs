//! What the host checks of a call on keys in pages, before anything is enqueued.

use super::measure::MeasureCall;
use super::views::{DevicePages, DeviceQueries, DeviceSequences};
use crate::attention::{DIM_STEP, DIMS, MAX_GROUP, MAX_KV_HEADS, MAX_QUERY_LEN};
use crate::cuda::call::Workspace;
use crate::cuda::ladder::MAX_COLS;
use crate::cuda::params::RowReport;
use crate::cuda::spans::{Span, Spans};
use crate::{DType, Result};

/// Name, address, alignment, bytes and whether it is written.
pub(super) type Other = (&'static str, u64, u64, Option<u64>, bool);

/// Bytes from the first element to the last of vectors that lie along axes of so many and so far apart.
pub(super) fn reach(axes: &[(u64, u64)], dim: u64, size: u64) -> Option<u64> {
    let last = axes.iter().try_fold(0u64, |sum, &(count, stride)| {
        (count - 1).checked_mul(stride).and_then(|reach| sum.checked_add(reach))
    });
    last.and_then(|last| last.checked_add(dim)?.checked_mul(size))
}

impl DevicePages {
    pub(super) fn reach(&self) -> Option<u64> {
        let [page, slot, head] = [self.strides.page, self.strides.slot, self.strides.head].map(|s| s as u64);
        let axes = [(self.pages, page), (self.page, slot), (self.heads, head)];
        reach(&axes, self.dim, self.dtype.size_bytes() as u64)
    }
}

impl MeasureCall<'_> {
    /// Errors: [`Error::Launch`](crate::Error::Launch) with the numbers that do not fit together.
    pub(super) fn check_sizes(&self) -> Result<()> {
        let DeviceQueries { tokens, heads, query_len, starts, strides, .. } = self.queries;
        let DevicePages { dtype, pages, page, heads: kv_heads, .. } = self.keys;
        let DeviceSequences { seqs, blocks, stride, max_len, .. } = self.sequences;
        let fail = |detail: String| Err(self.fail(detail));
        if dtype == DType::F64 {
            return fail("no kernel reads f64: expected f32, f16 or bf16".into());
        }
        if !(1..=MAX_KV_HEADS as u64).contains(&kv_heads) {
            return fail(format!("{kv_heads} key heads, expected 1 to {MAX_KV_HEADS}"));
        }
        if !heads.is_multiple_of(kv_heads) || !(1..=MAX_GROUP as u64).contains(&(heads / kv_heads)) {
            return fail(format!(
                "{heads} query heads: {kv_heads} key heads must divide them into groups of 1 to {MAX_GROUP}"
            ));
        }
        if !(1..=MAX_QUERY_LEN as u64).contains(&query_len) {
            return fail(format!("{query_len} query tokens of a sequence, expected 1 to {MAX_QUERY_LEN}"));
        }
        let most = i32::MAX as u64;
        if !(1..=most).contains(&seqs) || !(1..=most).contains(&tokens) {
            return fail(format!("{seqs} sequences and {tokens} query tokens, expected 1 to {most} of each"));
        }
        if starts.is_none() && seqs.checked_mul(query_len) != Some(tokens) {
            return fail(format!("{tokens} query tokens, expected {query_len} for each of {seqs} sequences"));
        }
        if !(1..=most).contains(&pages) || !(1..=MAX_COLS).contains(&page) {
            return fail(format!(
                "{pages} pages of {page} slots, expected 1 to {most} pages of 1 to {MAX_COLS}"
            ));
        }
        if max_len > MAX_COLS || max_len == 0 || max_len > blocks.saturating_mul(page) {
            return fail(format!(
                "max_len {max_len}, expected 1 to {MAX_COLS} and no more than {blocks} pages of {page} slots"
            ));
        }
        if stride < blocks {
            return fail(format!("a table of {blocks} entries in rows {stride} entries apart"));
        }
        if self.window == Some(0) {
            return fail("window 0, expected at least 1, the query's own key".into());
        }
        let of_queries = [("token", strides[0] as usize), ("head", strides[1] as usize)];
        self.whole_vectors("queries", dtype, &of_queries)?;
        self.check_vectors("keys", &self.keys)?;
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return fail(format!("scale {scale}, expected a finite number"));
        }
        if let Some(cap) = self.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return fail(format!("softcap {cap}, expected a finite number above 0"));
        }
        Ok(())
    }

    /// Errors: [`Error::Launch`](crate::Error::Launch) for vectors that no kernel reads.
    pub(super) fn check_vectors(&self, whose: &str, pages: &DevicePages) -> Result<()> {
        let DevicePages { dtype, page, dim, strides: apart, .. } = *pages;
        if !DIMS.contains(&(dim as usize)) || !dim.is_multiple_of(DIM_STEP as u64) {
            return Err(self
                .fail(format!("{whose} of {dim} elements, expected a multiple of {DIM_STEP} in {DIMS:?}")));
        }
        self.whole_vectors(
            whose,
            dtype,
            &[("page", apart.page), ("slot", apart.slot), ("head", apart.head)],
        )?;
        if apart.element != 1 || (page > 1 && (apart.slot as u64) < dim) {
            return Err(self.fail(format!(
                "{whose} with slots {} and elements {} apart, expected at least {dim} and 1",
                apart.slot, apart.element
            )));
        }
        Ok(())
    }

    fn whole_vectors(&self, whose: &str, dtype: DType, strides: &[(&str, usize)]) -> Result<()> {
        let per_vector = 16 / dtype.size_bytes();
        match strides.iter().find(|(_, stride)| !stride.is_multiple_of(per_vector)) {
            None => Ok(()),
            Some((name, stride)) => Err(self.fail(format!(
                "{whose} with a stride of {stride} elements from {name} to {name}, expected a multiple of \
                 {per_vector}, which are 16 bytes"
            ))),
        }
    }

    /// The device memory of the call. `needed`: bytes of workspace. `others`: name, address, alignment, bytes
    /// if they fit into an address, and whether it is written.
    pub(super) fn spans(&self, needed: u64, workspace: Workspace, others: Vec<Other>) -> Result<Vec<Span>> {
        let DeviceQueries { address, tokens, heads, strides, starts, .. } = self.queries;
        let DeviceSequences { seqs, table, blocks, stride, lens, .. } = self.sequences;
        let mut spans = Spans::new(|detail| self.fail(detail));
        let (dim, size) = (self.keys.dim, self.keys.dtype.size_bytes() as u64);
        let of_queries = reach(&[(tokens, strides[0]), (heads, strides[1])], dim, size);
        spans.add("queries", address, 16, of_queries, false)?;
        spans.add("keys", self.keys.address, 16, self.keys.reach(), false)?;
        for (name, address, align, bytes, writable) in others {
            spans.add(name, address, align, bytes, writable)?;
        }
        let entries = (seqs - 1).checked_mul(stride).and_then(|last| last.checked_add(blocks));
        spans.add("page numbers", table, 4, entries.and_then(|entries| entries.checked_mul(4)), false)?;
        spans.add("lengths", lens, 4, Some(4 * seqs), false)?;
        if let Some(starts) = starts {
            spans.add("starts of query tokens", starts, 4, Some(4 * (seqs + 1)), false)?;
        }
        if let Some(betas) = self.betas {
            spans.add("betas", betas, 4, Some(4 * self.rows()), true)?;
        }
        if let Some(report) = self.report {
            spans.add("reports", report, 8, Some(size_of::<RowReport>() as u64 * self.rows()), true)?;
        }
        if workspace.bytes < needed {
            let given = workspace.bytes;
            return Err(self.fail(format!("a workspace of {given} bytes, expected {needed}")));
        }
        spans.add("workspace", workspace.address, 256, Some(needed), true)?;
        spans.apart(|_, _| false, "")
    }
}
