//! Section 6 shows the rows of a head under other rules, side by side.

use super::number::{count, figure, name};
use crate::{HeadSummary, LawOutcome, Quantiles};
use maud::{Markup, PreEscaped, Render, html};

pub(super) fn section(head: &HeadSummary) -> Markup {
    let Some(outcomes) = head.what_if.as_ref() else {
        return html! { p.missing {
            "Row records hold no scores, so other rules cannot be tried on these rows. "
            code { "critbeta diagnose FILE --html" } " tries them."
        } };
    };
    let rows = outcomes.first().map_or(0, |outcome| outcome.rows);
    if rows == 0 {
        let which = if head.measured == 0 { "No row of this head" } else { "No row drawn from this head" };
        return html! { p.missing { (which) " can be measured." } };
    }
    html! {
        p.key {
            span { b.swatch.spread {} "5 to 95 % of rows" }
            span { b.swatch.median {} "median, also in digits" }
            span { "Every bar's line runs from 0 to 1." }
        }
        (PreEscaped(table(outcomes)))
        @if rows < head.measured { p.note {
            "The table is of " (count(rows)) " rows drawn from its " (count(head.measured)) " measured ones."
        } }
    }
}

/// Rules share a line of the table if every row comes out the same under them.
fn table(outcomes: &[LawOutcome]) -> String {
    let mut groups: Vec<(&LawOutcome, Vec<&str>)> = Vec::new();
    for outcome in outcomes {
        let same = |(first, _): &&mut (&LawOutcome, Vec<&str>)| {
            (first.beta, first.relative_entropy, first.top_two)
                == (outcome.beta, outcome.relative_entropy, outcome.top_two)
        };
        match groups.iter_mut().find(same) {
            Some((_, specs)) => specs.push(&outcome.spec),
            None => groups.push((outcome, vec![&outcome.spec])),
        }
    }
    let mut out = String::from(
        "<div class=scroll><table class=\"values rules\"><tr><th scope=col>rule<th scope=col>β\
         <th scope=col>entropy / log n<th scope=col>top-two difference",
    );
    for (outcome, specs) in groups {
        out += "<tr><th scope=row>";
        for (i, spec) in specs.iter().enumerate() {
            out += if i > 0 { ", " } else { "" };
            breakable(&name(spec), &mut out);
        }
        out += &format!("<td>{}", figure(outcome.beta.q50));
        bar(&outcome.relative_entropy, &mut out);
        bar(&outcome.top_two, &mut out);
    }
    out + "</table></div>"
}

/// Up to these many bytes a piece is not broken at its hyphens. A longer one would be wider than a phone.
const KEPT_WHOLE: usize = 24;

/// Writes the text of a rule so that it breaks only after a comma, a colon or an equals sign.
pub(super) fn breakable(spec: &str, out: &mut String) {
    for (i, piece) in spec.split_inclusive([',', ':', '=']).enumerate() {
        *out += if i > 0 { "<wbr>" } else { "" };
        let whole = piece.contains('-') && piece.len() <= KEPT_WHOLE;
        *out += if whole { "<span class=whole>" } else { "" };
        piece.render_to(out);
        *out += if whole { "</span>" } else { "" };
    }
}

/// Writes a cell: the median in digits, over a bar from the 5 to the 95 % quantile of the rows.
fn bar(of: &Quantiles, out: &mut String) {
    let place = |value: f64| (100.0 * value.clamp(0.0, 1.0)).round();
    *out += &format!(
        "<td class=r style=--a:{}%;--b:{}%;--c:{}%>{}",
        place(of.q05),
        place(of.q50),
        place(of.q95),
        figure(of.q50)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_break_between_their_parts() {
        let shown = |spec: &str| {
            let mut out = String::new();
            breakable(spec, &mut out);
            out
        };
        assert_eq!(shown("identity"), "identity");
        assert_eq!(shown("qwen-logn:train=8192"), "<span class=whole>qwen-logn:</span><wbr>train=<wbr>8192");
        assert_eq!(shown("a<b>,c=1"), "a&lt;b&gt;,<wbr>c=<wbr>1");
        let long = "a-b".repeat(20);
        assert_eq!(shown(&long), long);
    }
}
