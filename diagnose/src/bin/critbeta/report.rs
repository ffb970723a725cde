//! The summary as tables.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Row, Table, presets};
use critbeta_diagnose::figures::{hundredths, significant};
use critbeta_diagnose::{ClosestLaw, Exponent, LengthLaw, Summary, Yardstick};
use std::fmt::Write;

/// An empty table with a header, in the style of all tables.
pub fn table(header: impl Into<Row>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// The text that `diagnose` prints.
pub fn summary(summary: &Summary) -> String {
    let mut text = String::new();
    let rows: u64 = summary.heads.iter().map(|head| head.rows).sum();
    let mut settings = format!("at beta = {}", summary.beta);
    settings += &match summary.resolve {
        0.0 => ", resolve 0 (the resolved beta is the critical beta)".to_owned(),
        resolve => format!(", resolved at r = {resolve} nats"),
    };
    if summary.exclude_sink > 0 {
        settings += &format!(", the first {} keys of every row left out", summary.exclude_sink);
    }
    if let Some(k) = summary.top_k {
        settings += &format!(", only the {k} largest scores of a row counted");
    }
    let files = summary.inputs.iter().map(|input| escaped(&input.path)).collect::<Vec<_>>().join(", ");
    let _ = writeln!(text, "{files}: {} heads, {rows} rows, {settings}", summary.heads.len());
    for input in summary.inputs.iter().filter(|input| !input.skipped.is_empty()) {
        let skipped = input.skipped.iter().map(|name| escaped(name)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "{}: not diagnosed: {skipped}", escaped(&input.path));
    }
    for note in &summary.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if summary.heads.iter().any(|head| head.sources > 1) {
        let _ = writeln!(text, "heads of the same name are pooled: see `sources` in --json");
    }
    if summary.heads.iter().any(|head| head.sampled < head.measured) {
        let _ = writeln!(
            text,
            "quantiles of long heads come from a random sample of their rows: see `sampled` in --json"
        );
    }
    let _ = writeln!(text, "\nCritical beta per row: quantiles\n{}", rows_table(summary));
    let _ = writeln!(text, "\nLength law: median critical beta ~ (log n)^xi\n{}", laws_table(summary));
    let mut sets: Vec<&LengthLaw> = Vec::new();
    for law in summary.heads.iter().map(|head| &head.length_law).filter(|law| !law.yardsticks.is_empty()) {
        if !sets.iter().any(|seen| seen.yardsticks == law.yardsticks) {
            sets.push(law);
        }
    }
    for law in sets.iter().take(3) {
        let (first, last) = (law.bins.first().map_or(0.0, |b| b.n), law.bins.last().map_or(0.0, |b| b.n));
        let _ = writeln!(
            text,
            "xi of known families by the same fit over n = {first:.0}..{last:.0} (at infinity): {}",
            families(&law.yardsticks)
        );
        if let Some(resolved) = &law.resolved_yardsticks {
            let _ = writeln!(text, "xi of their resolved beta: {}", families(resolved));
        }
    }
    if sets.len() > 3 {
        let _ = writeln!(text, "({} more sets of lengths: see --json)", sets.len() - 3);
    }
    text
}

fn families(yardsticks: &[Yardstick]) -> String {
    let family = |y: &Yardstick| format!("{} {} ({})", y.family, hundredths(y.xi), y.asymptotic);
    yardsticks.iter().map(family).collect::<Vec<_>>().join(", ")
}

fn rows_table(summary: &Summary) -> Table {
    let resolved = summary.resolve > 0.0;
    let mut header = vec!["layer", "head", "rows", "n", "5 %", "25 %", "median", "75 %", "95 %"];
    if resolved {
        header.extend(["resolved 5 %", "25 %", "median", "75 %", "95 %"]);
    }
    header.extend(["beta > critical", "tied", "alpha", "H / log n"]);
    if summary.top_k.is_some() {
        header.push("certified");
    }
    let poisoned = summary.heads.iter().any(|head| head.poisoned > 0);
    if poisoned {
        header.push("poisoned");
    }
    let columns = header.len();
    let mut table = table(header);
    for head in &summary.heads {
        let mut cells = vec![
            escaped(&head.layer),
            head.head.to_string(),
            head.rows.to_string(),
            head.n.map_or("-".into(), |[low, high]| format!("{low}..{high}")),
        ];
        let betas = [Some(head.critical_beta), resolved.then_some(head.resolved_beta)];
        for q in betas.into_iter().flatten() {
            cells.extend([q.q05, q.q25, q.q50, q.q75, q.q95].map(figure));
        }
        cells.extend([share(head.share_above_critical), share(head.share_tied)]);
        cells.extend([head.median_alpha, head.median_relative_entropy].map(figure));
        cells.extend(head.share_certified.map(share));
        if poisoned {
            cells.push(head.poisoned.to_string());
        }
        table.add_row(cells);
    }
    align_right(&mut table, 1..columns);
    keep_whole(&mut table, 0..columns);
    table
}

fn laws_table(summary: &Summary) -> Table {
    let resolved = summary.resolve > 0.0;
    let mut header = vec!["layer", "head", "xi", "95 %"];
    if resolved {
        header.extend(["xi resolved", "95 %"]);
    }
    header.extend(["xi alpha", "xi gap"]);
    let figures = header.len();
    header.extend(["predicts best", "closest published", "verdict"]);
    if resolved {
        header.push("verdict, resolved");
    }
    let mut table = table(header);
    for head in &summary.heads {
        let law = &head.length_law;
        let mut cells = vec![escaped(&head.layer), head.head.to_string()];
        for fit in [Some(&law.critical_beta), resolved.then_some(&law.resolved_beta)].into_iter().flatten() {
            cells.extend([xi(fit), interval(fit)]);
        }
        cells.extend([xi(&law.alpha), xi(&law.contact_gap)]);
        cells.push(law.best().map_or("-", |fit| fit.form.formula()).to_owned());
        cells.push(law.closest_published.as_ref().map_or("-".into(), closest));
        cells.push(law.verdict.to_string());
        cells.extend(law.resolved_verdict.as_ref().map(ToString::to_string));
        table.add_row(cells);
    }
    align_right(&mut table, 1..figures);
    keep_whole(&mut table, 0..figures + 2);
    table
}

fn xi(fit: &Option<Exponent>) -> String {
    fit.as_ref().map_or("-".into(), |fit| hundredths(fit.xi))
}

fn interval(fit: &Option<Exponent>) -> String {
    fit.as_ref().map_or("-".into(), |fit| fit.interval.map(hundredths).join(".."))
}

/// The laws without their parameters. Laws that equal 1 everywhere are the identity.
fn closest(closest: &ClosestLaw) -> String {
    let names = closest.laws.iter().map(|law| law.split(':').next().unwrap_or(law));
    let names: Vec<&str> = match closest.laws.iter().any(|law| law == "identity") {
        true => vec!["identity"],
        false => names.collect(),
    };
    format!("{} +- {:.0} %", names.join(" = "), 100.0 * closest.spread)
}

fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Never breaks the cells of these columns, however narrow the terminal is: half a number is another number.
pub fn keep_whole(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// A name from outside, without characters that move the cursor.
fn escaped(name: &str) -> String {
    name.escape_debug().to_string()
}

/// Four significant digits.
pub fn figure(value: f64) -> String {
    significant(value, 4)
}

fn share(value: f64) -> String {
    if value.is_nan() { "-".into() } else { format!("{:.1} %", 100.0 * value) }
}
