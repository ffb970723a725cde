//! Moving together the scores of a row that can still be the contact.

use super::bins::Bins;
use super::hull::Hull;
use crate::Element;
use crate::cpu::lanes::{InstructionSet, Lanes, WIDTH, Work};
use crate::cpu::top::Chunks;
use crate::cpu::weights::{BLOCK, padded, vectors};

/// Makes scratch at least `len` long; an eighth more where it grows, so that rows that grow by one do not move it each time.
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

/// Scores of at least this much.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct AtLeast(f32);

impl AtLeast {
    /// Every score that is not masked.
    pub(in crate::cpu) fn visible() -> AtLeast {
        AtLeast(f32::MIN)
    }

    /// Every score whose gap below `max` is at most `cut`, and perhaps some beyond.
    pub(in crate::cpu) fn within(max: f32, cut: f32) -> AtLeast {
        // Two units in the last place of the larger one: a rounding of the gap, and one of this difference.
        let least = f64::from(max) - f64::from(cut) - f64::from(max.abs().max(cut)) * 2f64.powi(-22);
        AtLeast((least as f32).max(f32::MIN))
    }
}

impl Keep for AtLeast {
    #[inline(always)]
    fn keep<L: Lanes>(self, lanes: L, score: L::F) -> L::M {
        lanes.ge(score, lanes.splat(self.0))
    }
}

/// Gaps in the hull of bins.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Inside {
    max: f32,
    bins: Bins,
    /// The least and the largest place that is in one of them.
    places: [f32; 2],
}

impl Inside {
    pub(super) fn new(max: f32, bins: Bins, hull: &Hull) -> Inside {
        // Nothing is before the first bin. The integer part is at most `last` just below the next integer.
        let least = if hull.first == 0 { f32::NEG_INFINITY } else { hull.first as f32 };
        Inside { max, bins, places: [least, ((hull.last + 1) as f32).next_down()] }
    }
}

impl Keep for Inside {
    #[inline(always)]
    fn keep<L: Lanes>(self, lanes: L, score: L::F) -> L::M {
        let at = self.bins.place(lanes, lanes.sub(lanes.splat(self.max), score));
        let [least, most] = self.places;
        lanes.and(lanes.ge(at, lanes.splat(least)), lanes.ge(lanes.splat(most), at))
    }
}

/// Scores that were kept, in the order of the row.
#[derive(Default)]
pub(in crate::cpu) struct Gather {
    space: Vec<f32>,
    used: usize,
}

impl Gather {
    pub(in crate::cpu) fn kept(&self) -> &[f32] {
        &self.space[..self.used]
    }

    /// As `kept`, with a vector of anything behind them.
    pub(in crate::cpu) fn kept_and_room(&mut self) -> &mut [f32] {
        reserve(&mut self.space, self.used + WIDTH);
        &mut self.space[..self.used + WIDTH]
    }

    /// Replaces what was kept by the scores of `row` that `keep` holds on to.
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

    /// Drops what `keep` does not hold on to.
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
            // Most blocks of most rows hold nothing of interest.
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

/// The kept lanes of four vectors to the front of `to`, and how many.
#[inline(always)]
fn compress<L: Lanes>(lanes: L, v: [L::F; 4], m: [L::M; 4], to: &mut [f32]) -> usize {
    let mut kept = 0;
    for j in 0..4 {
        let front: &mut [f32; WIDTH] = (&mut to[kept..][..WIDTH]).try_into().expect("as long as it is cut");
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
        // Whole blocks: what follows the scores is made masked, and so never kept.
        let blocks = used.div_ceil(BLOCK);
        reserve(space, blocks * BLOCK);
        space[*used..blocks * BLOCK].fill(f32::NEG_INFINITY);
        let mut end = 0;
        for i in 0..blocks {
            let block: &[f32; BLOCK] = space[i * BLOCK..][..BLOCK].try_into().expect("as long as it is cut");
            let v = vectors(lanes, block);
            let m = kept_of(lanes, keep, v);
            // In place: never beyond the block that is in registers.
            end += compress(lanes, v, m, &mut space[end..][..BLOCK]);
        }
        *used = end;
    }
}
