//! This file finds the bins that can still win, by bounds on the ratios of their gaps. The first pass takes
//! logs in f32. The second takes logs in f64 for the bins that the first has left.
//!
//! f32 alone leaves too many bins: a sink's ratio is flat at its contact, and what survives grows with the
//! square root of the error. The loops are plain loops over arrays, which the compiler vectorises. So maxima
//! are taken of integers: floats that are not negative have the order of their bits.

use super::bins::Bins;
use super::state::Search;
use crate::cpu::lanes::{Lanes, WIDTH, Work};
use crate::cpu::ln::{LN_ERROR, LN32_ERROR, ln, ln32};
use std::ops::{BitAnd, Range};

/// How far an edge may be off, relative to its distance from the first edge: two roundings of a place to the
/// nearest f32, and a little more.
const EDGE: f64 = 1.3e-7;
/// The same, and the roundings of bounds in f32.
const EDGE32: f32 = 1e-6;

/// The bins from the first to the last that can still win.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hull {
    pub first: usize,
    pub last: usize,
    /// Number of gaps below these bins.
    pub before: u64,
    /// Number of gaps in these bins.
    pub inside: u64,
}

/// Scratch, whose old content does not matter.
#[derive(Default)]
pub(super) struct Bounds {
    logs32: Vec<f32>,
    signs32: Vec<i32>,
    logs: Vec<f64>,
    signs: Vec<i64>,
}

/// Finds the bins that can still win, and the ratio that the bins attain.
pub(super) struct FindHull<'a> {
    pub bins: &'a Bins,
    /// Number of gaps below the first bin.
    pub before: u64,
    /// In: the gaps in every bin, and 0 for those beyond the bins. Out: the gaps through every bin, and 0.
    pub through: &'a mut [u64],
    pub bounds: &'a mut Bounds,
    pub search: &'a mut Search,
}

impl Work for FindHull<'_> {
    type Out = Hull;
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> Hull {
        let FindHull { bins, before, through, bounds, search } = self;
        let mut rank = before;
        for count in &mut through[..bins.count()] {
            rank += *count;
            *count = rank;
        }
        let left = bounds.roughly(bins, through, search);
        let left = bounds.exactly(bins, through, left, search);
        let before = if left.start == 0 { before } else { through[left.start - 1] };
        let last = left.end - 1;
        Hull { first: left.start, last, before, inside: through[last] - before }
    }
}

impl Bounds {
    /// The bins that can win, and perhaps some more. f32 has twice as many lanes, and leaves few bins for
    /// f64.
    #[inline(always)]
    fn roughly(&mut self, bins: &Bins, through: &[u64], search: &Search) -> Range<usize> {
        let (low, width) = bins.edges();
        // Values far from 1 would push an edge or a product out of the range of f32.
        if !(width > 1e-30 && low + width * through.len() as f64 <= 1e30 && search.attained <= 1e30) {
            return 0..through.len();
        }
        let Bounds { logs32: logs, signs32: signs, .. } = self;
        logs.resize(through.len(), 0.0);
        signs.resize(through.len(), 0);
        let (low, width, resolve) = (low as f32, width as f32, search.resolve as f32);
        for (log, &rank) in logs.iter_mut().zip(through) {
            *log = ln32(rank as f32) - resolve;
        }
        for ((sign, log), bin) in signs.iter_mut().zip(logs.iter()).zip(1i32..) {
            let lower = (log - LN32_ERROR) / ((low + bin as f32 * width) * (1.0 + EDGE32));
            *sign = lower.to_bits() as i32;
        }
        let attained = f32::from_bits(signs.iter().fold(0, |best, &ratio| best.max(ratio)) as u32);
        let needed = attained.max(search.attained as f32) * (1.0 - EDGE32);
        for ((sign, log), bin) in signs.iter_mut().zip(logs.iter()).zip(0i32..) {
            let edge = (low + bin as f32 * width) * (1.0 - EDGE32);
            *sign = (log + LN32_ERROR - needed * edge).to_bits() as i32;
        }
        winners(signs)
    }

    /// Among the bins of a range, those from the first to the last that can win. One bin if no ratio is
    /// attained or can be.
    #[inline(always)]
    fn exactly(
        &mut self,
        bins: &Bins,
        through: &[u64],
        range: Range<usize>,
        search: &mut Search,
    ) -> Range<usize> {
        let Bounds { logs, signs, .. } = self;
        // The range covers whole vectors, because the rest of a vector would go one by one.
        let range = range.start / WIDTH * WIDTH..range.end.next_multiple_of(WIDTH).min(through.len());
        logs.resize(range.len(), 0.0);
        signs.resize(range.len(), 0);
        let (low, width) = bins.edges();
        let (wide, narrow) = (width * (1.0 + EDGE), width * (1.0 - EDGE));
        let start = range.start as i32;
        for (log, &rank) in logs.iter_mut().zip(&through[range.clone()]) {
            *log = ln(rank as f64) - search.resolve;
        }
        for ((sign, log), bin) in signs.iter_mut().zip(logs.iter()).zip(start + 1..) {
            let lower = (log - LN_ERROR) / (low + f64::from(bin) * wide) * (1.0 - 1e-12);
            *sign = lower.to_bits() as i64;
        }
        let attained = signs.iter().fold(search.attained.to_bits() as i64, |best, &ratio| best.max(ratio));
        search.attained = f64::from_bits(attained as u64);
        let needed = search.attained * (1.0 - 1e-12);
        for ((sign, log), bin) in signs.iter_mut().zip(logs.iter()).zip(start..) {
            *sign = (log + LN_ERROR - needed * (low + f64::from(bin) * narrow)).to_bits() as i64;
        }
        let left = winners(signs);
        range.start + left.start..range.start + left.end
    }
}

/// The range from the first to the last sign that is not negative; the first place if all signs are negative.
#[inline(always)]
fn winners<T: Copy + BitAnd<Output = T> + PartialOrd + Default>(signs: &[T]) -> Range<usize> {
    let are_out = |chunk: &[T; WIDTH]| chunk.iter().fold(chunk[0], |all, &sign| all & sign) < T::default();
    let wins = |&sign: &T| sign >= T::default();
    let (chunks, _) = signs.as_chunks::<WIDTH>();
    let start = WIDTH * chunks.iter().take_while(|chunk| are_out(chunk)).count();
    let Some(first) = signs[start..].iter().position(wins) else { return 0..1 };
    let (_, chunks) = signs.as_rchunks::<WIDTH>();
    let end = signs.len() - WIDTH * chunks.iter().rev().take_while(|chunk| are_out(chunk)).count();
    let last = signs[..end].iter().rposition(wins).unwrap_or(0);
    start + first..last + 1
}
