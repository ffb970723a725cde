//! Gaps counted in bins, and which bins can still win.

use super::contact::Search;
use super::lanes::{Lanes, WIDTH, Work};
use super::ln::{LN_ERROR, ln};
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

/// Two roundings of f32 to nearest, and a little.
const EDGE: f64 = 1.3e-7;

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

    /// About where bin `bin` begins.
    #[inline(always)]
    pub(super) fn edge(&self, bin: usize) -> f32 {
        (f64::from(self.low) + bin as f64 * self.width) as f32
    }

    /// The bin of a gap is the integer part of its place: monotone, whatever is rounded.
    #[inline(always)]
    pub(super) fn place<L: Lanes>(&self, lanes: L, gap: L::F) -> L::F {
        let at = lanes.mul(lanes.sub(gap, lanes.splat(self.low)), lanes.splat(self.scale));
        lanes.min(lanes.max(at, lanes.splat(0.0)), lanes.splat(self.count as f32))
    }
}

/// The bins from the first to the last that can still win.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hull {
    pub first: usize,
    pub last: usize,
    /// Gaps below them.
    pub before: u64,
    /// Gaps in them.
    pub inside: u64,
}

/// Tables of counts, reused from row to row.
#[derive(Default)]
pub(super) struct Tally {
    tables: Vec<u32>,
    /// Gaps through every bin.
    through: Vec<u64>,
    bounds: Vec<f64>,
    signs: Vec<i64>,
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
        let Tally { tables, through, bounds, signs } = self;
        let max = search.max;
        let count = |scores, tables: &mut Vec<u32>, through: &mut Vec<u64>| {
            tables.resize(TABLES * TABLE, 0);
            through.resize(bins.count, 0);
            row.set.run(Count { scores, max, bins, tables, through });
        };
        through.clear();
        if row.split {
            let of_part = |scores| {
                let (mut tables, mut through) = Default::default();
                count(scores, &mut tables, &mut through);
                through
            };
            through.resize(bins.count, 0);
            row.each_part(of_part, |part| {
                through.iter_mut().zip(part).for_each(|(sum, count)| *sum += count)
            });
        } else {
            // No count of a table overflows.
            row.scores.chunks(1 << 31).for_each(|scores| count(scores, tables, through));
        }
        bounds.resize(bins.count, 0.0);
        signs.resize(bins.count, 0);
        row.set.run(Bound { bins, before, through, bounds, signs, search })
    }
}

struct Count<'a, T> {
    scores: &'a [T],
    max: f32,
    bins: &'a Bins,
    /// As many as tables have counts; what is in them does not matter.
    tables: &'a mut [u32],
    /// Gaps of every bin, which these are added to.
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
        let mut words = [0u64; BLOCK / 4];
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            let (to, _) = bytemuck::cast_slice_mut::<u64, u16>(&mut words).as_chunks_mut::<WIDTH>();
            for j in 0..4 {
                lanes.truncate(bins.place(lanes, lanes.sub(lanes.splat(max), v[j])), &mut to[j]);
            }
            // Not to be optimised into exactly that.
            for word in black_box(&words) {
                a[*word as u16 as usize % TABLE] += 1;
                b[(word >> 16) as u16 as usize % TABLE] += 1;
                c[(word >> 32) as u16 as usize % TABLE] += 1;
                d[(word >> 48) as usize % TABLE] += 1;
            }
        }
        for (bin, sum) in through.iter_mut().enumerate() {
            *sum += u64::from(a[bin] + b[bin] + c[bin] + d[bin]);
        }
    }
}

struct Bound<'a> {
    bins: &'a Bins,
    before: u64,
    /// In: gaps in every bin. Out: gaps through every bin.
    through: &'a mut [u64],
    /// As many as bins; what is in them does not matter.
    bounds: &'a mut [f64],
    signs: &'a mut [i64],
    search: &'a mut Search,
}

impl Work for Bound<'_> {
    type Out = Hull;
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> Hull {
        let Bound { bins, before, through, bounds, signs, search } = self;
        let mut rank = before;
        for count in through.iter_mut() {
            rank += *count;
            *count = rank;
        }
        // From here on plain loops over arrays, which the compiler makes lanes of: so maxima are of integers, floats
        // that are not negative being ordered as their bits.
        let (low, wide, narrow) = (f64::from(bins.low), bins.width * (1.0 + EDGE), bins.width * (1.0 - EDGE));
        for (bound, &rank) in bounds.iter_mut().zip(through.iter()) {
            *bound = ln(rank as f64) - search.resolve;
        }
        for ((sign, bound), bin) in signs.iter_mut().zip(bounds.iter()).zip(1i32..) {
            let lower = (bound - LN_ERROR) / (low + f64::from(bin) * wide) * (1.0 - 1e-12);
            *sign = lower.to_bits() as i64;
        }
        let attained = signs.iter().fold(search.attained.to_bits() as i64, |best, &ratio| best.max(ratio));
        search.attained = f64::from_bits(attained as u64);
        let needed = search.attained * (1.0 - 1e-12);
        for ((sign, bound), bin) in signs.iter_mut().zip(bounds.iter()).zip(0i32..) {
            *sign = (bound + LN_ERROR - needed * (low + f64::from(bin) * narrow)).to_bits() as i64;
        }
        let (mut first, mut last) = (i64::MAX, 0);
        for (&sign, bin) in signs.iter().zip(0i64..) {
            first = first.min(if sign >= 0 { bin } else { i64::MAX });
            last = last.max(if sign >= 0 { bin } else { 0 });
        }
        // Where nothing is attained, or can be.
        let (first, last) = (first.min(last) as usize, last as usize);
        let before = if first == 0 { before } else { through[first - 1] };
        Hull { first, last, before, inside: through[last] - before }
    }
}
