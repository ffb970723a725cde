//! What an engine says while it is opened.

/// Gets lines of text while an engine is opened.
pub type Notice<'a> = &'a (dyn Fn(&str) + Sync);
