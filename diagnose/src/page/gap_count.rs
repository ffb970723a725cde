//! Section 3 shows log N(t) of three rows of a head, and the tangent whose slope is the critical beta.

use super::axis::Axis;
use super::chart::{Chart, Frames, Mark, swatch};
use super::number::{count, figure};
use super::style::Ink;
use crate::{HeadSummary, Staircase};
use maud::{Markup, html};

/// The meaning of the lines.
pub(super) fn key(resolve: f64) -> Markup {
    html! {
        p.key {
            span {
                (swatch(Ink::Measured)) "log N(t): N(t) keys lie within gap t of the maximum. "
                "The line ends at the median gap, or at " (Staircase::BEYOND_CONTACT) " × the "
                @if resolve > 0.0 { "farther " } "contact gap if that is larger"
            }
            span { (swatch(Ink::Tangent)) "tangent: its slope is the critical β" }
            span { (swatch(Ink::Contact)) "contact of the tangent" }
            @if resolve > 0.0 { span { (swatch(Ink::Resolved)) "resolved tangent: it starts at log N = r" } }
        }
    }
}

/// `steps` is the most steps of a row that are drawn.
pub(super) fn section(head: &HeadSummary, resolve: f64, steps: usize, frames: &mut Frames) -> Markup {
    let rows = &head.sketch.staircases;
    html! {
        @if rows.is_empty() {
            @if head.measured == 0 { p.missing { "No row of this head can be measured." } }
            @else { p.missing {
                "Row records hold no scores, so the gaps of a row cannot be drawn. "
                code { "critbeta diagnose FILE --html" } " draws them."
            } }
        } @else {
            div.charts {
                @for row in rows { figure {
                    (chart(row, resolve, steps, frames))
                    figcaption {
                        b { (format!("{:.0} % row", 100.0 * row.quantile)) } ": n " (count(row.n)) ", "
                        @if row.critical.beta.is_infinite() {
                            (count(row.critical.contact_rank)) " keys tied: critical β ∞"
                        } @else {
                            "critical β " (figure(row.critical.beta)) " = log "
                            (count(row.critical.contact_rank)) " / " (figure(row.critical.contact_gap))
                        }
                        @if resolve > 0.0 { "; resolved β " (figure(row.resolved.beta)) }
                    }
                } }
            }
        }
    }
}

fn chart(row: &Staircase, resolve: f64, steps: usize, frames: &mut Frames) -> Markup {
    let contact = row.critical.contact_gap.max(row.resolved.contact_gap);
    let end = row.steps.last().map_or(0.0, |&(gap, _)| gap).max(1.05 * contact);
    let log_n = (row.n as f64).ln();
    let chart = Chart::new(Axis::linear("gap t (score units)", end), Axis::linear("log N(t) (nats)", log_n));
    let end = chart.x.high;
    let mut marks = Vec::new();
    let line = |ink, slope: f64, from: f64| {
        // The line ends at the upper edge or at the right one, whichever comes first.
        let top = chart.y.high;
        let to = ((top - from) / slope).min(end);
        Mark::Line(ink, vec![(0.0, from), (to, (from + slope * to).min(top))])
    };
    if resolve > 0.0 && row.resolved.beta > 0.0 && row.resolved.beta.is_finite() {
        marks.push(line(Ink::Resolved, row.resolved.beta, resolve));
    }
    if row.critical.beta.is_infinite() {
        marks.push(Mark::Line(Ink::Tangent, vec![(0.0, 0.0), (0.0, chart.y.high)]));
    } else if row.critical.beta > 0.0 {
        marks.push(line(Ink::Tangent, row.critical.beta, 0.0));
    }
    marks.push(Mark::Line(Ink::Measured, staircase(row, steps, end)));
    if row.critical.contact_rank >= 2 {
        let at = (row.critical.contact_gap, (row.critical.contact_rank as f64).ln());
        marks.push(Mark::Points(Ink::Contact, vec![at]));
    }
    let label = format!("log N(t) against gap t, {:.0} % row", 100.0 * row.quantile);
    chart.svg(frames, &label, &[], &marks)
}

/// The corners of `most` steps at even distances, and of the step of the contact.
fn staircase(row: &Staircase, most: usize, end: f64) -> Vec<(f64, f64)> {
    let (shown, last) = (row.steps.len().min(most.max(2)), row.steps.len().saturating_sub(1));
    let mut kept: Vec<usize> = (0..shown).map(|i| i * last / (shown - 1).max(1)).collect();
    let contact = row.steps.iter().position(|&(gap, _)| gap == row.critical.contact_gap);
    kept.extend(contact);
    kept.sort_unstable();
    kept.dedup();
    let mut corners = Vec::with_capacity(2 * kept.len() + 1);
    let mut level = 0.0;
    for &(gap, rank) in kept.iter().filter_map(|&i| row.steps.get(i)) {
        corners.push((gap, level));
        level = (rank as f64).ln();
        corners.push((gap, level));
    }
    corners.push((end.min(row.steps.last().map_or(end, |&(gap, _)| gap)), level));
    corners
}
