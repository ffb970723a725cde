//! The supremum of log N(t) / t over a row, without a sort: start at `contact.rs`.

pub(super) mod contact;
pub(super) mod gather;
pub(super) mod rank;

mod bins;
mod hull;
mod spread;
mod state;
mod tally;
