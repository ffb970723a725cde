//! Where plotters draws: SVG in few bytes.
//!
//! Its own SVG backend writes every look into every element, 80 bytes a point; a page of a thousand heads would be 30 MB.
//! Here a look is a class of the style sheet (so a page follows light and dark), neighbours of one look share a path, and
//! coordinates are relative: 7 bytes a point.

use super::style::Ink;
use maud::Render;
use plotters::style::RGBColor;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};
use std::convert::Infallible;
use std::fmt::Write;

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// The colour by which plotters carries an ink: its number.
pub(super) fn colour(ink: Ink) -> RGBColor {
    RGBColor(0, 0, ink as u8)
}

fn class(colour: BackendColor) -> char {
    Ink::ALL.get(usize::from(colour.rgb.2)).map_or(Ink::Axis.class(), |ink| ink.class())
}

/// Elements of one chart as they are drawn.
pub(super) struct Marks<'a> {
    out: &'a mut String,
    size: (u32, u32),
    /// The look of the path that is being written.
    open: Option<char>,
    pen: BackendCoord,
}

impl<'a> Marks<'a> {
    pub(super) fn new(out: &'a mut String, size: (u32, u32)) -> Self {
        Marks { out, size, open: None, pen: (0, 0) }
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            self.out.push_str("\"/>");
        }
    }

    fn begin(&mut self, class: char) {
        if self.open != Some(class) {
            self.close();
            let _infallible = write!(self.out, "<path class={class} d=\"");
            self.open = Some(class);
            self.pen = (0, 0);
        }
    }

    /// Appends `m`, `l` or a shorter step to `to`.
    fn step(&mut self, letter: char, to: BackendCoord) {
        let (dx, dy) = (to.0 - self.pen.0, to.1 - self.pen.1);
        let _infallible = match (letter, dx, dy) {
            ('l', 0, 0) => Ok(()),
            ('l', dx, 0) => write!(self.out, "h{dx}"),
            ('l', 0, dy) => write!(self.out, "v{dy}"),
            (letter, dx, dy) => write!(self.out, "{letter}{dx}{}{dy}", if dy < 0 { "" } else { " " }),
        };
        self.pen = to;
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

impl DrawingBackend for Marks<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        self.close();
        Ok(())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn {
        self.begin(class(color));
        self.step('m', point);
        self.out.push_str("h0");
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.draw_path([from, to], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        if style.color().alpha == 0.0 {
            return Ok(());
        }
        self.begin(class(style.color()));
        for (i, point) in path.into_iter().enumerate() {
            self.step(if i == 0 { 'm' } else { 'l' }, point);
        }
        Ok(())
    }

    /// A point: its size is the look's.
    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        _radius: u32,
        style: &S,
        _fill: bool,
    ) -> Drawn {
        self.draw_pixel(center, style.color())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        vert: I,
        style: &S,
    ) -> Drawn {
        self.draw_path(vert, style)?;
        self.out.push('z');
        self.close();
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, pos: BackendCoord) -> Drawn {
        self.close();
        let anchor = match style.anchor().h_pos {
            HPos::Left => "",
            HPos::Center => " text-anchor=middle",
            HPos::Right => " text-anchor=end",
        };
        // From the middle or the top of a line to its base: capitals are 0.72 em high.
        let size = style.size();
        let down = match style.anchor().v_pos {
            VPos::Top => 0.76 * size,
            VPos::Center => 0.35 * size,
            VPos::Bottom => 0.0,
        };
        let (x, y) = (pos.0, pos.1 + down.round() as i32);
        let _infallible = write!(self.out, "<text class={} x={x} y={y}{anchor}>", class(style.color()));
        text.render_to(self.out);
        self.out.push_str("</text>");
        Ok(())
    }
}
