//! The values of a group: a gather of the vectors that are read, weighted by the probabilities of each row.
//!
//! Positions fall into fixed chunks. Within a chunk, a row adds its values in the order of positions, by f32
//! fused multiply-adds. The sums of chunks are added in order in f64. So no bit depends on the threads, on
//! the instruction set, or on where pages lie.

use super::cursor::Cursor;
use super::selection::mass;
use super::views::DIMS;
use crate::Element;
use crate::cpu::{Lanes, WIDTH, Work, load};
use std::ops::Range;

/// Positions of a chunk. With 4,096, two threads could not share 8,192 keys evenly.
pub(super) const CHUNK: usize = 1024;
/// Vectors that are added in one run, and how many are requested ahead.
const TILE: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Vectors of copied values: those of 256 elements take a third of a first cache.
const COPIED: usize = 16;

/// The keys that one row sees, counted from the group's first key. A row without probabilities sees none.
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

/// The probabilities and masses of a group.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    /// One row after another, `stride` apart.
    pub probs: &'a [f32],
    pub stride: usize,
    pub seen: &'a [Seen],
    /// Empty if every value is read.
    pub masses: &'a [f32],
    pub cut: f32,
}

/// Keys whose values are added in one run.
struct Tile<'a, T> {
    list: &'a [u32],
    values: &'a [&'a [T]; TILE],
    /// The values to request meanwhile.
    next: &'a [&'a [T]; TILE],
}

/// Up to four rows, and a part of every value.
#[derive(Clone, Copy)]
struct Part<'a> {
    rows: &'a [u16],
    /// Elements of a row's sums.
    padded: usize,
    at: usize,
    /// The first of the next values to request, and the distance to the others.
    due: usize,
    every: usize,
}

/// Adds the values of one chunk.
pub(super) struct AddValues<'a, 'b, T: Element> {
    pub values: Cursor<'a, T>,
    /// The position of the group's first key.
    pub first: usize,
    /// The chunk, counted from the group's first key.
    pub keys: Range<usize>,
    pub kept: Kept<'b>,
    /// Where the keys end whose values this thread adds next.
    pub ahead: usize,
    /// The radius of each page for this head, `kv_heads` apart.
    pub radii: Option<(&'b [f32], usize)>,
    /// For each row a sum of whole vectors.
    pub sums: &'b mut [f32],
    pub tallies: &'b mut [Tally],
}

impl<T: Element> Work for AddValues<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let Range { start, end } = self.keys.clone();
        let mut at = start;
        while at < end {
            // The rows that see a key change where one of them begins or ends.
            let borders = self.kept.seen.iter().flat_map(|seen| [seen.start, seen.end]);
            let next = borders.filter(|&border| border > at).min().unwrap_or(end).min(end);
            let seers = self.kept.seen.iter().enumerate().filter(|(_, seen)| seen.contains(&at));
            let (mut rows, mut count) = ([0u16; super::call::MAX_ROWS], 0);
            for (row, _) in seers {
                rows[count] = row as u16;
                count += 1;
            }
            // Values that nobody sees are not read.
            if count > 0 {
                self.segment(lanes, at..next, &rows[..count]);
            }
            at = next;
        }
    }
}

/// The end of a row as a whole vector, with `value` behind it.
#[inline(always)]
fn padded(tail: &[f32], value: f32) -> [f32; WIDTH] {
    let mut last = [value; WIDTH];
    last[..tail.len()].copy_from_slice(tail);
    last
}

impl<T: Element> AddValues<'_, '_, T> {
    /// Adds the values of keys that all of `rows` see, and no other row does.
    #[inline(always)]
    fn segment<L: Lanes>(&mut self, lanes: L, keys: Range<usize>, rows: &[u16]) {
        let (mut list, mut count) = ([0u32; CHUNK + TILE], 0);
        self.collect(lanes, keys.clone(), &mut list, &mut count);
        let left = keys.len() - count;
        if left > 0 {
            self.tally(lanes, keys.clone(), rows);
        }
        for &row in rows {
            let tally = &mut self.tallies[usize::from(row)];
            tally.kept += count as u64;
            tally.left += left as u64;
        }
        // Then the first values of the next chunk are requested with the last ones of this.
        let mut requested = count;
        let following = keys.end..(keys.end + CHUNK).min(self.ahead);
        self.collect(lanes, following, &mut list[..count + TILE], &mut requested);
        self.add(lanes, &list[..requested], count, rows);
    }

    /// Lists the keys whose values are read, while there is room.
    #[inline(always)]
    fn collect<L: Lanes>(&self, lanes: L, keys: Range<usize>, list: &mut [u32], count: &mut usize) {
        if self.kept.masses.is_empty() {
            for (to, key) in list[*count..].iter_mut().zip(keys) {
                *to = key as u32;
                *count += 1;
            }
            return;
        }
        let cut = lanes.splat(self.kept.cut);
        let (blocks, tail) = self.kept.masses[keys.start..keys.end.max(keys.start)].as_chunks::<WIDTH>();
        // A mass of 0 is below every cut.
        let last = padded(tail, 0.0);
        for (i, masses) in blocks.iter().chain([&last]).enumerate() {
            let mut bits = lanes.bits(lanes.ge(lanes.load(masses), cut));
            while bits != 0 {
                if *count == list.len() {
                    return;
                }
                list[*count] = (keys.start + i * WIDTH) as u32 + bits.trailing_zeros();
                *count += 1;
                bits &= bits - 1;
            }
        }
    }

    /// Sums the masses that stay unread.
    #[inline(always)]
    fn tally<L: Lanes>(&mut self, lanes: L, keys: Range<usize>, rows: &[u16]) {
        let mut radii = [0.0f32; CHUNK + WIDTH];
        if let Some((of_pages, heads)) = self.radii {
            let mut cursor = self.values;
            for (radius, key) in radii.iter_mut().zip(keys.clone()) {
                *radius = of_pages[cursor.page(self.first + key) * heads];
            }
        }
        let cut = lanes.splat(self.kept.cut);
        for &row in rows {
            let row = usize::from(row);
            let probs = &self.kept.probs[row * self.kept.stride..][keys.clone()];
            let masses = &self.kept.masses[keys.clone()];
            let (mut dropped, mut weighted) = (lanes.zero(), [0.0f64; WIDTH]);
            let (probs, probs_tail) = probs.as_chunks::<WIDTH>();
            let (masses, masses_tail) = masses.as_chunks::<WIDTH>();
            // What lies behind the end counts as read.
            let last = (padded(probs_tail, 0.0), padded(masses_tail, f32::INFINITY));
            let blocks = probs.iter().zip(masses).chain([(&last.0, &last.1)]);
            for ((p, m), radii) in blocks.zip(radii.as_chunks::<WIDTH>().0) {
                let is_read = lanes.ge(lanes.load(m), cut);
                let own = lanes.select(is_read, lanes.splat(0.0), mass(lanes, lanes.load(p)));
                dropped = lanes.accumulate(dropped, own);
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
            let tally = &mut self.tallies[row];
            tally.dropped += lanes.sums(dropped).into_iter().sum::<f64>();
            tally.weighted += weighted.into_iter().sum::<f64>();
        }
    }

    #[inline(always)]
    fn add<L: Lanes>(&mut self, lanes: L, list: &[u32], count: usize, rows: &[u16]) {
        let contiguous = self.values.is_contiguous();
        let mut room = [T::zeroed(); COPIED * *DIMS.end()];
        let mut cursor = self.values;
        let dim = cursor.dim();
        let mut next: [&[T]; TILE] = [&[]; TILE];
        let tile = if contiguous { TILE } else { COPIED };
        let tile_at = |at: usize| &list[at.min(list.len())..(at + tile).min(list.len())];
        if contiguous {
            self.find(&mut cursor, tile_at(0), &mut next);
        }
        for at in (0..count).step_by(tile) {
            let (now, ahead) = (&list[at..(at + tile).min(count)], tile_at(at + tile));
            if contiguous {
                let values = next;
                self.find(&mut cursor, ahead, &mut next);
                self.add_tile(lanes, &Tile { list: now, values: &values, next: &next }, rows);
            } else {
                for (&key, to) in now.iter().zip(room.chunks_exact_mut(dim)) {
                    cursor.copy(self.first + key as usize, to);
                }
                let mut values: [&[T]; TILE] = [&[]; TILE];
                values.iter_mut().zip(room.chunks_exact(dim)).for_each(|(to, from)| *to = from);
                self.add_tile(lanes, &Tile { list: now, values: &values, next: &values }, rows);
            }
        }
    }

    /// Finds the vectors of `list`. Where it ends early, what `values` held stays.
    #[inline(always)]
    fn find<'v>(&self, cursor: &mut Cursor<'v, T>, list: &[u32], values: &mut [&'v [T]; TILE]) {
        for (value, &key) in values.iter_mut().zip(list) {
            *value = cursor.vector(self.first + key as usize);
        }
    }

    #[inline(always)]
    fn add_tile<L: Lanes>(&mut self, lanes: L, tile: &Tile<T>, rows: &[u16]) {
        let dim = self.values.dim();
        let (vectors, padded) = (dim / WIDTH, dim.next_multiple_of(WIDTH));
        // Each part requests as many of the next values, so that memory is never idle.
        let every = rows.len().div_ceil(4) * (vectors / if rows.len() > 2 { 4 } else { 8 }).max(1);
        let mut due = 0;
        for rows in rows.chunks(4) {
            let mut at = 0;
            while at < vectors {
                let left = vectors - at;
                let of = Part { rows, padded, at, due, every };
                at += match rows.len() {
                    1 if left >= 8 => self.block::<L, 1, 8>(lanes, tile, of),
                    2 if left >= 8 => self.block::<L, 2, 8>(lanes, tile, of),
                    1 if left >= 4 => self.block::<L, 1, 4>(lanes, tile, of),
                    2 if left >= 4 => self.block::<L, 2, 4>(lanes, tile, of),
                    3 if left >= 4 => self.block::<L, 3, 4>(lanes, tile, of),
                    4 if left >= 4 => self.block::<L, 4, 4>(lanes, tile, of),
                    1 => self.block::<L, 1, 1>(lanes, tile, of),
                    2 => self.block::<L, 2, 1>(lanes, tile, of),
                    3 => self.block::<L, 3, 1>(lanes, tile, of),
                    _ => self.block::<L, 4, 1>(lanes, tile, of),
                };
                due += 1;
            }
            if dim < padded {
                self.ends(lanes, tile, rows, padded);
            }
        }
    }

    /// Adds M vectors of each value to H rows, from vector `at` on. Returns M.
    #[inline(always)]
    fn block<L: Lanes, const H: usize, const M: usize>(
        &mut self,
        lanes: L,
        tile: &Tile<T>,
        Part { rows, padded, at, mut due, every }: Part,
    ) -> usize {
        let mut probs: [&[f32]; H] = [&[]; H];
        let mut sums = [[lanes.splat(0.0); M]; H];
        for h in 0..H {
            let row = usize::from(rows[h]);
            probs[h] = &self.kept.probs[row * self.kept.stride..][..self.kept.stride];
            let from = &self.sums[row * padded + at * WIDTH..].as_chunks::<WIDTH>().0[..M];
            for m in 0..M {
                sums[h][m] = lanes.load(&from[m]);
            }
        }
        for (t, (&key, value)) in tile.list.iter().zip(tile.values).enumerate() {
            if t == due {
                tile.next[t].iter().step_by(LINE / size_of::<T>()).for_each(|line| lanes.prefetch(line));
                due += every;
            }
            let value = &value[at * WIDTH..].as_chunks::<WIDTH>().0[..M];
            let mut factors = [lanes.splat(0.0); H];
            for h in 0..H {
                factors[h] = lanes.splat(probs[h][key as usize]);
            }
            for m in 0..M {
                let v = load(lanes, &value[m]);
                for h in 0..H {
                    sums[h][m] = lanes.fma(factors[h], v, sums[h][m]);
                }
            }
        }
        for h in 0..H {
            let row = usize::from(rows[h]);
            let to = &mut self.sums[row * padded + at * WIDTH..].as_chunks_mut::<WIDTH>().0[..M];
            for m in 0..M {
                lanes.store(sums[h][m], &mut to[m]);
            }
        }
        M
    }

    /// Adds the last 8 elements of each value, where they are half a vector.
    #[inline(always)]
    fn ends<L: Lanes>(&mut self, lanes: L, tile: &Tile<T>, rows: &[u16], padded: usize) {
        for (&key, value) in tile.list.iter().zip(tile.values) {
            let mut last = [T::zeroed(); WIDTH];
            // A head has a multiple of 8 elements.
            if let (Some(to), Some(end)) = (last.first_chunk_mut::<8>(), value.last_chunk::<8>()) {
                *to = *end;
            }
            let v = load(lanes, &last);
            for &row in rows {
                let row = usize::from(row);
                let p = lanes.splat(self.kept.probs[row * self.kept.stride + key as usize]);
                let (sums, _) = self.sums[(row + 1) * padded - WIDTH..].as_chunks_mut::<WIDTH>();
                lanes.store(lanes.fma(p, v, lanes.load(&sums[0])), &mut sums[0]);
            }
        }
    }
}
