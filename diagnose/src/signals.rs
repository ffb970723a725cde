//! Signals that end a command.

use crate::output::remove_unfinished;
use std::io;

/// Signals to end leave no unfinished file. The exit code is the one that a shell reports for the signal: 130
/// for Ctrl-C, 143 for SIGTERM.
///
/// Errors: a system that takes no handler.
#[cfg(unix)]
pub fn end_cleanly() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            remove_unfinished();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Ctrl-C leaves no unfinished file.
///
/// Errors: a system that takes no handler.
#[cfg(not(unix))]
pub fn end_cleanly() -> io::Result<()> {
    ctrlc::set_handler(|| {
        remove_unfinished();
        std::process::exit(130);
    })
    .map_err(io::Error::other)
}
