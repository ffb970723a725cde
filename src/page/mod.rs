//! A diagnosis as one page: self-contained, no network, readable without JavaScript and on paper.
//!
//! Every head is an article of its own; the map's cells are links to them and the style sheet shows the one that is asked
//! for, so choosing needs no script. Of hundreds of heads all articles but the first are packed, and a script unpacks the one
//! that is asked for: written out they would be 8 MB for a thousand heads. All that a page says comes from the [`Summary`]
//! that `--json` writes.

mod answer;
mod axis;
mod chart;
mod files;
mod gap_count;
mod length;
mod map;
mod names;
mod number;
mod packed;
mod pen;
mod phase;
mod provenance;
mod style;
mod what_if;

pub use files::{write, write_of_inputs, write_of_records};
pub use provenance::{FileFacts, Provenance};

use crate::diagnose::{HeadSketch, HeadSummary, Staircase, Summary};
use chart::Frames;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use names::Layers;
use number::{count, figure, name, percent, short};
use phase::Phase;
use style::{Ink, NAME_CHARS};

const SCRIPT: &str = include_str!("page.js");

/// How finely heads are drawn: a thousand heads share the bytes that ten have.
struct Detail {
    points: usize,
    steps: usize,
}

/// Points of both phase charts and steps of a staircase, over all heads.
const POINTS: usize = 30_000;
const STEPS: usize = 14_000;

impl Detail {
    fn of(heads: usize) -> Detail {
        let heads = heads.max(1);
        Detail {
            points: (POINTS / heads).clamp(20, HeadSketch::POINTS),
            steps: (STEPS / heads).clamp(12, 96),
        }
    }
}

/// Bytes of articles up to which all are written out, and any is shown without a script.
const WRITTEN_OUT: usize = 1 << 20;

/// The page, UTF-8. Its size follows the number of heads, not of rows: under 3 MB for a thousand heads.
pub fn render(summary: &Summary, provenance: &Provenance) -> String {
    let detail = Detail::of(summary.heads.len());
    let mut frames = Frames::default();
    let phase = Phase::of(summary);
    let layers = Layers::of(summary.heads.iter().map(|head| head.layer.clone()));
    // The one that is shown when none is asked for stands last: the style sheet hides it behind any other.
    let first = widest(&summary.heads);
    let others = (0..summary.heads.len()).filter(|&at| Some(at) != first);
    let mut written = |at, first| article(at, first, summary, &phase, &detail, &mut frames);
    let others: Vec<Markup> = others.map(|at| written(at, false)).collect();
    let first = first.map(|at| written(at, true));
    let length: usize = others.iter().map(|article| article.0.len()).sum();
    let packed = (length > WRITTEN_OUT).then(|| packed::pack(&others));
    let files = match &provenance.files[..] {
        [] => "rows in memory".to_owned(),
        files => files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", "),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta name="color-scheme" content="light dark";
                // An icon of its own, or browsers ask for one.
                link rel="icon" href="data:,";
                title { "critbeta: " (short(&files, NAME_CHARS)) }
                style { (PreEscaped(style::sheet(&map::colours()))) }
            }
            body {
                (frames.definitions())
                header {
                    p.brand { "critbeta" }
                    h1 title=(name(&files)) { (short(&files, NAME_CHARS)) }
                    p.facts { (facts(summary)) }
                    p.intro {
                        "An attention row is a softmax over n scores times an inverse temperature β. Every row has a critical β, read off "
                        "how many scores lie within each distance of its largest: well below it the top keys blur together, well above it one key takes all."
                    }
                }
                main {
                    (answer::section(summary, &layers))
                    @if !summary.heads.is_empty() {
                        (map::section(summary, &layers))
                        @if let Some(packed) = &packed {
                            noscript { p.missing { "Without JavaScript this page shows one of its " (summary.heads.len())
                                " heads, the one below; the values of all are in the table." } }
                            script #packed type="application/gzip;base64" { (packed) }
                        } @else {
                            @for article in &others { (article) }
                        }
                        @if let Some(article) = &first { (article) }
                    }
                    (provenance::section(summary, provenance, &thinned(summary, &detail)))
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn facts(summary: &Summary) -> Markup {
    let rows: u64 = summary.heads.iter().map(|head| head.rows).sum();
    let ends = summary.heads.iter().filter_map(|head| head.n).reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]);
    html! {
        (count(summary.heads.len() as u64)) @if summary.heads.len() == 1 { " head" } @else { " heads" }
        " · " (count(rows)) @if rows == 1 { " row" } @else { " rows" }
        @if let Some([low, high]) = ends { " · n " (count(low)) " to " (count(high)) }
        " · β = " (summary.beta)
        @if summary.resolve > 0.0 { " · resolved at r = " (summary.resolve) " nats" }
    }
}

/// The head to begin with: the first of those with the most measured rows.
fn widest(heads: &[HeadSummary]) -> Option<usize> {
    (0..heads.len()).rev().max_by_key(|&at| heads[at].measured)
}

fn thinned(summary: &Summary, detail: &Detail) -> String {
    let most = summary.heads.iter().map(|head| head.measured).max().unwrap_or(0);
    let mut text = format!(
        "Charts: a row's gap count is drawn with up to {} of its steps; what lies between two of them is not drawn, nor what lies beyond the larger of its median gap and {} times its contact.",
        detail.steps,
        Staircase::BEYOND_CONTACT
    );
    if most > detail.points as u64 {
        text += &format!(
            " Phase plots show {} rows a head, evenly spaced by rank of their operating ratio, least and largest included.",
            detail.points
        );
    }
    text += &format!(
        " The grey points behind them are at most {} of all heads' rows. What lies beyond an axis is drawn at its end.",
        count(phase::CLOUD as u64)
    );
    text
}

/// A bit of line or area in a key, in the look of the charts.
fn swatch(ink: Ink) -> Markup {
    let point = matches!(ink, Ink::Contact | Ink::Points | Ink::Cloud);
    let path = if point { "M9 6h0" } else { "M0 6h18" };
    html! { svg.swatch viewBox="0 0 18 12" aria-hidden="true" { path class=(ink.class()) d=(path) {} } }
}

fn article(
    at: usize,
    first: bool,
    summary: &Summary,
    phase: &Phase,
    detail: &Detail,
    frames: &mut Frames,
) -> Markup {
    let head = &summary.heads[at];
    let critical = &head.critical_beta;
    html! {
        article.head.first[first] id={ "h" (at) } {
            h2 title=[(head.layer.chars().count() > NAME_CHARS).then(|| name(&head.layer))] {
                (short(&head.layer, NAME_CHARS)) " · head " (head.head) " " a.up href="#map" { "choose another" }
            }
            p.lead {
                @if head.measured == 0 { "None of its " (count(head.rows)) " rows can be measured: " (count(head.poisoned)) " hold a NaN or +∞, "
                    (count(head.rows - head.poisoned)) " have fewer than two visible keys." }
                @else {
                    "ρ " b { (figure(head.operating_ratio.q50)) } " at the median of " (count(head.measured)) " rows: "
                    (percent(head.regimes.below, head.measured)) " below, " (percent(head.regimes.near, head.measured)) " near, "
                    (percent(head.regimes.above, head.measured)) " above. Critical β " b { (figure(critical.q50)) }
                    ", 5 to 95 % of rows " (figure(critical.q05)) " to " (figure(critical.q95)) "."
                }
            }
            section {
                h3 { "Gap count of a row" }
                (gap_count::key(summary.resolve))
                (gap_count::section(head, summary.resolve, detail.steps, frames))
            }
            @if head.measured > 0 {
                section {
                    h3 { "Phase plot" }
                    (Phase::key())
                    div.charts {
                        (phase.charts(head, detail.points, frames))
                        div.note {
                            p { "Left of the dotted line β is below critical: the two largest weights come together. Right of it the entropy falls." }
                            (Phase::violations(summary))
                        }
                    }
                }
                section {
                    h3 { "Length" }
                    (length::key(summary))
                    (length::section(head, summary, frames))
                }
            }
            section {
                h3 { "What if" }
                (what_if::section(head))
            }
        }
    }
}
