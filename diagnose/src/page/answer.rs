//! Section 1 states the findings, each in one plain sentence with its number.

use super::map::link;
use super::names::Layers;
use super::number::{count, figure, hundredths, json as quoted, name, percent};
use super::what_if::breakable;
use crate::{HeadSummary, Regimes, Summary};
use critbeta::calibration::{Calibration, HeadCalibration};
use critbeta::operating_ratio;
use critbeta::rescaling::{Critical, Rescaling};
use maud::{Markup, PreEscaped, html};

/// The most heads that are named in one sentence.
const NAMED: usize = 6;

pub(super) fn section(summary: &Summary, layers: &Layers) -> Markup {
    let heads = &summary.heads;
    let rows: u64 = heads.iter().map(|head| head.rows).sum();
    let measured: u64 = heads.iter().map(|head| head.measured).sum();
    html! {
        section #answer aria-labelledby="answer-title" {
            h2 #answer-title { "The answer" }
            @for note in &summary.notes { p.note { strong { "Note" } ": " (name(note)) "." } }
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
            strong #below { (percent(below, measured)) } " of " span #measured { (count(measured)) }
            " rows run below their critical β, " strong #near { (percent(near, measured)) } " near it and "
            strong #above { (percent(above, measured)) } " above."
        }
        div.split aria-hidden="true" { (part("below", below)) (part("near", near)) (part("above", above)) }
        p.note {
            "A row runs below if its operating ratio ρ = β / critical β is under ½: "
            "its top keys cannot be told apart. It runs above if ρ is over 2: one key takes almost all. "
            "In between it runs near."
        }
    }
}

/// The heads whose median row is below or above, the furthest first.
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
        @if found.is_empty() {
            strong { "No head " (verb) "s" } ": no median row runs at " (how) " its critical β."
        } @else {
            strong { (found.len()) " of " (of) (heads) (verb_s) }
            ": the median row runs at " (how) " its critical β ("
            @for (i, (at, head)) in found.iter().take(NAMED).enumerate() {
                @if i > 0 { ", " }
                (link(*at, head, layers)) " at " (figure(head.operating_ratio.q50))
            }
            @if found.len() > NAMED { ", and " (found.len() - NAMED) " more" }
            ")."
        }
    }
}

/// Simple forms of growth, and their exponents.
const FORMS: [(&str, f64); 4] = [("a constant", 0.0), ("√log n", 0.5), ("log n", 1.0), ("(log n)²", 2.0)];

fn length_law(heads: &[HeadSummary]) -> Markup {
    let fits: Vec<_> = heads.iter().filter_map(|head| head.length_law.critical_beta.as_ref()).collect();
    let conclusive = heads.iter().filter(|head| head.length_law.verdict.is_conclusive()).count();
    let resolved = heads.iter().any(|head| head.length_law.resolved_verdict.is_some());
    let mut xis: Vec<f64> = fits.iter().map(|fit| fit.xi).collect();
    xis.sort_by(f64::total_cmp);
    let holds = |xi: f64| fits.iter().filter(|fit| fit.interval[0] <= xi && xi <= fit.interval[1]).count();
    html! {
        li {
            @match (heads, fits.as_slice()) {
                (_, []) => {
                    strong { "No length law can be read from these rows." } " "
                    @if let Some(head) = heads.first() { (head.length_law.verdict) } "."
                }
                ([head], [fit]) => {
                    strong { "Critical β goes as (log n)" sup { (hundredths(fit.xi)) } } ", 95 % interval "
                    (hundredths(fit.interval[0])) " to " (hundredths(fit.interval[1])) ": "
                    (head.length_law.verdict) "."
                }
                _ => {
                    strong {
                        "Critical β goes as (log n)" sup { "ξ" } ", with ξ from " (hundredths(xis[0])) " to "
                        (hundredths(xis[xis.len() - 1])) " over the heads"
                    }
                    ". The 95 % interval holds "
                    @for (i, (form, xi)) in FORMS.into_iter().enumerate() {
                        @if i > 0 { ", " }
                        (form) " in " (holds(xi))
                    }
                    " of " (fits.len()) " heads. The verdict"
                    @if resolved { " on unresolved β" }
                    " is conclusive for " (conclusive) " of " (heads.len()) " heads."
                }
            }
        }
    }
}

/// The SPECs that can be set.
struct Specs {
    /// The rule that the rows were run with.
    as_it_is: String,
    /// The rule by the fits of a calibration file; `None` if a head has no fit.
    calibrated: Option<Markup>,
    /// The rule by row, at the ratio that the median head has; `None` if that is 0 or infinite.
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
        // Three digits are short enough to type.
        let ratio = ratio.and_then(|ratio| format!("{ratio:.2e}").parse().ok());
        let critical = ratio.map(|ratio| {
            let mut rule = Critical::new();
            (rule.ratio, rule.resolve) = (ratio, summary.resolve);
            Rescaling::Critical(rule).to_string()
        });
        Specs { as_it_is: as_it_is.to_string(), calibrated, critical }
    }
}

/// The calibration, if it has a fit for every head. The command refuses any other.
fn usable_calibration(summary: &Summary) -> Option<Calibration> {
    let calibration = summary.calibration().ok()?;
    let has_fit = |head: &HeadCalibration| match summary.resolve > 0.0 {
        true => head.resolved.is_some(),
        false => head.critical.is_some(),
    };
    calibration.heads.iter().all(has_fit).then_some(calibration)
}

fn advice(summary: &Summary) -> Markup {
    let heads = &summary.heads;
    let verdict = |head: &HeadSummary| {
        let law = &head.length_law;
        law.resolved_verdict.as_ref().unwrap_or(&law.verdict).is_conclusive()
    };
    let conclusive = heads.iter().filter(|head| verdict(head)).count();
    let Specs { as_it_is, calibrated, critical } = Specs::of(summary);
    // The calibration is a factor on the β that the rows were run at.
    let factor = (summary.beta != 1.0).then(|| format!(" as a factor on β = {}", summary.beta));
    html! {
        li {
            @if summary.top_k.is_some() {
                strong { "Set nothing yet" } ": only the largest scores were counted, so critical betas may "
                "be higher than they look. Diagnose without a top-k count."
            } @else if let (true, Some(calibrated)) = (2 * conclusive >= heads.len(), &calibrated) {
                strong { "Set " code #spec { (calibrated) } (factor.unwrap_or_default()) }
                ". Each head then keeps the operating ratio that it has at n = " (summary.train_length)
                " (--train-length): at other lengths β follows its own fit. The calibration stands below."
                @if let Some(critical) = &critical {
                    " To set β by row instead of by fit, use " code #row-spec { (critical) } "."
                }
            } @else {
                strong { "Leave β as it is until there are more rows: " code #spec { (as_it_is) } } ". "
                "The verdict" @if summary.resolve > 0.0 { " on resolved β" } " is conclusive for "
                @if conclusive == 0 { "no head." }
                @else { "only " (conclusive) " of " (heads.len()) " heads." }
                @if let Some(critical) = &critical {
                    " To hold each row at this model's typical ratio without any fit, use "
                    code #row-spec { (critical) } "."
                }
                @if let Some(calibrated) = &calibrated {
                    " To try the fits all the same, use " code { (calibrated) } (factor.unwrap_or_default())
                    " with the calibration below."
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
            strong { "How sure this is" } ": every critical β is "
            @if summary.top_k.is_some() { "a lower bound from the largest scores." }
            @else { "exact for its scores in f32." }
            @if has_fits {
                " The intervals come from a bootstrap over rows, " (count(fewest)) " or more a head. "
                "Rows of one text are not independent, so pool several texts before you believe a narrow one."
            }
            @if let Some(y) = gaussian {
                " For Gaussian rows, whose ξ is ½ only as n goes to infinity, the same fit gives ξ = "
                (hundredths(y.xi)) "."
            }
            @if poisoned > 0 {
                " " (count(poisoned)) " of " (count(rows)) " rows hold a NaN or +∞ and were left out."
            }
            @if rows > measured + poisoned {
                " " (count(rows - measured - poisoned)) " rows with fewer than two visible keys say nothing."
            }
        }
    }
}

fn calibration(summary: &Summary) -> Markup {
    let calibration =
        usable_calibration(summary).and_then(|calibration| serde_json::to_string(&calibration).ok());
    html! {
        @if let Some(json) = calibration {
            details.paste {
                summary { "calibration.json, to paste into a file" }
                pre #calibration { (quoted(&json)) }
            }
        }
    }
}
