//! Charts of two axes. A page holds each frame once, and the marks of every head.

use super::axis::{Axis, tick};
use super::pen::{AFTER, BEFORE, MIDDLE, Pen, Place};
use super::style::{BOTTOM, CHART, CHART_TEXT, Ink, LEFT, NAMED_RIGHT, RIGHT, TICK, TOP};
use maud::{Markup, PreEscaped, html};
use std::collections::HashMap;

/// The frames that the charts of a page refer to.
#[derive(Default)]
pub(super) struct Frames {
    ids: HashMap<String, usize>,
    drawn: Vec<String>,
}

impl Frames {
    fn id(&mut self, drawn: String) -> usize {
        let next = self.drawn.len();
        *self.ids.entry(drawn.clone()).or_insert_with(|| {
            self.drawn.push(drawn);
            next
        })
    }

    /// All that the `use` elements of the page refer to.
    pub(super) fn definitions(&self) -> Markup {
        html! {
            svg class="defs" aria-hidden="true" { defs {
                @for (id, svg) in self.drawn.iter().enumerate() { g id={ "f" (id) } { (PreEscaped(svg)) } }
            } }
        }
    }
}

/// A thing to draw, in the units of the axes.
pub(super) enum Mark<'a> {
    Line(Ink, Vec<(f64, f64)>),
    Area(Ink, Vec<(f64, f64)>),
    Points(Ink, Vec<(f64, f64)>),
    /// The name of a line, right of a chart made with [`Chart::named`], at the height where the line ends. A
    /// short piece of the line stands before it. Neighbours are pushed apart.
    Name(Ink, f64, &'a str),
}

/// From the end of a line to the short piece of it, and to its name.
const NAME_GAP: i32 = 5;
const NAME_OFFSET: i32 = 27;
/// Between the short piece and the name.
const NAME_APART: i32 = 4;
/// The width of a digit over its height, and the least distance of two labels of an axis, chart units.
const DIGIT: f64 = 0.64;
const LABEL_APART: f64 = 9.0;

/// From the middle or the top of a line of text down to its base line. Capitals are 0.72 em high.
const MIDDLE_TO_BASE: i32 = CHART_TEXT * 35 / 100;
const TOP_TO_BASE: i32 = CHART_TEXT * 76 / 100;

/// Two axes, and the right edge of the plot between them.
pub(super) struct Chart {
    pub x: Axis,
    pub y: Axis,
    right: i32,
}

impl Chart {
    pub(super) fn new(x: Axis, y: Axis) -> Chart {
        Chart { x, y, right: RIGHT }
    }

    /// A chart with room for names at the right.
    pub(super) fn named(x: Axis, y: Axis) -> Chart {
        Chart { x, y, right: NAMED_RIGHT }
    }

    /// The part of the straight line between two points that lies between the ends of the y axis.
    pub(super) fn clipped(&self, line: [(f64, f64); 2]) -> Vec<(f64, f64)> {
        let [(x0, y0), (x1, y1)] = line.map(|(x, y)| (self.x.beyond(x), self.y.beyond(y)));
        let at = |y: f64| if y1 == y0 { 0.0 } else { ((y - y0) / (y1 - y0)).clamp(0.0, 1.0) };
        let inside = |y: f64| (-1e-9..=1.0 + 1e-9).contains(&y);
        let mut ends = [at(0.0), at(1.0)];
        ends.sort_by(f64::total_cmp);
        let share = [if inside(y0) { 0.0 } else { ends[0] }, if inside(y1) { 1.0 } else { ends[1] }];
        if share[0] >= share[1] || [x0, y0, x1, y1].iter().any(|v| !v.is_finite()) {
            return Vec::new();
        }
        let point = |s: f64| (self.x.value(x0 + s * (x1 - x0)), self.y.value(y0 + s * (y1 - y0)));
        share.map(point).to_vec()
    }

    fn place(&self, (x, y): (f64, f64)) -> Place {
        (self.x.pixel(x, LEFT, self.right - 1), self.y.pixel(y, BOTTOM - 1, TOP))
    }

    /// Draws the axes with their ticks and titles.
    fn frame(&self, pen: &mut Pen) {
        pen.line(Ink::Axis, [(LEFT - 1, TOP), (LEFT - 1, BOTTOM - 1)]);
        for &value in &self.y.ticks {
            let (_, y) = self.place((self.x.low, value));
            pen.text(Ink::Text, (LEFT - 2 * TICK, y + MIDDLE_TO_BASE), BEFORE, &tick(value));
            pen.line(Ink::Axis, [(LEFT - 1 - TICK, y), (LEFT - 1, y)]);
        }
        pen.line(Ink::Axis, [(LEFT, BOTTOM), (self.right - 1, BOTTOM)]);
        let labelled = self.labelled();
        for &value in &self.x.ticks {
            let (x, _) = self.place((value, self.y.low));
            if labelled.contains(&value) {
                pen.text(Ink::Text, (x, BOTTOM + 2 * TICK + TOP_TO_BASE), MIDDLE, &tick(value));
            }
            pen.line(Ink::Axis, [(x, BOTTOM), (x, BOTTOM + TICK)]);
        }
        pen.text(Ink::Title, (2, 4 + TOP_TO_BASE), AFTER, self.y.title);
        pen.text(Ink::Title, (self.right, CHART.1 - 6), BEFORE, self.x.title);
    }

    fn marks(&self, pen: &mut Pen, marks: &[Mark]) {
        let place = |&at: &(f64, f64)| self.place(at);
        for mark in marks {
            match mark {
                Mark::Line(ink, points) => pen.line(*ink, points.iter().map(place)),
                Mark::Area(ink, points) => pen.area(*ink, points.iter().map(place)),
                Mark::Points(ink, points) => points.iter().map(place).for_each(|at| pen.point(*ink, at)),
                Mark::Name(..) => {}
            }
        }
        for (ink, (x, y), name) in self.named_places(marks) {
            pen.line(ink, [(x + NAME_GAP - NAME_OFFSET, y), (x - NAME_APART, y)]);
            pen.text(Ink::Text, (x, y + MIDDLE_TO_BASE), AFTER, name);
        }
    }

    /// The ticks of the x axis that get a label. No two of their labels touch.
    fn labelled(&self) -> Vec<f64> {
        let width = f64::from(self.right - LEFT);
        let mut labelled = Vec::new();
        let mut end = f64::NEG_INFINITY;
        for &value in &self.x.ticks {
            let (middle, half) =
                (self.x.place(value) * width, 0.5 * DIGIT * f64::from(CHART_TEXT) * tick(value).len() as f64);
            if middle - half >= end {
                labelled.push(value);
                end = middle + half + LABEL_APART;
            }
        }
        labelled
    }

    /// Where the names of lines stand: at the heights where the lines end, but no two on one another.
    fn named_places<'m>(&self, marks: &'m [Mark]) -> Vec<(Ink, Place, &'m str)> {
        let named = marks.iter().filter_map(|mark| match mark {
            Mark::Name(ink, y, name) => Some((self.y.pixel(*y, BOTTOM, TOP), (*ink, *name))),
            _ => None,
        });
        let mut named: Vec<(i32, (Ink, &str))> = named.collect();
        named.sort_by_key(|&(y, _)| y);
        let ends: Vec<i32> = named.iter().map(|&(y, _)| y).collect();
        let apart = CHART_TEXT + 1;
        for i in 1..named.len() {
            named[i].0 = named[i].0.max(named[i - 1].0 + apart);
        }
        // The names stand around the ends of the lines rather than all below them.
        let down: i32 = named.iter().zip(&ends).map(|((y, _), end)| y - end).sum();
        let up = down / named.len().max(1) as i32;
        named.iter_mut().for_each(|(y, _)| *y -= up);
        // A name below the bottom goes up again, and pushes its neighbours up.
        let mut floor = BOTTOM;
        for (y, _) in named.iter_mut().rev() {
            *y = (*y).min(floor);
            floor = *y - apart;
        }
        let x = self.right + NAME_OFFSET;
        named.into_iter().map(|(y, (ink, name))| (ink, (x, y), name)).collect()
    }

    /// The chart: its frame with the marks `behind`, which other charts may share, and its own `marks`.
    pub(super) fn svg(&self, frames: &mut Frames, label: &str, behind: &[Mark], marks: &[Mark]) -> Markup {
        let [mut frame, mut own] = [Pen::default(), Pen::default()];
        self.frame(&mut frame);
        self.marks(&mut frame, behind);
        self.marks(&mut own, marks);
        let (id, label, (width, height)) = (frames.id(frame.svg()), html! { (label) }.0, CHART);
        PreEscaped(format!(
            "<svg class=c viewBox=\"0 0 {width} {height}\" role=img aria-label=\"{label}\">\
             <use href=#f{id} />{}</svg>",
            own.svg()
        ))
    }
}

/// A short line or a point of one look, for the key of a chart.
pub(super) fn swatch(ink: Ink) -> Markup {
    let point = matches!(ink, Ink::Contact | Ink::Points | Ink::Cloud);
    let path = if point { "M9 6h0" } else { "M0 6h18" };
    html! { svg.swatch viewBox="0 0 18 12" aria-hidden="true" { path class=(ink.class()) d=(path) {} } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_lengths_stand_apart() {
        for (low, high) in [(16.0, 32768.0), (64.0, 61264.0), (3.0, 32.0), (1000.0, 1e9), (5.0, 5.0)] {
            let chart = Chart::named(Axis::keys("", low, high), Axis::linear("", 1.0));
            let labelled = chart.labelled();
            assert!(labelled.len() >= 2, "{low} to {high}: {labelled:?}");
            let width = f64::from(NAMED_RIGHT - LEFT);
            for pair in labelled.windows(2) {
                let apart = (chart.x.place(pair[1]) - chart.x.place(pair[0])) * width;
                let digits: usize = pair.iter().map(|&value| tick(value).len()).sum();
                assert!(apart >= 0.5 * 9.6 * digits as f64 + 8.0, "{low} to {high}: {pair:?}");
            }
        }
    }
}
