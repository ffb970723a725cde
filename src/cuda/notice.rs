//! What an engine says while it loads kernels.

/// Gets lines of text while an engine loads kernels.
pub type Notice = Box<dyn Fn(&str) + Send + Sync>;
