//! The scratch that a thread keeps from call to call.

use super::values::{Seen, Tally};
use crate::cpu::Standard;
use std::cell::Cell;

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// A thread keeps at most this much: the scores of 8 rows of 1.9 million keys.
const KEPT_BYTES: usize = 1 << 26;

/// Room for one bundle: its queries, scores, masses, and sums of values.
#[derive(Default)]
pub(super) struct Scratch {
    pub queries: Vec<f32>,
    pub scores: Vec<f32>,
    pub masses: Vec<f32>,
    pub cuts: Vec<f32>,
    pub sums: Vec<f32>,
    pub totals: Vec<f64>,
    pub seen: Vec<Seen>,
    pub tallies: Vec<Tally>,
    pub of_rows: Vec<Tally>,
}

impl Scratch {
    /// Does `work` with the scratch of this thread, in the standard modes of floating-point numbers. It is
    /// given back if a bundle was very large.
    pub(super) fn lend<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
        // A thread that takes on another bundle while all threads share a first one gets a second scratch.
        let _modes = Standard::modes();
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let found = work(&mut scratch);
        SCRATCH.set(Some(scratch).filter(|scratch| scratch.bytes() <= KEPT_BYTES));
        found
    }

    fn bytes(&self) -> usize {
        let floats = [&self.queries, &self.scores, &self.masses, &self.sums, &self.cuts];
        let floats: usize = floats.iter().map(|room| size_of::<f32>() * room.capacity()).sum();
        let tallies = self.tallies.capacity() + self.of_rows.capacity();
        let (totals, seen) = (size_of::<f64>() * self.totals.capacity(), self.seen.capacity());
        floats + totals + size_of::<Tally>() * tallies + size_of::<Seen>() * seen
    }
}

/// Makes `room` at least `len` long. What it holds is arbitrary. Room that grows gets an eighth more, so that
/// sequences that grow by one key do not move it each time.
pub(super) fn reserve<T: Copy + Default>(room: &mut Vec<T>, len: usize) -> &mut [T] {
    if room.len() < len {
        let len = len + len / 8;
        room.reserve_exact(len - room.len());
        room.resize(len, T::default());
    }
    &mut room[..len]
}
