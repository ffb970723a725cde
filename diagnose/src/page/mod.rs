//! A diagnosis as one page. It needs no network, and can be read without JavaScript and on paper.
//!
//! Every head is an article of its own. The cells of the map are links to the articles, and the style sheet
//! shows the article that was chosen, so that choosing needs no script. A page of hundreds of heads would be
//! 8 MB if all articles were written out. There all but the first are packed, and a script unpacks the one
//! that was chosen. All that a page says comes from the [`Summary`](crate::Summary) that `--json`
//! writes.

mod answer;
mod axis;
mod chart;
mod files;
mod gap_count;
mod length;
mod map;
mod names;
mod number;
mod packed;
mod pen;
mod phase;
mod provenance;
mod render;
mod style;
mod what_if;

pub use files::{write, write_of_inputs, write_of_records};
pub use provenance::{FileFacts, Provenance};
