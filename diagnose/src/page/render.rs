//! The page as a whole: its head, its sections, and one article a head.

use super::chart::Frames;
use super::names::Layers;
use super::number::{count, figure, name, percent, short};
use super::phase::Phase;
use super::provenance::Provenance;
use super::style::NAME_CHARS;
use super::{answer, gap_count, length, map, packed, phase, provenance, style, what_if};
use crate::{HeadSketch, HeadSummary, Staircase, Summary};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const SCRIPT: &str = include_str!("page.js");

/// How finely heads are drawn. A thousand heads share the bytes that ten heads have.
struct Detail {
    points: usize,
    steps: usize,
}

/// The points of both phase charts and the steps of the staircases, over all heads.
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

/// Up to these many bytes all articles are written out, and each of them can be shown without a script.
const WRITTEN_OUT: usize = 1 << 20;

/// The page, UTF-8. Its size grows with the number of heads, not of rows. A thousand heads stay under 3 MB.
pub(super) fn render(summary: &Summary, provenance: &Provenance) -> String {
    let detail = Detail::of(summary.heads.len());
    let mut frames = Frames::default();
    let phase = Phase::of(summary);
    let layers = Layers::of(summary.heads.iter().map(|head| head.layer.clone()));
    // The article that is shown at first stands last: the style sheet hides it if another one is chosen.
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
                // Without this icon browsers request one.
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
                        "An attention row is the softmax of n scores times an inverse temperature β. "
                        "Every row has a critical β. "
                        "It follows from how many scores lie within each distance of the largest score. "
                        "Well below it the top keys blur together. Well above it one key takes all."
                    }
                }
                main {
                    (answer::section(summary, &layers))
                    @if !summary.heads.is_empty() {
                        (map::section(summary, &layers))
                        @if let Some(packed) = &packed {
                            noscript { p.missing {
                                "Without JavaScript this page shows only one of its " (summary.heads.len())
                                " heads: the one below. The table holds the values of all heads."
                            } }
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

/// The head that is shown first: the first of those with the most measured rows.
fn widest(heads: &[HeadSummary]) -> Option<usize> {
    (0..heads.len()).rev().max_by_key(|&at| heads[at].measured)
}

/// What the charts leave out.
fn thinned(summary: &Summary, detail: &Detail) -> String {
    let most = summary.heads.iter().map(|head| head.measured).max().unwrap_or(0);
    let mut text = format!(
        "The gap count of a row is drawn with up to {} of its steps, and as far as the larger of its median \
         gap and {} times its contact gap.",
        detail.steps,
        Staircase::BEYOND_CONTACT
    );
    if most > detail.points as u64 {
        text += &format!(
            " Phase plots show {} rows a head. They are evenly spaced by the rank of their operating ratio, \
             from the least to the largest.",
            detail.points
        );
    }
    text += &format!(
        " The grey points behind them are rows of all heads, {} at most. A value beyond the end of an axis \
         is drawn at that end.",
        count(phase::CLOUD as u64)
    );
    text
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
                (short(&head.layer, NAME_CHARS)) " · head " (head.head) " "
                a.up href="#map" { "choose another" }
            }
            p.lead {
                @if head.measured == 0 {
                    "None of its " (count(head.rows)) " rows can be measured: "
                    (count(head.poisoned)) " hold a NaN or +∞, "
                    (count(head.rows - head.poisoned)) " have fewer than two visible keys."
                } @else {
                    "The median of " (count(head.measured)) " rows has ρ = "
                    b { (figure(head.operating_ratio.q50)) } ". "
                    (percent(head.regimes.below, head.measured)) " of them run below their critical β, "
                    (percent(head.regimes.near, head.measured)) " near it and "
                    (percent(head.regimes.above, head.measured)) " above. The median critical β is "
                    b { (figure(critical.q50)) } ". In the middle 90 % of the rows it lies from "
                    (figure(critical.q05)) " to " (figure(critical.q95)) "."
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
                            p {
                                "Left of the dotted line β is below critical, and the two largest weights "
                                "come together. Right of it the entropy falls."
                            }
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
