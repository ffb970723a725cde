//! Section 5 shows how the critical beta of a head grows with n, the fit, and the published laws.

use super::axis::Axis;
use super::chart::{Chart, Frames, Mark, swatch};
use super::number::{count, figure, hundredths, share};
use super::style::Ink;
use crate::{BinMedians, Exponent, HeadSummary, Summary};
use critbeta::laws::LAWS;
use critbeta::rescaling::{Law, Rescaling, RowFacts};
use maud::{Markup, html};

/// The published laws that have one shape over the lengths of a head.
struct Shape {
    names: Vec<&'static str>,
    /// The factor at each of the lengths, over the factor at the anchor.
    factors: Vec<f64>,
}

/// The laws are drawn up to these many times the longest rows, where they part.
const BEYOND: f64 = 8.0;
const STEPS: usize = 12;
/// Shapes that are this close everywhere share a line.
const SAME: f64 = 0.03;
/// The factor by which the chart reaches beyond all medians and laws. Quantiles of rows may lie decades away.
const ROOM: f64 = 2.0;

pub(super) fn key(summary: &Summary) -> Markup {
    html! {
        p.key {
            span {
                (swatch(Ink::Measured))
                "median critical β; the area holds 5 to 95 % of rows, as far as the chart reaches"
            }
            @if summary.resolve > 0.0 { span { (swatch(Ink::Second)) "the same for the resolved β" } }
            span { (swatch(Ink::Fit)) "fitted c (log n)^ξ" }
            span { (swatch(Ink::Beyond)) "the fit beyond the rows" }
            span { (swatch(Ink::Interval)) "95 % interval of ξ" }
            span {
                (swatch(Ink::Law)) "published laws, scaled to equal the fit at the anchor; "
                "their names stand in the order of their ends"
            }
        }
    }
}

pub(super) fn section(head: &HeadSummary, summary: &Summary, frames: &mut Frames) -> Markup {
    let law = &head.length_law;
    let bins: Vec<&BinMedians> = law.bins.iter().filter(|bin| usable(bin.critical_beta)).collect();
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else {
        return html! { p.missing { "No bin of rows has a finite median critical β: " (law.verdict) "." } };
    };
    let fit = law.critical_beta.as_ref();
    // The training length if rows come near it, else the nearest length of rows.
    let wanted = match summary.train_length {
        train if train >= first.n && train <= 2.0 * last.n => train,
        train => train.clamp(first.n, last.n),
    };
    let reach = BEYOND * last.n.max(wanted);
    // Without a fit the laws go through the median of the bin nearest to the anchor.
    let nearest = bins.iter().min_by(|a, b| distance(a.n, wanted).total_cmp(&distance(b.n, wanted)));
    let (anchor, level) = match (fit, nearest) {
        (Some(fit), _) => (wanted, at(fit, fit.xi, wanted)),
        (None, bin) => bin.map_or((first.n, first.critical_beta), |bin| (bin.n, bin.critical_beta)),
    };
    let shapes = shapes(first.n, reach, anchor, summary.train_length);
    html! {
        div.charts {
            figure { (chart(&bins, fit, [anchor, level], reach, &shapes, summary, frames)) }
            div.note {
                p { (law.verdict) "." }
                @if let Some(Exponent { xi, interval: [low, high], c }) = fit {
                    p {
                        "The fit has ξ = " b { (hundredths(*xi)) } ", 95 % interval " (hundredths(*low))
                        " to " (hundredths(*high)) ", and c = " (figure(*c)) ", from "
                        (count(head.sampled)) " rows in " (law.bins.len()) " bins."
                    }
                }
                @if let Some(closest) = &law.closest_published {
                    @if closest.laws.iter().any(|law| law == "identity") { p {
                        "No published law keeps the operating ratio steadier over these lengths than "
                        "a fixed β. Under a fixed β it varies by " (share(closest.spread_of_identity)) "."
                    } } @else { p {
                        "Under " (closest.laws.join(", ")) " the operating ratio varies least over these "
                        "lengths: by " (share(closest.spread)) ". Under a fixed β it varies by "
                        (share(closest.spread_of_identity)) "."
                    } }
                }
                p {
                    "The anchor is n = " (count(anchor.round() as u64)) " (dotted). "
                    "Laws within 3\u{a0}% of each other share a line. "
                    @for shape in shapes.iter().filter(|shape| shape.names.len() > 1) {
                        (shape.title()) ": " (shape.names.join(", ")) ". "
                    }
                }
            }
        }
    }
}

fn usable(beta: f64) -> bool {
    beta > 0.0 && beta.is_finite()
}

fn distance(a: f64, b: f64) -> f64 {
    (a.ln() - b.ln()).abs()
}

/// The fitted median at n, with the exponent `xi` in place of the fitted one.
fn at(fit: &Exponent, xi: f64, n: f64) -> f64 {
    fit.c * n.ln().powf(xi)
}

impl Shape {
    fn title(&self) -> &'static str {
        let has = |name: &str| self.names.contains(&name);
        match () {
            () if has("identity") => "constant",
            () if has("chen") => "log n",
            () if has("rem") => "√log n",
            () => self.names.first().copied().unwrap_or(""),
        }
    }
}

/// Lengths from `low` to `high` at even steps of log log n.
fn lengths(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let (from, to) = (low.ln().ln(), high.ln().ln());
    (0..=STEPS).map(move |i| (from + (to - from) * i as f64 / STEPS as f64).exp().exp())
}

/// The shapes of all laws of n or position (taken as n - 1), from the one that ends topmost down.
/// Velickovic's law reads the entropy of the row, so it has no curve of n.
fn shapes(low: f64, high: f64, anchor: f64, train: f64) -> Vec<Shape> {
    let laws = LAWS.iter().filter(|law| !law.needs_entropy);
    let laws = laws.map(|entry| (entry.name, Rescaling::Law(Law::example(entry, train))));
    let mut shapes: Vec<Shape> = Vec::new();
    for (name, law) in std::iter::once(("identity", Rescaling::Identity)).chain(laws) {
        let factor = |n: f64| {
            let n = n.round() as u64;
            law.beta(&RowFacts::new(n, n.saturating_sub(1)))
        };
        let factors: Vec<f64> = lengths(low, high).map(|n| factor(n) / factor(anchor)).collect();
        if !factors.iter().all(|&f| usable(f)) {
            continue;
        }
        let same =
            |shape: &&mut Shape| shape.factors.iter().zip(&factors).all(|(a, b)| (a / b - 1.0).abs() < SAME);
        match shapes.iter_mut().find(same) {
            Some(shape) => shape.names.push(name),
            None => shapes.push(Shape { names: vec![name], factors }),
        }
    }
    shapes.sort_by(|a, b| b.factors[STEPS].total_cmp(&a.factors[STEPS]));
    shapes
}

fn band(bins: &[&BinMedians], of: fn(&BinMedians) -> [f64; 2]) -> Vec<(f64, f64)> {
    let lower = bins.iter().map(|bin| (bin.n, of(bin)[0]));
    let upper = bins.iter().rev().map(|bin| (bin.n, of(bin)[1]));
    lower.chain(upper).collect()
}

fn chart(
    bins: &[&BinMedians],
    fit: Option<&Exponent>,
    [anchor, level]: [f64; 2],
    reach: f64,
    shapes: &[Shape],
    summary: &Summary,
    frames: &mut Frames,
) -> Markup {
    let resolved = summary.resolve > 0.0;
    let medians = bins
        .iter()
        .flat_map(|bin| [bin.critical_beta].into_iter().chain(resolved.then_some(bin.resolved_beta)));
    let laws = shapes.iter().flat_map(|shape| &shape.factors).map(|factor| level * factor);
    let range = |values: &mut dyn Iterator<Item = f64>, from: [f64; 2]| {
        values.filter(|&beta| usable(beta)).fold(from, |[low, high], beta| [low.min(beta), high.max(beta)])
    };
    let [low, high] = range(&mut medians.chain(laws), [level, level]);
    let bands = bins.iter().flat_map(|bin| {
        bin.critical_band.into_iter().chain(resolved.then_some(bin.resolved_band).into_iter().flatten())
    });
    let [low, high] = range(&mut bands.map(|beta| beta.clamp(low / ROOM, high * ROOM)), [low, high]);
    let (from, to) = (bins[0].n, bins[bins.len() - 1].n);
    let chart = Chart::named(
        Axis::keys("visible keys n (log log)", from, reach),
        Axis::log("β (per score unit)", low, high),
    );
    let curve = |of: fn(&BinMedians) -> f64| {
        bins.iter().map(move |bin| (bin.n, of(bin))).filter(|&(_, beta)| usable(beta)).collect()
    };
    let mut marks = vec![Mark::Area(Ink::Band, band(bins, |bin| bin.critical_band))];
    if resolved {
        marks.push(Mark::Area(Ink::SecondBand, band(bins, |bin| bin.resolved_band)));
    }
    marks.push(Mark::Line(Ink::Guide, vec![(anchor, chart.y.low), (anchor, chart.y.high)]));
    for (i, shape) in shapes.iter().enumerate() {
        let ink = Ink::LAWS[i % Ink::LAWS.len()];
        let line = lengths(from, reach).zip(&shape.factors).map(|(n, factor)| (n, level * factor)).collect();
        marks.push(Mark::Line(ink, straight(&chart, line)));
        marks.push(Mark::Name(ink, level * shape.factors[STEPS], shape.title()));
    }
    if resolved {
        marks.push(Mark::Line(Ink::Second, curve(|bin| bin.resolved_beta)));
    }
    if let Some(fit) = fit.filter(|_| from < to) {
        // The lines of the interval turn about the middle of the rows, where the fit is best known.
        let rows: f64 = bins.iter().map(|bin| bin.rows as f64).sum();
        let middle = bins.iter().map(|bin| bin.rows as f64 * bin.n.ln().ln()).sum::<f64>() / rows;
        let pivot = at(fit, fit.xi, middle.exp().exp());
        let beta = |n: f64, xi: f64| pivot * (xi * (n.ln().ln() - middle)).exp();
        let line = |ends: [f64; 2], xi: f64| chart.clipped(ends.map(|n| (n, beta(n, xi))));
        fit.interval.iter().for_each(|&xi| marks.push(Mark::Line(Ink::Interval, line([from, reach], xi))));
        marks.push(Mark::Line(Ink::Fit, line([from, to], fit.xi)));
        marks.push(Mark::Line(Ink::Beyond, line([to, reach], fit.xi)));
    }
    let medians: Vec<(f64, f64)> = curve(|bin| bin.critical_beta);
    marks.push(Mark::Line(Ink::Measured, medians));
    chart.svg(frames, "median critical β against n, with fit and published laws", &[], &marks)
}

/// Only both ends of a curve if it is a straight line on the chart, else all of its points.
fn straight(chart: &Chart, line: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let (Some(&first), Some(&last)) = (line.first(), line.last()) else { return line };
    let place = |&(x, y): &(f64, f64)| (chart.x.place(x), chart.y.place(y));
    let ((x0, y0), (x1, y1)) = (place(&first), place(&last));
    let on = |point: &(f64, f64)| {
        let (x, y) = place(point);
        (y - (y0 + (y1 - y0) * (x - x0) / (x1 - x0))).abs() < 2e-3
    };
    if line.iter().all(on) { vec![first, last] } else { line }
}
