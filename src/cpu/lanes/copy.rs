//! The limit that a softmax on a CPU is measured against: a copy that does not read what it overwrites.

use super::{Isa, LANES, Lanes};

const LINE: usize = 4 * LANES;

/// An ordinary store first reads the cache line that it overwrites: 12 bytes of traffic for each 8 that a copy moves.
#[inline(always)]
unsafe fn copy_past<L: Lanes>(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "a copy of {} bytes to {}", from.len(), to.len());
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (from_head, from) = from.split_at(head);
    let (to_head, to) = to.split_at_mut(head);
    to_head.copy_from_slice(from_head);
    // Two lines a turn: 56 GB/s against 48 by one (2 threads, 2026-11-25).
    let turns = to.len() / (2 * LINE);
    let (source, target) = (from.as_ptr().cast::<f32>(), to.as_mut_ptr().cast::<f32>());
    unsafe {
        for turn in 0..turns {
            let at = turn * 2 * LANES;
            let lines = [L::load(source.add(at)), L::load(source.add(at + LANES))];
            L::stream(target.add(at), lines[0]);
            L::stream(target.add(at + LANES), lines[1]);
        }
        L::fence();
    }
    to[turns * 2 * LINE..].copy_from_slice(&from[turns * 2 * LINE..]);
}
pass! {
    /// Copies `from` to `to`, which is as long, past the caches where the instruction set can.
    pub(in crate::cpu) copy_past<>(from: &[u8], to: &mut [u8])
}
