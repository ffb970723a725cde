//! The report of a row as C has it: a struct of doubles, or a row of a float64 tensor.

use crate::status::{Result, invalid};
use crate::tensor::{DLTensor, Tensor, Tensors};
use bytemuck::{Pod, Zeroable};
use critbeta::attention::DecodeRow;
use critbeta::cpu::{self, Measure, SoftmaxRow};
use critbeta::stats::RowMax;
use critbeta::{CriticalBeta, cuda};

/// What is known about one row: the columns of a tensor of reports. NaN stands for what a call does not
/// measure, and in a row with a NaN or +inf for everything but n, argmax and a beta that was given. Counts
/// are whole.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowReport {
    /// Unmasked scores, n.
    pub n: f64,
    /// The largest score; -inf in a row without scores.
    pub max: f64,
    /// The largest score when one maximum is left out.
    pub second: f64,
    /// How many scores equal the maximum.
    pub ties: f64,
    /// Column of the first maximum, or of the first NaN or +inf.
    pub argmax: f64,
    /// The inverse temperature that the row ran at.
    pub beta: f64,
    /// log Z at beta with the maximum taken out, nats.
    pub log_partition: f64,
    /// log of the sum of exp(beta * score), nats.
    pub lse: f64,
    /// The critical beta, Lambda; inf under tied maxima.
    pub critical_beta: f64,
    /// An upper bound of Lambda, which differs from it under top_k only.
    pub critical_upper: f64,
    /// Lambda = log(contact_rank) / contact_gap.
    pub contact_gap: f64,
    /// How many scores lie within the contact gap of the maximum.
    pub contact_rank: f64,
    /// Lambda(resolve), with its own bound and contact.
    pub resolved_beta: f64,
    /// As critical_upper.
    pub resolved_upper: f64,
    /// As contact_gap.
    pub resolved_gap: f64,
    /// As contact_rank.
    pub resolved_rank: f64,
    /// Entropy of the weights at beta, nats.
    pub entropy: f64,
    /// Largest minus second largest weight.
    pub top_two: f64,
    /// Largest weight.
    pub max_weight: f64,
    /// Of a decode: how many keys had their values read.
    pub kept: f64,
    /// Of a decode: the share of the weights whose values stayed unread.
    pub dropped: f64,
    /// Of a decode: at least what the unread values change in the output; NaN without radii.
    pub bound: f64,
}

/// Number of doubles in a critbeta_row_report of this version.
pub const COLUMNS: usize = size_of::<RowReport>() / size_of::<f64>();
/// Bytes of the report that a GPU writes for each row.
pub const CRITBETA_DEVICE_REPORT_BYTES: usize = 72;
const _: () = assert!(size_of::<cuda::RowReport>() == CRITBETA_DEVICE_REPORT_BYTES);

impl RowReport {
    fn new(top: RowMax, beta: f64, log_partition: f64) -> RowReport {
        let counted = |n: u64| if top.poisoned { f64::NAN } else { n as f64 };
        RowReport {
            n: top.len as f64,
            max: top.max.into(),
            second: top.second.into(),
            ties: counted(top.ties),
            argmax: top.argmax as f64,
            beta,
            log_partition,
            lse: lse(top, beta, log_partition),
            ..UNKNOWN
        }
    }
}

/// Nothing is known.
const UNKNOWN: RowReport = RowReport {
    n: f64::NAN,
    max: f64::NAN,
    second: f64::NAN,
    ties: f64::NAN,
    argmax: f64::NAN,
    beta: f64::NAN,
    log_partition: f64::NAN,
    lse: f64::NAN,
    critical_beta: f64::NAN,
    critical_upper: f64::NAN,
    contact_gap: f64::NAN,
    contact_rank: f64::NAN,
    resolved_beta: f64::NAN,
    resolved_upper: f64::NAN,
    resolved_gap: f64::NAN,
    resolved_rank: f64::NAN,
    entropy: f64::NAN,
    top_two: f64::NAN,
    max_weight: f64::NAN,
    kept: f64::NAN,
    dropped: f64::NAN,
    bound: f64::NAN,
};

fn lse(top: RowMax, beta: f64, log_partition: f64) -> f64 {
    match top.len {
        0 => f64::NEG_INFINITY,
        // This avoids 0 * inf.
        _ if top.max == 0.0 || beta == 0.0 => log_partition,
        _ => beta * f64::from(top.max) + log_partition,
    }
}

impl From<&SoftmaxRow> for RowReport {
    fn from(row: &SoftmaxRow) -> RowReport {
        RowReport::new(row.top, row.beta, row.log_partition)
    }
}

impl From<&cpu::RowReport> for RowReport {
    fn from(row: &cpu::RowReport) -> RowReport {
        let rank =
            |found: CriticalBeta| if found.beta.is_nan() { f64::NAN } else { found.contact_rank as f64 };
        RowReport {
            critical_beta: row.critical.beta,
            critical_upper: row.critical.upper,
            contact_gap: row.critical.contact_gap,
            contact_rank: rank(row.critical),
            resolved_beta: row.resolved.beta,
            resolved_upper: row.resolved.upper,
            resolved_gap: row.resolved.contact_gap,
            resolved_rank: rank(row.resolved),
            entropy: row.entropy,
            top_two: row.top_two,
            max_weight: row.max_weight,
            ..RowReport::new(row.top, row.beta, row.log_partition)
        }
    }
}

impl From<&DecodeRow> for RowReport {
    fn from(row: &DecodeRow) -> RowReport {
        RowReport {
            kept: row.kept as f64,
            dropped: row.dropped as f64 / 4_294_967_296.0,
            bound: row.bound,
            ..row.report.as_ref().map_or_else(|| RowReport::from(&row.row), RowReport::from)
        }
    }
}

/// Where reports go: a float64 tensor whose last axis has the columns. Those that this version does not know
/// become NaN.
pub struct Reports<'a> {
    data: &'a mut [f64],
    columns: usize,
    stride: usize,
}

impl<'a> Reports<'a> {
    /// `rows` are the axes before the last; they may also be one axis of their product.
    pub fn new(tensor: Tensor<'a>, rows: &[usize]) -> Result<Reports<'a>> {
        let flat = [rows.iter().product::<usize>()];
        let Some((&columns, axes)) =
            tensor.shape.split_last().filter(|(_, axes)| *axes == rows || **axes == flat)
        else {
            return tensor.refused(format!("expected [..., columns] with the rows {rows:?}"));
        };
        // Rows of one axis may have a space between them.
        let ends_dense = columns < 2 || tensor.strides.last() == Some(&1);
        let stride = if axes.len() == 1 { tensor.strides[0].max(columns) } else { columns };
        let apart = axes.len() == 1 && tensor.strides[0] >= columns;
        if columns == 0 || !ends_dense || !(tensor.is_dense() || apart) {
            return tensor.refused("expected at least one column, and rows without a space between columns");
        }
        Ok(Reports { data: tensor.into_slice_mut()?, columns, stride })
    }

    pub fn write<'r, R: 'r>(self, rows: impl IntoIterator<Item = &'r R>)
    where
        RowReport: From<&'r R>,
    {
        for (to, row) in self.data.chunks_mut(self.stride).zip(rows) {
            let found = RowReport::from(row);
            let found: &[f64] = bytemuck::cast_slice(std::slice::from_ref(&found));
            let to = &mut to[..self.columns];
            let known = self.columns.min(COLUMNS);
            to[..known].copy_from_slice(&found[..known]);
            to[known..].fill(f64::NAN);
        }
    }
}

/// What to measure, checked.
pub fn measure(resolve: f64, top_k: u64) -> Result<Measure> {
    if !(resolve.is_finite() && resolve >= 0.0) {
        return invalid(format!("resolve {resolve}: expected a finite number of nats, at least 0"));
    }
    let top_k = usize::try_from(top_k).unwrap_or(usize::MAX);
    Ok(Measure::new(resolve, (top_k > 0).then_some(top_k)))
}

/// Turns the reports that a GPU wrote, copied to the CPU, into reports of this interface.
pub fn decode(
    mut tensors: Tensors,
    raw: *const DLTensor,
    resolve: f64,
    reports: *const DLTensor,
) -> Result<()> {
    let raw = tensors.read("raw", raw)?;
    let [rows, _] = raw.sizes("[rows, bytes]")?;
    raw.expect(&[rows, CRITBETA_DEVICE_REPORT_BYTES], "[rows, CRITBETA_DEVICE_REPORT_BYTES]")?;
    let reports = Reports::new(tensors.written("reports", reports)?, &[rows])?;
    let measure = measure(resolve, 0)?;
    let found: Vec<cpu::RowReport> = raw
        .slice::<u8>()?
        .chunks_exact(CRITBETA_DEVICE_REPORT_BYTES)
        .map(|bytes| bytemuck::pod_read_unaligned::<cuda::RowReport>(bytes).decode(measure))
        .collect();
    reports.write(&found);
    Ok(())
}
