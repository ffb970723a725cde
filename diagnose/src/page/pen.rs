//! The pen writes the SVG of charts in few bytes. A page of a thousand heads would be 30 MB if every element
//! held its own look.
//!
//! A look is a class of the style sheet, so that a page follows light and dark. Neighbours of one look share
//! a path. Steps are relative, so that a point takes 7 bytes.

use super::style::Ink;
use maud::Render;

/// A place in a chart: how far to the right and how far down, chart units.
pub(super) type Place = (i32, i32);

/// Where a text stands: after its place, around it or before it.
pub(super) const AFTER: &str = "";
pub(super) const MIDDLE: &str = " text-anchor=middle";
pub(super) const BEFORE: &str = " text-anchor=end";

/// It writes the elements of one chart.
#[derive(Default)]
pub(super) struct Pen {
    svg: String,
    /// The look of the path that is being written, and the place that the path has reached.
    open: Option<Ink>,
    at: Place,
}

impl Pen {
    pub(super) fn line(&mut self, ink: Ink, points: impl IntoIterator<Item = Place>) {
        let mut letter = 'm';
        for to in points {
            if self.open != Some(ink) {
                self.close();
                self.svg += &format!("<path class={} d=\"", ink.class());
                (self.open, self.at) = (Some(ink), (0, 0));
            }
            let (dx, dy) = (to.0 - self.at.0, to.1 - self.at.1);
            match (letter, dx, dy) {
                ('l', 0, 0) => {}
                ('l', dx, 0) => self.svg += &format!("h{dx}"),
                ('l', 0, dy) => self.svg += &format!("v{dy}"),
                (letter, dx, dy) => self.svg += &format!("{letter}{dx}{}{dy}", if dy < 0 { "" } else { " " }),
            }
            (self.at, letter) = (to, 'l');
        }
    }

    pub(super) fn area(&mut self, ink: Ink, points: impl IntoIterator<Item = Place>) {
        self.line(ink, points);
        self.svg.push('z');
        self.close();
    }

    /// The look says how large the point is.
    pub(super) fn point(&mut self, ink: Ink, at: Place) {
        self.line(ink, [at]);
        self.svg += "h0";
    }

    /// `at` lies on the base line of the text.
    pub(super) fn text(&mut self, ink: Ink, at: Place, anchor: &str, text: &str) {
        self.close();
        self.svg += &format!("<text class={} x={} y={}{anchor}>", ink.class(), at.0, at.1);
        text.render_to(&mut self.svg);
        self.svg += "</text>";
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            self.svg += "\"/>";
        }
    }

    /// All elements that were drawn.
    pub(super) fn svg(mut self) -> String {
        self.close();
        self.svg
    }
}
