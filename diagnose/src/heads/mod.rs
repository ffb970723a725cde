//! Rows per layer and head, and the findings about each head.

pub(crate) mod bounds;
pub(crate) mod diagnosis;
mod notes;
pub(crate) mod sketch;
pub(crate) mod summary;
