//! Row records read back: JSON lines, CSV or Parquet as `--rows` writes them, in any tool's hands since.

use super::diagnosis::Diagnosis;
use super::record::RowRecord;
use super::scan::Settings;
use super::summary::{InputNames, Summary};
use super::writers::RowFormat;
use crate::critical::operating_ratio;
use crate::{Error, Result};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

/// How the diagnosis that wrote records was set, as far as records do not say it themselves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordSettings {
    /// r of their resolved betas, nats; needed only where these differ from the critical betas.
    pub resolve: Option<f64>,
    /// K of a top-k count; needed only where records carry its certificates.
    pub top_k: Option<usize>,
    /// Keys that were left out at the front of every row.
    pub exclude_sink: usize,
    /// L of the published laws that depend on the training length, in keys.
    pub train_length: f64,
}

/// The summary of records kept earlier, by the functions that the diagnosis of their scores goes through.
///
/// Errors: [`Error::Io`], [`Error::File`] with line and column for whatever is no record, and for records that
/// `asked` contradicts or that need it; `seed` decides all resampling.
pub fn summary_of_records(path: &Path, asked: &RecordSettings, seed: u64) -> Result<Summary> {
    let names = InputNames { path: path.display().to_string(), skipped: Vec::new() };
    let mut diagnosis = Diagnosis::of_records(vec![names], Settings::default(), seed);
    let mut facts = Facts::default();
    read_records(path, |records| {
        records.iter().try_for_each(|record| facts.add(record)).map_err(|why| Error::file(path, why))?;
        diagnosis.add(records);
        Ok(())
    })?;
    let settings = facts.settings(asked).map_err(|why| Error::file(path, why))?;
    settings.check()?;
    diagnosis.set(settings);
    Ok(diagnosis.summary())
}

/// What records say together of the settings that they were made under.
#[derive(Default)]
struct Facts {
    beta: Option<f64>,
    certified: Option<bool>,
    /// Smallest r that the resolved betas allow.
    resolve: f64,
    resolved_differs: bool,
    /// Whether a row has a critical beta that any resolve above 0 would lower.
    resolves: bool,
    first_argmax: Option<u64>,
}

/// What r read off a record may err by: contact gaps and betas are rounded.
const ROUNDING: f64 = 1e-9;

impl Facts {
    fn add(&mut self, record: &RowRecord) -> Result<(), String> {
        let certified = record.certified.is_some();
        if *self.certified.get_or_insert(certified) != certified {
            return Err(
                "some records have the column certified and others do not: made by different runs".into()
            );
        }
        if record.n == 0 || record.poisoned {
            return Ok(());
        }
        let beta = *self.beta.get_or_insert(record.beta);
        if beta != record.beta {
            return Err(format!("column beta: {beta} and {} in one file, expected one run", record.beta));
        }
        self.first_argmax = Some(self.first_argmax.map_or(record.argmax, |first| first.min(record.argmax)));
        self.resolves |= record.critical_beta > 0.0 && record.critical_beta.is_finite();
        if record.resolved_beta != record.critical_beta {
            self.resolved_differs = true;
            // Lambda(r) >= (log rank - r) / gap at every rank, the contact's included.
            let at_contact = (record.contact_rank as f64).ln();
            let least = match record.contact_gap > 0.0 {
                true => at_contact - record.resolved_beta * record.contact_gap,
                // Ties that came out finite.
                false => at_contact,
            };
            self.resolve = self.resolve.max(least);
        }
        Ok(())
    }

    fn settings(&self, asked: &RecordSettings) -> Result<Settings, String> {
        let resolve = match (asked.resolve, self.resolved_differs) {
            (None, false) => 0.0,
            (None, true) => {
                return Err(
                    "column resolved_beta differs from critical_beta: give --resolve as the diagnosis \
                            that wrote it had it"
                        .into(),
                );
            }
            (Some(given), _) if given < self.resolve * (1.0 - ROUNDING) - ROUNDING => {
                return Err(format!(
                    "column resolved_beta was made with a resolve of {} or more, not {given}",
                    self.resolve
                ));
            }
            (Some(0.0), true) => {
                return Err("column resolved_beta differs from critical_beta: --resolve cannot be 0".into());
            }
            (Some(given), false) if given > 0.0 && self.resolves => {
                return Err(format!(
                    "column resolved_beta equals critical_beta: it was made with a resolve of 0, not {given}"
                ));
            }
            (Some(given), _) => given,
        };
        let top_k = match (asked.top_k, self.certified == Some(true)) {
            (None, true) => {
                return Err("column certified is that of a top-k count: give --top-k as the diagnosis that \
                            wrote it had it"
                    .into());
            }
            (Some(_), false) if self.certified.is_some() => {
                return Err("has no column certified: it was not made with --top-k".into());
            }
            (top_k, _) => top_k,
        };
        if let Some(argmax) = self.first_argmax.filter(|&argmax| argmax < asked.exclude_sink as u64) {
            return Err(format!("column argmax: {argmax} is among the {} keys left out", asked.exclude_sink));
        }
        Ok(Settings {
            beta: self.beta.unwrap_or(1.0),
            measure: crate::cpu::Measure { resolve, top_k },
            exclude_sink: asked.exclude_sink,
            train_length: asked.train_length,
        })
    }
}

/// Reads the records of a .jsonl, .csv or .parquet file, in order, some at a time. No records are a .csv of a header alone, and
/// an empty .jsonl.
///
/// Infinite and NaN values are null in JSON: null is NaN in a poisoned row, and infinite in another's critical_beta,
/// resolved_beta and ratio. Errors: those of `sink`; [`Error::Io`]; [`Error::File`] naming the line or row and the column.
pub fn read_records(path: &Path, mut sink: impl FnMut(&[RowRecord]) -> Result<()>) -> Result<()> {
    let mut layers = Layers::default();
    let mut batch = Batch { held: Vec::new(), sink: &mut sink };
    match RowFormat::of(path)? {
        RowFormat::Jsonl => read_json_lines(path, &mut layers, &mut batch)?,
        RowFormat::Csv => read_csv(path, &mut layers, &mut batch)?,
        #[cfg(feature = "parquet")]
        RowFormat::Parquet => {
            super::parquet::read(path, |place, raw| batch.add(path, &place, &mut layers, raw))?
        }
        #[cfg(not(feature = "parquet"))]
        RowFormat::Parquet => return Err(Error::file(path, "this build has no Parquet")),
    }
    batch.flush()
}

/// Records on their way, so many at a time.
struct Batch<'a> {
    held: Vec<RowRecord>,
    sink: &'a mut dyn FnMut(&[RowRecord]) -> Result<()>,
}

const BATCH: usize = 4096;

impl Batch<'_> {
    fn add(&mut self, path: &Path, place: &str, layers: &mut Layers, raw: RawRecord) -> Result<()> {
        let record = raw.checked(layers).map_err(|why| Error::file(path, format!("{place}: {why}")))?;
        self.held.push(record);
        if self.held.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        (self.sink)(&self.held)?;
        self.held.clear();
        Ok(())
    }
}

/// One string for all rows of a layer.
#[derive(Default)]
struct Layers(Option<Arc<str>>);

impl Layers {
    fn named(&mut self, name: &str) -> Arc<str> {
        match &self.0 {
            Some(last) if **last == *name => last.clone(),
            _ => self.0.insert(name.into()).clone(),
        }
    }
}

fn read_json_lines(path: &Path, layers: &mut Layers, batch: &mut Batch) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut reader, mut line, mut number) = (BufReader::with_capacity(1 << 16, file), Vec::new(), 0);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))? == 0 {
            return Ok(());
        }
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = format!("line {number}");
        let raw = serde_json::from_slice(&line).map_err(|e| {
            Error::file(path, format!("{place}: no row record as `diagnose --rows` writes it: {e}"))
        })?;
        batch.add(path, &place, layers, raw)?;
    }
}

fn read_csv(path: &Path, layers: &mut Layers, batch: &mut Batch) -> Result<()> {
    let fail = |e: csv::Error| {
        let told = e.to_string();
        match e.into_kind() {
            csv::ErrorKind::Io(e) => Error::io(path, e),
            _ => Error::file(path, format!("no row records as `diagnose --rows` writes them: {told}")),
        }
    };
    let mut table = csv::Reader::from_path(path).map_err(fail)?;
    if table.headers().map_err(fail)?.is_empty() {
        return Err(Error::file(path, "is empty: expected the header of row records"));
    }
    for (i, raw) in table.deserialize().enumerate() {
        batch.add(path, &format!("record {}", i + 1), layers, raw.map_err(fail)?)?;
    }
    Ok(())
}

/// A record as it is written, before anything of it is believed.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawRecord {
    pub layer: String,
    pub head: u64,
    pub row: u64,
    pub position: u64,
    pub n: u64,
    pub max: Option<f64>,
    pub argmax: u64,
    pub ties: u64,
    pub critical_beta: Option<f64>,
    pub contact_gap: Option<f64>,
    pub contact_rank: u64,
    pub alpha: Option<f64>,
    pub resolved_beta: Option<f64>,
    pub beta: Option<f64>,
    pub ratio: Option<f64>,
    pub log_partition: Option<f64>,
    pub entropy: Option<f64>,
    pub top_two: Option<f64>,
    pub max_weight: Option<f64>,
    pub poisoned: bool,
    #[serde(default)]
    pub certified: Option<bool>,
    #[serde(default)]
    pub resolved_certified: Option<bool>,
}

impl RawRecord {
    /// Errors: the column that cannot be so, and what was expected of it.
    fn checked(self, layers: &mut Layers) -> Result<RowRecord, String> {
        let poisoned = self.poisoned;
        let finite = |name: &str, value: Option<f64>, low: f64, high: f64| match value {
            // Sums of f32 weights end a rounding beside 1 and 0.
            Some(value) if (low - 1e-6..=high + 1e-6).contains(&value) => Ok(value),
            value if poisoned => Ok(value.unwrap_or(f64::NAN)),
            Some(value) => Err(format!("column {name}: {value}, expected {low} to {high}")),
            None => Err(format!("column {name}: null, expected a number in a row that is not poisoned")),
        };
        let beta_like = |name: &str, value: Option<f64>| match value {
            Some(value) if value >= 0.0 => Ok(value),
            value if poisoned => Ok(value.unwrap_or(f64::NAN)),
            None => Ok(f64::INFINITY),
            Some(value) => Err(format!("column {name}: {value}, expected a number >= 0")),
        };
        let (any, log_n) = (f64::MAX, (self.n.max(1) as f64).ln());
        if self.contact_rank > self.n && !poisoned {
            return Err(format!(
                "column contact_rank: {}, expected at most n = {}",
                self.contact_rank, self.n
            ));
        }
        let record = RowRecord {
            layer: layers.named(&self.layer),
            head: self.head,
            row: self.row,
            position: self.position,
            n: self.n,
            max: finite("max", self.max, -any, any)?,
            argmax: self.argmax,
            ties: self.ties,
            critical_beta: beta_like("critical_beta", self.critical_beta)?,
            contact_gap: finite("contact_gap", self.contact_gap, 0.0, any)?,
            contact_rank: self.contact_rank,
            alpha: finite("alpha", self.alpha, 0.0, 1.0)?,
            resolved_beta: beta_like("resolved_beta", self.resolved_beta)?,
            beta: finite("beta", self.beta, 0.0, any)?,
            ratio: beta_like("ratio", self.ratio)?,
            log_partition: finite("log_partition", self.log_partition, 0.0, log_n)?,
            entropy: finite("entropy", self.entropy, 0.0, log_n)?,
            top_two: finite("top_two", self.top_two, 0.0, 1.0)?,
            max_weight: finite("max_weight", self.max_weight, 0.0, 1.0)?,
            poisoned,
            certified: self.certified,
            resolved_certified: self.resolved_certified,
        };
        consistent(&record)?;
        Ok(record)
    }
}

/// Columns that say the same twice must agree: bounds are held against the one, and the other is drawn.
fn consistent(record: &RowRecord) -> Result<(), String> {
    if record.poisoned || record.n == 0 {
        return Ok(());
    }
    if record.contact_rank == 0 {
        return Err("column contact_rank: 0, expected 1 or more in a row with scores".into());
    }
    let (found, expected) = (record.ratio, operating_ratio(record.beta, record.critical_beta));
    let same = match expected {
        // 0 / 0 is written as null, like infinity.
        _ if expected.is_nan() => true,
        f64::INFINITY => found == f64::INFINITY,
        _ => (found - expected).abs() <= 1e-6 * expected,
    };
    match same {
        true => Ok(()),
        false => Err(format!("column ratio: {found}, expected beta / critical_beta = {expected}")),
    }
}
