//! The `critbeta` command.
fn main() {}
