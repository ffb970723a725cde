//! Section 4 shows the operating ratio against the top-two difference and the entropy, under proven bounds.

use super::axis::Axis;
use super::chart::{Chart, Frames, Mark, swatch};
use super::number::count;
use super::style::Ink;
use crate::{HeadSummary, SketchPoint, Summary};
use critbeta::reference::{entropy_bound, top_two_bound};
use maud::{Markup, html};
use std::f64::consts::E;

/// Both charts of a page: axes, bounds and the rows of all heads. They are the same behind every head.
pub(super) struct Phase {
    top_two: Chart,
    entropy: Chart,
    behind: [Vec<Mark<'static>>; 2],
}

/// The most rows of all heads that are drawn behind the rows of one head.
pub(super) const CLOUD: usize = 1500;
const CURVE: usize = 160;

impl Phase {
    pub(super) fn of(summary: &Summary) -> Phase {
        let points = || summary.heads.iter().flat_map(|head| &head.sketch.points);
        let finite = || points().map(|point| point.ratio).filter(|ratio| *ratio > 0.0 && ratio.is_finite());
        // Both bounds stay in sight, whatever the rows are.
        let (low, high) = finite().fold((0.2, 5.0), |(low, high): (f64, f64), r| (low.min(r), high.max(r)));
        let ratio = || Axis::log("operating ratio ρ = β / Λ", low, high);
        let top_two = Chart::new(ratio(), Axis::linear("top-two difference (probability)", 1.0));
        let entropy = Chart::new(ratio(), Axis::linear("entropy / log n (1 is uniform)", 1.0));
        let stride = points().count().div_ceil(CLOUD).max(1);
        let cloud: Vec<SketchPoint> = points().copied().step_by(stride).collect();
        let ends = summary.heads.iter().filter_map(|head| head.n);
        let ends = ends.reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]);
        let critical = || Mark::Line(Ink::Guide, vec![(1.0, 0.0), (1.0, 1.0)]);
        let (from, to) = (top_two.x.low, top_two.x.high);
        let below = top_two.x.even(from, 1.0, CURVE).filter_map(|rho| Some((rho, top_two_bound(rho)?)));
        let mut first =
            vec![critical(), Mark::Points(Ink::Cloud, cloud.iter().map(SketchPoint::at_top_two).collect())];
        // No difference exceeds 1. The bound reaches 1 at rho = e / (1 + e).
        let end = (E / (1.0 + E), 1.0);
        first.push(Mark::Line(Ink::Bound, below.take_while(|&(_, d)| d <= 1.0).chain([end]).collect()));
        let mut second =
            vec![critical(), Mark::Points(Ink::Cloud, cloud.iter().map(SketchPoint::at_entropy).collect())];
        for n in ends.into_iter().flatten() {
            let above = entropy.x.even(1.0, to, CURVE);
            let bound = above.filter_map(|rho| Some((rho, entropy_bound(rho)? / (n as f64).ln())));
            second.push(Mark::Line(Ink::Bound, bound.filter(|&(_, h)| h <= 1.0).collect()));
        }
        Phase { top_two, entropy, behind: [first, second] }
    }

    pub(super) fn key() -> Markup {
        html! {
            p.key {
                span { (swatch(Ink::Points)) "rows of this head" }
                span { (swatch(Ink::Cloud)) "rows of all heads" }
                span {
                    (swatch(Ink::Bound)) "proven bounds: every row lies under its own "
                    "(right: for the longest and for the shortest n)"
                }
            }
        }
    }

    /// How many rows break a bound.
    pub(super) fn violations(summary: &Summary) -> Markup {
        let violations: u64 = summary.heads.iter().map(|head| head.bound_violations).sum();
        let measured: u64 = summary.heads.iter().map(|head| head.measured).sum();
        html! {
            p {
                b.violations { (count(violations)) } " of " (count(measured))
                " measured rows of all heads break a bound"
                @if violations == 0 { ", as it must be." } @else {
                    ", and none may. Either the records were altered or this program has a defect."
                }
            }
        }
    }

    /// `most` is the most points that are drawn of a head.
    pub(super) fn charts(&self, head: &HeadSummary, most: usize, frames: &mut Frames) -> Markup {
        let all = &head.sketch.points;
        let (shown, last) = (all.len().min(most.max(2)), all.len().saturating_sub(1));
        let points: Vec<SketchPoint> = (0..shown).map(|i| all[i * last / (shown - 1).max(1)]).collect();
        let marks =
            |at: fn(&SketchPoint) -> (f64, f64)| [Mark::Points(Ink::Points, points.iter().map(at).collect())];
        html! {
            figure { (self.top_two.svg(
                frames,
                "operating ratio against top-two difference",
                &self.behind[0],
                &marks(SketchPoint::at_top_two),
            )) }
            figure { (self.entropy.svg(
                frames,
                "operating ratio against entropy / log n",
                &self.behind[1],
                &marks(SketchPoint::at_entropy),
            )) }
        }
    }
}

impl SketchPoint {
    fn at_top_two(&self) -> (f64, f64) {
        (self.ratio, self.top_two)
    }

    fn at_entropy(&self) -> (f64, f64) {
        (self.ratio, self.relative_entropy)
    }
}
