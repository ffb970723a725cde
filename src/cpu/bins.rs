//! Gaps counted in bins.

use super::contact::Search;
use super::hull::{Bounds, FindHull, Hull};
use super::lanes::{Lanes, WIDTH, Work};
use super::top::Chunks;
use super::weights::{BLOCK, padded, vectors};
use crate::Element;
use std::hint::black_box;

/// Counts of a table: the bins, and what is beyond them. Four of the large ones fill two thirds of the first cache;
/// the small ones are soon cleared.
pub(super) const TABLE: usize = 2048;
const SMALL_TABLE: usize = 256;
const MIN_TABLE: usize = 32;
/// Gaps per bin of a large table: with fewer, clearing and bounding it costs more than it saves.
const GAPS_PER_BIN: usize = 16;
/// Tables that take turns: two equal bins in a row would wait for each other's store.
pub(super) const TABLES: usize = 4;

/// Bins of equal width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bins {
    /// Smaller gaps are in the first bin.
    low: f32,
    /// Bins per unit of gap, and its reciprocal.
    scale: f32,
    width: f64,
    /// A place here is beyond them.
    count: usize,
}

impl Bins {
    /// Bins that hold the gaps `low..=high`, for `gaps` of them; `None` where they are too close together, or too
    /// far apart, for f32 to divide.
    pub(super) fn between(low: f32, high: f32, gaps: usize) -> Option<Bins> {
        let small = (gaps / 4).min(SMALL_TABLE);
        let count = (gaps / GAPS_PER_BIN).max(small).next_power_of_two().clamp(MIN_TABLE, TABLE) - 1;
        // Rounded down, so that `high` is in the last bin and not beyond.
        let scale = count as f32 / (high - low) * (1.0 - 1e-6);
        let width = 1.0 / f64::from(scale);
        (high > low && scale.is_finite() && scale > f32::MIN_POSITIVE).then_some(Bins {
            low,
            scale,
            width,
            count,
        })
    }

    /// How many; larger gaps than those of all bins have this as their bin.
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Where the first bin begins and how wide each is, but for the roundings of a place.
    #[inline(always)]
    pub(super) fn edges(&self) -> (f64, f64) {
        (self.low.into(), self.width)
    }

    /// The bin of a gap is the integer part of its place, the first one's below 0 and what is beyond them from their
    /// count on: monotone, whatever is rounded.
    #[inline(always)]
    pub(super) fn place<L: Lanes>(&self, lanes: L, gap: L::F) -> L::F {
        lanes.mul(lanes.sub(gap, lanes.splat(self.low)), lanes.splat(self.scale))
    }

    /// The bin of every gap, their count for one beyond them.
    #[inline(always)]
    pub(super) fn bins<L: Lanes>(&self, lanes: L, gap: L::F, to: &mut [u16; WIDTH]) {
        let at = lanes.max(self.place(lanes, gap), lanes.splat(0.0));
        lanes.truncate(lanes.min(at, lanes.splat(self.count as f32)), to);
    }
}

/// Tables of counts, reused from row to row.
#[derive(Default)]
pub(super) struct Tally {
    tables: Vec<u32>,
    /// Gaps through every bin, and 0.
    through: Vec<u64>,
    bounds: Bounds,
}

impl Tally {
    /// Counts the gaps of `row`, above `before` smaller ones, and finds what can still win.
    pub(super) fn hull<T: Element>(
        &mut self,
        row: &Chunks<T>,
        bins: &Bins,
        before: u64,
        search: &mut Search,
    ) -> Hull {
        let Tally { tables, through, bounds } = self;
        let max = search.max;
        let count = |scores, tables: &mut Vec<u32>, through: &mut Vec<u64>| {
            tables.resize(TABLES * TABLE, 0);
            through.resize(bins.count + 1, 0);
            row.set.run(Count { scores, max, bins, tables, through });
        };
        through.clear();
        if row.split {
            let of_part = |scores| {
                let (mut tables, mut through) = Default::default();
                count(scores, &mut tables, &mut through);
                through
            };
            through.resize(bins.count + 1, 0);
            row.each_part(of_part, |part| {
                through.iter_mut().zip(part).for_each(|(sum, count)| *sum += count)
            });
        } else {
            // No count of a table overflows.
            row.scores.chunks(1 << 31).for_each(|scores| count(scores, tables, through));
        }
        row.set.run(FindHull { bins, before, through, bounds, search })
    }
}

struct Count<'a, T> {
    scores: &'a [T],
    max: f32,
    bins: &'a Bins,
    /// As many as tables have counts; what is in them does not matter.
    tables: &'a mut [u32],
    /// Gaps of every bin, which these are added to, and 0.
    through: &'a mut [u64],
}

impl<T: Element> Work for Count<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.bins.count < SMALL_TABLE {
            true => self.count::<L, SMALL_TABLE>(lanes),
            false => self.count::<L, TABLE>(lanes),
        }
    }
}

impl<T: Element> Count<'_, T> {
    #[inline(always)]
    fn count<L: Lanes, const TABLE: usize>(self, lanes: L) {
        let Count { scores, max, bins, tables, through } = self;
        let bins = *bins; // a copy, which stays in registers
        tables[..TABLES * TABLE].fill(0);
        let (a, rest) = tables.split_at_mut(TABLE);
        let (b, rest) = rest.split_at_mut(TABLE);
        let (c, rest) = rest.split_at_mut(TABLE);
        let d = &mut rest[..TABLE];
        let [a, b, c, d]: [&mut [u32; TABLE]; TABLES] =
            [a, b, c, d].map(|table| table.try_into().expect("as long as it is cut"));
        let (blocks, tail) = scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        // Four bins to a word: lane after lane out of a vector takes half as long again (2026-11-25).
        let mut at = [0u16; BLOCK];
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            let (to, _) = at.as_chunks_mut::<WIDTH>();
            for j in 0..4 {
                bins.bins(lanes, lanes.sub(lanes.splat(max), v[j]), &mut to[j]);
            }
            // Not to be optimised into exactly that.
            for at in black_box(&at).as_chunks::<TABLES>().0 {
                a[at[0] as usize % TABLE] += 1;
                b[at[1] as usize % TABLE] += 1;
                c[at[2] as usize % TABLE] += 1;
                d[at[3] as usize % TABLE] += 1;
            }
        }
        for (bin, sum) in through[..bins.count].iter_mut().enumerate() {
            *sum += u64::from(a[bin] + b[bin] + c[bin] + d[bin]);
        }
    }
}
