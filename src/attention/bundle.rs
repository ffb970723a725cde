//! A bundle: the query heads and tokens of one sequence that share some key heads.

use super::call::{DecodeRow, MASS_ERROR, MASS_ONE, Sequence, Shared, visible};
use super::cursor::Cursor;
use super::scores::{Finish, ScoreKeys};
use super::scratch::{Scratch, reserve};
use super::selection::{Guess, RaiseMasses, SAMPLES};
use super::values::{AddValues, CHUNK, Kept, Seen, Tally};
use super::views::{DIMS, PagedKv, Pages, Queries};
use crate::cpu::{BLOCK, Hands, Lent, Measure, RowReport, WIDTH, Weighed, element_of};
use crate::{Element, Rescaling};
use std::ops::Range;

/// Keys that a thread scores at once where all threads share a bundle.
const CLAIM: usize = 512;
/// The columns of shorter rows are not shared: three hand-overs cost more than they save.
const SHARED_ROW: usize = 1 << 16;

/// A bundle of a checked call. Its rows are those of its first key head, then those of each that follows.
pub(super) struct Bundle<'a, 'b> {
    pub shared: &'b Shared<'a>,
    pub seq: &'b Sequence<'a>,
    pub heads: Range<usize>,
    pub hands: Hands,
}

impl<'a> Bundle<'a, '_> {
    pub(super) fn rows(&self) -> usize {
        self.heads.len() * self.rows_of_head()
    }

    fn rows_of_head(&self) -> usize {
        self.seq.query_len * self.shared.group
    }

    /// The token and the query head of a row.
    fn place(&self, row: usize) -> (usize, usize) {
        let (head, row) = (self.heads.start + row / self.rows_of_head(), row % self.rows_of_head());
        (row / self.shared.group, head * self.shared.group + row % self.shared.group)
    }

    /// The keys that row `row` sees, counted from the bundle's first key.
    pub(super) fn seen(&self, row: usize) -> Seen {
        let Sequence { len, query_len, keys, .. } = self.seq;
        let seen = visible(*len, *query_len, self.place(row).0, self.shared.call.window);
        if seen.is_empty() { 0..0 } else { seen.start - keys.start..seen.end - keys.start }
    }

    pub(super) fn rule(&self, row: usize) -> (&'a Rescaling, u64) {
        let (token, head) = self.place(row);
        let position = (self.seq.len + token).saturating_sub(self.seq.query_len);
        (self.shared.rule(head), position as u64)
    }

    /// Writes the query of each row in f32, as [`element_of`] lays out keys of type T.
    pub(super) fn widen<Q: Element, T: Element>(&self, queries: &Queries<Q>, blocks: &mut [f32]) {
        let dim = queries.dim;
        for (row, to) in blocks.chunks_exact_mut(dim.next_multiple_of(BLOCK)).enumerate() {
            let (token, head) = self.place(row);
            let mut query = [0.0; *DIMS.end()];
            queries.widen(self.seq.token + token, head, &mut query);
            for (to, query) in to.chunks_exact_mut(BLOCK).zip(query.chunks(BLOCK)) {
                to.iter_mut().enumerate().for_each(|(lane, to)| *to = query[element_of::<T>(lane)]);
            }
        }
    }

    /// Writes the scores of every row to `scores`, and returns how far apart rows begin.
    fn score<Q: Element, T: Element>(
        &self,
        queries: &Queries<Q>,
        keys: &Pages<T>,
        room: &mut Vec<f32>,
        scores: &mut Vec<f32>,
    ) -> usize {
        let (rows, span, padded) = (self.rows(), self.seq.keys.len(), keys.dim().next_multiple_of(BLOCK));
        let stride = span.next_multiple_of(WIDTH);
        let blocks = reserve(room, rows * padded);
        self.widen::<Q, T>(queries, blocks);
        let scores = reserve(scores, rows * stride);
        if span == 0 {
            return stride;
        }
        let queries = blocks.as_chunks::<BLOCK>().0;
        let finish = Finish { scale: self.shared.scale, softcap: self.shared.call.softcap };
        let score = |at: usize, out: &mut [&mut [f32]]| {
            let from = self.seq.keys.start + at;
            let keys = Cursor::new(keys, self.seq.ids, self.heads.start, from);
            self.hands.set.run(ScoreKeys { keys, from, heads: self.heads.len(), queries, finish, out });
        };
        let claim = if self.hands.split { CLAIM } else { span };
        let claims = span.div_ceil(claim);
        let mut of_rows: Vec<_> =
            scores.chunks_mut(stride).map(|row| row[..span].chunks_mut(claim)).collect();
        let parts = (0..claims * rows).filter_map(|i| of_rows[i % rows].next());
        let mut parts: Vec<&mut [f32]> = parts.collect();
        self.hands.each(parts.chunks_mut(rows).collect(), |i, out| score(i * claim, out));
        stride
    }

    /// Calls `of` with every row's scores, its number and who works on it, and returns what it finds.
    fn each_row<R: Send>(
        &self,
        scores: &mut [f32],
        stride: usize,
        of: impl Fn(&mut Lent, &mut [f32], usize, Hands) -> R + Sync,
    ) -> Vec<R> {
        let Hands { set, split } = self.hands;
        let rows = self.rows();
        if stride == 0 {
            let mut workspace = Lent::new();
            let alone = Hands { set, split: false };
            return (0..rows).map(|row| of(&mut workspace, &mut [], row, alone)).collect();
        }
        // Rows keep threads busy while there are enough of them.
        let columns = self.shares_columns();
        let one = |workspace: &mut Lent, scores: &mut [f32], row| {
            of(workspace, &mut scores[self.seen(row)], row, Hands { set, split: columns })
        };
        if split && !columns {
            let mut found: Vec<Option<R>> = (0..rows).map(|_| None).collect();
            let parts = scores.chunks_mut(stride).zip(&mut found).collect();
            self.hands.each(parts, |row, (scores, found)| *found = Some(one(&mut Lent::new(), scores, row)));
            found.into_iter().flatten().collect()
        } else {
            let mut workspace = Lent::new();
            scores
                .chunks_mut(stride)
                .enumerate()
                .map(|(row, scores)| one(&mut workspace, scores, row))
                .collect()
        }
    }

    /// Whether all threads share the columns of each row. These loops run inside the thread pool.
    pub(super) fn shares_columns(&self) -> bool {
        let is_long = self.hands.split && self.seq.keys.len() >= SHARED_ROW;
        is_long && self.rows() < rayon::current_num_threads()
    }

    /// The reports of every row. See [`super::measure`].
    pub(super) fn measure<Q: Element, T: Element>(
        &self,
        queries: &Queries<Q>,
        keys: &Pages<T>,
        measure: Measure,
    ) -> Vec<RowReport> {
        Scratch::lend(|scratch| {
            let stride = self.score(queries, keys, &mut scratch.queries, &mut scratch.scores);
            let scores = &mut scratch.scores[..self.rows() * stride];
            self.each_row(scores, stride, |workspace, scores, row, hands| {
                let (rescaling, position) = self.rule(row);
                workspace.report_by(scores, rescaling, position, measure, hands)
            })
        })
    }

    /// The scores of every row.
    pub(super) fn scores<Q: Element, T: Element>(
        &self,
        queries: &Queries<Q>,
        keys: &Pages<T>,
    ) -> Vec<Vec<f32>> {
        Scratch::lend(|scratch| {
            let stride = self.score(queries, keys, &mut scratch.queries, &mut scratch.scores);
            let scores = &mut scratch.scores[..self.rows() * stride];
            self.each_row(scores, stride, |_, scores, _, _| scores.to_vec())
        })
    }

    /// The first score of every row; NaN if it has none.
    pub(super) fn first_scores<Q: Element, T: Element>(
        &self,
        queries: &Queries<Q>,
        keys: &Pages<T>,
    ) -> Vec<f32> {
        Scratch::lend(|scratch| {
            let stride = self.score(queries, keys, &mut scratch.queries, &mut scratch.scores);
            let first = |row| match self.seen(row) {
                seen if seen.is_empty() => f32::NAN,
                seen => scratch.scores[row * stride + seen.start],
            };
            (0..self.rows()).map(first).collect()
        })
    }

    /// Writes the output of every row, and reports on it. See [`super::decode`]. `out` holds, for
    /// each key head, one slice for each query token.
    pub(super) fn decode<Q: Element, T: Element, O: Element>(
        &self,
        queries: &Queries<Q>,
        kv: &PagedKv<T>,
        out: &mut [Vec<&mut [O]>],
    ) -> Vec<DecodeRow> {
        Scratch::lend(|scratch| {
            let stride = self.score(queries, &kv.k, &mut scratch.queries, &mut scratch.scores);
            let scores = &mut scratch.scores[..self.rows() * stride];
            let weighed = self.each_row(scores, stride, |workspace, scores, row, hands| {
                let (rescaling, position) = self.rule(row);
                workspace.weigh(scores, rescaling, position, self.shared.call.measure, hands)
            });
            scratch.seen.clear();
            let has_probs = |(row, weighed): (usize, &Weighed)| {
                if weighed.rest.is_some() { self.seen(row) } else { 0..0 }
            };
            scratch.seen.extend(weighed.iter().enumerate().map(has_probs));
            self.select(scratch, stride);
            self.values(&kv.v, scratch, stride);
            self.finish(&kv.v, scratch, &weighed, out)
        })
    }

    /// Finds the masses of the keys of each head, and the cut. Without a budget there are no masses.
    fn select(&self, scratch: &mut Scratch, stride: usize) {
        let Scratch { scores: probs, masses, cuts, seen, .. } = scratch;
        let set = self.hands.set;
        let span = self.seq.keys.len();
        cuts.clear();
        cuts.resize(self.heads.len(), 0.0);
        if self.shared.budget < 1.0 || span == 0 {
            masses.clear();
            return;
        }
        masses.resize(self.heads.len() * stride, 0.0);
        let of_head = |head: usize, (masses, cut): (&mut [f32], &mut f32)| {
            let rows = head * self.rows_of_head()..(head + 1) * self.rows_of_head();
            let rows = rows.clone().zip(&seen[rows]).filter(|(_, seen)| !seen.is_empty());
            let budget = self.shared.budget;
            // Few keys tell whether a skip can pay. To look at all took 5 to 10 % of a call that then reads
            // every value (2026-11-29). An even step could meet the same slots of every page.
            let step = span.div_ceil(SAMPLES) | 1;
            let mut sampled = [0.0f32; SAMPLES];
            let sampled = &mut sampled[..span.div_ceil(step)];
            for (row, seen) in rows.clone() {
                let (first, mut these) = (seen.start.div_ceil(step), [0.0; SAMPLES]);
                let of_row = probs[row * stride..][..seen.end].iter().step_by(step).skip(first);
                let count = these.iter_mut().zip(of_row).map(|(to, p)| *to = *p).count();
                set.run(RaiseMasses { probs: &these[..count], masses: &mut sampled[first..first + count] });
            }
            let Some(guess) = Guess::of(sampled, step, budget, set) else { return };
            let masses = &mut masses[..span];
            masses.fill(0.0);
            for (row, seen) in rows {
                let masses = &mut masses[seen.clone()];
                set.run(RaiseMasses { probs: &probs[row * stride..][seen.clone()], masses });
            }
            *cut = guess.worthwhile_cut(masses, budget, set).unwrap_or(0.0);
        };
        self.hands.each(masses.chunks_mut(stride).zip(cuts).collect(), of_head);
    }

    /// Sums the values of every row in `scratch.totals`, and what stays unread in `scratch.of_rows`.
    fn values<T: Element>(&self, values: &Pages<T>, scratch: &mut Scratch, stride: usize) {
        let rows = self.rows();
        let padded = values.dim().next_multiple_of(BLOCK);
        let Scratch { scores: probs, masses, cuts, seen, sums, totals, tallies, of_rows, .. } = scratch;
        let kept = Kept { probs: &probs[..rows * stride], stride, seen, masses, cuts };
        let totals = reserve(totals, rows * padded);
        let of_rows = reserve(of_rows, rows);
        totals.fill(0.0);
        of_rows.fill(Tally::default());
        let chunks = self.chunks();
        let at_once = if self.hands.split { chunks.len() } else { chunks.len().min(1) };
        let sums = reserve(sums, at_once * rows * padded);
        let tallies = reserve(tallies, at_once * rows);
        let radii = self.shared.call.v_radius.map(|radii| (&radii[self.heads.start..], self.shared.kv_heads));
        let add = |chunk: usize, sums: &mut [f32], tallies: &mut [Tally]| {
            sums.fill(0.0);
            tallies.fill(Tally::default());
            let keys = self.chunk(chunk);
            let first = self.seq.keys.start;
            let values = Cursor::new(values, self.seq.ids, self.heads.start, first + keys.start);
            let ahead = if self.hands.split { 0 } else { self.seq.keys.len() };
            self.hands.set.run(AddValues { values, first, keys, kept, ahead, radii, sums, tallies });
        };
        let mut merge = |sums: &[f32], tallies: &[Tally]| {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += f64::from(*sum));
            for (of_row, tally) in of_rows.iter_mut().zip(tallies) {
                of_row.dropped += tally.dropped;
                of_row.weighted += tally.weighted;
                of_row.kept += tally.kept;
                of_row.left += tally.left;
            }
        };
        match self.hands.split {
            true => {
                let parts = chunks.zip(sums.chunks_mut(rows * padded)).zip(tallies.chunks_mut(rows));
                self.hands.each(parts.collect(), |_, ((chunk, sums), tallies)| add(chunk, sums, tallies));
                sums.chunks(rows * padded)
                    .zip(tallies.chunks(rows))
                    .for_each(|(sums, tallies)| merge(sums, tallies));
            }
            false => chunks.for_each(|chunk| {
                add(chunk, sums, tallies);
                merge(sums, tallies);
            }),
        }
    }

    /// The chunks of positions that hold keys of the bundle.
    fn chunks(&self) -> Range<usize> {
        let keys = &self.seq.keys;
        if keys.is_empty() { 0..0 } else { keys.start / CHUNK..keys.end.div_ceil(CHUNK) }
    }

    /// The keys of a chunk of positions, counted from the bundle's first key.
    fn chunk(&self, chunk: usize) -> Range<usize> {
        let Range { start, end } = self.seq.keys;
        (chunk * CHUNK).max(start) - start..((chunk + 1) * CHUNK).min(end) - start
    }

    fn finish<T: Element, O: Element>(
        &self,
        values: &Pages<T>,
        scratch: &Scratch,
        weighed: &[Weighed],
        out: &mut [Vec<&mut [O]>],
    ) -> Vec<DecodeRow> {
        let (dim, call) = (values.dim(), &self.shared.call);
        let centres = call.centre.map(|centres| &centres[self.heads.start * dim..]);
        let outs = out.iter_mut().flatten().flat_map(|out| out.chunks_exact_mut(dim));
        let totals = scratch.totals.chunks(dim.next_multiple_of(BLOCK));
        let mut rows = Vec::with_capacity(weighed.len());
        let found = weighed.iter().zip(&scratch.of_rows).zip(totals).zip(outs);
        for (row, (((weighed, tally), totals), out)) in found.enumerate() {
            let centre = centres.map(|centres| &centres[row / self.rows_of_head() * dim..][..dim]);
            let norm = centre.map_or(0.0, |c| c.iter().map(|c| f64::from(*c).powi(2)).sum::<f64>().sqrt());
            let &Weighed { row, report, rest } = weighed;
            let Some(rest) = rest else {
                let all = if row.beta.is_nan() { f32::NAN } else { 0.0 };
                out.fill(O::from_f32(all));
                rows.push(DecodeRow { row, report, dropped: 0, kept: 0, bound: all.into() });
                continue;
            };
            let share = tally.dropped / MASS_ONE;
            for (at, total) in totals.iter().enumerate() {
                let e = at / BLOCK * BLOCK + element_of::<T>(at % BLOCK);
                if let Some(out) = out.get_mut(e) {
                    let instead = centre.map_or(0.0, |centre| share * f64::from(centre[e]));
                    *out = O::from_f32((total * rest + instead) as f32);
                }
            }
            let bound = match (tally.left, call.v_radius) {
                (0, _) => 0.0,
                (_, None) => f64::NAN,
                (left, Some(_)) => {
                    // The share is rounded up, so the centre stands for a little too much.
                    let excess = norm * (left as f64 / MASS_ONE + share * MASS_ERROR);
                    // A sum of `left` terms in f64 errs by less than left 2^-52 relative.
                    let rounding = 1.0 + MASS_ERROR + (left as f64 + 8.0) * f64::EPSILON;
                    (tally.weighted / MASS_ONE + excess) * rounding
                }
            };
            let dropped = tally.dropped as u64;
            rows.push(DecodeRow { row, report, dropped, kept: tally.kept, bound });
        }
        rows
    }
}
