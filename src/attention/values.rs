//! The values of a bundle: a gather of the vectors that are read, weighted by the probabilities of each row.
//!
//! Positions fall into fixed chunks. Within a chunk, a row adds its values in the order of positions, by f32
//! fused multiply-adds. The sums of chunks are added in order in f64. So no bit depends on the threads, on
//! the instruction set, or on where pages lie.

use super::cursor::{Cursor, request};
use super::selection::{EXACT, mass, padded};
use super::views::DIMS;
use crate::Element;
use crate::cpu::{BLOCK, Lanes, WIDTH, Work, load_block};
use std::ops::Range;

/// Positions of a chunk. With 4,096, two threads could not share 8,192 keys evenly.
pub(super) const CHUNK: usize = 1024;
/// Keys of a tile, which are those of one head.
const TILE: usize = 128;
/// Vectors of copied values: those of 256 f32 elements take 16 KiB.
const COPIED: usize = 16;

/// The keys that one row sees, counted from the bundle's first key. A row without probabilities sees none.
pub(super) type Seen = Range<usize>;

/// What a chunk holds for one row besides the sum of its values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// Masses that stayed unread: an exact integer.
    pub dropped: f64,
    /// The same masses, each times the radius of its page.
    pub weighted: f64,
    pub kept: u64,
    pub left: u64,
}

/// The probabilities and masses of a bundle.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    /// One row after another, `stride` apart: first the rows of the first head, then those of each that
    /// follows.
    pub probs: &'a [f32],
    pub stride: usize,
    pub seen: &'a [Seen],
    /// One head after another, `stride` apart. It is empty if every head reads all.
    pub masses: &'a [f32],
    /// For each head the smallest mass that is read. It is 0 where every value is read.
    pub cuts: &'a [f32],
}

impl Kept<'_> {
    fn rows(&self) -> usize {
        self.seen.len() / self.cuts.len()
    }

    fn seen_by(&self, head: usize) -> &[Seen] {
        &self.seen[head * self.rows()..][..self.rows()]
    }

    /// The masses of some keys of a head.
    fn masses(&self, head: usize, keys: Range<usize>) -> &[f32] {
        &self.masses[head * self.stride..][keys]
    }
}

/// Keys of one head whose values are read.
struct Tile<'a, T> {
    /// Places in the tile.
    keys: [u16; TILE + WIDTH],
    /// Where the tile begins.
    start: usize,
    /// Their values, where elements are neighbours.
    values: [&'a [T]; TILE],
    count: usize,
}

/// Some of a tile, and the rows that see it.
struct Seers<'a, T> {
    keys: &'a [u16],
    start: usize,
    values: &'a [&'a [T]],
    rows: &'a [u32],
    /// The values to request meanwhile.
    next: &'a [&'a [T]],
}

/// Adds the values of one chunk.
pub(super) struct AddValues<'a, 'b, T: Element> {
    pub values: Cursor<'a, T>,
    /// The position of the bundle's first key.
    pub first: usize,
    /// The chunk, counted from the bundle's first key.
    pub keys: Range<usize>,
    pub kept: Kept<'b>,
    /// Where the keys end whose values this thread adds next.
    pub ahead: usize,
    /// The radius of each page for the first head, and the number of heads in a page.
    pub radii: Option<(&'b [f32], usize)>,
    /// For each row a sum of whole blocks, as [`element_of`](crate::cpu::element_of) lays them out.
    pub sums: &'b mut [f32],
    pub tallies: &'b mut [Tally],
}

impl<'a, T: Element> Work for AddValues<'a, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let Range { start, end } = self.keys.clone();
        let heads = self.kept.cuts.len();
        let mut cursor = self.values;
        let new = || Tile { keys: [0; TILE + WIDTH], start: 0, values: [&[]; TILE], count: 0 };
        let (mut now, mut next) = (&mut new(), &mut new());
        let mut rows = [0u32; super::call::MAX_ROWS];
        self.find(lanes, &mut cursor, start..(start + TILE).min(end), 0, next);
        // The heads take turns, because a page holds the values of all of them.
        for at in (start..end).step_by(TILE) {
            let keys = at..(at + TILE).min(end);
            for head in 0..heads {
                std::mem::swap(&mut now, &mut next);
                if head + 1 < heads {
                    self.find(lanes, &mut cursor, keys.clone(), head + 1, next);
                } else {
                    let end = if keys.end < end { end } else { self.ahead };
                    let following = keys.end..(keys.end + TILE).min(end);
                    self.find(lanes, &mut cursor, following, 0, next);
                }
                self.add(lanes, keys.clone(), head, now, next, &mut rows);
            }
        }
    }
}

impl<'a, T: Element> AddValues<'a, '_, T> {
    /// Finds the keys of a head whose values are read.
    #[inline(always)]
    fn find<L: Lanes>(
        &self,
        lanes: L,
        cursor: &mut Cursor<'a, T>,
        keys: Range<usize>,
        head: usize,
        to: &mut Tile<'a, T>,
    ) {
        to.count = 0;
        // Values that nobody sees are not read.
        let seen = self.kept.seen_by(head).iter().filter(|seen| !seen.is_empty());
        let (first, last) = seen.fold((usize::MAX, 0), |(a, b), seen| (a.min(seen.start), b.max(seen.end)));
        let keys = keys.start.max(first)..keys.end.min(last);
        if keys.is_empty() {
            return;
        }
        let contiguous = cursor.is_contiguous();
        to.start = keys.start;
        if self.kept.cuts[head] == 0.0 {
            to.count = keys.len();
            to.keys.iter_mut().enumerate().for_each(|(key, to)| *to = key as u16);
            if contiguous {
                cursor.vectors(self.first + keys.start, head, &mut to.values[..keys.len()]);
            }
            return;
        }
        let cut = lanes.splat(self.kept.cuts[head]);
        let (blocks, tail) = self.kept.masses(head, keys.clone()).as_chunks::<WIDTH>();
        // A mass of 0 is below every cut.
        let last = padded(tail, 0.0);
        // Branches on single keys would be guessed wrong.
        let (mut these, mut kept) = ([0.0; WIDTH], [0.0; WIDTH]);
        these.iter_mut().enumerate().for_each(|(j, this)| *this = j as f32);
        let mut these = lanes.load(&these);
        for masses in blocks.iter().chain([&last]) {
            let count = lanes.compress(these, lanes.ge(lanes.load(masses), cut), &mut kept);
            let room = to.keys[to.count..].first_chunk_mut().expect("a tile has room for a vector behind it");
            lanes.truncate(lanes.load(&kept), room);
            to.count += count;
            these = lanes.add(these, lanes.splat(WIDTH as f32));
        }
        if contiguous {
            for (value, &key) in to.values.iter_mut().zip(&to.keys[..to.count]) {
                *value = cursor.vector(self.first + to.start + usize::from(key), head);
            }
        }
    }

    /// Adds the values of a tile to the rows that see them.
    #[inline(always)]
    fn add<L: Lanes>(
        &mut self,
        lanes: L,
        keys: Range<usize>,
        head: usize,
        now: &Tile<'a, T>,
        next: &Tile<'a, T>,
        rows: &mut [u32],
    ) {
        let (mut at, mut done, mut next) = (keys.start, 0, &next.values[..next.count]);
        if !self.values.is_contiguous() {
            next = &[];
        }
        while at < keys.end {
            // The rows that see a key change where one of them begins or ends.
            let seen = self.kept.seen_by(head);
            let borders = seen.iter().flat_map(|seen| [seen.start, seen.end]);
            let border = borders.filter(|&border| border > at).min().unwrap_or(keys.end).min(keys.end);
            let mut count = 0;
            for (row, _) in seen.iter().enumerate().filter(|(_, seen)| seen.contains(&at)) {
                rows[count] = (head * seen.len() + row) as u32;
                count += 1;
            }
            let rows = &rows[..count];
            let upto = done
                + now.keys[done..now.count].partition_point(|&key| now.start + usize::from(key) < border);
            if count > 0 {
                let (kept, left) = (upto - done, border - at - (upto - done));
                if left > 0 {
                    self.tally(lanes, at..border, head, rows);
                }
                for &row in rows {
                    let tally = &mut self.tallies[row as usize];
                    tally.kept += kept as u64;
                    tally.left += left as u64;
                }
                let (keys, values) = (&now.keys[done..upto], &now.values[done..upto]);
                self.add_values(lanes, head, Seers { keys, start: now.start, values, rows, next });
                next = &[];
            }
            (at, done) = (border, upto);
        }
    }

    /// Sums the masses that stay unread.
    #[inline(always)]
    fn tally<L: Lanes>(&mut self, lanes: L, keys: Range<usize>, head: usize, rows: &[u32]) {
        let mut radii = [0.0f32; TILE + WIDTH];
        if let Some((of_pages, heads)) = self.radii {
            let mut cursor = self.values;
            for (radius, key) in radii.iter_mut().zip(keys.clone()) {
                *radius = of_pages[cursor.page(self.first + key) * heads + head];
            }
        }
        // Below such a cut, f32 holds the sum over a tile exactly.
        let is_small = self.kept.cuts[head] * (TILE / WIDTH + 1) as f32 <= EXACT;
        let cut = lanes.splat(self.kept.cuts[head]);
        for &row in rows {
            let row = row as usize;
            let probs = &self.kept.probs[row * self.kept.stride..][keys.clone()];
            let masses = self.kept.masses(head, keys.clone());
            let (mut dropped, mut weighted) = (lanes.zero(), [0.0f64; WIDTH]);
            let (probs, probs_tail) = probs.as_chunks::<WIDTH>();
            let (masses, masses_tail) = masses.as_chunks::<WIDTH>();
            // What lies behind the end counts as read.
            let last = (padded(probs_tail, 0.0), padded(masses_tail, f32::INFINITY));
            let blocks = probs.iter().zip(masses).chain([(&last.0, &last.1)]);
            let mut sum = lanes.splat(0.0);
            for ((p, m), radii) in blocks.zip(radii.as_chunks::<WIDTH>().0) {
                let is_read = lanes.ge(lanes.load(m), cut);
                let own = lanes.select(is_read, lanes.splat(0.0), mass(lanes, lanes.load(p)));
                if is_small {
                    sum = lanes.add(sum, own);
                } else {
                    dropped = lanes.accumulate(dropped, own);
                }
                if self.radii.is_some() {
                    let mut own_masses = [0.0; WIDTH];
                    lanes.store(own, &mut own_masses);
                    for j in 0..WIDTH {
                        // An infinite radius of a page must not meet a mass of 0.
                        let add = f64::from(own_masses[j]) * f64::from(radii[j]);
                        weighted[j] += if own_masses[j] > 0.0 { add } else { 0.0 };
                    }
                }
            }
            dropped = lanes.accumulate(dropped, sum);
            let tally = &mut self.tallies[row];
            tally.dropped += lanes.sums(dropped).into_iter().sum::<f64>();
            tally.weighted += weighted.into_iter().sum::<f64>();
        }
    }

    #[inline(always)]
    fn add_values<L: Lanes>(&mut self, lanes: L, head: usize, seers: Seers<T>) {
        if self.values.is_contiguous() {
            return self.add_tile(lanes, seers);
        }
        let mut room = [T::zeroed(); COPIED * *DIMS.end()];
        let (mut cursor, dim) = (self.values, self.values.dim());
        for keys in seers.keys.chunks(COPIED) {
            for (&key, to) in keys.iter().zip(room.chunks_exact_mut(dim)) {
                cursor.copy(self.first + seers.start + usize::from(key), head, to);
            }
            let mut values: [&[T]; COPIED] = [&[]; COPIED];
            values.iter_mut().zip(room.chunks_exact(dim)).for_each(|(to, from)| *to = from);
            self.add_tile(lanes, Seers { keys, values: &values, ..seers });
        }
    }

    #[inline(always)]
    fn add_tile<L: Lanes>(&mut self, lanes: L, Seers { keys, start, values, rows, mut next }: Seers<T>) {
        let dim = self.values.dim();
        let (whole, blocks) = (dim / BLOCK, dim.div_ceil(BLOCK));
        for rows in rows.chunks(4) {
            let mut at = 0;
            while at < blocks {
                let of = Seers { keys, start, values, rows, next };
                let done;
                (done, next) = match (rows.len(), whole - at) {
                    (1, 0) => self.block::<L, 1, 1, true>(lanes, of, at),
                    (2, 0) => self.block::<L, 2, 1, true>(lanes, of, at),
                    (3, 0) => self.block::<L, 3, 1, true>(lanes, of, at),
                    (_, 0) => self.block::<L, 4, 1, true>(lanes, of, at),
                    (1, 4..) => self.block::<L, 1, 4, false>(lanes, of, at),
                    (2, 4..) => self.block::<L, 2, 4, false>(lanes, of, at),
                    (1, 2..) => self.block::<L, 1, 2, false>(lanes, of, at),
                    (2, 2..) => self.block::<L, 2, 2, false>(lanes, of, at),
                    (3, 2..) => self.block::<L, 3, 2, false>(lanes, of, at),
                    (4, 2..) => self.block::<L, 4, 2, false>(lanes, of, at),
                    (1, _) => self.block::<L, 1, 1, false>(lanes, of, at),
                    (2, _) => self.block::<L, 2, 1, false>(lanes, of, at),
                    (3, _) => self.block::<L, 3, 1, false>(lanes, of, at),
                    (_, _) => self.block::<L, 4, 1, false>(lanes, of, at),
                };
                at += done;
            }
        }
        next.iter().for_each(|vector| request(lanes, vector));
    }

    /// Adds B blocks of each value to H rows, from block `at` on; END if it is the end of a head. Returns B,
    /// and what is left to request.
    #[inline(always)]
    fn block<'n, L: Lanes, const H: usize, const B: usize, const END: bool>(
        &mut self,
        lanes: L,
        Seers { keys, start, values, rows, mut next }: Seers<'n, T>,
        at: usize,
    ) -> (usize, &'n [&'n [T]]) {
        let padded = self.values.dim().next_multiple_of(BLOCK);
        let mut probs: [&[f32]; H] = [&[]; H];
        let mut sums = [[[lanes.splat(0.0); 2]; B]; H];
        for h in 0..H {
            let row = rows[h] as usize;
            let row_probs = &self.kept.probs[row * self.kept.stride..][..self.kept.stride];
            probs[h] = &row_probs[start..row_probs.len().min(start + TILE)];
            let from = &self.sums[row * padded + at * BLOCK..].as_chunks::<WIDTH>().0[..2 * B];
            for b in 0..B {
                sums[h][b] = [lanes.load(&from[2 * b]), lanes.load(&from[2 * b + 1])];
            }
        }
        for (&key, value) in keys.iter().zip(values) {
            if let Some((first, rest)) = next.split_first() {
                request(lanes, first);
                next = rest;
            }
            let mut end = [[T::zeroed(); BLOCK]; B];
            let value = match END {
                true => {
                    let rest = value.as_chunks::<BLOCK>().1;
                    end[0][..rest.len()].copy_from_slice(rest);
                    &end[..]
                }
                false => &value[at * BLOCK..].as_chunks::<BLOCK>().0[..B],
            };
            let mut factors = [lanes.splat(0.0); H];
            for h in 0..H {
                factors[h] = lanes.splat(probs[h][usize::from(key)]);
            }
            for b in 0..B {
                let halves = load_block(lanes, &value[b]);
                for h in 0..H {
                    for half in 0..2 {
                        sums[h][b][half] = lanes.fma(factors[h], halves[half], sums[h][b][half]);
                    }
                }
            }
        }
        for h in 0..H {
            let row = rows[h] as usize;
            let to = &mut self.sums[row * padded + at * BLOCK..].as_chunks_mut::<WIDTH>().0[..2 * B];
            for b in 0..B {
                lanes.store(sums[h][b][0], &mut to[2 * b]);
                lanes.store(sums[h][b][1], &mut to[2 * b + 1]);
            }
        }
        (B, next)
    }
}
