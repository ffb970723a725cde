//! Reads the scores of every head again and measures its rows under other rules.

use crate::heads::sketch::{HeadSketch, Staircase};
use crate::heads::summary::{LawOutcome, Quantiles, Summary};
use crate::input::Input;
use crate::scan::visit;
use crate::settings::Settings;
use critbeta::cpu::{Measure, Workspace};
use critbeta::laws::LAWS;
use critbeta::rescaling::{Calibrated, Critical, Law, Rescaling};
use critbeta::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// About this many rows of a head are looked at. Heads that are spread over files are open at the same time.
/// They share a million rows, but each has at least 256.
const ROWS: u64 = 4096;
const SHARED_ROWS: u64 = 1 << 20;
const LEAST_ROWS: u64 = 256;

/// One head while its rows pass by.
struct Again {
    rules: Vec<Rescaling>,
    /// beta, entropy / log n and top-two difference of every row so far, by rule.
    outcomes: Vec<Vec<[f32; 3]>>,
    staircases: Vec<Staircase>,
    /// Rows whose hash is at most this are looked at. A stride would miss rows that repeat at its own period.
    most: u64,
    rows: u64,
    seen: u64,
}

/// The measurements of one row.
struct Found {
    outcomes: Vec<[f32; 3]>,
    staircases: Vec<Staircase>,
}

/// Fills [`what_if`](super::HeadSummary::what_if) and the [staircases](HeadSketch::staircases) of every head
/// of `summary`, which must be that of `inputs` under `settings`. This CPU reads all scores again and counts
/// gaps in full, whatever top-k count the diagnosis had.
///
/// Errors: [`Error::Settings`] if a head of `inputs` is not in `summary`, and those of reading.
pub fn look_again(
    inputs: &[Input],
    settings: &Settings,
    summary: &mut Summary,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let by_name: HashMap<(Arc<str>, u64), usize> =
        summary.heads.iter().enumerate().map(|(i, head)| ((head.layer.clone(), head.head), i)).collect();
    let spread = summary.heads.iter().filter(|head| head.sources > 1).count() as u64;
    let most = (SHARED_ROWS / spread.max(1)).clamp(LEAST_ROWS, ROWS);
    let rules = rules(summary, settings);
    let mut heads: Vec<Option<Again>> = rules
        .into_iter()
        .zip(&summary.heads)
        .map(|(rules, head)| {
            let share = most as f64 / head.rows.max(1) as f64;
            let most = if share >= 1.0 { u64::MAX } else { (share * u64::MAX as f64) as u64 };
            let outcomes = vec![Vec::new(); rules.len()];
            Some(Again { rules, outcomes, staircases: Vec::new(), most, rows: head.rows, seen: 0 })
        })
        .collect();
    for source in inputs.iter().flat_map(|input| &input.sources) {
        let places = (0..source.heads() as u64).map(|head| {
            by_name.get(&(source.layer().clone(), head)).copied().ok_or_else(|| Error::Settings {
                detail: format!("layer {:?} head {head} is not in the summary", source.layer()),
            })
        });
        let places = places.collect::<Result<Vec<usize>>>()?;
        // The rows of this source begin here in their heads.
        let begun: Vec<u64> = places.iter().map(|&at| heads[at].as_ref().map_or(0, |a| a.seen)).collect();
        for (local, &at) in places.iter().enumerate() {
            let Some(mut again) = heads[at].take() else { continue };
            let picks = &summary.heads[at].sketch.picks;
            visit(
                source,
                local,
                settings,
                |workspace, row, position, scores| {
                    let ordinal = begun[local] + row as u64;
                    let picked =
                        picks.iter().zip(HeadSketch::QUANTILES).filter(|(pick, _)| **pick == ordinal);
                    let wanted: Vec<f64> = picked.map(|(_, quantile)| quantile).collect();
                    let sampled = hash(ordinal) <= again.most;
                    (sampled || !wanted.is_empty())
                        .then(|| look(workspace, &again.rules, sampled, &wanted, position, scores, settings))
                        .flatten()
                        .map(|(outcomes, staircases)| Found { outcomes, staircases })
                },
                &mut progress,
            )
            .into_iter()
            .for_each(|found| {
                again.staircases.extend(found.staircases);
                for (all, outcome) in again.outcomes.iter_mut().zip(found.outcomes) {
                    all.push(outcome);
                }
            });
            again.seen += source.rows() as u64;
            let head = &mut summary.heads[at];
            if again.seen < again.rows {
                heads[at] = Some(again);
                continue;
            }
            again.staircases.sort_by(|a, b| a.quantile.total_cmp(&b.quantile));
            head.sketch.staircases = again.staircases;
            let outcome = |(rule, rows): (&Rescaling, &Vec<[f32; 3]>)| {
                let of = |i: usize| Quantiles::of(rows.iter().map(|row| f64::from(row[i])));
                let rows = rows.len() as u64;
                LawOutcome {
                    spec: rule.to_string(),
                    rows,
                    beta: of(0),
                    relative_entropy: of(1),
                    top_two: of(2),
                }
            };
            head.what_if = Some(again.rules.iter().zip(&again.outcomes).map(outcome).collect());
        }
    }
    Ok(())
}

/// The rules of every head: the diagnosis' beta, the published laws, the row's critical beta, the
/// calibration.
fn rules(summary: &Summary, settings: &Settings) -> Vec<Vec<Rescaling>> {
    let as_it_is = if settings.beta == 1.0 { Rescaling::Identity } else { Rescaling::Fixed(settings.beta) };
    let published = LAWS.iter().map(|entry| Rescaling::Law(Law::example(entry, settings.train_length)));
    let resolve = settings.measure.resolve;
    let mut critical = Critical::new();
    critical.resolve = resolve;
    let shared: Vec<Rescaling> =
        std::iter::once(as_it_is).chain(published).chain([Rescaling::Critical(critical)]).collect();
    // A top-k count gives no calibration.
    let calibration = summary.calibration().ok();
    let of_head = |at: usize| {
        let law = calibration.as_ref().and_then(|calibration| {
            let head = &calibration.heads[at];
            if resolve > 0.0 { head.resolved.as_ref() } else { head.critical.as_ref() }
        });
        let rule = |anchor| {
            law.map(|law| Rescaling::Calibrated(Calibrated::new(rounded(law.c), rounded(law.xi), anchor)))
        };
        let calibrated = [rule(None), rule(Some(settings.train_length))];
        shared.iter().cloned().chain(calibrated.into_iter().flatten()).collect()
    };
    (0..summary.heads.len()).map(of_head).collect()
}

/// Rounds to five significant digits, so that the number shown is the number measured and can be typed.
fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// The finalizer of SplitMix64 draws the rows. A head always gets the same draw.
fn hash(ordinal: u64) -> u64 {
    let x = ordinal.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

type Looked = (Vec<[f32; 3]>, Vec<Staircase>);

fn look(
    workspace: &mut Workspace,
    rules: &[Rescaling],
    sampled: bool,
    quantiles: &[f64],
    position: u64,
    scores: &[f32],
    settings: &Settings,
) -> Option<Looked> {
    let measure = Measure::new(settings.measure.resolve, None);
    let (betas, reports) =
        workspace.reports_under(scores, if sampled { rules } else { &[] }, position, measure)?;
    let outcome = |report: &critbeta::cpu::RowReport| {
        let relative = report.entropy / (report.top.len as f64).ln();
        [report.beta as f32, relative as f32, report.top_two as f32]
    };
    let staircase = |&quantile: &f64| Staircase::of(scores, quantile, position, betas);
    Some((reports.iter().map(outcome).collect(), quantiles.iter().map(staircase).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Selection, open};
    use crate::{Diagnosis, scan};
    use critbeta::reference::Row;
    use std::path::Path;

    #[test]
    fn what_if_is_what_the_definition_says_of_the_rows() {
        let path = Path::new("../examples/data/smollm2_gpl3.safetensors");
        let selection = Selection { tensor: Some("layer10"), scale: None };
        let inputs = [open(path, &selection).unwrap()];
        let settings = Settings { measure: Measure::new(0.69, None), ..Settings::default() };
        let mut diagnosis = Diagnosis::new(&inputs, settings, 1);
        scan(&inputs, &settings, |records| {
            diagnosis.add(records);
            Ok(())
        })
        .unwrap();
        let mut summary = diagnosis.summary();
        look_again(&inputs, &settings, &mut summary, |_| ()).unwrap();
        let crate::input::Source::Pair(pair) = &inputs[0].sources[0] else { panic!("no pair") };
        let mut keys = Vec::new();
        pair.read_k(pair.kv_head(1), 0..pair.keys(), &mut keys);
        let rows: Vec<(u64, Row)> = (0..pair.rows())
            .map(|row| {
                let mut query = Vec::new();
                pair.read_q(1, row, &mut query);
                let seen = pair.position(row) as usize + 1;
                let dot = |key: &[f32]| -> f64 {
                    query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
                };
                let scores = keys.chunks_exact(pair.head_dim()).take(seen);
                let scores: Vec<f64> = scores.map(|key| dot(key) * pair.scale()).collect();
                (pair.position(row), Row::new(&scores))
            })
            .collect();
        let outcomes = summary.heads[1].what_if.as_ref().unwrap();
        assert_eq!(outcomes.len(), 1 + LAWS.len() + 3);
        for outcome in outcomes {
            let rule: Rescaling = outcome.spec.parse().unwrap();
            let at = |(position, row): &(u64, Row)| {
                let (n, critical) = (row.n(), row.resolved_critical_beta(0.69).beta);
                let mut facts = critbeta::rescaling::RowFacts::new(n, *position);
                (facts.critical, facts.entropy) = (critical, row.entropy(1.0));
                let beta = rule.beta(&facts);
                [row.entropy(beta) / (n as f64).ln(), row.top_two(beta)]
            };
            let expected: Vec<[f64; 2]> = rows.iter().map(at).collect();
            for (i, found) in [outcome.relative_entropy, outcome.top_two].into_iter().enumerate() {
                let expected = Quantiles::of(expected.iter().map(|row| row[i]));
                let near = |a: f64, b: f64| assert!((a - b).abs() < 2e-4, "{}: {a} {b}", outcome.spec);
                near(found.q05, expected.q05);
                near(found.q50, expected.q50);
                near(found.q95, expected.q95);
            }
            assert_eq!(outcome.rows, 646);
        }
        let staircases = &summary.heads[1].sketch.staircases;
        assert_eq!(staircases.len(), 3);
        let betas = summary.heads[1].critical_beta;
        for (staircase, beta) in staircases.iter().zip([betas.q05, betas.q50, betas.q95]) {
            assert!((staircase.critical.beta / beta).ln().abs() < 0.2, "{staircase:?}");
        }
    }
}
