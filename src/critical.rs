//! The critical beta of a row: Lambda(r) = sup over t > 0, log N(t) > r, of (log N(t) - r) / t.

/// A critical inverse temperature, and the witness that lets anyone check it by hand: `beta =
/// (ln(contact_rank) - r) / contact_gap`, where r is the resolve of the measurement.
///
/// Units: beta is an inverse temperature at the scale of the scores, and gaps are score differences. Source:
/// arXiv:2605.12697 defines Lambda_n. The resolved form is ours (section 1 of `docs/how-it-works.md`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CriticalBeta {
    /// Lambda(r), or the largest ratio found so far if the value is not exact. It is +inf for tied maxima.
    pub beta: f64,
    /// An upper bound of Lambda(r). It equals `beta` if that is exact.
    pub upper: f64,
    /// The largest gap at which the supremum is attained. It is 0 for ties and for rows without any ratio.
    pub contact_gap: f64,
    /// How many scores lie within the contact gap of the maximum.
    pub contact_rank: u64,
}

impl CriticalBeta {
    /// The value for a row with a NaN or +inf, and for a row whose gaps were not counted.
    pub const UNKNOWN: CriticalBeta =
        CriticalBeta { beta: f64::NAN, upper: f64::NAN, contact_gap: f64::NAN, contact_rank: 0 };

    /// The critical beta of a row with `ties` scores at its maximum, before the first gap is offered.
    ///
    /// An empty row (`ties` = 0) and every row with `ln(ties) <= resolve` start from beta = 0. It is NaN
    /// unless `resolve` >= 0, and it then stays NaN, because no ratio exceeds a NaN.
    pub fn at_top(ties: u64, resolve: f64) -> Self {
        if resolve.is_nan() || resolve < 0.0 {
            return CriticalBeta::UNKNOWN;
        }
        let beta = if ties >= 1 && (ties as f64).ln() > resolve { f64::INFINITY } else { 0.0 };
        CriticalBeta { beta, upper: beta, contact_gap: 0.0, contact_rank: ties }
    }

    /// Offers the gap `gap > 0`, which has `rank` scores within it.
    ///
    /// Gaps must come in ascending order, because the last of several equal ratios is the contact.
    pub fn offer(&mut self, gap: f64, rank: u64, resolve: f64) {
        let ratio = ratio(gap, rank, resolve);
        if ratio > 0.0 && ratio >= self.beta {
            *self = CriticalBeta { beta: ratio, upper: ratio, contact_gap: gap, contact_rank: rank };
        }
    }

    /// Whether `beta` is the supremum itself, and not only a lower bound.
    pub fn is_exact(&self) -> bool {
        self.upper <= self.beta
    }

    /// alpha = log(contact rank) / log n, in 0..=1; 0 for n < 2.
    pub fn alpha(&self, n: u64) -> f64 {
        if n < 2 || self.contact_rank < 2 { 0.0 } else { (self.contact_rank as f64).ln() / (n as f64).ln() }
    }
}

/// The ratio (log rank - resolve) / gap. It is rounded only here, so the reference and every fast path agree
/// bit for bit.
pub(crate) fn ratio(gap: f64, rank: u64, resolve: f64) -> f64 {
    ((rank as f64).ln() - resolve) / gap
}

/// The operating ratio rho = beta / Lambda. It is 0 for tied maxima, +inf if Lambda = 0, and NaN for 0 / 0.
pub fn operating_ratio(beta: f64, critical: f64) -> f64 {
    if critical == f64::INFINITY && beta.is_finite() { 0.0 } else { beta / critical }
}
