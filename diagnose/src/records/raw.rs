//! A record as a file holds it, and what must be true of it.

use super::record::{COLUMNS, RowRecord};
use critbeta::operating_ratio;
use std::fmt;
use std::sync::Arc;

/// One string for all rows of a layer.
#[derive(Default)]
pub(super) struct Layers(Option<Arc<str>>);

impl Layers {
    fn named(&mut self, name: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if **last == *name => last.clone(),
            _ => self.0.insert(name.into()).clone(),
        }
    }
}

/// A value as any tool may have written it.
#[derive(Debug, Clone, Default)]
pub enum Cell {
    /// There is no such column.
    #[default]
    Absent,
    /// Nothing, in a column that is there.
    Null,
    /// True or false.
    Flag(bool),
    /// A whole number of at least 0.
    Whole(u64),
    /// Any other number.
    Real(f64),
    /// Text, or whatever a table without types holds.
    Text(String),
}

/// A record as a file holds it, before any check: one cell for each of [`COLUMNS`].
pub type Cells = [Cell; COLUMNS.len()];

/// The first column that a table lacks. The two certificates need not be there.
pub(super) fn lacks(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let needed = |name: &&str| !name.ends_with("certified") && !has(name);
    COLUMNS.iter().map(|(name, _)| *name).find(needed)
}

impl Cell {
    /// A whole number of at least 0. Tables with gaps hold them as floats.
    fn whole(&self) -> Option<u64> {
        match self {
            Cell::Whole(value) => Some(*value),
            // 2^63, up to which the types of all tables go.
            Cell::Real(value) if value.fract() == 0.0 && (0.0..9.3e18).contains(value) => Some(*value as u64),
            Cell::Text(text) => text.parse().ok().or_else(|| Cell::Real(text.parse().ok()?).whole()),
            _ => None,
        }
    }

    /// A number, or nothing where it is null or NaN. Infinity has many spellings.
    fn real(&self) -> Result<Option<f64>, ()> {
        let value = match self {
            Cell::Null => return Ok(None),
            Cell::Text(text) if text.is_empty() => return Ok(None),
            Cell::Whole(value) => *value as f64,
            Cell::Real(value) => *value,
            Cell::Text(text) => text.parse().map_err(|_| ())?,
            Cell::Absent | Cell::Flag(_) => return Err(()),
        };
        Ok(Some(value).filter(|value| !value.is_nan()))
    }

    /// True, TRUE and 1, or false; nothing where it is null.
    fn flag(&self) -> Result<Option<bool>, ()> {
        match self {
            Cell::Null | Cell::Absent => Ok(None),
            Cell::Flag(value) => Ok(Some(*value)),
            Cell::Whole(0) => Ok(Some(false)),
            Cell::Whole(1) => Ok(Some(true)),
            Cell::Real(value) if [0.0, 1.0].contains(value) => Ok(Some(*value == 1.0)),
            Cell::Text(text) if text.is_empty() => Ok(None),
            Cell::Text(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Cell::Text(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Cell::Text(text) => Cell::Real(text.parse().map_err(|_| ())?).flag(),
            Cell::Real(_) | Cell::Whole(_) => Err(()),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Absent => f.write_str("not there"),
            Cell::Null => f.write_str("null"),
            Cell::Flag(value) => value.fmt(f),
            Cell::Whole(value) => value.fmt(f),
            Cell::Real(value) => value.fmt(f),
            Cell::Text(text) => write!(f, "{:?}", text.chars().take(100).collect::<String>()),
        }
    }
}

/// The record of these cells.
///
/// Errors: the column that is wrong, and what was expected.
pub(super) fn checked(cells: &Cells, layers: &mut Layers) -> Result<RowRecord, String> {
    let of = |name: &str| match COLUMNS.iter().position(|(column, _)| *column == name) {
        Some(at) => &cells[at],
        None => &Cell::Absent,
    };
    let wrong = |name: &str, expected: &str| format!("column {name}: {}, expected {expected}", of(name));
    let whole = |name: &str| of(name).whole().ok_or_else(|| wrong(name, "a whole number of at least 0"));
    let flag = |name: &str| of(name).flag().map_err(|()| wrong(name, "true or false"));
    let real = |name: &str| of(name).real().map_err(|()| wrong(name, "a number"));
    let Cell::Text(layer) = of("layer") else { return Err(wrong("layer", "text")) };
    let poisoned = flag("poisoned")?.ok_or_else(|| wrong("poisoned", "true or false"))?;
    let finite = |name: &str, low: f64, high: f64| match real(name)? {
        // Sums of f32 weights differ from 1 and 0 by a rounding.
        Some(value) if (low - 1e-6..=high + 1e-6).contains(&value) => Ok(value),
        value if poisoned => Ok(value.unwrap_or(f64::NAN)),
        Some(value) => Err(format!("column {name}: {value}, expected {low} to {high}")),
        None => Err(format!("column {name}: null, expected a number in a row that is not poisoned")),
    };
    let beta_like = |name: &str| match real(name)? {
        Some(value) if value >= 0.0 => Ok(value),
        value if poisoned => Ok(value.unwrap_or(f64::NAN)),
        None => Ok(f64::INFINITY),
        Some(value) => Err(format!("column {name}: {value}, expected a number >= 0")),
    };
    let (n, contact_rank) = (whole("n")?, whole("contact_rank")?);
    let (any, log_n) = (f64::MAX, (n.max(1) as f64).ln());
    if contact_rank > n && !poisoned {
        return Err(format!("column contact_rank: {contact_rank}, expected at most n = {n}"));
    }
    let record = RowRecord {
        layer: layers.named(layer),
        head: whole("head")?,
        row: whole("row")?,
        position: whole("position")?,
        n,
        max: finite("max", -any, any)?,
        argmax: whole("argmax")?,
        ties: whole("ties")?,
        critical_beta: beta_like("critical_beta")?,
        contact_gap: finite("contact_gap", 0.0, any)?,
        contact_rank,
        alpha: finite("alpha", 0.0, 1.0)?,
        resolved_beta: beta_like("resolved_beta")?,
        beta: finite("beta", 0.0, any)?,
        ratio: beta_like("ratio")?,
        log_partition: finite("log_partition", 0.0, log_n)?,
        entropy: finite("entropy", 0.0, log_n)?,
        top_two: finite("top_two", 0.0, 1.0)?,
        max_weight: finite("max_weight", 0.0, 1.0)?,
        poisoned,
        certified: flag("certified")?,
        resolved_certified: flag("resolved_certified")?,
        remark: None,
    };
    consistent(&record)?;
    Ok(record)
}

/// Columns that hold the same fact must agree: bounds use one of them, and plots the other.
fn consistent(record: &RowRecord) -> Result<(), String> {
    if record.poisoned || record.n == 0 {
        return Ok(());
    }
    if record.contact_rank == 0 {
        return Err("column contact_rank: 0, expected 1 or more in a row with scores".into());
    }
    let (found, expected) = (record.ratio, operating_ratio(record.beta, record.critical_beta));
    let same = match expected {
        // 0 / 0 is null in a file, as infinity is.
        _ if expected.is_nan() => true,
        f64::INFINITY => found == f64::INFINITY,
        _ => (found - expected).abs() <= 1e-6 * expected,
    };
    match same {
        true => Ok(()),
        false => Err(format!("column ratio: {found}, expected beta / critical_beta = {expected}")),
    }
}
