//! The record of one row. Files and other tools rely on its names.

use crate::remarks::Remark;
use critbeta::cpu::RowReport;
use serde::Serialize;
use std::sync::Arc;

/// Where a row stands in its input.
#[derive(Debug, Clone, PartialEq)]
pub struct RowPlace {
    /// The tensor's name without `.q`, or the stem of a .npy file.
    pub layer: Arc<str>,
    /// Query head, from 0. The leading dimensions of a score tensor are flattened into it.
    pub head: u64,
    /// Row within the head, from 0.
    pub row: u64,
    /// 0-based position of the query: from the file, else the last visible key.
    pub position: u64,
}

/// One attention row, as `--rows` writes it. Betas are inverse temperatures at the scale of the
/// scores. Gaps are score differences. Entropies are in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowRecord {
    /// See [`RowPlace::layer`].
    pub layer: Arc<str>,
    /// See [`RowPlace::head`].
    pub head: u64,
    /// See [`RowPlace::row`].
    pub row: u64,
    /// See [`RowPlace::position`].
    pub position: u64,
    /// Visible keys.
    pub n: u64,
    /// Largest score.
    pub max: f64,
    /// Key index of the first maximum, or of the first NaN or +inf in a poisoned row.
    pub argmax: u64,
    /// How many keys share the maximum.
    pub ties: u64,
    /// Lambda. It is +inf if the maximum is tied.
    pub critical_beta: f64,
    /// The largest gap that attains Lambda.
    pub contact_gap: f64,
    /// How many keys lie within the contact gap.
    pub contact_rank: u64,
    /// log contact rank / log n.
    pub alpha: f64,
    /// Lambda(r) at the diagnosis' `--resolve`.
    pub resolved_beta: f64,
    /// The inverse temperature that the row is run at.
    pub beta: f64,
    /// Operating ratio beta / Lambda.
    pub ratio: f64,
    /// log Z(beta) relative to the maximum.
    pub log_partition: f64,
    /// Entropy of the weights at beta.
    pub entropy: f64,
    /// Largest minus second largest weight at beta.
    pub top_two: f64,
    /// Largest weight at beta.
    pub max_weight: f64,
    /// Whether a NaN or +inf score makes the row meaningless.
    pub poisoned: bool,
    /// Whether the counted scores prove `critical_beta` exact. Only with `--top-k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certified: Option<bool>,
    /// The same for `resolved_beta`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_certified: Option<bool>,
    /// What the scores show about their origin. Files do not hold it.
    #[serde(skip)]
    pub remark: Option<Remark>,
}

impl RowRecord {
    /// The record of a row whose scores were `shift` lower when they were measured. An empty row is
    /// all zeros. `top_k` says whether the report saw only the largest scores.
    pub fn new(place: RowPlace, report: &RowReport, shift: f64, top_k: bool) -> Self {
        let RowPlace { layer, head, row, position } = place;
        let RowReport { top, critical, resolved, beta, .. } = *report;
        let of_row = |value: f64| if top.len == 0 { 0.0 } else { value };
        RowRecord {
            layer,
            head,
            row,
            position,
            n: top.len,
            max: of_row(f64::from(top.max) + shift),
            argmax: top.argmax,
            ties: top.ties,
            critical_beta: critical.beta,
            contact_gap: critical.contact_gap,
            contact_rank: critical.contact_rank,
            alpha: report.alpha(),
            resolved_beta: resolved.beta,
            beta: of_row(beta),
            ratio: of_row(report.ratio()),
            log_partition: of_row(report.log_partition),
            entropy: report.entropy,
            top_two: report.top_two,
            max_weight: report.max_weight,
            poisoned: top.poisoned,
            certified: top_k.then(|| critical.is_exact()),
            resolved_certified: top_k.then(|| resolved.is_exact()),
            remark: None,
        }
    }
}

/// The type of one column in a table of records.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// Text.
    Text(fn(&RowRecord) -> &str),
    /// An index, position or count.
    Count(fn(&RowRecord) -> u64),
    /// A number that may be infinite or NaN.
    Real(fn(&RowRecord) -> f64),
    /// True or false.
    Flag(fn(&RowRecord) -> bool),
}

/// Every field by name, in the order of [`RowRecord`]. Only a top-k count has the last two.
pub const COLUMNS: [(&str, Column); 22] = [
    ("layer", Column::Text(|r| &r.layer)),
    ("head", Column::Count(|r| r.head)),
    ("row", Column::Count(|r| r.row)),
    ("position", Column::Count(|r| r.position)),
    ("n", Column::Count(|r| r.n)),
    ("max", Column::Real(|r| r.max)),
    ("argmax", Column::Count(|r| r.argmax)),
    ("ties", Column::Count(|r| r.ties)),
    ("critical_beta", Column::Real(|r| r.critical_beta)),
    ("contact_gap", Column::Real(|r| r.contact_gap)),
    ("contact_rank", Column::Count(|r| r.contact_rank)),
    ("alpha", Column::Real(|r| r.alpha)),
    ("resolved_beta", Column::Real(|r| r.resolved_beta)),
    ("beta", Column::Real(|r| r.beta)),
    ("ratio", Column::Real(|r| r.ratio)),
    ("log_partition", Column::Real(|r| r.log_partition)),
    ("entropy", Column::Real(|r| r.entropy)),
    ("top_two", Column::Real(|r| r.top_two)),
    ("max_weight", Column::Real(|r| r.max_weight)),
    ("poisoned", Column::Flag(|r| r.poisoned)),
    ("certified", Column::Flag(|r| r.certified == Some(true))),
    ("resolved_certified", Column::Flag(|r| r.resolved_certified == Some(true))),
];
