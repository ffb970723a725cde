//! The rescaled softmax of blocks of rows.

use super::row::{Measured, Rule, SoftmaxRow, Workspace};
use super::scratch::Lent;
use super::top::Chunks;
use super::{InstructionSet, Plan, Sharing};
use crate::scores::last_visible;
use crate::{Element, Error, Rescaling, Result, Scores, ScoresMut};
use rayon::prelude::*;

/// Writes the softmax of every row under `rescaling` to `out`, and reports the beta of each row. `out` is
/// dense, rows x cols, in f32 or any other element type; it is 0 beyond a row's length. Row `r` sits at query
/// position `positions[r]`, counted from 0. Without positions, a row sits at its last unmasked key.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `positions` holds one per row.
pub fn softmax<T: Element, O: Element>(
    scores: &Scores<T>,
    rescaling: &Rescaling,
    positions: Option<&[u32]>,
    out: &mut [O],
) -> Result<Vec<SoftmaxRow>> {
    check_positions(scores, positions)?;
    let rule = |row| Rule::Rescaling(rescaling, position(rescaling, positions, row, scores.row(row)));
    write_rows(scores, out, rule)
}

/// Like [`softmax`], with every row at its own inverse temperature `betas[row]` >= 0, per unit of score. A
/// beta that is NaN or below 0 makes its whole row NaN, masked scores included. The beta +inf gives the
/// limit: the maxima have equal shares.
///
/// Errors: [`Error::Scores`] unless `out` holds rows * cols elements and `betas` holds one per row.
pub fn softmax_at<T: Element, O: Element>(
    scores: &Scores<T>,
    betas: &[f32],
    out: &mut [O],
) -> Result<Vec<SoftmaxRow>> {
    check_len(scores, betas.len(), "inverse temperatures")?;
    write_rows(scores, out, |row| Rule::At(betas[row].into()))
}

/// Like [`softmax`], but the probabilities replace the scores. Columns beyond a row's length become 0. What
/// lies between rows does not change.
///
/// Errors: [`Error::Scores`] unless there is one position per row.
pub fn softmax_in_place<T: Element>(
    scores: &mut ScoresMut<T>,
    rescaling: &Rescaling,
    positions: Option<&[u32]>,
) -> Result<Vec<SoftmaxRow>> {
    let set = InstructionSet::chosen()?;
    let view = scores.as_scores();
    check_positions(&view, positions)?;
    let (rows, cols) = (view.rows(), view.cols());
    let plan = Plan::choose(rows, cols, T::DTYPE, rayon::current_num_threads());
    let one = |workspace: &mut Workspace, (index, (len, row)): (usize, (usize, &mut [T])), split| {
        let rule = Rule::Rescaling(rescaling, position(rescaling, positions, index, &row[..len]));
        let Measured { report, probs, masked } =
            workspace.measure(index, &Chunks { scores: &row[..len], ahead: &[], set, split }, rule);
        if masked {
            row[..len].iter_mut().for_each(|score| *score = T::from_f32(score.score()));
        }
        match probs {
            Some(probs) => probs.replace_row(set, &workspace.kept, &mut row[..len], split),
            None => row[..len].fill(T::from_f32(if report.beta.is_nan() { f32::NAN } else { 0.0 })),
        }
        row[len..].fill(T::from_f32(0.0));
        report
    };
    if cols == 0 {
        let mut workspace = Lent::new();
        return Ok((0..rows).map(|row| one(&mut workspace, (row, (0, &mut [])), false)).collect());
    }
    match plan.sharing {
        Sharing::Columns { .. } => {
            let mut workspace = Lent::new();
            Ok(scores.rows_mut().enumerate().map(|row| one(&mut workspace, row, true)).collect())
        }
        Sharing::Rows { claim } => {
            let rows: Vec<_> = scores.rows_mut().enumerate().collect();
            let rows = rows.into_par_iter().with_min_len(claim);
            Ok(rows.map_init(Lent::new, |workspace, row| one(workspace, row, false)).collect())
        }
    }
}

/// The position of a row of these scores, if the rescaling needs it: only a law of the position does.
fn position<T: Element>(rescaling: &Rescaling, given: Option<&[u32]>, row: usize, scores: &[T]) -> u64 {
    match (given, rescaling) {
        (Some(positions), _) => positions[row].into(),
        (None, Rescaling::Law(_)) => last_visible(scores),
        (None, _) => 0,
    }
}

fn check_positions<T: Element>(scores: &Scores<T>, positions: Option<&[u32]>) -> Result<()> {
    positions.map_or(Ok(()), |positions| check_len(scores, positions.len(), "positions"))
}

fn check_len<T: Element>(scores: &Scores<T>, found: usize, what: &str) -> Result<()> {
    let (rows, cols) = (scores.rows(), scores.cols());
    if found == rows {
        return Ok(());
    }
    Err(Error::Scores { rows, cols, detail: format!("{found} {what} given, expected one per row") })
}

fn write_rows<'r, T: Element, O: Element>(
    scores: &Scores<T>,
    out: &mut [O],
    rule: impl Fn(usize) -> Rule<'r> + Sync,
) -> Result<Vec<SoftmaxRow>> {
    let set = InstructionSet::chosen()?;
    let (rows, cols) = (scores.rows(), scores.cols());
    if rows.checked_mul(cols) != Some(out.len()) {
        let detail = format!("the output holds {} elements, expected one per score", out.len());
        return Err(Error::Scores { rows, cols, detail });
    }
    let plan = Plan::choose(rows, cols, O::DTYPE, rayon::current_num_threads());
    let one = |workspace: &mut Workspace, row: usize, out: &mut [O], split| {
        let ahead = if row + 1 < rows { scores.row(row + 1) } else { &[] };
        let scores = Chunks { scores: scores.row(row), ahead, set, split };
        let Measured { report, probs, masked } = workspace.measure(row, &scores, rule(row));
        let (seen, behind) = out.split_at_mut(scores.scores.len());
        match probs {
            Some(probs) if masked => {
                let scores = Chunks { scores: &workspace.masked, ahead: &[], set, split };
                probs.write_row(&scores, &workspace.kept, seen, plan.streams);
            }
            Some(probs) => {
                let progress = probs.write_row(&scores, &workspace.kept, seen, plan.streams);
                workspace.next = Some((row + 1, progress));
            }
            None => seen.fill(O::from_f32(if report.beta.is_nan() { f32::NAN } else { 0.0 })),
        }
        behind.fill(O::from_f32(0.0));
        report
    };
    if cols == 0 {
        let mut workspace = Lent::new();
        return Ok((0..rows).map(|row| one(&mut workspace, row, &mut [], false)).collect());
    }
    match plan.sharing {
        Sharing::Columns { .. } => {
            let mut workspace = Lent::new();
            let rows = out.chunks_mut(cols).enumerate();
            Ok(rows.map(|(row, out)| one(&mut workspace, row, out, true)).collect())
        }
        Sharing::Rows { claim } => {
            let rows = out.par_chunks_mut(cols).enumerate().with_min_len(claim);
            Ok(rows.map_init(Lent::new, |ws, (row, out)| one(ws, row, out, false)).collect())
        }
    }
}
