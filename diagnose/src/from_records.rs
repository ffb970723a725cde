//! The summary of row records from an earlier diagnosis.

use crate::heads::diagnosis::Diagnosis;
use crate::heads::summary::{InputNames, Summary};
use crate::records::reader::read_records;
use crate::records::record::RowRecord;
use crate::settings::Settings;
use critbeta::{Error, Result};
use std::path::Path;

/// Settings of the diagnosis that wrote the records. Records do not hold them all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecordSettings {
    /// r of their resolved betas, in nats. It is needed only where these differ from the critical betas.
    pub resolve: Option<f64>,
    /// K of a top-k count. It is needed only where records have its certificates.
    pub top_k: Option<usize>,
    /// Keys that were left out at the front of every row.
    pub exclude_sink: usize,
    /// L of the published laws that depend on the training length, in keys.
    pub train_length: f64,
}

/// The summary of the records in `path`, made as that of their scores. `seed` decides all resampling.
///
/// Errors: [`Error::Io`]; [`Error::File`] with line and column for text that is not a record, and for records
/// that contradict `settings` or need a setting that it lacks. On damaged Parquet see [`read_records`].
pub fn summary_of_records(path: &Path, settings: &RecordSettings, seed: u64) -> Result<Summary> {
    let names = InputNames { path: path.display().to_string(), skipped: Vec::new() };
    summed_up(path, vec![names], settings, seed, |sink| read_records(path, sink))
}

/// The summary of records in memory, made as that of a file. Errors: those of [`summary_of_records`], which
/// call the records `name`.
pub fn summary_of_table(
    name: &Path,
    records: &[RowRecord],
    settings: &RecordSettings,
    seed: u64,
) -> Result<Summary> {
    summed_up(name, Vec::new(), settings, seed, |sink| sink(records))
}

fn summed_up(
    path: &Path,
    inputs: Vec<InputNames>,
    settings: &RecordSettings,
    seed: u64,
    read: impl FnOnce(&mut dyn FnMut(&[RowRecord]) -> Result<()>) -> Result<()>,
) -> Result<Summary> {
    let mut diagnosis = Diagnosis::of_records(inputs, Settings::default(), seed);
    let mut facts = Facts::default();
    read(&mut |records| {
        records.iter().try_for_each(|record| facts.add(record)).map_err(|why| Error::file(path, why))?;
        diagnosis.add(records);
        Ok(())
    })?;
    let settings = facts.settings(settings).map_err(|why| Error::file(path, why))?;
    settings.check()?;
    diagnosis.set(settings);
    Ok(diagnosis.summary())
}

/// What all records together say about the settings that made them.
#[derive(Default)]
struct Facts {
    beta: Option<f64>,
    certified: Option<bool>,
    /// The smallest r that the resolved betas allow.
    resolve: f64,
    resolved_differs: bool,
    /// Whether a row has a critical beta that any resolve above 0 would lower.
    resolves: bool,
    first_argmax: Option<u64>,
}

/// The error of an r that is read off a record: contact gaps and betas are rounded.
const ROUNDING: f64 = 1e-9;

impl Facts {
    fn add(&mut self, record: &RowRecord) -> Result<(), String> {
        let certified = record.certified.is_some();
        if *self.certified.get_or_insert(certified) != certified {
            return Err(
                "some records have the column certified and others do not: different runs made them".into()
            );
        }
        if record.n == 0 || record.poisoned {
            return Ok(());
        }
        let beta = *self.beta.get_or_insert(record.beta);
        if beta != record.beta {
            return Err(format!(
                "column beta: {beta} and {} in one file, expected those of one run",
                record.beta
            ));
        }
        self.first_argmax = Some(self.first_argmax.map_or(record.argmax, |first| first.min(record.argmax)));
        self.resolves |= record.critical_beta > 0.0 && record.critical_beta.is_finite();
        if record.resolved_beta != record.critical_beta {
            self.resolved_differs = true;
            // Lambda(r) >= (log rank - r) / gap at every rank, the contact's included.
            let at_contact = (record.contact_rank as f64).ln();
            let least = match record.contact_gap > 0.0 {
                true => at_contact - record.resolved_beta * record.contact_gap,
                // These are ties with a finite beta.
                false => at_contact,
            };
            self.resolve = self.resolve.max(least);
        }
        Ok(())
    }

    fn settings(&self, settings: &RecordSettings) -> Result<Settings, String> {
        let resolve = match (settings.resolve, self.resolved_differs) {
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
        let top_k = match (settings.top_k, self.certified == Some(true)) {
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
        if let Some(argmax) = self.first_argmax.filter(|&argmax| argmax < settings.exclude_sink as u64) {
            return Err(format!(
                "column argmax: {argmax} is among the {} keys left out",
                settings.exclude_sink
            ));
        }
        Ok(Settings {
            beta: self.beta.unwrap_or(1.0),
            measure: critbeta::cpu::Measure::new(resolve, top_k),
            exclude_sink: settings.exclude_sink,
            train_length: settings.train_length,
        })
    }
}
