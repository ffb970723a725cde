//! The scores of a group: one pass over its keys, for all its rows.
//!
//! A score has one definition on every machine. Elements become f32. Element i goes to the partial sum i mod
//! 16 by a fused multiply-add, in order; a head that ends within 16 elements is padded with zeros. The
//! partial sums are added as a tree: each step adds the upper half to the lower half. The sum is multiplied
//! by the scale in f64 and rounded once.

use super::cursor::Cursor;
use super::views::DIMS;
use crate::cpu::{Lanes, WIDTH, Work, exp, load};
use crate::{DType, Element};

/// Keys that one step reads: with 256 elements each they take half of a first cache.
const STEP: usize = 16;
/// How many steps ahead keys are requested.
const AHEAD: usize = 3;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Scores below this would read as masked.
const BORDER: f32 = DType::F32.masked_below() as f32;

/// What turns a product into a score.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    pub scale: f64,
    pub softcap: Option<f64>,
}

/// Writes the scores of the keys from `from` on. There is one slice of scores for each row, all of one
/// length.
pub(super) struct ScoreKeys<'a, 'b, 'c, T: Element> {
    pub keys: Cursor<'a, T>,
    pub from: usize,
    /// The query of each row, padded to whole vectors.
    pub queries: &'b [[f32; WIDTH]],
    pub finish: Finish,
    pub out: &'b mut [&'c mut [f32]],
}

impl<'a, T: Element> Work for ScoreKeys<'a, '_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let ScoreKeys { mut keys, from, queries, finish, out } = self;
        let len = out.first().map_or(0, |row| row.len());
        if len == 0 {
            return;
        }
        let dim = keys.dim();
        let vectors = dim.div_ceil(WIDTH);
        let mut room = [T::zeroed(); STEP * *DIMS.end()];
        let contiguous = keys.is_contiguous();
        // The keys of this step and of those that follow, which are requested meanwhile.
        let any = if contiguous { keys.vector(from) } else { &[] };
        let mut steps: [[&[T]; STEP]; AHEAD + 1] = [[any; STEP]; AHEAD + 1];
        let find = |keys: &mut Cursor<'a, T>, at: usize, to: &mut [&'a [T]; STEP]| {
            keys.vectors(from + at, &mut to[..STEP.min(len.saturating_sub(at))]);
        };
        if contiguous {
            for (step, to) in steps.iter_mut().enumerate().take(AHEAD) {
                find(&mut keys, step * STEP, to);
            }
        }
        for at in (0..len).step_by(STEP) {
            let count = STEP.min(len - at);
            let mut k: [&[T]; STEP];
            if contiguous {
                let step = at / STEP;
                find(&mut keys, at + AHEAD * STEP, &mut steps[(step + AHEAD) % (AHEAD + 1)]);
                k = steps[step % (AHEAD + 1)];
            } else {
                if let Some((columns, apart)) = keys.columns(from + at).filter(|_| count == STEP) {
                    for (query, row) in queries.chunks_exact(vectors).zip(&mut *out) {
                        side_by_side(lanes, query, columns, apart, dim, finish, &mut row[at..]);
                    }
                    continue;
                }
                k = [&[]; STEP];
                for (j, (k, to)) in k.iter_mut().zip(room.chunks_exact_mut(dim)).take(count).enumerate() {
                    keys.copy(from + at + j, to);
                    *k = to;
                }
            }
            // Behind the last key it stands again, and its scores are not stored.
            let last = k[count - 1];
            k[count..].fill(last);
            let next = if contiguous { &steps[(at / STEP + AHEAD) % (AHEAD + 1)] } else { &k };
            let turns = out.len().div_ceil(4);
            for (turn, out) in out.chunks_mut(4).enumerate() {
                let step = Step { queries: &queries[4 * turn * vectors..], keys: &k, next, turn, turns };
                let place = Place { at, count, finish };
                match out.len() {
                    1 => step.score::<L, 1, 16>(lanes, out, place),
                    2 => step.score::<L, 2, 8>(lanes, out, place),
                    3 => step.score::<L, 3, 4>(lanes, out, place),
                    _ => step.score::<L, 4, 4>(lanes, out, place),
                }
            }
        }
    }
}

/// Scores the sixteen keys that lie side by side, `apart` elements from one to the next element of each.
#[inline(always)]
fn side_by_side<L: Lanes, T: Element>(
    lanes: L,
    query: &[[f32; WIDTH]],
    columns: &[T],
    apart: usize,
    dim: usize,
    finish: Finish,
    to: &mut [f32],
) {
    // Here a vector holds one partial sum of sixteen keys.
    let mut sums = [lanes.splat(0.0); WIDTH];
    for (c, query) in query.iter().enumerate() {
        for (j, sum) in sums.iter_mut().enumerate() {
            let e = c * WIDTH + j;
            let key = match e < dim {
                true => {
                    load(lanes, columns[e * apart..].first_chunk().expect("sixteen keys are side by side"))
                }
                false => lanes.splat(0.0),
            };
            *sum = lanes.fma(lanes.splat(query[j]), key, *sum);
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

/// Sixteen keys and up to four rows.
struct Step<'a, T> {
    queries: &'a [[f32; WIDTH]],
    keys: &'a [&'a [T]; STEP],
    /// The keys to request meanwhile.
    next: &'a [&'a [T]; STEP],
    /// Which rows these are, of how many times four: each requests some of the keys.
    turn: usize,
    turns: usize,
}

impl<T: Element> Step<'_, T> {
    /// Scores the keys for the H rows of `out`, N keys at once.
    #[inline(always)]
    fn score<L: Lanes, const H: usize, const N: usize>(
        &self,
        lanes: L,
        out: &mut [&mut [f32]],
        Place { at, count, finish }: Place,
    ) {
        for j in 0..count.div_ceil(N) {
            let mut scores = [0.0; WIDTH];
            let requests = j % self.turns == self.turn;
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
        let (whole, vectors) = (dim / WIDTH, dim.div_ceil(WIDTH));
        // One length for all lets the compiler drop the checks of the loop.
        let mut q: [&[[f32; WIDTH]]; H] = [&[]; H];
        for (h, q) in q.iter_mut().enumerate() {
            *q = &self.queries[h * vectors..][..vectors];
        }
        let mut k: [&[[T; WIDTH]]; N] = [&[]; N];
        for (k, key) in k.iter_mut().zip(keys) {
            *k = &key.as_chunks::<WIDTH>().0[..whole];
        }
        let lines = next[0].len() / WIDTH;
        let mut n: [&[[T; WIDTH]]; N] = [&[]; N];
        for (n, next) in n.iter_mut().zip(next) {
            *n = &next.as_chunks::<WIDTH>().0[..lines];
        }
        let mut sums = [lanes.splat(0.0); WIDTH];
        for c in 0..whole {
            if requests && c < lines && c % (LINE / (WIDTH * size_of::<T>())) == 0 {
                for next in n {
                    lanes.prefetch(&next[c]);
                }
            }
            let mut factors = [lanes.splat(0.0); H];
            for h in 0..H {
                factors[h] = lanes.load(&q[h][c]);
            }
            for i in 0..N {
                let key = load(lanes, &k[i][c]);
                for h in 0..H {
                    sums[h * N + i] = lanes.fma(factors[h], key, sums[h * N + i]);
                }
            }
        }
        if whole < vectors {
            for i in 0..N {
                let mut last = [T::zeroed(); WIDTH];
                // A head has a multiple of 8 elements.
                if let (Some(to), Some(end)) = (last.first_chunk_mut::<8>(), keys[i].last_chunk::<8>()) {
                    *to = *end;
                }
                let key = load(lanes, &last);
                for h in 0..H {
                    sums[h * N + i] = lanes.fma(lanes.load(&q[h][whole]), key, sums[h * N + i]);
                }
            }
        }
        sums
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
