//! What the search knows: the best ratio so far, and how far away a better one can be.

use crate::critical::{CriticalBeta, ratio};

/// Bounds are widened by this. It is far above the rounding of two f64 ratios and of a gap to f32.
const SLACK: f64 = 1e-9;
/// What the search knows.
pub(super) struct Search {
    pub best: CriticalBeta,
    /// A ratio that some score attains.
    pub attained: f64,
    pub resolve: f64,
    pub max: f32,
}

impl Search {
    /// The largest gap that can be the contact if `count` scores lie within it.
    pub(super) fn cut(&self, count: u64) -> f32 {
        let reach = ((count as f64).ln() - self.resolve) / self.attained * (1.0 + SLACK);
        // While nothing is attained, the cut keeps every finite gap.
        if reach < f64::from(f32::MAX) { (reach as f32).next_up() } else { f32::MAX }
    }

    pub(super) fn offer(&mut self, gap: f32, rank: u64) {
        let (gap, best) = (f64::from(gap), &self.best);
        let ratio = ratio(gap, rank, self.resolve);
        // Among equal ratios the largest gap is the contact, in whatever order the gaps come.
        if ratio > 0.0 && (ratio > best.beta || ratio == best.beta && gap > best.contact_gap) {
            self.best = CriticalBeta { beta: ratio, upper: ratio, contact_gap: gap, contact_rank: rank };
            self.attained = self.attained.max(ratio);
        }
    }
}
