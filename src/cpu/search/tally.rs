//! This file counts gaps in bins, and finds the bins that can still win.

use super::bins::{Bins, SMALL_TABLE, TABLE, TABLES};
use super::hull::{Bounds, FindHull, Hull};
use super::state::Search;
use crate::Element;
use crate::cpu::lanes::{Lanes, WIDTH, Work};
use crate::cpu::top::Chunks;
use crate::cpu::weights::{BLOCK, padded, vectors};
use std::hint::black_box;

/// Tables of counts, which every row reuses.
#[derive(Default)]
pub(super) struct Tally {
    tables: Vec<u32>,
    /// Number of gaps through every bin, and 0.
    through: Vec<u64>,
    bounds: Bounds,
}

impl Tally {
    /// Counts the gaps of `row`, after `before` smaller ones, and finds the bins that can still win.
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
            through.resize(bins.count() + 1, 0);
            row.set.run(Count { scores, max, bins, tables, through });
        };
        through.clear();
        if row.split {
            let of_part = |scores| {
                let (mut tables, mut through) = Default::default();
                count(scores, &mut tables, &mut through);
                through
            };
            through.resize(bins.count() + 1, 0);
            row.each_part(of_part, |part| {
                through.iter_mut().zip(part).for_each(|(sum, count)| *sum += count)
            });
        } else {
            // A chunk is short enough that no count of a table overflows.
            row.scores.chunks(1 << 31).for_each(|scores| count(scores, tables, through));
        }
        row.set.run(FindHull { bins, before, through, bounds, search })
    }
}

struct Count<'a, T> {
    scores: &'a [T],
    max: f32,
    bins: &'a Bins,
    /// One element for each count of the tables. The old content does not matter.
    tables: &'a mut [u32],
    /// Number of gaps of every bin, to which these are added, and 0.
    through: &'a mut [u64],
}

impl<T: Element> Work for Count<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.bins.count() < SMALL_TABLE {
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
            [a, b, c, d].map(|table| table.try_into().expect("it has this length"));
        let (blocks, tail) = scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        // Four bins go into one word. Taking them out of a vector lane after lane takes half as long again
        // (2026-11-25).
        let mut at = [0u16; BLOCK];
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            let (to, _) = at.as_chunks_mut::<WIDTH>();
            for j in 0..4 {
                bins.bins(lanes, lanes.sub(lanes.splat(max), v[j]), &mut to[j]);
            }
            // `black_box` keeps the compiler from doing exactly that.
            for at in black_box(&at).as_chunks::<TABLES>().0 {
                a[at[0] as usize % TABLE] += 1;
                b[at[1] as usize % TABLE] += 1;
                c[at[2] as usize % TABLE] += 1;
                d[at[3] as usize % TABLE] += 1;
            }
        }
        for (bin, sum) in through[..bins.count()].iter_mut().enumerate() {
            *sum += u64::from(a[bin] + b[bin] + c[bin] + d[bin]);
        }
    }
}
