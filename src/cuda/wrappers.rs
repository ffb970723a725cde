//! The kernels that run every wrapper of `kernels/simt.cuh` once. A test compares GPU and simulator with
//! them.

use super::call::{Checked, Params};
use super::engine::Engine;
use super::params::RowParams;
use super::plan::Plan;
use super::spans::Span;
use super::variants::{Family, Variant};
use crate::{Error, Result};
use bytemuck::Zeroable;

/// Bytes per CTA that `kernels/wrappers.cu` needs.
const SHARED_BYTES: u32 = 4096;
const WORKSPACE_BYTES: u64 = 4096;

impl Engine {
    /// The `words` results of a kernel of [`Family::Wrappers`] on `grid` CTAs, of which `ctas` make a group.
    /// `tests/wrappers.rs` says what they are.
    ///
    /// Errors: [`Error::Launch`] for another family; those of [`Engine::launch`].
    #[doc(hidden)]
    pub fn run_wrappers(
        &self,
        variant: Variant,
        grid: u32,
        ctas: u32,
        input: &[u32],
        words: usize,
    ) -> Result<Vec<u32>> {
        let workspace_bytes = WORKSPACE_BYTES * u64::from(grid);
        let plan = Plan::of_wrappers(variant, grid, ctas, SHARED_BYTES, workspace_bytes, self.arch());
        if variant.family() != Family::Wrappers {
            let detail = format!("{variant} is not a kernel of the wrappers");
            return Err(Error::Launch { rows: plan.problem.rows, cols: plan.problem.cols, detail });
        }
        let scores = self.uploaded(bytemuck::cast_slice(input))?;
        let out = self.zeroed(4 * words)?;
        let workspace = self.zeroed(workspace_bytes as usize)?;
        let params = RowParams {
            scores: scores.address(),
            out: out.address(),
            workspace: workspace.address(),
            ctas,
            ..RowParams::zeroed()
        };
        let spans = [("scores", &scores, false), ("results", &out, true), ("workspace", &workspace, true)];
        let span = |(name, memory, writable): (_, &super::DeviceMemory, _)| Span {
            name,
            address: memory.address(),
            bytes: memory.bytes() as u64,
            writable,
        };
        let size = (plan.problem.rows, plan.problem.cols);
        let spans = spans.map(span).to_vec();
        self.begin_alone(&Checked { launch: plan.launch, size, params: Params::Rows(params), spans })?;
        let mut results = vec![0; words];
        self.download(&out, 0, bytemuck::cast_slice_mut(&mut results))?;
        Ok(results)
    }
}
