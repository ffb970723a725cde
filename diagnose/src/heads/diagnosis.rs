//! Gathers row records per layer and head until the head is complete.

use super::bounds::violated;
use super::notes::notes_of;
use super::sketch::HeadSketch;
use super::summary::{HeadSummary, InputNames, Quantiles, Regimes, Summary};
use crate::input::Input;
use crate::law::length_law::LengthLaw;
use crate::law::quantile::{median, sorted};
use crate::law::sample::RowSample;
use crate::law::yardsticks::Yardsticks;
use crate::records::record::RowRecord;
use crate::remarks::Remarks;
use crate::settings::Settings;
use critbeta::operating_ratio;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;

/// At most this many rows of a head are kept. A uniform sample of this size moves the 5 % quantile by 0.04 %
/// of the rows (one standard error), and a head of any length takes 15 MB. Heads that are spread over
/// files are kept at the same time. They share twice as many rows, but each has at least 1,024.
const SAMPLE_ROWS: usize = 1 << 18;
const LEAST_SAMPLE_ROWS: usize = 1 << 10;

/// Gathers records per layer and head, over all files, in order of first appearance.
///
/// A head is summed up when its last row has come, so a file is summed up head by head in little memory.
/// Heads that are spread over files wait for the last file.
pub struct Diagnosis {
    settings: Settings,
    seed: u64,
    inputs: Vec<InputNames>,
    heads: Vec<Head>,
    by_name: HashMap<(Arc<str>, u64), usize>,
    yardsticks: Yardsticks,
    notes: Vec<String>,
}

enum Head {
    Open(Box<HeadRows>),
    Complete(Box<HeadSummary>),
}

/// The rows of a head so far. Shares, ranges and counts are over all rows, not only those that are kept.
struct HeadRows {
    layer: Arc<str>,
    head: u64,
    sources: u64,
    expected: u64,
    /// Most rows to keep.
    room: usize,
    rows: u64,
    poisoned: u64,
    measured: u64,
    tied: u64,
    above_critical: u64,
    regimes: Regimes,
    violations: u64,
    certified: u64,
    resolved_certified: u64,
    remarks: Remarks,
    n: Option<[u64; 2]>,
    kept: Vec<RowSample>,
    rng: SmallRng,
}

impl Diagnosis {
    /// A diagnosis of the rows in `inputs`, before any is measured. `seed` decides all resampling.
    pub fn new(inputs: &[Input], settings: Settings, seed: u64) -> Self {
        let mut diagnosis =
            Diagnosis::of_records(inputs.iter().map(InputNames::of).collect(), settings, seed);
        for source in inputs.iter().flat_map(|input| &input.sources) {
            diagnosis.notes.extend(source.note());
            for head in 0..source.heads() as u64 {
                let at = diagnosis.place(source.layer(), head);
                if let Head::Open(rows) = &mut diagnosis.heads[at] {
                    rows.expected += source.rows() as u64;
                    rows.sources += 1;
                }
            }
        }
        let spread = |head: &&Head| matches!(head, Head::Open(rows) if rows.sources > 1);
        let spread = diagnosis.heads.iter().filter(spread).count();
        let share = (2 * SAMPLE_ROWS / spread.max(2)).max(LEAST_SAMPLE_ROWS);
        for head in &mut diagnosis.heads {
            if let Head::Open(rows) = head {
                rows.room = share;
            }
        }
        diagnosis
    }

    /// A diagnosis of earlier records. Nobody knows where a head ends, so all wait, at 56 bytes a row.
    pub fn of_records(inputs: Vec<InputNames>, settings: Settings, seed: u64) -> Self {
        Diagnosis {
            settings,
            seed,
            inputs,
            heads: Vec::new(),
            by_name: HashMap::new(),
            yardsticks: Yardsticks::new(seed),
            notes: Vec::new(),
        }
    }

    /// Sets the settings that were not known when the records came. Call it before the summary.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    fn place(&mut self, layer: &Arc<str>, head: u64) -> usize {
        let (heads, seed) = (&mut self.heads, self.seed);
        *self.by_name.entry((layer.clone(), head)).or_insert_with(|| {
            heads.push(Head::Open(Box::new(HeadRows::new(layer.clone(), head, seed))));
            heads.len() - 1
        })
    }

    /// Adds the next records of [`scan`](crate::scan()).
    pub fn add(&mut self, records: &[RowRecord]) {
        for record in records {
            let at = self.place(&record.layer, record.head);
            let Head::Open(rows) = &mut self.heads[at] else { continue };
            rows.add(record);
            if rows.rows == rows.expected {
                let summary = rows.summary(&self.settings, self.seed, &mut self.yardsticks);
                self.heads[at] = Head::Complete(Box::new(summary));
            }
        }
    }

    /// The summary of all rows so far.
    pub fn summary(mut self) -> Summary {
        let Settings { beta, measure, exclude_sink, train_length } = self.settings;
        let heads = self.heads.into_iter().map(|head| match head {
            Head::Complete(summary) => *summary,
            Head::Open(rows) => rows.summary(&self.settings, self.seed, &mut self.yardsticks),
        });
        let heads: Vec<HeadSummary> = heads.collect();
        self.notes.extend(notes_of(&heads));
        Summary {
            critbeta: env!("CARGO_PKG_VERSION"),
            notes: self.notes,
            heads,
            inputs: self.inputs,
            beta,
            resolve: measure.resolve,
            top_k: measure.top_k,
            exclude_sink,
            train_length,
            seed: self.seed,
        }
    }
}

impl HeadRows {
    fn new(layer: Arc<str>, head: u64, seed: u64) -> Self {
        HeadRows {
            layer,
            head,
            sources: 0,
            expected: 0,
            room: SAMPLE_ROWS,
            rows: 0,
            poisoned: 0,
            measured: 0,
            tied: 0,
            above_critical: 0,
            regimes: Regimes::default(),
            violations: 0,
            certified: 0,
            resolved_certified: 0,
            remarks: Remarks::default(),
            n: None,
            kept: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn add(&mut self, record: &RowRecord) {
        let ordinal = self.rows;
        self.rows += 1;
        self.poisoned += u64::from(record.poisoned);
        if record.n < 2 || record.poisoned {
            return;
        }
        let n = record.n;
        self.measured += 1;
        self.tied += u64::from(record.ties >= 2);
        self.above_critical += u64::from(record.beta > record.critical_beta);
        self.regimes.count(operating_ratio(record.beta, record.critical_beta));
        self.violations += u64::from(violated(record));
        self.remarks.count(record.remark);
        self.certified += u64::from(record.certified == Some(true));
        self.resolved_certified += u64::from(record.resolved_certified == Some(true));
        self.n = Some(self.n.map_or([n, n], |[low, high]| [low.min(n), high.max(n)]));
        let sample = RowSample {
            ordinal,
            n,
            position: record.position,
            critical: record.critical_beta,
            resolved: record.resolved_beta,
            contact_gap: record.contact_gap as f32,
            alpha: record.alpha as f32,
            entropy: record.entropy as f32,
            top_two: record.top_two as f32,
        };
        if self.kept.len() < self.room {
            self.kept.push(sample);
        } else {
            // Reservoir sampling (Vitter 1985, algorithm R) keeps every row with the same probability.
            let place = self.rng.random_range(0..self.measured);
            if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.kept.get_mut(place)) {
                *kept = sample;
            }
        }
    }

    fn summary(&self, settings: &Settings, seed: u64, yardsticks: &mut Yardsticks) -> HeadSummary {
        let rows = &self.kept;
        let share = |count: u64| count as f64 / self.measured as f64;
        let median_of = |of: fn(&RowSample) -> f64| median(&sorted(rows.iter().map(of)));
        let certified = match settings.measure.top_k {
            None => [1.0; 2],
            Some(_) => [share(self.certified), share(self.resolved_certified)],
        };
        HeadSummary {
            layer: self.layer.clone(),
            head: self.head,
            sources: self.sources,
            rows: self.rows,
            measured: self.measured,
            sampled: rows.len() as u64,
            poisoned: self.poisoned,
            n: self.n,
            critical_beta: Quantiles::of(rows.iter().map(|row| row.critical)),
            resolved_beta: Quantiles::of(rows.iter().map(|row| row.resolved)),
            operating_ratio: Quantiles::of(
                rows.iter().map(|row| operating_ratio(settings.beta, row.critical)),
            ),
            regimes: self.regimes,
            share_above_critical: share(self.above_critical),
            share_tied: share(self.tied),
            median_alpha: median_of(|row| row.alpha.into()),
            median_relative_entropy: median_of(|row| f64::from(row.entropy) / (row.n as f64).ln()),
            median_top_two: median_of(|row| row.top_two.into()),
            bound_violations: self.violations,
            share_certified: settings.measure.top_k.map(|_| share(self.certified)),
            length_law: LengthLaw::of(rows, settings, certified, seed, yardsticks),
            what_if: None,
            remarks: self.remarks,
            sketch: HeadSketch::of(rows, settings.beta),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowPlace;
    use critbeta::cpu::row_report;

    #[test]
    fn a_head_of_any_length_is_sampled_evenly_and_counted_exactly() {
        // Row i has critical beta ln 2 / (1 + i mod 1000): every quantile is known.
        let kinds: Vec<RowRecord> = (0..1000)
            .map(|i| {
                let place = RowPlace { layer: "a".into(), head: 0, row: i, position: 1 };
                RowRecord::new(
                    place,
                    &row_report(&[0.0, -1.0 - i as f32], 1.0, Settings::default().measure),
                    0.0,
                    false,
                )
            })
            .collect();
        let mut head = HeadRows::new("a".into(), 0, 3);
        for _ in 0..600 {
            kinds.iter().for_each(|record| head.add(record));
        }
        assert_eq!((head.measured, head.kept.len()), (600_000, SAMPLE_ROWS));
        let summary = head.summary(&Settings::default(), 3, &mut Yardsticks::new(3));
        assert_eq!(
            (summary.sampled, summary.measured, summary.n),
            (SAMPLE_ROWS as u64, 600_000, Some([2, 2]))
        );
        assert_eq!(summary.share_above_critical, 1.0);
        // A row at its critical beta is not above it.
        let mut head = HeadRows::new("a".into(), 0, 3);
        head.add(&RowRecord { beta: kinds[0].critical_beta, ..kinds[0].clone() });
        assert_eq!(head.above_critical, 0);
        for (q, p) in [
            (summary.critical_beta.q05, 0.05),
            (summary.critical_beta.q50, 0.5),
            (summary.critical_beta.q95, 0.95),
        ] {
            let rank = 1.0 - 2f64.ln() / q / 1000.0;
            assert!((rank - p).abs() < 0.005, "{q} is at {rank}, expected {p}");
        }
    }
}
