//! The working path on CPUs: the exact critical beta and the rescaled softmax of rows, at the speed of
//! memory.
//!
//! A [`Plan`] says whether each thread takes whole rows, or all threads share each row. In both cases, and on
//! every [`InstructionSet`], every result has the same bits: counts are integers, maxima have no order, and
//! sums add fixed chunks in a fixed order.

mod attend;
mod copy;
mod exponent;
mod lanes;
mod ln;
mod partition;
mod plan;
mod probs;
mod row;
mod scale;
mod scratch;
mod search;
mod softmax;
mod top;
mod weights;

pub(crate) use attend::{Hands, Weighed, weights_at};
pub use lanes::InstructionSet;
pub(crate) use lanes::{BLOCK, Lanes, Standard, WIDTH, Work, element_of, load, load_block};
pub(crate) use partition::exp;
pub use plan::{Plan, Sharing};
pub use row::Workspace;
pub use row::{Measure, RowReport, SoftmaxRow};
pub use scale::scale;
pub(crate) use scratch::Lent;
pub use softmax::{softmax, softmax_at, softmax_in_place};

use crate::{CriticalBeta, Element, Scores};
use half::{bf16, f16};
use rayon::prelude::*;
use top::Chunks;

type CopyBytes = fn(&[u8], &mut [u8]);

/// A copy past the caches between slices of one length. `None` if this CPU has no stores for it. Benchmarks
/// take it as their limit.
#[doc(hidden)]
pub fn streaming_copy() -> Option<CopyBytes> {
    let streams = InstructionSet::chosen_or_fastest().streams();
    streams.then_some(|from, to| copy::copy_past(InstructionSet::chosen_or_fastest(), from, to))
}

/// Lambda(r) of one row, `resolve` being r >= 0 in nats; r = 0 gives the critical beta itself. The result is
/// NaN for any other r, and for a poisoned row.
///
/// It equals
/// [`Row::from_f32(scores).resolved_critical_beta(r)`](crate::reference::Row::resolved_critical_beta) bit for
/// bit.
pub fn critical_beta(scores: &[f32], resolve: f64) -> CriticalBeta {
    let (row, mut workspace) = (Chunks::of_one(scores), Lent::new());
    workspace.critical_beta(&row, resolve)
}

/// Everything about one row at inverse temperature `beta` >= 0.
pub fn row_report(scores: &[f32], beta: f64, measure: Measure) -> RowReport {
    Lent::new().report(scores, beta, measure)
}

/// Lambda(r) of every row, in order. Each result is that of [`critical_beta`].
pub fn critical_betas<T: Element>(scores: &Scores<T>, resolve: f64) -> Vec<CriticalBeta> {
    each_row(scores, |workspace, row| workspace.critical_beta(row, resolve))
}

/// Everything about every row at inverse temperature `beta` >= 0, in order: one report per row.
pub fn row_reports<T: Element>(scores: &Scores<T>, beta: f64, measure: Measure) -> Vec<RowReport> {
    each_row(scores, |workspace, row| workspace.report_on(row, beta, measure))
}

/// What `measure` finds for every row, in order. The [`Plan`] says how threads share the rows.
fn each_row<T: Element, R: Send>(
    scores: &Scores<T>,
    measure: impl Fn(&mut Workspace, &Chunks<T>) -> R + Sync,
) -> Vec<R> {
    let (set, rows) = (InstructionSet::chosen_or_fastest(), scores.rows());
    let plan = Plan::choose(rows, scores.cols(), T::DTYPE, rayon::current_num_threads());
    let report = |workspace: &mut Workspace, row, split| {
        measure(workspace, &Chunks { scores: scores.row(row), ahead: &[], set, split })
    };
    match plan.sharing {
        Sharing::Columns { .. } => {
            let mut workspace = Lent::new();
            (0..rows).map(|row| report(&mut workspace, row, true)).collect()
        }
        Sharing::Rows { claim } => {
            let rows = (0..rows).into_par_iter().with_min_len(claim);
            rows.map_init(Lent::new, |workspace, row| report(workspace, row, false)).collect()
        }
    }
}

/// Compiles the kernels of all element types in this crate. Where a profile shares generic code (dev), crates
/// that call them link to these: all tests then took 187 s of CPU to compile, not 358 (2026-11-29). Nobody
/// calls this.
#[doc(hidden)]
pub fn instances() -> [[*const (); 9]; 3] {
    fn of<T: Element>() -> [*const (); 9] {
        let at = [softmax_at::<T, f32> as *const (), softmax_at::<T, f16> as _, softmax_at::<T, bf16> as _];
        let by = [softmax::<T, f32> as *const (), softmax::<T, f16> as _, softmax::<T, bf16> as _];
        let [in_place, betas] = [softmax_in_place::<T> as *const (), critical_betas::<T> as _];
        [at[0], at[1], at[2], by[0], by[1], by[2], in_place, betas, row_reports::<T> as _]
    }
    [of::<f32>(), of::<f16>(), of::<bf16>()]
}
