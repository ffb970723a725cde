//! This file moves together the scores of a row that can still be the contact.

use super::bins::Bins;
use super::hull::Hull;
use crate::Element;
use crate::cpu::lanes::{InstructionSet, Lanes, WIDTH, Work};
use crate::cpu::top::Chunks;
use crate::cpu::weights::{BLOCK, padded, vectors};

/// Makes scratch at least `len` long. Scratch that grows gets an eighth more, so that rows that grow by one
/// score do not move it each time.
pub(in crate::cpu) fn reserve(scratch: &mut Vec<f32>, len: usize) {
    if scratch.len() < len {
        let len = len + len / 8;
        scratch.reserve_exact(len - scratch.len());
        scratch.resize(len, 0.0);
    }
}

/// Which scores to keep.
pub(in crate::cpu) trait Keep: Copy {
    /// Must be `#[inline(always)]`.
    fn keep<L: Lanes>(self, lanes: L, score: L::F) -> L::M;
}

/// Keeps scores of at least this much.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct AtLeast(f32);

impl AtLeast {
    /// Keeps every score that is not masked.
    pub(in crate::cpu) fn visible() -> AtLeast {
        AtLeast(f32::MIN)
    }

    /// Keeps every score whose gap below `max` is at most `cut`, and perhaps some beyond.
    pub(in crate::cpu) fn within(max: f32, cut: f32) -> AtLeast {
        // Two units in the last place of the larger one cover the rounding of the gap and that of this
        // difference.
        let lowest = f64::from(max) - f64::from(cut) - f64::from(max.abs().max(cut)) * 2f64.powi(-22);
        AtLeast((lowest as f32).max(f32::MIN))
    }
}

impl Keep for AtLeast {
    #[inline(always)]
    fn keep<L: Lanes>(self, lanes: L, score: L::F) -> L::M {
        lanes.ge(score, lanes.splat(self.0))
    }
}

/// Keeps scores whose gap is in the hull of bins.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Inside {
    max: f32,
    bins: Bins,
    /// The smallest and the largest place in the hull.
    places: [f32; 2],
}

impl Inside {
    pub(super) fn new(max: f32, bins: Bins, hull: &Hull) -> Inside {
        // No gap is before the first bin. The largest place is just below the integer after `last`.
        let first = if hull.first == 0 { f32::NEG_INFINITY } else { hull.first as f32 };
        Inside { max, bins, places: [first, ((hull.last + 1) as f32).next_down()] }
    }
}

impl Keep for Inside {
    #[inline(always)]
    fn keep<L: Lanes>(self, lanes: L, score: L::F) -> L::M {
        let at = self.bins.place(lanes, lanes.sub(lanes.splat(self.max), score));
        let [first, last] = self.places;
        lanes.and(lanes.ge(at, lanes.splat(first)), lanes.ge(lanes.splat(last), at))
    }
}

/// Scores that were kept, in the order of the row.
#[derive(Default)]
pub(in crate::cpu) struct Gather {
    space: Vec<f32>,
    used: usize,
}

impl Gather {
    /// Bytes that its memory takes.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        size_of::<f32>() * self.space.capacity()
    }

    pub(in crate::cpu) fn kept(&self) -> &[f32] {
        &self.space[..self.used]
    }

    /// Like `kept`, with room for one vector behind the scores. The room may hold anything.
    pub(in crate::cpu) fn kept_and_room(&mut self) -> &mut [f32] {
        reserve(&mut self.space, self.used + WIDTH);
        &mut self.space[..self.used + WIDTH]
    }

    /// Drops what was kept before, and keeps the scores of `row` that `keep` chooses.
    pub(in crate::cpu) fn collect<T: Element>(&mut self, row: &Chunks<T>, keep: impl Keep + Sync) {
        self.used = 0;
        if !row.split {
            return row.set.run(Collect { scores: row.scores, keep, to: self });
        }
        self.space.clear();
        let of_part = |scores| {
            let mut part = Gather::default();
            row.set.run(Collect { scores, keep, to: &mut part });
            part
        };
        row.each_part(of_part, |part| self.space.extend_from_slice(part.kept()));
        self.used = self.space.len();
    }

    /// Drops every score that `keep` does not choose.
    pub(in crate::cpu) fn retain(&mut self, set: InstructionSet, keep: impl Keep) {
        set.run(Retain { keep, of: self });
    }
}

struct Collect<'a, T, K> {
    scores: &'a [T],
    keep: K,
    to: &'a mut Gather,
}

impl<T: Element, K: Keep> Work for Collect<'_, T, K> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Collect { scores, keep, to: Gather { space, used } } = self;
        let (blocks, tail) = scores.as_chunks::<BLOCK>();
        let last = padded(tail);
        let mut end = *used;
        let most = end + (blocks.len() + 1) * BLOCK;
        for block in blocks.iter().chain([&last]) {
            let v = vectors(lanes, block);
            let m = kept_of(lanes, keep, v);
            // In most rows, most blocks hold no score to keep.
            if !lanes.any(lanes.or(lanes.or(m[0], m[1]), lanes.or(m[2], m[3]))) {
                continue;
            }
            if space.len() < end + BLOCK {
                let len = (2 * space.len()).max(end + 16 * BLOCK).min(most);
                space.reserve_exact(len - space.len());
                space.resize(len, 0.0);
            }
            let to = &mut space[end..][..BLOCK];
            end += compress(lanes, v, m, to);
        }
        *used = end;
    }
}

#[inline(always)]
fn kept_of<L: Lanes>(lanes: L, keep: impl Keep, v: [L::F; 4]) -> [L::M; 4] {
    [keep.keep(lanes, v[0]), keep.keep(lanes, v[1]), keep.keep(lanes, v[2]), keep.keep(lanes, v[3])]
}

/// Moves the kept lanes of four vectors to the front of `to`, and returns their number.
#[inline(always)]
fn compress<L: Lanes>(lanes: L, v: [L::F; 4], m: [L::M; 4], to: &mut [f32]) -> usize {
    let mut kept = 0;
    for j in 0..4 {
        let front: &mut [f32; WIDTH] = (&mut to[kept..][..WIDTH]).try_into().expect("it has this length");
        kept += lanes.compress(v[j], m[j], front);
    }
    kept
}

struct Retain<'a, K> {
    keep: K,
    of: &'a mut Gather,
}

impl<K: Keep> Work for Retain<'_, K> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Retain { keep, of: Gather { space, used } } = self;
        // The loop reads whole blocks. What follows the scores is set to masked, so it is never kept.
        let blocks = used.div_ceil(BLOCK);
        reserve(space, blocks * BLOCK);
        space[*used..blocks * BLOCK].fill(f32::NEG_INFINITY);
        let mut end = 0;
        for i in 0..blocks {
            let block: &[f32; BLOCK] = space[i * BLOCK..][..BLOCK].try_into().expect("it has this length");
            let v = vectors(lanes, block);
            let m = kept_of(lanes, keep, v);
            // The scores move in place. A write never passes the block that is in registers.
            end += compress(lanes, v, m, &mut space[end..][..BLOCK]);
        }
        *used = end;
    }
}
