//! Who computes which rows, and how probabilities leave: a pure function of the shape and the threads.

use super::lanes::CHUNK;
use std::fmt;

/// Rows of at least this many scores are worth four meetings of all threads, some 5 us each.
const SPLIT_COLS: usize = 65_536;
/// Scores that a thread takes at once: less costs more in hand-overs than it evens out, more waits for a thread whose core is shared.
const TASK_SCORES: usize = 1 << 17;
/// Outputs of this many bytes do not stay in a cache: they are stored past it, which saves reading what is overwritten.
const STREAM_BYTES: usize = 16 << 20;

/// How a block of rows is computed on this CPU. Prints itself with its reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Rows.
    pub rows: usize,
    /// Scores of each.
    pub cols: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Parts of one row that threads compute at once; 1 where each has rows of its own.
    pub parts: usize,
    /// Rows that a thread takes at once, or more.
    pub task_rows: usize,
    /// Whether probabilities are stored past the caches.
    pub stream: bool,
}

impl Plan {
    /// The plan of `rows` x `cols` scores whose probabilities take `out_bytes` each (0 for statistics only, or in place) on
    /// `threads` threads. On 64 threads a block of 4,096 rows is 64 tasks and more, and a row of a million 64 parts of 16,384.
    pub fn choose(rows: usize, cols: usize, out_bytes: usize, threads: usize) -> Plan {
        let threads = threads.max(1);
        let is_split = threads > 1 && cols >= SPLIT_COLS && rows < 2 * threads;
        let parts = if is_split { threads.min(cols / CHUNK) } else { 1 };
        let task_rows = (TASK_SCORES / cols.max(1)).clamp(1, rows.div_ceil(threads).max(1));
        let stream = rows.saturating_mul(cols).saturating_mul(out_bytes) >= STREAM_BYTES;
        Plan { rows, cols, threads, parts, task_rows, stream }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { rows, cols, threads, parts, task_rows, stream } = self;
        write!(f, "{rows} rows x {cols} on {threads} threads: ")?;
        match parts {
            1 => write!(f, "each takes {task_rows} rows or more at a time")?,
            _ => write!(f, "few and long, each row in {parts} parts")?,
        }
        match stream {
            true => f.write_str("; probabilities are stored past the caches, which they would not fit"),
            false => f.write_str("; probabilities stay in the caches"),
        }
    }
}
