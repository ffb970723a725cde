//! The working path on CPUs: exact critical beta and rescaled softmax of f32 rows, rows in parallel.
//!
//! Every row is computed by one thread in a fixed order, so results do not depend on the number of threads.

mod plan;
mod refine;
mod row;

pub use plan::{Plan, Sharing};
pub(crate) use row::Workspace;
pub use row::{Measure, RowReport, SoftmaxRow};

use crate::stats::RowMax;
use crate::{CriticalBeta, Element, Error, Rescaling, Result, Scores, ScoresMut};
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

/// Writes the softmax of every row under `rescaling` to `out` (dense rows x cols, as f32 or any other element
/// type; 0 beyond a row's length) and says of each row which beta it got. Row `r` sits at query position `positions[r]`.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `positions` one per row.
pub fn softmax<T: Element, O: Element>(
    scores: &Scores<T>,
    rescaling: &Rescaling,
    positions: &[u64],
    out: &mut [O],
) -> Result<Vec<SoftmaxRow>> {
    check_len(scores, positions.len(), "positions")?;
    write_rows(scores, out, |row| (rescaling.clone(), positions[row]))
}

/// As [`softmax`], every row at its own inverse temperature `betas[row]` >= 0. A NaN makes its whole row NaN,
/// masked scores included, as on a GPU; +inf is the limit: shares of 1 for the maxima.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `betas` one per row.
pub fn softmax_at<T: Element, O: Element>(
    scores: &Scores<T>,
    betas: &[f64],
    out: &mut [O],
) -> Result<Vec<SoftmaxRow>> {
    check_len(scores, betas.len(), "inverse temperatures")?;
    write_rows(scores, out, |row| (Rescaling::Fixed(betas[row]), 0))
}

/// As [`softmax`], the probabilities replacing the scores: 0 from a row's length to its columns; what lies
/// between rows is left alone.
///
/// Errors: [`Error::Scores`] unless there is one position per row.
pub fn softmax_in_place<T: Element>(
    scores: &mut ScoresMut<T>,
    rescaling: &Rescaling,
    positions: &[u64],
) -> Result<Vec<SoftmaxRow>> {
    let view = scores.as_scores();
    let mut out = vec![T::from_f32(0.0); view.rows() * view.cols()];
    let reports = softmax(&view, rescaling, positions, &mut out)?;
    let cols = view.cols().max(1);
    scores.rows_mut().zip(out.chunks(cols)).for_each(|((_, row), out)| row.copy_from_slice(out));
    Ok(reports)
}

fn check_len<T: Element>(scores: &Scores<T>, found: usize, what: &str) -> Result<()> {
    let (rows, cols) = (scores.rows(), scores.cols());
    if found == rows {
        return Ok(());
    }
    Err(Error::Scores { rows, cols, detail: format!("{found} {what} given, expected one per row") })
}

fn write_rows<T: Element, O: Element>(
    scores: &Scores<T>,
    out: &mut [O],
    rule: impl Fn(usize) -> (Rescaling, u64) + Sync,
) -> Result<Vec<SoftmaxRow>> {
    let (rows, cols) = (scores.rows(), scores.cols());
    if rows.checked_mul(cols) != Some(out.len()) {
        let detail = format!("the output holds {} elements, expected one per score", out.len());
        return Err(Error::Scores { rows, cols, detail });
    }
    let scratch = || (Workspace::default(), Vec::new(), Vec::new());
    let one = |(workspace, wide, probs): &mut (Workspace, Vec<f32>, Vec<f64>),
               (row, out): (usize, &mut [O])| {
        row::widen(scores.row(row), wide);
        let (rescaling, position) = rule(row);
        let report = workspace.softmax(wide, &rescaling, position, probs);
        out.fill(O::from_f32(0.0));
        out.iter_mut().zip(probs.iter()).for_each(|(o, &p)| *o = O::from_f32(p as f32));
        report
    };
    if cols == 0 {
        let mut scratch = scratch();
        return Ok((0..rows).map(|row| one(&mut scratch, (row, &mut []))).collect());
    }
    Ok(out.par_chunks_mut(cols).enumerate().map_init(scratch, one).collect())
}
