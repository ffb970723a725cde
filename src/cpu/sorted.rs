//! Rows that come sorted: their ranks are their places. A log grid, on which every rank is a contact, is usually one.

use super::contact::Search;
use super::lanes::{self, Lanes, WIDTH, Work};
use super::ln::{LN_ERROR, ln};
use super::rank::offer_best;
use crate::Element;

/// Scores that are looked at together.
const GROUP: usize = WIDTH * WIDTH;

/// How scores follow each other; equal ones may stand anywhere among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// Whether scores without NaN are in an order.
pub(super) struct IsInOrder<'a, T> {
    pub scores: &'a [T],
    pub order: Order,
}

impl<T: Element> Work for IsInOrder<'_, T> {
    type Out = bool;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> bool {
        let IsInOrder { scores, order } = self;
        let (Some(first), Some(next)) = (scores.split_last(), scores.split_first()) else { return true };
        let (firsts, first_tail) = first.1.as_chunks::<WIDTH>();
        let (nexts, next_tail) = next.1.as_chunks::<WIDTH>();
        for (a, b) in firsts.iter().zip(nexts) {
            let (a, b) = (lanes::load(lanes, a), lanes::load(lanes, b));
            let follows = match order {
                Order::Ascending => lanes.ge(b, a),
                Order::Descending => lanes.ge(a, b),
            };
            if lanes.bits(follows) != 0xffff {
                return false;
            }
        }
        first_tail.iter().zip(next_tail).all(|(a, b)| match order {
            Order::Ascending => b.to_f32() >= a.to_f32(),
            Order::Descending => a.to_f32() >= b.to_f32(),
        })
    }
}

/// Offers every gap of a row that is in an order and can win.
pub(super) struct OfferInOrder<'a, T> {
    pub scores: &'a [T],
    pub order: Order,
    pub search: &'a mut Search,
}

impl<T: Element> Work for OfferInOrder<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let OfferInOrder { scores, order, search } = self;
        let n = scores.len() as u64;
        let rank_of = |at: u64| match order {
            Order::Ascending => n - at,
            Order::Descending => at + 1,
        };
        // What is added to the lowest rank of a vector, lane by lane.
        let beyond: [f64; WIDTH] = match order {
            Order::Ascending => std::array::from_fn(|j| (WIDTH - 1 - j) as f64),
            Order::Descending => std::array::from_fn(|j| j as f64),
        };
        let (groups, tail) = scores.as_chunks::<GROUP>();
        let mut wide = [0.0; GROUP];
        for (group, start) in groups.iter().zip((0u64..).step_by(GROUP)) {
            let (from, _) = group.as_chunks::<WIDTH>();
            let (to, _) = wide.as_chunks_mut::<WIDTH>();
            from.iter().zip(to).for_each(|(from, to)| lanes.store(lanes::load(lanes, from), to));
            // The lowest ranks of the vectors, and their logs.
            let (mut lowest, mut logs) = ([0.0; WIDTH], [0.0; WIDTH]);
            for (lowest, first) in lowest.iter_mut().zip((start..).step_by(WIDTH)) {
                *lowest = rank_of(first).min(rank_of(first + WIDTH as u64 - 1)) as f64;
            }
            logs.iter_mut().zip(&lowest).for_each(|(log, &lowest)| *log = ln(lowest) - search.resolve);
            let needed = search.attained * (1.0 - 1e-12);
            let mut signs = [-1; WIDTH];
            for (i, wide) in wide.as_chunks::<WIDTH>().0.iter().enumerate() {
                let reciprocal = 1.0 / lowest[i];
                for j in 0..WIDTH {
                    let gap = f64::from(search.max - wide[j]);
                    // log(1 + x) <= x - x^2 / 2 + x^3 / 3, within 1.3e-8 from rank 1,000 on: ln itself takes three times as long.
                    let x = beyond[j] * reciprocal;
                    let log = logs[i] + x * (1.0 - x * (0.5 - x * (1.0 / 3.0)));
                    signs[j] &= (log + LN_ERROR - needed * gap).to_bits() as i64;
                }
            }
            if signs.iter().any(|&sign| sign >= 0) {
                offer_best::<GROUP>(&wide, |j| rank_of(start + j as u64), search);
            }
        }
        let first = n - tail.len() as u64;
        wide.iter_mut().zip(tail).for_each(|(wide, s)| *wide = s.to_f32());
        offer_best::<GROUP>(&wide[..tail.len()], |j| rank_of(first + j as u64), search);
    }
}
