//! The scores of a bundle: one pass over the keys of some heads, for all their rows.
//!
//! A score has one definition on every machine. Elements become f32. Each block of 32 elements gives two to
//! each of 16 partial sums, by fused multiply-adds in order: of bf16, elements 2j + 1 and 2j to sum j; of
//! other types, elements j and j + 16. A head that ends within a block is padded with zeros. The partial sums
//! are added as a tree: each step adds the upper half to the lower half. The sum is multiplied by the scale
//! in f64 and rounded once.

use super::cursor::{Cursor, request};
use super::views::DIMS;
use crate::cpu::{BLOCK, Lanes, WIDTH, Work, element_of, exp, load, load_block};
use crate::{DType, Element};

/// Keys of a tile, which are those of one head: with 256 f32 elements each they take 16 KiB.
const TILE: usize = 16;
/// How many tiles ahead keys are requested.
const AHEAD: usize = 3;
/// Scores below this would read as masked.
const BORDER: f32 = DType::F32.masked_below() as f32;

/// What turns a product into a score.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    pub scale: f64,
    pub softcap: Option<f64>,
}

/// Writes the scores of the keys from `from` on. There is one slice of scores for each row, all of one
/// length: first the rows of the first head, which is the cursor's, then those of each that follows.
pub(super) struct ScoreKeys<'a, 'b, 'c, T: Element> {
    pub keys: Cursor<'a, T>,
    pub from: usize,
    pub heads: usize,
    /// The query of each row in whole blocks, as [`element_of`] lays them out.
    pub queries: &'b [[f32; BLOCK]],
    pub finish: Finish,
    pub out: &'b mut [&'c mut [f32]],
}

impl<'a, T: Element> Work for ScoreKeys<'a, '_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let ScoreKeys { mut keys, from, heads, queries, finish, out } = self;
        let len = out.first().map_or(0, |row| row.len());
        if len == 0 {
            return;
        }
        let dim = keys.dim();
        let rows = out.len() / heads;
        let blocks = rows * dim.div_ceil(BLOCK);
        let mut room = [T::zeroed(); TILE * *DIMS.end()];
        let contiguous = keys.is_contiguous();
        // The keys of this tile and of those that follow, which are requested meanwhile. The heads take
        // turns, because a page holds the keys of all of them: to read 8 heads after one another took 1.25
        // times as long (2026-11-29).
        let any = if contiguous { keys.vector(from, 0) } else { &[] };
        let mut tiles: [[&[T]; TILE]; AHEAD + 1] = [[any; TILE]; AHEAD + 1];
        let (mut found, mut due) = (0, (0, 0));
        let mut find = |keys: &mut Cursor<'a, T>, tiles: &mut [[&'a [T]; TILE]; AHEAD + 1]| {
            let (at, head) = due;
            let count = TILE.min(len.saturating_sub(at));
            keys.vectors(from + at, head, &mut tiles[found % (AHEAD + 1)][..count]);
            found += 1;
            due = if head + 1 < heads { (at, head + 1) } else { (at + TILE, 0) };
        };
        if contiguous {
            (0..AHEAD).for_each(|_| find(&mut keys, &mut tiles));
        }
        let mut tile = 0;
        for at in (0..len).step_by(TILE) {
            let count = TILE.min(len - at);
            for (head, (out, queries)) in out.chunks_mut(rows).zip(queries.chunks_exact(blocks)).enumerate() {
                let mut k: [&[T]; TILE];
                if contiguous {
                    find(&mut keys, &mut tiles);
                    k = tiles[tile % (AHEAD + 1)];
                } else {
                    if let Some((columns, apart)) = keys.columns(from + at, head).filter(|_| count == TILE) {
                        for (query, row) in queries.chunks_exact(blocks / rows).zip(&mut *out) {
                            side_by_side(lanes, query, columns, apart, dim, finish, &mut row[at..]);
                        }
                        continue;
                    }
                    k = [&[]; TILE];
                    for (j, (k, to)) in k.iter_mut().zip(room.chunks_exact_mut(dim)).take(count).enumerate() {
                        keys.copy(from + at + j, head, to);
                        *k = to;
                    }
                }
                // Behind the last key it stands again, and its scores are not stored.
                let last = k[count - 1];
                k[count..].fill(last);
                let next = if contiguous { &tiles[(tile + AHEAD) % (AHEAD + 1)] } else { &k };
                tile += 1;
                let place = Place { at, count, finish };
                Tile { queries, keys: &k, next }.score_all(lanes, out, place);
            }
        }
    }
}

/// Scores the sixteen keys that lie side by side, `apart` elements from one to the next element of each.
#[inline(always)]
fn side_by_side<L: Lanes, T: Element>(
    lanes: L,
    query: &[[f32; BLOCK]],
    columns: &[T],
    apart: usize,
    dim: usize,
    finish: Finish,
    to: &mut [f32],
) {
    // Here a vector holds one partial sum of sixteen keys.
    let mut sums = [lanes.splat(0.0); WIDTH];
    for (b, query) in query.iter().enumerate() {
        for (lane, factor) in query.iter().enumerate() {
            let e = b * BLOCK + element_of::<T>(lane);
            let key = match e < dim {
                true => {
                    load(lanes, columns[e * apart..].first_chunk().expect("sixteen keys are side by side"))
                }
                false => lanes.splat(0.0),
            };
            let sum = &mut sums[lane % WIDTH];
            *sum = lanes.fma(lanes.splat(*factor), key, *sum);
        }
    }
    for width in [8, 4, 2, 1] {
        for j in 0..width {
            sums[j] = lanes.add(sums[j], sums[j + width]);
        }
    }
    let mut scores = [0.0; WIDTH];
    lanes.store(sums[0], &mut scores);
    finished(&mut scores, finish);
    to[..WIDTH].copy_from_slice(&scores);
}

/// Where up to sixteen scores go, and what makes them.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    count: usize,
    finish: Finish,
}

/// Sixteen keys of a head.
struct Tile<'a, T> {
    queries: &'a [[f32; BLOCK]],
    keys: &'a [&'a [T]; TILE],
    /// The keys to request meanwhile.
    next: &'a [&'a [T]; TILE],
}

impl<T: Element> Tile<'_, T> {
    /// Scores the keys for every row of the head.
    #[inline(always)]
    fn score_all<L: Lanes>(&self, lanes: L, out: &mut [&mut [f32]], place: Place) {
        let blocks = self.queries.len() / out.len();
        let (mut queries, mut out, mut requests) = (self.queries, out, true);
        while !out.is_empty() {
            // Eight rows widen each key once: 0.93 of the time of two times four for f16 (2026-11-29).
            let rows = if out.len() >= 8 { 8 } else { out.len().min(4) };
            let (here, rest) = std::mem::take(&mut out).split_at_mut(rows);
            let part = Tile { queries, ..*self };
            match rows {
                1 => part.score::<L, 1, 16>(lanes, here, place, requests),
                2 => part.score::<L, 2, 8>(lanes, here, place, requests),
                3 => part.score::<L, 3, 4>(lanes, here, place, requests),
                8 => part.score::<L, 8, 2>(lanes, here, place, requests),
                _ => part.score::<L, 4, 4>(lanes, here, place, requests),
            }
            (queries, out, requests) = (&queries[rows * blocks..], rest, false);
        }
    }

    /// Scores the keys for the H rows of `out`, N keys at once.
    #[inline(always)]
    fn score<L: Lanes, const H: usize, const N: usize>(
        &self,
        lanes: L,
        out: &mut [&mut [f32]],
        Place { at, count, finish }: Place,
        requests: bool,
    ) {
        for j in 0..count.div_ceil(N) {
            let mut scores = [0.0; WIDTH];
            lanes.store(lanes.fold(self.products::<L, H, N>(lanes, j, requests)), &mut scores);
            finished(&mut scores, finish);
            let at = at + j * N;
            for (row, scores) in out[..H].iter_mut().zip(scores.as_chunks::<N>().0) {
                match row[at..].first_chunk_mut::<N>() {
                    Some(to) => *to = *scores,
                    None => {
                        let to = &mut row[at..];
                        to.copy_from_slice(&scores[..to.len()]);
                    }
                }
            }
        }
    }

    /// The partial sums of H rows and the j-th N keys, row after row.
    #[inline(always)]
    fn products<L: Lanes, const H: usize, const N: usize>(
        &self,
        lanes: L,
        j: usize,
        requests: bool,
    ) -> [L::F; WIDTH] {
        let keys = &self.keys.as_chunks::<N>().0[j];
        let next = &self.next.as_chunks::<N>().0[j];
        let dim = keys[0].len();
        let (whole, blocks) = (dim / BLOCK, dim.div_ceil(BLOCK));
        // One length for all lets the compiler drop the checks of the loop.
        let mut q: [&[[f32; BLOCK]]; H] = [&[]; H];
        for (h, q) in q.iter_mut().enumerate() {
            *q = &self.queries[h * blocks..][..blocks];
        }
        let mut k: [&[[T; BLOCK]]; N] = [&[]; N];
        let mut n = k;
        for i in 0..N {
            k[i] = &keys[i].as_chunks().0[..whole];
            n[i] = &next[i].as_chunks().0[..whole];
        }
        let mut sums = [lanes.splat(0.0); WIDTH];
        for b in 0..whole {
            if requests {
                for next in n {
                    request(lanes, &next[b]);
                }
            }
            let mut keys = [&k[0][b]; N];
            for i in 0..N {
                keys[i] = &k[i][b];
            }
            add_block::<L, T, H, N>(lanes, &q, b, keys, &mut sums);
        }
        if whole < blocks {
            let mut last = [[T::zeroed(); BLOCK]; N];
            for i in 0..N {
                let end = keys[i].as_chunks::<BLOCK>().1;
                last[i][..end.len()].copy_from_slice(end);
            }
            add_block::<L, T, H, N>(lanes, &q, whole, last.each_ref(), &mut sums);
        }
        sums
    }
}

/// Adds the products of block `b` of H queries with those of N keys.
#[inline(always)]
fn add_block<L: Lanes, T: Element, const H: usize, const N: usize>(
    lanes: L,
    queries: &[&[[f32; BLOCK]]; H],
    b: usize,
    keys: [&[T; BLOCK]; N],
    sums: &mut [L::F; WIDTH],
) {
    let mut factors = [[lanes.splat(0.0); 2]; H];
    for h in 0..H {
        let halves = queries[h][b].as_chunks::<WIDTH>().0;
        factors[h] = [lanes.load(&halves[0]), lanes.load(&halves[1])];
    }
    for i in 0..N {
        let key = load_block(lanes, keys[i]);
        for half in 0..2 {
            for h in 0..H {
                sums[h * N + i] = lanes.fma(factors[h][half], key[half], sums[h * N + i]);
            }
        }
    }
}

#[inline(always)]
fn finished(scores: &mut [f32; WIDTH], Finish { scale, softcap }: Finish) {
    // The compiler vectorises these plain loops.
    match softcap {
        None => scores.iter_mut().for_each(|s| *s = (f64::from(*s) * scale) as f32),
        Some(cap) => scores.iter_mut().for_each(|s| *s = (cap * tanh(f64::from(*s) * scale / cap)) as f32),
    }
    scores.iter_mut().for_each(|s| *s = if *s >= BORDER { *s } else { f32::NAN });
}

/// tanh within 3e-12 relative, which is 2^-38.
#[inline(always)]
fn tanh(x: f64) -> f64 {
    let far = x.abs();
    let e = exp(-2.0 * far);
    // Near 0, 1 - e loses digits; the next term of the series is 1.4e-13 relative.
    let t = if far < 1e-3 { far - far * far * far / 3.0 } else { (1.0 - e) / (1.0 + e) };
    if x.is_nan() { x } else { t.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_that_of_the_mathematics() {
        for i in -40_000..40_000 {
            let x = f64::from(i) * 1e-3 + 1e-7;
            assert!((tanh(x) / x.tanh() - 1.0).abs() < 3e-12, "{x}");
        }
        assert_eq!((tanh(0.0), tanh(f64::INFINITY), tanh(f64::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(tanh(f64::NAN).is_nan());
    }
}
