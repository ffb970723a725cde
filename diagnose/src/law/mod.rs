//! The length law of a head: medians over rows of similar length, fits, and a verdict in words.

pub(crate) mod bins;
pub(crate) mod fit;
pub(crate) mod length_law;
pub(crate) mod published;
pub(crate) mod quantile;
pub(crate) mod sample;
pub(crate) mod verdict;
pub(crate) mod yardsticks;
