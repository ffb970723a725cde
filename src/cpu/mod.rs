//! The working path on CPUs: exact critical beta and rescaled softmax of f32 rows, rows in parallel.
//!
//! Every row is computed by one thread in a fixed order, so results do not depend on the number of threads.

mod copy;
mod refine;
mod row;

#[cfg(target_arch = "x86_64")]
pub(crate) use copy::copy_non_temporal;
pub(crate) use row::Workspace;
pub use row::{Measure, RowReport, SoftmaxRow};

use crate::stats::RowMax;
use crate::{CriticalBeta, Element, Error, Rescaling, Result, Scores};
use rayon::prelude::*;

/// Lambda(r) of one row, `resolve` r >= 0 in nats; r = 0 is the critical beta itself.
///
/// Equal to [`Row::from_f32(scores).resolved_critical_beta(r)`](crate::reference::Row::resolved_critical_beta) bit for bit.
pub fn critical_beta(scores: &[f32], resolve: f64) -> CriticalBeta {
    let top = RowMax::of(scores, 0);
    let [_, resolved] = Workspace::default().critical_betas(scores, &top, Measure { resolve, top_k: None });
    resolved
}

/// Everything about one row at inverse temperature `beta` >= 0.
pub fn row_report(scores: &[f32], beta: f64, measure: Measure) -> RowReport {
    Workspace::default().report(scores, beta, measure)
}

/// Everything about every row at inverse temperature `beta` >= 0, in order: one report per row.
pub fn row_reports<T: Element>(scores: &Scores<T>, beta: f64, measure: Measure) -> Vec<RowReport> {
    let scratch = || (Workspace::default(), Vec::new());
    let one = |(workspace, wide): &mut (Workspace, Vec<f32>), row| {
        row::widen(scores.row(row), wide);
        workspace.report(wide, beta, measure)
    };
    (0..scores.rows()).into_par_iter().map_init(scratch, one).collect()
}

/// Writes the softmax of every row under `rescaling` to `out` (dense rows x cols; 0 beyond a row's
/// length) and says of each row which beta it got. Row `r` is taken to sit at query position `positions[r]`.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `positions` one per row.
pub fn softmax<T: Element>(
    scores: &Scores<T>,
    rescaling: &Rescaling,
    positions: &[u64],
    out: &mut [f32],
) -> Result<Vec<SoftmaxRow>> {
    let (rows, cols) = (scores.rows(), scores.cols());
    let fail = |detail| Err(Error::Scores { rows, cols, detail });
    if rows.checked_mul(cols) != Some(out.len()) {
        return fail(format!("the output holds {} elements, expected one per score", out.len()));
    }
    if positions.len() != rows {
        return fail(format!("{} positions given, expected one per row", positions.len()));
    }
    let scratch = || (Workspace::default(), Vec::new(), Vec::new());
    let one = |(workspace, wide, probs): &mut (Workspace, Vec<f32>, Vec<f64>),
               (row, out): (usize, &mut [f32])| {
        row::widen(scores.row(row), wide);
        let report = workspace.softmax(wide, rescaling, positions[row], probs);
        out.fill(0.0);
        out.iter_mut().zip(probs.iter()).for_each(|(o, &p)| *o = p as f32);
        report
    };
    if cols == 0 {
        let mut scratch = scratch();
        return Ok((0..rows).map(|row| one(&mut scratch, (row, &mut []))).collect());
    }
    Ok(out.par_chunks_mut(cols).enumerate().map_init(scratch, one).collect())
}
