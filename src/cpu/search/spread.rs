//! This file ranks very many scores. It spreads them into buckets, and those into buckets again, until a
//! bucket is small enough to compare all pairs.
//!
//! Scores that bins cannot thin out come here: on a log grid every rank is a contact.

use super::bins::{Bins, TABLE, TABLES};
use super::gather::reserve;
use super::rank::{FEW, offer_best};
use super::state::Search;
use crate::cpu::lanes::{InstructionSet, Lanes, WIDTH, Work};
use crate::cpu::top::{GapRange, Within};
use crate::cpu::weights::BLOCK;
use std::hint::black_box;

/// Up to this many scores of a bucket are compared in pairs.
const PAIRS: usize = 4 * WIDTH;
/// Scores per bucket. So many fill one vector or two.
const PER_BUCKET: usize = 12;

/// Scratch, whose old content does not matter.
#[derive(Default)]
pub(super) struct Room {
    scores: Vec<f32>,
    places: Vec<[u32; TABLES]>,
    open: Vec<Stretch>,
}

impl Room {
    /// Bytes that its memory takes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<f32>() * self.scores.capacity()
            + size_of::<[u32; TABLES]>() * self.places.capacity()
            + size_of::<Stretch>() * self.open.capacity()
    }
}

/// Neighbours whose order among themselves is not known yet.
struct Stretch {
    start: usize,
    len: usize,
    /// Whether they are in the room rather than in their own place.
    is_moved: bool,
}

/// Offers the gaps of scores with their ranks, which include the `before` smaller gaps. The last [`WIDTH`]
/// values are not scores and may be anything. All others are ranked.
pub(super) fn ranks(
    set: InstructionSet,
    scores: &mut [f32],
    room: &mut Room,
    before: u64,
    search: &mut Search,
) {
    reserve(&mut room.scores, scores.len());
    room.places.resize(TABLE, [0; TABLES]);
    set.run(Ranks { scores, room, before, search });
}

struct Ranks<'a> {
    scores: &'a mut [f32],
    room: &'a mut Room,
    before: u64,
    search: &'a mut Search,
}

impl Work for Ranks<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Ranks { scores, room: Room { scores: moved, places, open }, before, search } = self;
        let (max, n) = (search.max, scores.len() - WIDTH);
        let places: &mut Places = places.as_mut_slice().try_into().expect("one table");
        let mut pending = Pending::new();
        open.clear();
        open.push(Stretch { start: 0, len: n, is_moved: false });
        while let Some(Stretch { start, len, is_moved }) = open.pop() {
            let (from, to) =
                if is_moved { (&mut moved[..], &mut *scores) } else { (&mut *scores, &mut moved[..]) };
            let from = &mut from[start..][..len];
            let before = before + start as u64;
            // The range is measured again: bins kept wide by a few far scores cost the others another round.
            let [low, high] = GapRange { scores: from, max }.run(lanes);
            if low >= high {
                // There is one gap, above zeros and below gaps that overflow, or there is none at all.
                if low < f32::INFINITY {
                    search.offer(low, before + Within { scores: from, max, gap: low }.run(lanes));
                }
                continue;
            }
            let Some(bins) = Bins::between(low, high, len / PER_BUCKET) else {
                // The scores lie too close together for f32 to divide.
                from.sort_unstable_by(|a, b| b.total_cmp(a));
                for (rank, &score) in (before + 1..).zip(from.iter()) {
                    pending.push(score, rank, search);
                }
                continue;
            };
            let to = &mut to[start..][..len + WIDTH];
            spread(lanes, from, to, max, &bins, places);
            let mut first = 0;
            for &[.., end] in &places[..=bins.count()] {
                let (at, len) = (first, end as usize - first);
                first = end as usize;
                match len {
                    0 => (),
                    1..=PAIRS => pair(lanes, &to[at..], len, before + at as u64, &mut pending, search),
                    _ => open.push(Stretch { start: start + at, len, is_moved: !is_moved }),
                }
            }
        }
        pending.offer(search);
    }
}

/// Where the scores of every bin go next. Four places take turns, because two scores in a row would wait for
/// each other.
type Places = [[u32; TABLES]; TABLE];

/// Moves `from` to `to` in the order of their bins. Afterwards the last place of a bin says where the bin
/// ends.
#[inline(always)]
fn spread<L: Lanes>(lanes: L, from: &[f32], to: &mut [f32], max: f32, bins: &Bins, places: &mut Places) {
    let used = bins.count() + 1;
    places[..used].fill([0; TABLES]);
    let mut at = [0; BLOCK];
    for scores in from.chunks(BLOCK) {
        bins_of(lanes, scores, max, bins, &mut at);
        // `black_box` keeps the compiler from taking these out of a vector lane after lane.
        let (fours, rest) = black_box(&at)[..scores.len()].as_chunks::<TABLES>();
        for at in fours {
            for j in 0..TABLES {
                places[at[j] as usize % TABLE][j] += 1;
            }
        }
        rest.iter().for_each(|&at| places[at as usize % TABLE][0] += 1);
    }
    let mut start = 0;
    for place in places[..used].as_flattened_mut() {
        (*place, start) = (start, start + *place);
    }
    for scores in from.chunks(BLOCK) {
        bins_of(lanes, scores, max, bins, &mut at);
        let (fours, rest) = scores.as_chunks::<TABLES>();
        let (at_fours, _) = black_box(&at).as_chunks::<TABLES>();
        for (scores, at) in fours.iter().zip(at_fours) {
            for j in 0..TABLES {
                let place = &mut places[at[j] as usize % TABLE][j];
                to[*place as usize] = scores[j];
                *place += 1;
            }
        }
        for (&score, &at) in rest.iter().zip(&at[fours.len() * TABLES..]) {
            let place = &mut places[at as usize % TABLE][0];
            to[*place as usize] = score;
            *place += 1;
        }
    }
}

/// The bins of up to a block of scores.
#[inline(always)]
fn bins_of<L: Lanes>(lanes: L, scores: &[f32], max: f32, bins: &Bins, at: &mut [u16; BLOCK]) {
    let mut padded = [0.0; BLOCK];
    let block: &[f32; BLOCK] = match scores.try_into() {
        Ok(block) => block,
        Err(_) => {
            padded[..scores.len()].copy_from_slice(scores);
            &padded
        }
    };
    let (from, _) = block.as_chunks::<WIDTH>();
    let (to, _) = at.as_chunks_mut::<WIDTH>();
    for j in 0..4 {
        let gap = lanes.sub(lanes.splat(max), lanes.load(&from[j]));
        bins.bins(lanes, gap, &mut to[j]);
    }
}

/// Ranks the first `len` of `scores` among themselves, after `before` smaller gaps. What follows them is not
/// counted, but the last vector loads some of it.
#[inline(always)]
fn pair<L: Lanes>(
    lanes: L,
    scores: &[f32],
    len: usize,
    before: u64,
    pending: &mut Pending,
    search: &mut Search,
) {
    let (vectors, _) = scores[..len.next_multiple_of(WIDTH)].as_chunks::<WIDTH>();
    match vectors {
        [a] => compare(lanes, &[*a], len, before, pending, search),
        [a, b] => compare(lanes, &[*a, *b], len, before, pending, search),
        [a, b, c] => compare(lanes, &[*a, *b, *c], len, before, pending, search),
        _ => compare(lanes, vectors, len, before, pending, search),
    }
}

/// Compares all pairs of the first `len` scores. A few vectors of known number stay in registers, which saves
/// a tenth of the whole time (2026-11-25).
#[inline(always)]
fn compare<L: Lanes>(
    lanes: L,
    vectors: &[[f32; WIDTH]],
    len: usize,
    before: u64,
    pending: &mut Pending,
    search: &mut Search,
) {
    let Some((last, full)) = vectors.split_last() else { return };
    let own = (1 << (len - WIDTH * full.len())) - 1;
    for &score in &vectors.as_flattened()[..len] {
        let smallest = lanes.splat(score);
        let mut rank = (lanes.bits(lanes.ge(lanes.load(last), smallest)) & own).count_ones();
        for v in full {
            rank += lanes.bits(lanes.ge(lanes.load(v), smallest)).count_ones();
        }
        pending.push(score, before + u64::from(rank), search);
    }
}

/// Scores with their ranks, offered many at once. An equal score before the last one may have a lower rank.
struct Pending {
    scores: [f32; FEW],
    ranks: [u64; FEW],
    len: usize,
}

impl Pending {
    fn new() -> Self {
        Pending { scores: [0.0; FEW], ranks: [0; FEW], len: 0 }
    }

    #[inline(always)]
    fn push(&mut self, score: f32, rank: u64, search: &mut Search) {
        self.scores[self.len] = score;
        self.ranks[self.len] = rank;
        self.len += 1;
        if self.len == FEW {
            self.offer(search);
        }
    }

    #[inline(always)]
    fn offer(&mut self, search: &mut Search) {
        let ranks = &self.ranks;
        offer_best::<FEW>(&self.scores[..self.len], |j| ranks[j], search);
        self.len = 0;
    }
}
