//! One row in five verbs: row max, count gaps, critical beta, partition, write probs.

use super::lanes::Standard;
use super::partition::partition;
use super::probs::Probs;
use super::search::contact::Contact;
use super::search::gather::{AtLeast, Gather};
use super::search::rank::of_largest;
use super::top::{Chunks, Progress, Tops};
use crate::Element;
use crate::critical::CriticalBeta;
use crate::rescaling::{Rescaling, RowFacts};
use crate::stats::{Partition, RowMax, weight};

/// What to measure for a row besides its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Measure {
    /// r of the resolved critical beta, in nats. It is finite and >= 0.
    pub resolve: f64,
    /// Gaps are counted among this many largest scores only. The report then says how far that can be
    /// trusted.
    pub top_k: Option<usize>,
}

impl Measure {
    /// Lambda and Lambda(`resolve`), of all scores or of the `top_k` largest.
    pub const fn new(resolve: f64, top_k: Option<usize>) -> Measure {
        Measure { resolve, top_k }
    }
}

impl Default for Measure {
    fn default() -> Self {
        Measure::new(0.0, None)
    }
}

/// What is known about one row. In a poisoned row every value is NaN, except `beta`. An empty row has a log
/// partition and scores of -inf, and only zeros besides.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RowReport {
    /// The maximum, who attains it, and n.
    pub top: RowMax,
    /// Lambda with its contact.
    pub critical: CriticalBeta,
    /// Lambda(r) with its contact, where r is [`Measure::resolve`].
    pub resolved: CriticalBeta,
    /// The inverse temperature of the weights below.
    pub beta: f64,
    /// F = log Z(beta), nats, relative to the maximum: log-sum-exp = beta * max + F.
    pub log_partition: f64,
    /// Entropy of the weights, nats.
    pub entropy: f64,
    /// Largest minus second largest weight.
    pub top_two: f64,
    /// Largest weight.
    pub max_weight: f64,
}

impl RowReport {
    /// Makes a report from the top of a row, Lambda and Lambda(r), and the row's partition at `beta`.
    pub(crate) fn of(
        top: RowMax,
        [critical, resolved]: [CriticalBeta; 2],
        beta: f64,
        part: Partition,
    ) -> RowReport {
        let (log_partition, entropy, top_two, max_weight) = if top.poisoned {
            (f64::NAN, f64::NAN, f64::NAN, f64::NAN)
        } else if top.len == 0 {
            (f64::NEG_INFINITY, 0.0, 0.0, 0.0)
        } else {
            let second = if top.len < 2 { 0.0 } else { weight((top.max - top.second).into(), beta) };
            (part.log(), part.entropy(beta), (1.0 - second) / part.sum, 1.0 / part.sum)
        };
        RowReport { top, critical, resolved, beta, log_partition, entropy, top_two, max_weight }
    }

    /// alpha = log(contact rank) / log n, in 0..=1.
    pub fn alpha(&self) -> f64 {
        if self.top.poisoned { f64::NAN } else { self.critical.alpha(self.top.len) }
    }

    /// The operating ratio beta / Lambda.
    pub fn ratio(&self) -> f64 {
        crate::critical::operating_ratio(self.beta, self.critical.beta)
    }
}

/// What the rescaled softmax found for one row, without its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SoftmaxRow {
    /// The maximum, who attains it, and n.
    pub top: RowMax,
    /// The inverse temperature that the rescaling chose; NaN for a poisoned row.
    pub beta: f64,
    /// F = log Z(beta), nats, relative to the maximum; -inf for an empty row, NaN for a poisoned one.
    pub log_partition: f64,
}

/// Scratch of one thread, which every row reuses. It takes at most [`Workspace::BYTES_PER_SCORE`] for each
/// score of the longest row, and 512 KB. It is for callers who measure row by row and keep the memory in
/// their own hands.
#[derive(Default)]
pub struct Workspace {
    contact: Contact,
    wide: Vec<f32>,
    /// The scores of a row whose masks are finite, with -inf in their place.
    pub(super) masked: Vec<f32>,
    visible: Gather,
    /// Weights of the row that was measured last, or nothing.
    pub(super) kept: Vec<f32>,
    /// What is known about the top of a row before its turn, and which row that is.
    pub(super) next: Option<(usize, Progress)>,
}

/// How the inverse temperature of a row is found.
#[derive(Clone, Copy)]
pub(super) enum Rule<'a> {
    /// The rescaling chooses it, for a row at this query position.
    Rescaling(&'a Rescaling, u64),
    /// The caller gives it.
    At(f64),
}

/// What is known about a row before its probabilities are written.
pub(super) struct Measured {
    pub report: SoftmaxRow,
    /// `None` if all probabilities are one value: 0 in an empty row, NaN in a poisoned one.
    pub probs: Option<Probs>,
    /// Whether the probabilities are those of [`Workspace::masked`].
    pub masked: bool,
}

impl Workspace {
    /// Bytes per score of the longest row. They hold the gaps that are left, their buckets, the scores that
    /// are visible, all scores in f32, and all again without finite masks, each with an eighth to grow.
    pub const BYTES_PER_SCORE: u128 = 23;

    /// Bytes that grow with the row.
    pub(super) fn bytes(&self) -> usize {
        let scores = self.wide.capacity() + self.masked.capacity() + self.kept.capacity();
        self.contact.bytes() + self.visible.bytes() + size_of::<f32>() * scores
    }

    /// Does `work` on a copy of the row with -inf in place of finite masks. It sees no finite mask, so it can
    /// be the method that found them.
    fn unhidden<T: Element, R>(
        &mut self,
        row: &Chunks<T>,
        work: impl FnOnce(&mut Self, &Chunks<f32>) -> R,
    ) -> R {
        let mut masked = std::mem::take(&mut self.masked);
        widen(row.scores, &mut masked);
        let found = work(self, &Chunks { scores: &masked, ahead: &[], set: row.set, split: row.split });
        self.masked = masked;
        found
    }

    /// Returns Lambda(r) of a row, and nothing else.
    pub(super) fn critical_beta<T: Element>(&mut self, row: &Chunks<T>, resolve: f64) -> CriticalBeta {
        let (top, tops) = row.top(Progress::NONE);
        match top.poisoned {
            _ if tops.hides => self.unhidden(row, |workspace, row| workspace.critical_beta(row, resolve)),
            true => CriticalBeta::UNKNOWN,
            false => self.contact.critical_beta(row, &top, &tops, resolve),
        }
    }

    /// Returns Lambda and Lambda(r). For r = 0 they are equal and computed once.
    pub(super) fn critical_betas<T: Element>(
        &mut self,
        row: &Chunks<T>,
        (top, tops): &(RowMax, Tops),
        measure: Measure,
    ) -> [CriticalBeta; 2] {
        if top.poisoned {
            return [CriticalBeta::UNKNOWN; 2];
        }
        if measure.top_k.is_some() {
            widen(row.scores, &mut self.wide);
        }
        let mut at = |resolve| match measure.top_k {
            Some(k) => of_largest(&self.wide, top, k, resolve),
            None => self.contact.critical_beta(row, top, tops, resolve),
        };
        let critical = at(0.0);
        let resolved = if measure.resolve == 0.0 { critical } else { at(measure.resolve) };
        [critical, resolved]
    }

    /// The report on a row at inverse temperature `beta` >= 0.
    pub fn report(&mut self, scores: &[f32], beta: f64, measure: Measure) -> RowReport {
        let _modes = Standard::modes();
        self.report_on(&Chunks::of_one(scores), beta, measure)
    }

    /// Returns Lambda and Lambda(r) of a row at query `position`, and a report at the beta that each of
    /// `rules` chooses. A rule that needs a critical beta takes Lambda(r). The result is `None` for a row
    /// that is poisoned or has fewer than two keys.
    pub fn reports_under(
        &mut self,
        scores: &[f32],
        rules: &[Rescaling],
        position: u64,
        measure: Measure,
    ) -> Option<([CriticalBeta; 2], Vec<RowReport>)> {
        let _modes = Standard::modes();
        let row = Chunks::of_one(scores);
        let found = row.top(Progress::NONE);
        let top = found.0;
        if found.1.hides {
            return self.unhidden(&row, |ws, row| ws.reports_under(row.scores, rules, position, measure));
        }
        if top.poisoned || top.len < 2 {
            return None;
        }
        let betas = self.critical_betas(&row, &found, measure);
        let at_one = rules.iter().any(Rescaling::needs_entropy).then(|| self.partition(&row, &top, 1.0));
        let entropy = at_one.map_or(f64::NAN, |part| part.entropy(1.0));
        let facts = RowFacts { n: top.len, position, critical: betas[1].beta, entropy };
        let mut reports: Vec<RowReport> = Vec::with_capacity(rules.len());
        for rule in rules {
            let beta = rule.beta(&facts);
            // Laws of position all give 1 up to the training length.
            let same = reports.iter().find(|report| report.beta == beta).copied();
            let part = |workspace: &mut Self| match at_one {
                Some(part) if beta == 1.0 => part,
                _ => workspace.partition(&row, &top, beta),
            };
            let report = same.unwrap_or_else(|| RowReport::of(top, betas, beta, part(self)));
            reports.push(report);
        }
        Some((betas, reports))
    }

    /// Like `report`, for any element type. All threads work on a row that is `split`.
    pub(super) fn report_on<T: Element>(
        &mut self,
        row: &Chunks<T>,
        beta: f64,
        measure: Measure,
    ) -> RowReport {
        let found = row.top(Progress::NONE);
        if found.1.hides {
            return self.unhidden(row, |workspace, row| workspace.report_on(row, beta, measure));
        }
        let betas = self.critical_betas(row, &found, measure);
        let part = self.partition(row, &found.0, beta);
        RowReport::of(found.0, betas, beta, part)
    }

    /// Sums in the order of the scores that are not masked, so that masked scores change no bit of the
    /// result.
    pub(super) fn partition<T: Element>(&mut self, row: &Chunks<T>, top: &RowMax, beta: f64) -> Partition {
        if top.poisoned || top.len == row.scores.len() as u64 {
            return if top.poisoned { Partition::EMPTY } else { partition(row, top.max, beta) };
        }
        self.visible.collect(row, AtLeast::visible());
        let visible = Chunks { scores: self.visible.kept(), ahead: &[], set: row.set, split: row.split };
        partition(&visible, top.max, beta)
    }

    fn beta<T: Element>(&mut self, row: &Chunks<T>, found: &(RowMax, Tops), rule: Rule) -> f64 {
        self.beta_knowing(row, found, rule, None)
    }

    /// Like `beta`. `known` holds what [`Workspace::critical_betas`] has found, and for which measure.
    pub(super) fn beta_knowing<T: Element>(
        &mut self,
        row: &Chunks<T>,
        found: &(RowMax, Tops),
        rule: Rule,
        known: Option<(Measure, [CriticalBeta; 2])>,
    ) -> f64 {
        let known = known.filter(|(measure, _)| measure.top_k.is_none());
        let (rescaling, position) = match rule {
            _ if found.0.poisoned => return f64::NAN,
            // At a negative beta no weight decreases with the gap.
            Rule::At(beta) => return if beta >= 0.0 { beta } else { f64::NAN },
            Rule::Rescaling(rescaling, position) => (rescaling, position),
        };
        let critical = match (rescaling.resolve(), known) {
            (Some(resolve), Some((measure, [_, found]))) if resolve == measure.resolve => found.beta,
            (Some(0.0), Some((_, [found, _]))) => found.beta,
            (Some(resolve), _) => self.contact.critical_beta(row, &found.0, &found.1, resolve).beta,
            (None, _) => f64::NAN,
        };
        let entropy = match rescaling.needs_entropy() {
            true => self.partition(row, &found.0, 1.0).entropy(1.0),
            false => f64::NAN,
        };
        rescaling.beta(&RowFacts { n: found.0.len, position, critical, entropy })
    }

    /// Everything about row `index` except its probabilities, which are cheap afterwards.
    pub(super) fn measure<T: Element>(&mut self, index: usize, row: &Chunks<T>, rule: Rule) -> Measured {
        let begun = self.next.take().filter(|(next, _)| *next == index);
        let found = row.top(begun.map_or(Progress::NONE, |(_, progress)| progress));
        if found.1.hides {
            let measured = self.unhidden(row, |workspace, row| workspace.measure(index, row, rule));
            return Measured { masked: true, ..measured };
        }
        let (top, beta) = (found.0, self.beta(row, &found, rule));
        if beta.is_nan() || top.len == 0 {
            let log_partition = if beta.is_nan() { f64::NAN } else { f64::NEG_INFINITY };
            return Measured { report: SoftmaxRow { top, beta, log_partition }, probs: None, masked: false };
        }
        let probs = Probs::new(row, top.max, beta, &mut self.kept);
        let report = SoftmaxRow { top, beta, log_partition: probs.log_partition };
        Measured { report, probs: Some(probs), masked: false }
    }

    /// Writes the probabilities of a row under `rescaling` to `out` in f64, one per score. exp is computed in
    /// f64.
    ///
    /// The row sits at query `position`, counted from 0. A poisoned row gives NaN, an empty one 0.
    pub fn softmax_f64(
        &mut self,
        scores: &[f32],
        rescaling: &Rescaling,
        position: u64,
        out: &mut Vec<f64>,
    ) -> SoftmaxRow {
        let _modes = Standard::modes();
        let row = Chunks::of_one(scores);
        let found = row.top(Progress::NONE);
        if found.1.hides {
            return self.unhidden(&row, |ws, row| ws.softmax_f64(row.scores, rescaling, position, out));
        }
        let beta = self.beta(&row, &found, Rule::Rescaling(rescaling, position));
        let top = found.0;
        let log_partition = if top.poisoned { f64::NAN } else { self.partition(&row, &top, beta).log() };
        write_probs(scores, &top, beta, log_partition, out);
        SoftmaxRow { top, beta, log_partition }
    }
}

fn write_probs(scores: &[f32], top: &RowMax, beta: f64, log_partition: f64, out: &mut Vec<f64>) {
    let largest = (-log_partition).exp();
    out.clear();
    out.extend(scores.iter().map(|&s| match s {
        // The row has no beta, so its masked scores give NaN too.
        _ if beta.is_nan() => f64::NAN,
        f32::NEG_INFINITY => 0.0,
        s => weight((top.max - s).into(), beta) * largest,
    }));
}

/// Replaces `out` by the scores of `row` in f32, the working type. Masked scores become -inf.
pub(crate) fn widen<T: Element>(row: &[T], out: &mut Vec<f32>) {
    out.clear();
    out.reserve_exact(row.len());
    out.extend(row.iter().map(|s| s.score()));
}
