//! Rows gathered per layer and head, and what is said of each.

pub(crate) mod bounds;
pub(crate) mod diagnosis;
pub(crate) mod sketch;
pub(crate) mod summary;
