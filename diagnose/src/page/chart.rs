//! Charts of two axes: frames are written once a page, marks as often as there are heads.

use super::axis::{Axis, tick};
use super::backend::{Marks, colour};
use super::style::{CHART, CHART_TEXT, Ink, MARGIN, NAMED_MARGIN, TICK};
use maud::{Markup, PreEscaped, Render, html};
use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{LightPoints, Ranged};
use plotters::element::{PathElement, Pixel, Polygon, Text};
use plotters::prelude::IntoDrawingArea;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{IntoTextStyle, ShapeStyle, TextStyle};
use plotters_backend::BackendCoord;
use std::collections::HashMap;
use std::fmt::Write;

/// Frames that the charts of a page refer to.
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

    /// Everything that `use` elements of the page refer to.
    pub(super) fn definitions(&self) -> Markup {
        html! {
            svg class="defs" aria-hidden="true" { defs {
                @for (id, frame) in self.drawn.iter().enumerate() { g id={ "f" (id) } { (PreEscaped(frame)) } }
            } }
        }
    }
}

/// Something to draw, in the units of the axes.
pub(super) enum Mark<'a> {
    Line(Ink, Vec<(f64, f64)>),
    Area(Ink, Vec<(f64, f64)>),
    Points(Ink, Vec<(f64, f64)>),
    /// Text at the right of a chart made with [`Chart::named`], after a bit of the line that ends at this height, pushed
    /// apart from its neighbours.
    Name(Ink, f64, &'a str),
}

/// From the end of a line to the bit of it beside its name, and to the name.
const NAME_GAP: i32 = 5;
const NAME_OFFSET: i32 = 27;
/// Between the bit and the name.
const NAME_APART: i32 = 4;
/// A digit's width over its height, and what at least lies between two labels of an axis, chart units.
const DIGIT: f64 = 0.64;
const LABEL_APART: f64 = 9.0;

/// Two axes.
pub(super) struct Chart {
    pub x: Axis,
    pub y: Axis,
    right: u32,
}

type Context<'a, 'b> = ChartContext<'a, Marks<'b>, Cartesian2d<Axis, Axis>>;

fn text(ink: Ink, h: HPos, v: VPos) -> TextStyle<'static> {
    ("sans-serif", CHART_TEXT).with_color(colour(ink)).into_text_style(&CHART).pos(Pos::new(h, v))
}

impl Chart {
    pub(super) fn new(x: Axis, y: Axis) -> Chart {
        Chart { x, y, right: MARGIN.1 }
    }

    /// With room for names at the right.
    pub(super) fn named(x: Axis, y: Axis) -> Chart {
        Chart { x, y, right: NAMED_MARGIN }
    }

    /// What of the straight line between two points lies between the ends of the y axis; nothing where none of it does.
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

    /// Drawing into a string cannot fail.
    fn draw(&self, frame: bool, marks: &[Mark]) -> String {
        let mut out = String::new();
        {
            let root = Marks::new(&mut out, CHART).into_drawing_area();
            let (left, _, top, bottom) = MARGIN;
            let chart = ChartBuilder::on(&root)
                .margin_top(top)
                .margin_right(self.right)
                .set_label_area_size(LabelAreaPosition::Left, left)
                .set_label_area_size(LabelAreaPosition::Bottom, bottom)
                .build_cartesian_2d(self.x.clone(), self.y.clone());
            if let Ok(mut chart) = chart {
                if frame {
                    draw_frame(&mut chart, &self.labelled());
                }
                marks.iter().for_each(|mark| draw_mark(&mut chart, mark));
            }
            if frame {
                let (right, bottom) = ((CHART.0 - self.right) as i32, CHART.1 as i32 - 6);
                let title = |text: &'static str, at, style| Text::new(text, at, style);
                let y_title = title(self.y.title, (2, 4), text(Ink::Title, HPos::Left, VPos::Top));
                let x_title =
                    title(self.x.title, (right, bottom), text(Ink::Title, HPos::Right, VPos::Bottom));
                let _infallible = root.draw(&y_title).and_then(|()| root.draw(&x_title));
            }
            for (ink, at, name) in self.named_places(marks) {
                let bit = [NAME_GAP - NAME_OFFSET, -NAME_APART].map(|x| (at.0 + x, at.1)).to_vec();
                let _infallible = root.draw(&PathElement::new(bit, colour(ink)));
                let _infallible =
                    root.draw(&Text::new(name, at, text(Ink::LawText, HPos::Left, VPos::Center)));
            }
        }
        out
    }

    /// Ticks of the x axis that are labelled: none within a label's width of another.
    fn labelled(&self) -> Vec<f64> {
        let width = f64::from(CHART.0 - MARGIN.0 - self.right);
        let mut labelled = Vec::new();
        let mut end = f64::NEG_INFINITY;
        for value in self.x.key_points(LightPoints::new(0, 0)) {
            let (middle, half) =
                (self.x.place(value) * width, 0.5 * DIGIT * f64::from(CHART_TEXT) * tick(value).len() as f64);
            if middle - half >= end {
                labelled.push(value);
                end = middle + half + LABEL_APART;
            }
        }
        labelled
    }

    /// Where the names of lines stand: at the height where the line ends, but no two on one another.
    fn named_places<'m>(&self, marks: &'m [Mark]) -> Vec<(Ink, BackendCoord, &'m str)> {
        let bottom = (CHART.1 - MARGIN.3) as i32;
        let named = marks.iter().filter_map(|mark| match mark {
            Mark::Name(ink, y, name) => Some((self.y.map(y, (bottom, MARGIN.2 as i32)), (*ink, *name))),
            _ => None,
        });
        let mut named: Vec<(i32, (Ink, &str))> = named.collect();
        named.sort_by_key(|&(y, _)| y);
        let ends: Vec<i32> = named.iter().map(|&(y, _)| y).collect();
        let apart = CHART_TEXT as i32 + 1;
        for i in 1..named.len() {
            named[i].0 = named[i].0.max(named[i - 1].0 + apart);
        }
        // About the lines rather than all below them.
        let down: i32 = named.iter().zip(&ends).map(|((y, _), end)| y - end).sum();
        let up = down / named.len().max(1) as i32;
        named.iter_mut().for_each(|(y, _)| *y -= up);
        // What is beyond the bottom goes up again, and its neighbours with it.
        let mut floor = bottom;
        for (y, _) in named.iter_mut().rev() {
            *y = (*y).min(floor);
            floor = *y - apart;
        }
        let x = (CHART.0 - self.right) as i32 + NAME_OFFSET;
        named.into_iter().map(|(y, (ink, name))| (ink, (x, y), name)).collect()
    }

    /// The chart with its frame and `behind`, which are shared with all charts that have the same, and `marks`.
    pub(super) fn svg(&self, frames: &mut Frames, label: &str, behind: &[Mark], marks: &[Mark]) -> Markup {
        let id = frames.id(self.draw(true, behind));
        let mut svg = String::with_capacity(512);
        let _infallible =
            write!(svg, "<svg class=c viewBox=\"0 0 {} {}\" role=img aria-label=\"", CHART.0, CHART.1);
        label.render_to(&mut svg);
        let _infallible = write!(svg, "\"><use href=#f{id} />{}</svg>", self.draw(false, marks));
        PreEscaped(svg)
    }
}

fn draw_frame(chart: &mut Context, labelled: &[f64]) {
    let label = text(Ink::Text, HPos::Center, VPos::Center);
    let _infallible = chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(colour(Ink::Axis))
        .label_style(label)
        .set_all_tick_mark_size(TICK)
        .x_label_formatter(&|value| if labelled.contains(value) { tick(*value) } else { String::new() })
        .y_label_formatter(&|value| tick(*value))
        .draw();
}

fn draw_mark(chart: &mut Context, mark: &Mark) {
    let style = |ink: Ink| ShapeStyle::from(colour(ink));
    let area = chart.plotting_area();
    let _infallible = match mark {
        Mark::Line(_, points) if points.is_empty() => Ok(()),
        Mark::Line(ink, points) => area.draw(&PathElement::new(points.clone(), style(*ink))),
        Mark::Area(ink, points) => area.draw(&Polygon::new(points.clone(), style(*ink).filled())),
        Mark::Points(ink, points) => {
            points.iter().try_for_each(|&point| area.draw(&Pixel::new(point, style(*ink))))
        }
        Mark::Name(..) => Ok(()),
    };
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
            let width = f64::from(CHART.0 - MARGIN.0 - NAMED_MARGIN);
            for pair in labelled.windows(2) {
                let apart = (chart.x.place(pair[1]) - chart.x.place(pair[0])) * width;
                let digits: usize = pair.iter().map(|&value| tick(value).len()).sum();
                assert!(apart >= 0.5 * 9.6 * digits as f64 + 8.0, "{low} to {high}: {pair:?}");
            }
        }
    }
}
