//! The working path on CPUs: exact critical beta and rescaled softmax of f32 rows, rows in parallel.
//!
//! Counts are integers and sums are made of fixed pieces in a fixed order, so results depend neither on the number of threads nor on
//! the instruction set ([`Isa`]). [`Plan`] says who computes what.

mod lanes;
mod plan;
mod report;
mod row;
mod search;
#[cfg(test)]
mod tests;

pub use lanes::Isa;
pub use plan::Plan;
pub use report::{Measure, RowReport, SoftmaxRow};
pub(crate) use row::Workspace;

use crate::{CriticalBeta, Element, Error, Rescaling, Result, Scores};
use rayon::prelude::*;
use row::{Beta, Loan};

type Copy = fn(&[u8], &mut [u8]);

/// A copy between slices of one length past the caches, where this CPU has the stores for it: a benchmark's limit.
pub(crate) fn streaming_copy() -> Option<Copy> {
    match Isa::chosen_or_widest() {
        Isa::Portable => None,
        _ => Some(|from, to| Isa::chosen_or_widest().copy_past(from, to)),
    }
}

/// Lambda(r) of one row, `resolve` r >= 0 in nats; r = 0 is the critical beta itself.
///
/// Equal to [`Row::from_f32(scores).resolved_critical_beta(r)`](crate::reference::Row::resolved_critical_beta) bit for bit.
pub fn critical_beta(scores: &[f32], resolve: f64) -> CriticalBeta {
    Workspace::default().resolved(scores, resolve)
}

/// Everything about one row at inverse temperature `beta` >= 0.
pub fn row_report(scores: &[f32], beta: f64, measure: Measure) -> RowReport {
    Workspace::default().report(scores, beta, measure)
}

/// Everything about every row at inverse temperature `beta` >= 0, in order: one report per row.
pub fn row_reports<T: Element>(scores: &Scores<T>, beta: f64, measure: Measure) -> Vec<RowReport> {
    let plan = Plan::choose(scores.rows(), scores.cols(), 0, rayon::current_num_threads());
    let scratch = || (Loan::of(1), Vec::new());
    let one = |(workspace, wide): &mut (Loan, Vec<f32>), row| {
        row::widen(scores.row(row), wide);
        workspace.report(wide, beta, measure)
    };
    if plan.parts > 1 {
        let mut scratch = (Loan::of(plan.parts), Vec::new());
        return (0..scores.rows()).map(|row| one(&mut scratch, row)).collect();
    }
    (0..scores.rows()).into_par_iter().with_min_len(plan.task_rows).map_init(scratch, one).collect()
}

/// Writes the softmax of every row under `rescaling` to `out` (dense rows x cols, in its own element type; 0 beyond a row's
/// length) and says of each row which beta it got. Row `r` is taken to sit at query position `positions[r]`.
///
/// Probabilities are within (4 + z) 2^-23 of f64, relative, z = beta x gap, then rounded to another element type; the same bits on any
/// number of threads and any [`Isa`]. Each thread keeps up to 17 bytes of scratch per score of its longest row for the next call.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `positions` one per row, and those of [`Isa::chosen`].
pub fn softmax<T: Element, O: Element>(
    scores: &Scores<T>,
    rescaling: &Rescaling,
    positions: &[u64],
    out: &mut [O],
) -> Result<Vec<SoftmaxRow>> {
    check(scores, "positions", positions.len(), out.len())?;
    Ok(write_all(scores, out, |row| Beta::Rule(rescaling, positions[row])))
}

/// [`softmax`] at a given beta for each row; below 0 it is taken as 0, and NaN makes its row NaN.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `betas` one per row.
pub fn softmax_at<T: Element, O: Element>(
    scores: &Scores<T>,
    betas: &[f64],
    out: &mut [O],
) -> Result<Vec<SoftmaxRow>> {
    check(scores, "betas", betas.len(), out.len())?;
    Ok(write_all(scores, out, |row| Beta::Given(betas[row])))
}

/// [`softmax`] in the place of the scores: rows of `cols` that begin `stride` elements apart, row `r` of `lens[r]` scores where lengths are
/// given. What lies behind a row's length becomes 0, what lies between rows is left alone.
///
/// Errors: those of [`Scores::strided`] and [`Scores::with_lens`], and [`Error::Scores`] unless `positions` has one per row.
pub fn softmax_in_place<T: Element>(
    scores: &mut [T],
    [rows, cols, stride]: [usize; 3],
    lens: Option<&[usize]>,
    rescaling: &Rescaling,
    positions: &[u64],
) -> Result<Vec<SoftmaxRow>> {
    let view = Scores::strided(&*scores, rows, cols, stride)?;
    if let Some(lens) = lens {
        view.with_lens(lens)?;
    }
    check(&view, "positions", positions.len(), rows.saturating_mul(cols))?;
    let plan = Plan::choose(rows, cols, 0, rayon::current_num_threads());
    let one = |workspace: &mut Workspace, (row, scores): (usize, &mut [T])| {
        let (scores, behind) = scores[..cols].split_at_mut(lens.map_or(cols, |lens| lens[row]));
        let (told, fill) = workspace.softmax(&*scores, &[], Beta::Rule(rescaling, positions[row]));
        workspace.write(scores, fill, false);
        behind.fill(T::zeroed());
        told
    };
    if rows == 0 || cols == 0 {
        let mut workspace = Loan::of(1);
        return Ok((0..rows).map(|row| one(&mut workspace, (row, &mut []))).collect());
    }
    let scores = &mut scores[..(rows - 1) * stride + cols];
    if plan.parts > 1 {
        let mut workspace = Loan::of(plan.parts);
        return Ok(scores.chunks_mut(stride).enumerate().map(|at| one(&mut workspace, at)).collect());
    }
    let rows = scores.par_chunks_mut(stride).enumerate().with_min_len(plan.task_rows);
    Ok(rows.map_init(|| Loan::of(1), |workspace, at| one(workspace, at)).collect())
}

fn check<T: Element>(scores: &Scores<T>, what: &str, given: usize, out: usize) -> Result<()> {
    let (rows, cols) = (scores.rows(), scores.cols());
    let fail = |detail| Err(Error::Scores { rows, cols, detail });
    Isa::chosen()?;
    if rows.checked_mul(cols) != Some(out) {
        return fail(format!("the output holds {out} elements, expected one per score"));
    }
    if given != rows {
        return fail(format!("{given} {what} given, expected one per row"));
    }
    Ok(())
}

fn write_all<'a, T: Element, O: Element>(
    scores: &Scores<T>,
    out: &mut [O],
    beta: impl Fn(usize) -> Beta<'a> + Sync,
) -> Vec<SoftmaxRow> {
    let (rows, cols) = (scores.rows(), scores.cols());
    let plan = Plan::choose(rows, cols, size_of::<O>(), rayon::current_num_threads());
    let one = |workspace: &mut Workspace, (row, out): (usize, &mut [O])| {
        let current = scores.row(row);
        let next = if plan.parts == 1 && row + 1 < rows { scores.row(row + 1) } else { &[] };
        let (told, fill) = workspace.softmax(current, next, beta(row));
        let (out, behind) = out.split_at_mut(current.len());
        workspace.write(out, fill, plan.stream);
        behind.fill(O::zeroed());
        told
    };
    if cols == 0 || plan.parts > 1 {
        let mut workspace = Loan::of(plan.parts);
        let mut rest = out;
        let mut next = |row| {
            let (out, behind) = std::mem::take(&mut rest).split_at_mut(cols);
            rest = behind;
            one(&mut workspace, (row, out))
        };
        return (0..rows).map(&mut next).collect();
    }
    let rows = out.par_chunks_mut(cols).enumerate().with_min_len(plan.task_rows);
    rows.map_init(|| Loan::of(1), |workspace, at| one(workspace, at)).collect()
}
