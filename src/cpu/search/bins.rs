//! Gaps are counted in bins of equal width.

use crate::cpu::lanes::{Lanes, WIDTH};

/// Counts of a table: one for each bin, and one for the gaps beyond the bins. Four large tables fill two
/// thirds of the first cache. A small table is cleared quickly.
pub(super) const TABLE: usize = 2048;
pub(super) const SMALL_TABLE: usize = 256;
const MIN_TABLE: usize = 32;
/// Gaps per bin of a large table. With fewer gaps, clearing and bounding a bin costs more than the bin saves.
const GAPS_PER_BIN: usize = 16;
/// Tables that take turns. With one table, two equal bins in a row would wait for each other's store.
pub(super) const TABLES: usize = 4;

/// Bins of equal width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bins {
    /// Smaller gaps are in the first bin.
    low: f32,
    /// Bins per unit of gap, and its reciprocal.
    scale: f32,
    width: f64,
    /// The place of a gap beyond the bins is this or more.
    count: usize,
}

impl Bins {
    /// Bins that hold the gaps `low..=high`, for a row with `gaps` gaps. `None` where these are too close
    /// together, or too far apart, for f32 to divide.
    pub(super) fn between(low: f32, high: f32, gaps: usize) -> Option<Bins> {
        let small = (gaps / 4).min(SMALL_TABLE);
        let count = (gaps / GAPS_PER_BIN).max(small).next_power_of_two().clamp(MIN_TABLE, TABLE) - 1;
        // The scale is rounded down, so that `high` is in the last bin and not beyond it.
        let scale = count as f32 / (high - low) * (1.0 - 1e-6);
        let width = 1.0 / f64::from(scale);
        (high > low && scale.is_finite() && scale > f32::MIN_POSITIVE).then_some(Bins {
            low,
            scale,
            width,
            count,
        })
    }

    /// The number of bins. It is also the bin number of every gap beyond them.
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Where the first bin begins and how wide each bin is. The rounding of a place comes on top.
    #[inline(always)]
    pub(super) fn edges(&self) -> (f64, f64) {
        (self.low.into(), self.width)
    }

    /// The bin of a gap is the integer part of its place. A place below 0 belongs to the first bin; a place
    /// at the number of bins or above is beyond them. The place is monotone in the gap, whatever is rounded.
    #[inline(always)]
    pub(super) fn place<L: Lanes>(&self, lanes: L, gap: L::F) -> L::F {
        lanes.mul(lanes.sub(gap, lanes.splat(self.low)), lanes.splat(self.scale))
    }

    /// The bin of every gap; a gap beyond the bins gets their number.
    #[inline(always)]
    pub(super) fn bins<L: Lanes>(&self, lanes: L, gap: L::F, to: &mut [u16; WIDTH]) {
        let at = lanes.max(self.place(lanes, gap), lanes.splat(0.0));
        lanes.truncate(lanes.min(at, lanes.splat(self.count as f32)), to);
    }
}
