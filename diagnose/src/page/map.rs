//! Section 2 shows six quantities of every head: as a map of layer x head in colours, and as a table.

use super::names::Layers;
use super::number::{count, figure, hundredths, name, share};
use super::style::{DIVERGING, SEQUENTIAL};
use crate::{HeadSummary, Summary};
use maud::{Markup, PreEscaped, Render, html};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One quantity of the map.
struct Metric {
    title: &'static str,
    /// The meaning, in one line.
    meaning: &'static str,
    class: char,
    of: fn(&HeadSummary) -> f64,
    shown: fn(f64) -> String,
    scale: Scale,
}

#[derive(Clone, Copy)]
enum Scale {
    /// Steps of half an octave around 1.
    Centred,
    /// Even steps from 0 to 1.
    Unit,
    /// Even steps between the least and the largest value.
    Range,
    /// Even steps between the logarithms of the least and the largest value.
    LogRange,
}

const METRICS: [Metric; 6] = [
    Metric {
        title: "operating ratio",
        meaning: "median ρ = β / critical β: below 1 the top keys blur, above 1 one key takes all",
        class: 'p',
        of: |head| head.operating_ratio.q50,
        shown: figure,
        scale: Scale::Centred,
    },
    Metric {
        title: "resolved β",
        meaning: "median resolved critical β, per score unit",
        class: 'q',
        of: |head| head.resolved_beta.q50,
        shown: figure,
        scale: Scale::LogRange,
    },
    Metric {
        title: "ξ",
        meaning: "exponent of the length law: critical β grows as (log n) to the ξ",
        class: 'r',
        of: |head| head.length_law.critical_beta.as_ref().map_or(f64::NAN, |fit| fit.xi),
        shown: hundredths,
        scale: Scale::Range,
    },
    Metric {
        title: "α",
        meaning: "median accumulation exponent: 1 if the whole row stands against the maximum, \
                  0 if only the top few scores do",
        class: 's',
        of: |head| head.median_alpha,
        shown: figure,
        scale: Scale::Unit,
    },
    Metric {
        title: "entropy / log n",
        meaning: "median entropy over log n: 1 is uniform attention, 0 is one key",
        class: 't',
        of: |head| head.median_relative_entropy,
        shown: figure,
        scale: Scale::Unit,
    },
    Metric {
        title: "tied share",
        meaning: "share of rows whose maximum is shared: their critical β is infinite",
        class: 'u',
        of: |head| head.share_tied,
        shown: share,
        scale: Scale::Unit,
    },
];

/// The number, class and colours of every metric, for the style sheet.
pub(super) fn colours() -> Vec<(usize, char, &'static [&'static str])> {
    let of = |metric: &Metric| match metric.scale {
        Scale::Centred => &DIVERGING[..],
        _ => &SEQUENTIAL[..],
    };
    METRICS.iter().enumerate().map(|(i, metric)| (i, metric.class, of(metric))).collect()
}

/// A metric with the range of its values.
struct Scaled<'a> {
    metric: &'a Metric,
    range: [f64; 2],
}

impl Scaled<'_> {
    fn of<'a>(metric: &'a Metric, heads: &[HeadSummary]) -> Scaled<'a> {
        let values = heads.iter().map(metric.of);
        let usable =
            values.filter(|v| v.is_finite() && (!matches!(metric.scale, Scale::LogRange) || *v > 0.0));
        let range =
            usable.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]);
        let range = if matches!(metric.scale, Scale::Unit) { [0.0, 1.0] } else { range };
        Scaled { metric, range }
    }

    /// The number of the colour of a value, or `None` if there is no value.
    fn level(&self, value: f64) -> Option<usize> {
        let [low, high] = self.range;
        let steps = SEQUENTIAL.len() as f64;
        let even = |value: f64, low: f64, high: f64| {
            let at = if high > low { (value - low) / (high - low) } else { 0.0 };
            (at.clamp(0.0, 1.0) * steps).min(steps - 1.0) as usize
        };
        match self.metric.scale {
            _ if value.is_nan() => None,
            Scale::Centred => {
                let middle = (DIVERGING.len() / 2) as f64;
                Some(((2.0 * value.log2()).round().clamp(-middle, middle) + middle) as usize)
            }
            _ if low > high => None,
            Scale::LogRange => Some(even(value.ln(), low.ln(), high.ln())),
            Scale::Unit | Scale::Range => Some(even(value, low, high)),
        }
    }

    /// The labels of the low end, the middle and the high end of the legend.
    fn ends(&self) -> [String; 3] {
        let [low, high] = self.range;
        match self.metric.scale {
            Scale::Centred => {
                // A colour covers half an octave. The last one begins here.
                let edge = 2f64.powf(((DIVERGING.len() / 2) as f64 - 0.5) / 2.0);
                [format!("under {}", figure(1.0 / edge)), "1".into(), format!("over {}", figure(edge))]
            }
            _ if low > high => ["–".into(), String::new(), "–".into()],
            Scale::LogRange => [low, (low * high).sqrt(), high].map(self.metric.shown),
            Scale::Unit | Scale::Range => [low, (low + high) / 2.0, high].map(self.metric.shown),
        }
    }
}

/// The class of a level. It ends in `-` if there is no value, and no rule of the style sheet colours that.
fn class(metric: &Metric, level: Option<usize>) -> String {
    level.map_or_else(|| format!("{}-", metric.class), |level| format!("{}{level}", metric.class))
}

/// Values are written into the cells if no layer has more heads than this.
const WRITTEN: usize = 16;
/// Heads of one number share a column if the map then has at most `SPARSE` cells a head + `MAP_CELLS`.
const SPARSE: usize = 2;
const MAP_CELLS: usize = 1024;
/// The table is open at first if it has no more rows than this.
const OPEN: usize = 40;

/// A link to a head. The address of head number 3 of the page is `#h3`.
pub(super) fn link(at: usize, head: &HeadSummary, layers: &Layers) -> Markup {
    html! { a href={ "#h" (at) } { (layers.label(&head.layer)) " head " (head.head) } }
}

pub(super) fn section(summary: &Summary, layers: &Layers) -> Markup {
    let heads = &summary.heads;
    let scaled: Vec<Scaled> = METRICS.iter().map(|metric| Scaled::of(metric, heads)).collect();
    html! {
        section #map aria-labelledby="map-title" {
            h2 #map-title { "Where in the model" }
            p.lead {
                "Each cell is one head. Choose a quantity to colour the cells. "
                "Choose a cell, and the rest of the page shows that head."
            }
            @for (i, metric) in METRICS.iter().enumerate() {
                input type="radio" name="metric" id={ "m" (i) } aria-label=(metric.title) checked[i == 0];
            }
            div.tabs {
                @for (i, metric) in METRICS.iter().enumerate() { label for={ "m" (i) } { (metric.title) } }
            }
            @for (i, one) in scaled.iter().enumerate() { (legend(i, one)) }
            div.grid tabindex="-1" { (PreEscaped(cells(heads, layers, &scaled))) }
            p #readout aria-live="polite" { "The tooltip of a cell holds its values, and so does the table." }
            details open[heads.len() <= OPEN] {
                summary { "The same as a table: " (heads.len()) " heads" }
                div.scroll { (PreEscaped(table(heads, layers))) }
            }
        }
    }
}

fn legend(i: usize, one: &Scaled) -> Markup {
    let levels = colours()[i].2.len();
    let [low, middle, high] = one.ends();
    html! {
        div class={ "legend l" (i) } {
            div.key { @for level in 0..levels { b class=(class(one.metric, Some(level))) {} } }
            div.ends { span { (low) } span { (middle) } span { (high) } }
            p { (one.metric.meaning) }
        }
    }
}

/// The map: the layers in order of first appearance, each with its heads by number. Every number of a head
/// has a column, unless most cells would be empty.
fn cells(heads: &[HeadSummary], layers: &Layers, scaled: &[Scaled]) -> String {
    let mut of_layer: HashMap<&str, BTreeMap<u64, usize>> = HashMap::new();
    for (i, head) in heads.iter().enumerate() {
        of_layer.entry(&head.layer).or_default().insert(head.head, i);
    }
    let columns: BTreeSet<u64> = heads.iter().map(|head| head.head).collect();
    let aligned = layers.names.len().saturating_mul(columns.len()) <= SPARSE * heads.len() + MAP_CELLS;
    let written = of_layer.values().map(BTreeMap::len).max().unwrap_or(0) <= WRITTEN;
    let mut out = String::from(if written { "<table class=wide>" } else { "<table>" });
    out += "<tr><th scope=col>layer";
    for column in columns.iter().filter(|_| aligned) {
        out += &format!("<th scope=col>{column}");
    }
    for layer in &layers.names {
        out += "<tr><th scope=row title=\"";
        name(layer).render_to(&mut out);
        out += "\">";
        layers.in_map(layer).render_to(&mut out);
        let own = &of_layer[&**layer];
        let mut show = |i: Option<&usize>| match i {
            Some(&i) => cell(i, &heads[i], layers, scaled, written, &mut out),
            None => out += "<td>",
        };
        match aligned {
            true => columns.iter().for_each(|column| show(own.get(column))),
            false => own.values().for_each(|i| show(Some(i))),
        }
    }
    out + "</table>"
}

fn cell(i: usize, head: &HeadSummary, layers: &Layers, scaled: &[Scaled], written: bool, out: &mut String) {
    let values: Vec<f64> = scaled.iter().map(|one| (one.metric.of)(head)).collect();
    let classes: Vec<String> =
        scaled.iter().zip(&values).map(|(one, &value)| class(one.metric, one.level(value))).collect();
    *out += &format!("<td><a href=#h{i} class=\"{}\" title=\"", classes.join(" "));
    layers.label(&head.layer).render_to(out);
    *out += &format!(" head {}", head.head);
    for (one, &value) in scaled.iter().zip(&values) {
        *out += &format!("\n{} {}", one.metric.title, (one.metric.shown)(value));
    }
    *out += "\">";
    if written {
        for (one, &value) in scaled.iter().zip(&values) {
            *out += &format!("<i>{}</i>", (one.metric.shown)(value).replace(" %", "%"));
        }
    } else {
        *out += &format!("<s>head {}</s>", head.head);
    }
    *out += "</a>";
}

/// The table: all heads, with the values of the charts in digits. It is written without the template library
/// because closing tags alone would be 100 KB for a thousand heads. The library still escapes the names.
fn table(heads: &[HeadSummary], layers: &Layers) -> String {
    let mut out = String::from(
        "<table class=values id=values><thead><tr><th scope=col>layer<th scope=col>head<th scope=col>rows\
         <th scope=col>ρ<th scope=col>critical β<th scope=col>resolved β<th scope=col>ξ<th scope=col>ξ 95 %\
         <th scope=col>α<th scope=col>entropy / log n<th scope=col>top-two<th scope=col>tied\
         <th scope=col>poisoned<tbody>",
    );
    for (i, head) in heads.iter().enumerate() {
        let fit = head.length_law.critical_beta.as_ref();
        let xi = fit.map_or("–".into(), |fit| hundredths(fit.xi));
        let interval = fit.map_or("–".into(), |fit| fit.interval.map(hundredths).join(" to "));
        out += &format!("<tr><th scope=row><a href=#h{i}>");
        layers.label(&head.layer).render_to(&mut out);
        out += &format!("</a><td>{}<td>{}", head.head, count(head.rows));
        for cell in [
            figure(head.operating_ratio.q50),
            figure(head.critical_beta.q50),
            figure(head.resolved_beta.q50),
            xi,
            interval,
            figure(head.median_alpha),
            figure(head.median_relative_entropy),
            figure(head.median_top_two),
            share(head.share_tied),
            count(head.poisoned),
        ] {
            out += &format!("<td>{cell}");
        }
    }
    out + "</table>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_centred_at_1() {
        let scaled = Scaled { metric: &METRICS[0], range: [0.0, 1.0] };
        let level = |value| scaled.level(value);
        assert_eq!([1.0, 1.1, 0.9].map(level), [Some(5); 3]);
        assert_eq!(
            [0.0, 1e-9, 0.25, 4.0, f64::INFINITY].map(level),
            [Some(0), Some(0), Some(1), Some(9), Some(10)]
        );
        assert_eq!(level(f64::NAN), None);
        let flat = Scaled { metric: &METRICS[2], range: [0.5, 0.5] };
        assert_eq!(flat.level(0.5), Some(0));
    }
}
