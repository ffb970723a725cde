//! The rescaled softmax as a custom op of candle.

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, bail};
use critbeta::{Element, Rescaling, Scores, cpu};

/// The softmax over the last axis, each row at the inverse temperature that `rescaling` gives it. The result
/// has the shape and dtype of `scores`.
///
/// Shapes: `scores` is `[.., query tokens, keys]` in f32, f16 or bf16, and a score of -inf is masked. It may
/// have any strides; scores whose rows do not follow each other are copied first. `positions` counts from 0
/// and holds one position for each row, or one for each query token, which then holds for all leading axes.
/// Without positions, a row sits at its last unmasked key. Only laws of the position use them.
///
/// A row without unmasked scores becomes 0. A NaN or +inf makes its own row NaN, and no other.
///
/// Errors: another dtype, a tensor without axes, or a number of positions that does not fit. The message
/// gives the shape and what was expected.
pub fn softmax_last_dim(scores: &Tensor, rescaling: &Rescaling, positions: Option<&[u32]>) -> Result<Tensor> {
    let shape = scores.shape();
    let Some((&cols, leading)) = shape.dims().split_last() else {
        bail!("critbeta softmax of a tensor without axes: expected [.., query tokens, keys]");
    };
    let rows: usize = leading.iter().product();
    let tokens = leading.last().copied().unwrap_or(1);
    let positions = match positions {
        None => None,
        Some(given) if given.len() == rows => Some(given.to_vec()),
        Some(given) if given.len() == tokens => Some(given.repeat(rows / tokens.max(1))),
        Some(given) => bail!(
            "critbeta softmax of {shape:?}: {} positions given, expected {tokens}, one for each query token, \
             or {rows}, one for each row",
            given.len()
        ),
    };
    scores.contiguous()?.apply_op1_no_bwd(&Softmax { rescaling, positions, rows, cols })
}

/// The softmax of contiguous rows.
struct Softmax<'a> {
    rescaling: &'a Rescaling,
    /// One for each row.
    positions: Option<Vec<u32>>,
    rows: usize,
    cols: usize,
}

impl Softmax<'_> {
    fn run<T: Element>(&self, scores: &[T], layout: &Layout) -> Result<(Vec<T>, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("critbeta softmax of {:?}: the rows do not follow each other", layout.shape());
        };
        let mut out = vec![T::from_f32(0.0); to - from];
        let view = Scores::dense(&scores[from..to], self.rows, self.cols).map_err(Error::wrap)?;
        cpu::softmax(&view, self.rescaling, self.positions.as_deref(), &mut out).map_err(Error::wrap)?;
        Ok((out, layout.shape().clone()))
    }
}

impl CustomOp1 for Softmax<'_> {
    fn name(&self) -> &'static str {
        "critbeta-softmax-last-dim"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(match storage {
            CpuStorage::F32(scores) => self.run(scores, layout).map(|(out, s)| (CpuStorage::F32(out), s))?,
            CpuStorage::F16(scores) => self.run(scores, layout).map(|(out, s)| (CpuStorage::F16(out), s))?,
            CpuStorage::BF16(scores) => {
                self.run(scores, layout).map(|(out, s)| (CpuStorage::BF16(out), s))?
            }
            _ => bail!(
                "critbeta softmax of {:?} in {:?}: expected f32, f16 or bf16",
                layout.shape(),
                candle_core::backend::BackendStorage::dtype(storage)
            ),
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let Softmax { rescaling, rows, cols, .. } = *self;
        let rows = crate::cuda::Rows { rescaling, positions: self.positions.as_deref(), rows, cols };
        crate::cuda::softmax(&rows, storage, layout)
    }
}
