//! The scratch that a thread keeps from call to call.

use super::lanes::{InstructionSet, Standard};
use super::row::Workspace;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static SCRATCH: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

/// A thread keeps a workspace of at most this many bytes, which rows of 1.4 million scores need.
const KEPT_BYTES: usize = 1 << 25;

/// The workspace of this thread, borrowed for a while and kept from call to call. Fresh memory for every call
/// costs page faults: a fifth of the time of rows of a million scores (2026-11-25). One that has grown beyond
/// [`KEPT_BYTES`] is given back, so that a single long row does not stay in memory for every thread.
pub(crate) struct Lent(Option<Box<Workspace>>, #[allow(dead_code, reason = "dropped at the end")] Standard);

impl Lent {
    pub(crate) fn new() -> Lent {
        // A thread gets a second workspace if it takes on another row while all threads share a first one.
        let mut workspace = SCRATCH.take().unwrap_or_default();
        workspace.next = None;
        Lent(Some(workspace), Standard::modes())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One fence covers all rows of a claim. A fence after every row would wait for memory: a tenth of the
        // time of rows of 4096.
        InstructionSet::chosen_or_fastest().fence();
        SCRATCH.set(self.0.take().filter(|workspace| workspace.bytes() <= KEPT_BYTES));
    }
}

impl Deref for Lent {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        self.0.as_ref().expect("taken back only when dropped")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Workspace {
        self.0.as_mut().expect("taken back only when dropped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Measure, row_report};

    #[test]
    fn scratch_is_kept_for_the_next_call_unless_a_row_was_very_long() {
        let kept = || {
            let workspace = SCRATCH.take();
            let bytes = workspace.as_ref().map(|workspace| workspace.bytes());
            SCRATCH.set(workspace);
            bytes
        };
        let report = |n: usize| {
            // Equal gaps below one sink: every score is gathered, and the masks are finite.
            let of = |i| {
                if i == 0 {
                    9.0
                } else if i % 2 == 0 {
                    f32::MIN
                } else {
                    1.0
                }
            };
            let row: Vec<f32> = (0..n).map(of).collect();
            assert_eq!(row_report(&row, 1.0, Measure::default()).top.len, 1 + n as u64 / 2);
        };
        report(100_000);
        assert!(kept().is_some_and(|bytes| bytes >= 400_000), "{:?}", kept());
        report(10_000_000);
        assert_eq!(kept(), None);
        report(100_000);
        assert!(kept().is_some_and(|bytes| bytes <= KEPT_BYTES), "{:?}", kept());
    }
}
