//! The critical beta of a row: Lambda(r) = sup over t > 0, log N(t) > r, of (log N(t) - r) / t.

/// A critical inverse temperature and the witness that lets anyone check it by hand:
/// `beta = (ln(contact_rank) - r) / contact_gap`, r being the resolve it was asked for.
///
/// Units: beta is inverse temperature at the scale of the scores; gaps are score differences.
/// Source: arXiv:2605.12697, the definition of Lambda_n; the resolved form is ours (theory, section 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CriticalBeta {
    /// Lambda(r), or the largest ratio attained so far where it is not exact. +inf for tied maxima.
    pub beta: f64,
    /// What bounds Lambda(r) from above; equal to `beta` when that is exact.
    pub upper: f64,
    /// The largest gap at which the supremum is attained; 0 for ties and for rows without any ratio.
    pub contact_gap: f64,
    /// How many scores lie within the contact gap of the maximum.
    pub contact_rank: u64,
}

impl CriticalBeta {
    /// Of a row with a NaN or +inf, and where nothing was counted.
    pub const UNKNOWN: CriticalBeta =
        CriticalBeta { beta: f64::NAN, upper: f64::NAN, contact_gap: f64::NAN, contact_rank: 0 };

    /// The critical beta of a row with `ties` scores at its maximum before any gap was looked at.
    ///
    /// `ties` = 0 (an empty row) and every row with `ln(ties) <= resolve` start from beta = 0. NaN unless `resolve` >= 0, and then
    /// for good: nothing that is offered exceeds it.
    pub fn at_top(ties: u64, resolve: f64) -> Self {
        if resolve.is_nan() || resolve < 0.0 {
            return CriticalBeta::UNKNOWN;
        }
        let beta = if ties >= 1 && (ties as f64).ln() > resolve { f64::INFINITY } else { 0.0 };
        CriticalBeta { beta, upper: beta, contact_gap: 0.0, contact_rank: ties }
    }

    /// Takes the gap `gap > 0` with `rank` scores within it into account.
    ///
    /// Gaps must come in ascending order: among equal ratios the last one offered is the contact.
    pub fn offer(&mut self, gap: f64, rank: u64, resolve: f64) {
        let ratio = ratio(gap, rank, resolve);
        if ratio > 0.0 && ratio >= self.beta {
            *self = CriticalBeta { beta: ratio, upper: ratio, contact_gap: gap, contact_rank: rank };
        }
    }

    /// Whether `beta` is the supremum itself, not only a lower bound on it.
    pub fn is_exact(&self) -> bool {
        self.upper <= self.beta
    }

    /// alpha = log(contact rank) / log n, in 0..=1; 0 for n < 2.
    pub fn alpha(&self, n: u64) -> f64 {
        if n < 2 || self.contact_rank < 2 { 0.0 } else { (self.contact_rank as f64).ln() / (n as f64).ln() }
    }
}

/// (log rank - resolve) / gap: the one place where the ratio is rounded, so that the reference and
/// every fast path agree bit for bit.
pub(crate) fn ratio(gap: f64, rank: u64, resolve: f64) -> f64 {
    ((rank as f64).ln() - resolve) / gap
}

/// The operating ratio rho = beta / Lambda; 0 above tied maxima, +inf where Lambda = 0, NaN for 0 / 0.
pub fn operating_ratio(beta: f64, critical: f64) -> f64 {
    if critical == f64::INFINITY && beta.is_finite() { 0.0 } else { beta / critical }
}
