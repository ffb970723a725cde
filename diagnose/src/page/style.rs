//! The one place for colours, fonts and sizes. Both the style sheet and the charts use it.

/// Width and height of every chart in its own units, which are CSS pixels at full size.
pub(super) const CHART: (i32, i32) = (400, 280);
/// The edges of the plot in a chart. Tick labels and titles stand outside.
pub(super) const LEFT: i32 = 48;
pub(super) const RIGHT: i32 = 386;
pub(super) const TOP: i32 = 38;
pub(super) const BOTTOM: i32 = 230;
/// The right edge of the plot if the lines of a chart have names at their ends.
pub(super) const NAMED_RIGHT: i32 = 292;
/// The size of text in a chart, chart units.
pub(super) const CHART_TEXT: i32 = 15;
/// The length of a tick, chart units.
pub(super) const TICK: i32 = 5;
/// The most characters that a name from a file may take in a heading. The tooltip holds the whole name.
pub(super) const NAME_CHARS: usize = 48;

/// What a line, an area or a text of a chart stands for. Each has one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Axis,
    Guide,
    Text,
    Title,
    Measured,
    Second,
    Tangent,
    Resolved,
    Contact,
    Points,
    Cloud,
    Bound,
    Band,
    SecondBand,
    Fit,
    Interval,
    Beyond,
    Law,
    Law1,
    Law2,
    Law3,
    Law4,
    Law5,
}

impl Ink {
    /// The published laws from the topmost down: neighbours differ in shade and in pattern.
    pub(super) const LAWS: [Ink; 6] = [Ink::Law, Ink::Law1, Ink::Law2, Ink::Law3, Ink::Law4, Ink::Law5];

    /// Its class in the charts. It has one letter because a page holds it tens of thousands of times.
    pub(super) fn class(self) -> char {
        char::from(b'a' + self as u8)
    }
}

/// What every ink looks like.
const LOOKS: [(Ink, &str); 23] = [
    (Ink::Axis, "stroke:var(--rule)"),
    (Ink::Guide, "stroke:var(--rule);stroke-dasharray:2 3"),
    (Ink::Text, "fill:var(--quiet)"),
    (Ink::Title, "fill:var(--ink)"),
    (Ink::Measured, "stroke:var(--ink);stroke-width:1.8"),
    (Ink::Second, "stroke:var(--second);stroke-width:1.8"),
    (Ink::Tangent, "stroke:var(--accent);stroke-width:1.8"),
    (Ink::Resolved, "stroke:var(--second);stroke-width:1.8;stroke-dasharray:6 4"),
    (Ink::Contact, "stroke:var(--accent);stroke-width:9;stroke-linecap:round"),
    (Ink::Points, "stroke:var(--second);stroke-width:4.5;stroke-linecap:round;stroke-opacity:.75"),
    (Ink::Cloud, "stroke:var(--quiet);stroke-width:2.4;stroke-linecap:round;stroke-opacity:.3"),
    (Ink::Bound, "stroke:var(--accent);stroke-width:1.8"),
    (Ink::Band, "fill:var(--ink);fill-opacity:.13"),
    (Ink::SecondBand, "fill:var(--second);fill-opacity:.16"),
    (Ink::Fit, "stroke:var(--accent);stroke-width:2.4"),
    (Ink::Interval, "stroke:var(--accent);stroke-width:1.2;stroke-dasharray:5 3"),
    (Ink::Beyond, "stroke:var(--accent);stroke-width:2;stroke-linecap:round;stroke-dasharray:0 5"),
    (Ink::Law, "stroke:var(--quiet);stroke-width:1.3"),
    (Ink::Law1, "stroke:var(--faint);stroke-width:1.5;stroke-dasharray:7 3"),
    (Ink::Law2, "stroke:var(--quiet);stroke-width:1.5;stroke-dasharray:1.5 2.5"),
    (Ink::Law3, "stroke:var(--faint);stroke-width:1.5"),
    (Ink::Law4, "stroke:var(--quiet);stroke-width:1.3;stroke-dasharray:7 3"),
    (Ink::Law5, "stroke:var(--faint);stroke-width:1.5;stroke-dasharray:1.5 2.5"),
];

/// Diverging colours: ColorBrewer's PuOr of eleven classes, which people with any common colour blindness can
/// tell apart. Purple is below the centre, orange above.
pub(super) const DIVERGING: [&str; 11] = [
    "#2d004b", "#542788", "#8073ac", "#b2abd2", "#d8daeb", "#f3f3f3", "#fee0b6", "#fdb863", "#e08214",
    "#b35806", "#7f3b08",
];
/// Sequential colours: cividis (Nunez, Anderton, Renslow 2018) at ten even steps, light to dark.
pub(super) const SEQUENTIAL: [&str; 10] = [
    "#fee838", "#e1cc55", "#c3b369", "#a69d75", "#8a8779", "#707173", "#575d6d", "#3b496c", "#123570",
    "#00224e",
];
/// The two inks on a coloured cell. A cell gets the one that contrasts more with it.
const ON_LIGHT: &str = "#000";
const ON_DARK: &str = "#fff";

/// The relative luminance of a colour `#rrggbb`, as WCAG 2 defines it.
fn luminance(colour: &str) -> f64 {
    let channel = |at: usize| {
        let value = colour.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(0);
        let c = f64::from(value) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
}

/// The ink that can be read on `colour`. White contrasts more than black below this luminance.
pub(super) fn ink_on(colour: &str) -> &'static str {
    if luminance(colour) < 0.18 { ON_DARK } else { ON_LIGHT }
}

/// The variables of the style sheet, light and dark. Every text has a contrast of at least 4.5.
const LIGHT: &str = "--paper:#fff;--raised:#f6f5f2;--ink:#1d1d1f;--quiet:#5a5a60;--rule:#c9c8c4;\
    --accent:#b0440b;--second:#5b3a9e;--faint:#8a8a90;--edge:#0004;--bar:#9a8cc8;color-scheme:light";
const DARK: &str = "--paper:#141416;--raised:#1e1e21;--ink:#ececee;--quiet:#a9a9b2;--rule:#47474e;\
    --accent:#f2954a;--second:#b9a5f0;--faint:#77777f;--edge:#fff5;--bar:#7063b0;color-scheme:dark";

const FIXED: &str = include_str!("page.css");

/// The whole style sheet. `metrics` holds the number, class and colours of every metric of the map.
pub(super) fn sheet(metrics: &[(usize, char, &[&str])]) -> String {
    let mut css = format!(
        ":root{{{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}\
         @media print{{:root{{{LIGHT}}}}}{FIXED}"
    );
    let (width, height) = CHART;
    css += &format!("svg.c{{aspect-ratio:{width}/{height};font-size:{CHART_TEXT}px}}");
    for (ink, look) in LOOKS {
        // The rule names no ancestor: such a rule does not reach the elements that `use` refers to.
        let element = if look.starts_with("fill:") && !look.contains("opacity") { "text" } else { "path" };
        css += &format!("{element}.{}{{{look}}}", ink.class());
    }
    for &(metric, class, colours) in metrics {
        for (level, colour) in colours.iter().enumerate() {
            let look = format!("{{background:{colour};color:{}}}", ink_on(colour));
            css += &format!("#m{metric}:checked~.grid .{class}{level},.key .{class}{level}{look}");
        }
        css += &format!(
            "#m{metric}:checked~.grid i:nth-child({}),#m{metric}:checked~.l{metric}{{display:block}}",
            metric + 1
        );
        css += &format!(
            "#m{metric}:focus-visible~.tabs [for=m{metric}]\
             {{outline:2px solid var(--accent);outline-offset:2px}}\
             #m{metric}:checked~.tabs [for=m{metric}]\
             {{background:var(--ink);color:var(--paper);border-color:var(--ink)}}"
        );
    }
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_can_be_read() {
        for colour in DIVERGING.iter().chain(&SEQUENTIAL) {
            let (ground, ink) = (luminance(colour), if ink_on(colour) == ON_DARK { 1.0 } else { 0.0 });
            let contrast = (ground.max(ink) + 0.05) / (ground.min(ink) + 0.05);
            assert!(contrast >= 4.5, "{colour}: {contrast}");
        }
    }

    #[test]
    fn every_ink_has_one_look() {
        for (i, (ink, _)) in LOOKS.into_iter().enumerate() {
            assert_eq!(ink as usize, i);
        }
    }
}
