//! Section 1: the findings, one sentence each, in plain words with its number.

use super::map::link;
use super::names::Layers;
use super::number::{count, figure, hundredths, percent};
use super::what_if::breakable;
use crate::{HeadSummary, Regimes, Summary};
use critbeta::calibration::{Calibration, HeadCalibration};
use critbeta::operating_ratio;
use critbeta::rescaling::{Critical, Rescaling};
use maud::{Markup, PreEscaped, html};

/// Heads that are named in one sentence.
const NAMED: usize = 6;

pub(super) fn section(summary: &Summary, layers: &Layers) -> Markup {
    let heads = &summary.heads;
    let rows: u64 = heads.iter().map(|head| head.rows).sum();
    let measured: u64 = heads.iter().map(|head| head.measured).sum();
    html! {
        section #answer aria-labelledby="answer-title" {
            h2 #answer-title { "The answer" }
            @if rows == 0 { p.lead { "There are no rows: nothing was measured." } }
            @else if measured == 0 { p.lead { (nothing(heads, rows)) } }
            @else {
                (regimes(heads, measured))
                ul.findings {
                    (extremes(heads, layers))
                    (length_law(heads))
                    (advice(summary))
                    (certainty(summary, rows, measured))
                }
                (calibration(summary))
            }
        }
    }
}

fn nothing(heads: &[HeadSummary], rows: u64) -> Markup {
    let poisoned: u64 = heads.iter().map(|head| head.poisoned).sum();
    html! {
        "None of the " (count(rows)) " rows can be measured: " (count(poisoned)) " hold a NaN or +∞, "
        (count(rows - poisoned)) " have fewer than two visible keys."
    }
}

fn regimes(heads: &[HeadSummary], measured: u64) -> Markup {
    let Regimes { below, near, above } =
        heads.iter().map(|head| head.regimes).fold(Regimes::default(), Regimes::and);
    let part =
        |class: &str, rows: u64| html! { @if rows > 0 { b class=(class) style={ "flex-grow:" (rows) } {} } };
    html! {
        p.lead {
            strong #below { (percent(below, measured)) } " of " span #measured { (count(measured)) } " rows run below their critical β, "
            strong #near { (percent(near, measured)) } " near it, "
            strong #above { (percent(above, measured)) } " above."
        }
        div.split aria-hidden="true" { (part("below", below)) (part("near", near)) (part("above", above)) }
        p.note { "Below: operating ratio ρ = β / critical β under ½, where the top keys are not told apart. Above: over 2, where one key takes almost all. Near: between." }
    }
}

/// The heads whose median row is below or above, furthest first.
fn extremes(heads: &[HeadSummary], layers: &Layers) -> Markup {
    let [low, high] = Regimes::NEAR;
    let beyond = |is: &dyn Fn(f64) -> bool| {
        let mut found: Vec<(usize, &HeadSummary)> =
            heads.iter().enumerate().filter(|(_, head)| is(head.operating_ratio.q50)).collect();
        let far = |head: &HeadSummary| head.operating_ratio.q50.log2().abs();
        found.sort_by(|a, b| far(b.1).total_cmp(&far(a.1)));
        found
    };
    let (blur, collapse) = (beyond(&|ratio| ratio < low), beyond(&|ratio| ratio > high));
    html! {
        li { (named(&blur, heads.len(), layers, "blur", "less than half")) }
        li { (named(&collapse, heads.len(), layers, "collapse", "more than twice")) }
    }
}

fn named(found: &[(usize, &HeadSummary)], of: usize, layers: &Layers, verb: &str, how: &str) -> Markup {
    let verb_s = if found.len() == 1 { format!("{verb}s") } else { verb.to_owned() };
    let heads = if of == 1 { " head " } else { " heads " };
    html! {
        @if found.is_empty() { strong { "No head " (verb) "s" } ": no median row runs at " (how) " its critical β." }
        @else {
            strong { (found.len()) " of " (of) (heads) (verb_s) } ": a median row runs at " (how) " its critical β ("
            @for (i, (at, head)) in found.iter().take(NAMED).enumerate() {
                @if i > 0 { ", " }
                (link(*at, head, layers)) " at " (figure(head.operating_ratio.q50))
            }
            @if found.len() > NAMED { ", and " (found.len() - NAMED) " more" }
            ")."
        }
    }
}

/// Exponents that laws stand for.
const LAWS: [(&str, f64); 4] = [("a constant", 0.0), ("√log n", 0.5), ("log n", 1.0), ("(log n)²", 2.0)];

fn length_law(heads: &[HeadSummary]) -> Markup {
    let fits: Vec<_> = heads.iter().filter_map(|head| head.length_law.critical_beta.as_ref()).collect();
    let conclusive = heads.iter().filter(|head| head.length_law.verdict.is_conclusive()).count();
    let mut xis: Vec<f64> = fits.iter().map(|fit| fit.xi).collect();
    xis.sort_by(f64::total_cmp);
    let holds = |xi: f64| fits.iter().filter(|fit| fit.interval[0] <= xi && xi <= fit.interval[1]).count();
    html! {
        li {
            @match (heads, fits.as_slice()) {
                (_, []) => { strong { "No length law can be read off." } " " (heads.first().map_or(String::new(), |head| head.length_law.verdict.to_string())) "." }
                ([head], [fit]) => {
                    strong { "Critical β goes as (log n)" sup { (hundredths(fit.xi)) } } ", 95 % interval "
                    (hundredths(fit.interval[0])) " to " (hundredths(fit.interval[1])) ": " (head.length_law.verdict.to_string()) "."
                }
                _ => {
                    strong { "Critical β goes as (log n)" sup { "ξ" } ", ξ from " (hundredths(xis[0])) " to " (hundredths(xis[xis.len() - 1])) " over the heads" }
                    ". The 95 % interval holds "
                    @for (i, (law, xi)) in LAWS.into_iter().enumerate() {
                        @if i > 0 { ", " }
                        (law) " in " (holds(xi))
                    }
                    " of " (fits.len()) " heads; " (conclusive) " of " (heads.len()) " have rows enough to tell a law" @if heads.iter().any(|head| head.length_law.resolved_verdict.is_some()) { " of unresolved β" } "."
                }
            }
        }
    }
}

/// What can be set.
struct Specs {
    /// As the rows were run.
    as_it_is: String,
    /// By the fits of a calibration file; `None` where a head has none.
    calibrated: Option<Markup>,
    /// By row, at the ratio that the median head has; `None` where that is 0 or infinite.
    critical: Option<String>,
}

impl Specs {
    fn of(summary: &Summary) -> Specs {
        let as_it_is = if summary.beta == 1.0 { Rescaling::Identity } else { Rescaling::Fixed(summary.beta) };
        let of = if summary.resolve > 0.0 { ",of=resolved" } else { "" };
        let calibrated = usable_calibration(summary).map(|_| {
            let mut spec = String::new();
            breakable(&format!("calibrated:calibration.json,anchor={}{of}", summary.train_length), &mut spec);
            PreEscaped(spec)
        });
        let ratios = summary.heads.iter().map(|head| operating_ratio(summary.beta, head.resolved_beta.q50));
        let mut ratios: Vec<f64> = ratios.filter(|ratio| !ratio.is_nan()).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios.get(ratios.len() / 2).copied().filter(|ratio| *ratio > 0.0 && ratio.is_finite());
        // Three digits, as they can be typed.
        let ratio = ratio.and_then(|ratio| format!("{ratio:.2e}").parse().ok());
        let critical = ratio.map(|ratio| {
            let mut rule = Critical::new();
            (rule.ratio, rule.resolve) = (ratio, summary.resolve);
            Rescaling::Critical(rule).to_string()
        });
        Specs { as_it_is: as_it_is.to_string(), calibrated, critical }
    }
}

/// The calibration if it has a law for every head: with less the command refuses it.
fn usable_calibration(summary: &Summary) -> Option<Calibration> {
    let calibration = summary.calibration().ok()?;
    let law = |head: &HeadCalibration| match summary.resolve > 0.0 {
        true => head.resolved.is_some(),
        false => head.critical.is_some(),
    };
    calibration.heads.iter().all(law).then_some(calibration)
}

fn advice(summary: &Summary) -> Markup {
    let heads = &summary.heads;
    let verdict = |head: &HeadSummary| {
        let law = &head.length_law;
        law.resolved_verdict.as_ref().unwrap_or(&law.verdict).is_conclusive()
    };
    let conclusive = heads.iter().filter(|head| verdict(head)).count();
    let Specs { as_it_is, calibrated, critical } = Specs::of(summary);
    // A law is a factor on what the rows were run at.
    let factor = (summary.beta != 1.0).then(|| format!(", as a factor on β = {}", summary.beta));
    html! {
        li {
            @if summary.top_k.is_some() {
                strong { "Set nothing yet" } ": only the largest scores were counted, so critical betas may be higher than they look. Diagnose without a top-k count."
            } @else if let (true, Some(calibrated)) = (2 * conclusive >= heads.len(), &calibrated) {
                strong { "Set " code #spec { (calibrated) } (factor.unwrap_or_default()) } ": what each head has at n = " (summary.train_length)
                " (--train-length), held at other lengths by its own fitted law (calibration below)."
                @if let Some(critical) = &critical { " By row instead of by law: " code #row-spec { (critical) } "." }
            } @else {
                strong { "Leave β as it is until there are more rows: " code #spec { (as_it_is) } } ". "
                @if conclusive == 0 { "No head tells" } @else { "Only " (conclusive) " of " (heads.len()) " heads tell" }
                " a law" @if summary.resolve > 0.0 { " of resolved β" } "."
                @if let Some(critical) = &critical {
                    " To hold each row at this model's typical ratio without any law: " code #row-spec { (critical) } "."
                }
                @if let Some(calibrated) = &calibrated {
                    " To try the fits all the same: " code { (calibrated) } (factor.unwrap_or_default()) ", with the calibration below."
                }
            }
        }
    }
}

fn certainty(summary: &Summary, rows: u64, measured: u64) -> Markup {
    let heads = &summary.heads;
    let poisoned: u64 = heads.iter().map(|head| head.poisoned).sum();
    let has_fits = heads.iter().any(|head| head.length_law.critical_beta.is_some());
    let fewest = heads.iter().map(|head| head.measured).min().unwrap_or(0);
    let gaussian =
        heads.iter().find_map(|head| head.length_law.yardsticks.iter().find(|y| y.family == "gaussian"));
    html! {
        li {
            strong { "How sure" } ": every critical β is "
            @if summary.top_k.is_some() { "a lower bound from the largest scores" } @else { "exact for its scores in f32" }
            @if has_fits { "; intervals are a bootstrap over rows, " (count(fewest)) " or more a head" }
            ". Rows of one text are not independent, so pool several texts before believing a narrow one."
            @if let Some(y) = gaussian { " The same fit gives " (hundredths(y.xi)) " for Gaussian rows, whose ξ is ½ only as n goes to infinity." }
            @if poisoned > 0 { " " (count(poisoned)) " of " (count(rows)) " rows hold a NaN or +∞ and were left out." }
            @if rows > measured + poisoned { " " (count(rows - measured - poisoned)) " rows with fewer than two visible keys say nothing." }
        }
    }
}

fn calibration(summary: &Summary) -> Markup {
    let calibration =
        usable_calibration(summary).and_then(|calibration| serde_json::to_string(&calibration).ok());
    html! {
        @if let Some(json) = calibration {
            details.paste { summary { "calibration.json, to paste into a file" } pre #calibration { (super::number::json(&json)) } }
        }
    }
}
