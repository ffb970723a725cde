//! Gaps counted in bins, and which bins can still win.

use super::contact::Search;
use super::lanes::{Lanes, WIDTH, Work};
use super::top::Chunks;
use super::weights::{BLOCK, padded, vectors};
use crate::Element;

/// Counts of a table: the bins, and what is beyond them. Four tables fill two thirds of the first cache.
const TABLE: usize = 2048;
const MIN_TABLE: usize = 32;
/// Gaps per bin below which clearing and bounding bins costs more than they save.
const GAPS_PER_BIN: usize = 16;
/// Tables that take turns: two equal bins in a row would wait for each other's store.
const TABLES: usize = 4;

/// Bins of equal width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bins {
    /// Smaller gaps are in the first bin.
    low: f32,
    /// Bins per unit of gap.
    scale: f32,
    /// A place here is beyond them.
    count: usize,
}

impl Bins {
    /// Bins that hold the gaps `low..=high`, for `gaps` of them; `None` where they are too close together, or too
    /// far apart, for f32 to divide.
    pub(super) fn between(low: f32, high: f32, gaps: usize) -> Option<Bins> {
        let count = (gaps / GAPS_PER_BIN).next_power_of_two().clamp(MIN_TABLE, TABLE) - 1;
        // Rounded down, so that `high` is in the last bin and not beyond.
        let scale = count as f32 / (high - low) * (1.0 - 1e-6);
        (high > low && scale.is_finite() && scale > f32::MIN_POSITIVE).then_some(Bins { low, scale, count })
    }

    /// The bin of a gap is the integer part of its place: monotone, whatever is rounded.
    #[inline(always)]
    pub(super) fn place<L: Lanes>(&self, lanes: L, gap: L::F) -> L::F {
        let at = lanes.mul(lanes.sub(gap, lanes.splat(self.low)), lanes.splat(self.scale));
        lanes.min(lanes.max(at, lanes.splat(0.0)), lanes.splat(self.count as f32))
    }

    /// No gap of bin `bin` (but a gap below all bins) is smaller than this.
    #[inline(always)]
    fn low_edge(&self, bin: usize) -> f32 {
        self.low + bin as f32 / self.scale * (1.0 - 1e-6)
    }

    /// No gap of bin `bin` is larger than this.
    #[inline(always)]
    fn high_edge(&self, bin: usize) -> f32 {
        self.low + (bin + 1) as f32 / self.scale * (1.0 + 1e-6)
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
    bounds: Vec<f32>,
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
        through.clear();
        through.resize(bins.count, 0);
        let max = search.max;
        let mut add = |tables: &[u32]| {
            for table in tables.chunks_exact(TABLE) {
                through.iter_mut().zip(table).for_each(|(sum, &count)| *sum += u64::from(count));
            }
        };
        let count = |scores, tables: &mut Vec<u32>| {
            tables.clear();
            tables.resize(TABLES * TABLE, 0);
            row.set.run(Count { scores, max, bins, tables });
        };
        if row.split {
            let of_chunk = |scores| {
                let mut tables = Vec::new();
                count(scores, &mut tables);
                tables
            };
            row.each(of_chunk, |tables| add(&tables));
        } else {
            // No count of a table overflows.
            for part in row.scores.chunks(1 << 31) {
                count(part, tables);
                add(tables);
            }
        }
        row.set.run(Bound { bins, before, through, bounds, search })
    }
}

struct Count<'a, T> {
    scores: &'a [T],
    max: f32,
    bins: &'a Bins,
    tables: &'a mut [u32],
}

impl<T: Element> Work for Count<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Count { scores, max, bins, tables } = self;
        let (a, rest) = tables.split_at_mut(TABLE);
        let (b, rest) = rest.split_at_mut(TABLE);
        let (c, d) = rest.split_at_mut(TABLE);
        let [a, b, c, d]: [&mut [u32; TABLE]; TABLES] =
            [a, b, c, d].map(|table| table.try_into().expect("as long as it is cut"));
        let (blocks, tail) = scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        let mut at = [0; WIDTH];
        for block in blocks.iter().chain([&last]) {
            for v in vectors(lanes, block) {
                lanes.truncate(bins.place(lanes, lanes.sub(lanes.splat(max), v)), &mut at);
                for j in [0, 4, 8, 12] {
                    a[at[j] as usize % TABLE] += 1;
                    b[at[j + 1] as usize % TABLE] += 1;
                    c[at[j + 2] as usize % TABLE] += 1;
                    d[at[j + 3] as usize % TABLE] += 1;
                }
            }
        }
    }
}

/// ln within 1.3e-6 (all counts to 2^24, 2026-11-25), in operations that a compiler makes lanes of.
#[inline(always)]
fn ln_bound(count: f32) -> f32 {
    let bits = count.to_bits();
    let exponent = bits.wrapping_sub(0x3f3504f3) as i32 >> 23;
    let t = f32::from_bits(bits.wrapping_sub((exponent as u32) << 23)) - 1.0;
    let q = 0.11827416718006134;
    let q = q * t - 0.18901965022087097;
    let q = q * t + 0.20604684948921204;
    let q = q * t - 0.24881340563297272;
    let q = q * t + 0.3330329656600952;
    let q = q * t - 0.5000196695327759;
    let q = q * t + 1.0000032186508179;
    exponent as f32 * std::f32::consts::LN_2 + q * t
}

/// What `ln_bound` may be off by, with room for a count, a resolve below log n and an edge rounded to f32.
const LN_ERROR: f32 = 2e-5;

struct Bound<'a> {
    bins: &'a Bins,
    before: u64,
    /// In: gaps in every bin. Out: gaps through every bin.
    through: &'a mut [u64],
    bounds: &'a mut Vec<f32>,
    search: &'a mut Search,
}

impl Work for Bound<'_> {
    type Out = Hull;
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> Hull {
        let Bound { bins, before, through, bounds, search } = self;
        let mut rank = before;
        bounds.clear();
        for count in through.iter_mut() {
            rank += *count;
            *count = rank;
            bounds.push(rank as f32);
        }
        let resolve = search.resolve as f32;
        let mut attained = 0.0f32;
        for (bin, bound) in bounds.iter_mut().enumerate() {
            *bound = ln_bound(*bound) - resolve;
            let lower = (*bound - LN_ERROR) / bins.high_edge(bin);
            attained = if lower > attained { lower } else { attained };
        }
        // Not the attained ratio itself, which is rounded: what it certainly exceeds.
        search.attained = search.attained.max(f64::from(attained) * (1.0 - 1e-6));
        let needed = search.attained as f32 * (1.0 - 1e-6);
        let can_win = |bin: usize| bounds[bin] + LN_ERROR >= needed * bins.low_edge(bin);
        let filled = |bin: usize| through[bin] > if bin == 0 { before } else { through[bin - 1] };
        let mut wins = (0..bounds.len()).filter(|&bin| can_win(bin) && filled(bin));
        let first = wins.next().unwrap_or(0);
        let last = wins.next_back().unwrap_or(first);
        let before = if first == 0 { before } else { through[first - 1] };
        Hull { first, last, before, inside: through[last] - before }
    }
}
