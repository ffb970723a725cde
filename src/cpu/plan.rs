//! How the cores share a block of rows. The choice is a pure function, and it prints itself.

use crate::DType;
use std::fmt;

/// One thread sums the weights of this many columns in one run, and claims this many columns of a split row.
/// The number is fixed, so that no sum depends on the number of threads.
pub(super) const CHUNK: usize = 1 << 14;
/// Shorter rows are never split, because three or more hand-overs cost more than they save.
const SPLIT_COLS: usize = 4 * CHUNK;
/// With this many rows per thread or more, whole rows keep all threads busy to within 1 / ROWS_PER_THREAD.
const ROWS_PER_THREAD: usize = 4;
/// Number of scores in the rows that a thread claims at once.
const CLAIM_SCORES: usize = 1 << 16;
/// Output of this size or more is stored past the caches.
const STREAM_BYTES: usize = 1 << 22;

/// How threads share rows, and how probabilities are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Number of rows in the block.
    pub rows: usize,
    /// Allocated width of a row.
    pub cols: usize,
    /// The type in which probabilities are stored.
    pub dtype: DType,
    /// Number of threads.
    pub threads: usize,
    /// Which threads compute a row.
    pub sharing: Sharing,
    /// Whether probabilities are stored past the caches.
    pub streams: bool,
}

/// Which threads compute a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharing {
    /// One thread computes a row. It claims several rows at once.
    Rows {
        /// Number of rows in one claim.
        claim: usize,
    },
    /// All threads compute a row, one row after the other. Each thread claims several columns at once.
    Columns {
        /// Number of columns in one claim.
        claim: usize,
    },
}

impl Plan {
    /// The plan for `rows` x `cols` probabilities stored as `dtype` on `threads` threads.
    pub fn choose(rows: usize, cols: usize, dtype: DType, threads: usize) -> Plan {
        let threads = threads.max(1);
        let split = threads > 1 && cols >= SPLIT_COLS && rows < ROWS_PER_THREAD * threads;
        let sharing = match split {
            true => Sharing::Columns { claim: CHUNK },
            false => Sharing::Rows { claim: (CLAIM_SCORES / cols.max(1)).max(1) },
        };
        let streams = rows.saturating_mul(cols).saturating_mul(dtype.size_bytes()) >= STREAM_BYTES;
        Plan { rows, cols, dtype, threads, sharing, streams }
    }
}

/// Prints the choice and its reason in one line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { rows, cols, dtype, threads, sharing, streams } = self;
        write!(f, "{rows} x {cols} {dtype} on {threads} threads: ")?;
        match sharing {
            Sharing::Rows { claim } if *threads == 1 => {
                write!(f, "one row after the other, {claim} at once")?
            }
            Sharing::Rows { claim } => write!(
                f,
                "rows in parallel, {claim} at once \
                 (at least {ROWS_PER_THREAD} rows a thread, or fewer than {SPLIT_COLS} columns)"
            )?,
            Sharing::Columns { claim } => write!(
                f,
                "every row split into {} parts of {claim} columns \
                 (fewer than {ROWS_PER_THREAD} rows a thread)",
                cols.div_ceil(*claim)
            )?,
        }
        let mib = STREAM_BYTES >> 20;
        match streams {
            true => write!(f, "; stored past the caches (output of {mib} MiB or more)"),
            false => write!(f, "; stored through the caches (output below {mib} MiB)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: usize, cols: usize, threads: usize) -> Plan {
        Plan::choose(rows, cols, DType::F32, threads)
    }

    #[test]
    fn few_long_rows_are_split_and_many_are_not() {
        assert_eq!(plan(1, 1 << 20, 2).sharing, Sharing::Columns { claim: CHUNK });
        assert_eq!(plan(16, 1 << 20, 2).sharing, Sharing::Rows { claim: 1 });
        assert_eq!(plan(16, 1 << 20, 64).sharing, Sharing::Columns { claim: CHUNK });
        assert_eq!(plan(1, 1 << 20, 1).sharing, Sharing::Rows { claim: 1 });
        assert_eq!(plan(4096, 4096, 64).sharing, Sharing::Rows { claim: 16 });
        assert_eq!(plan(1, 4096, 64).sharing, Sharing::Rows { claim: 16 });
        assert_eq!(plan(0, 0, 0).sharing, Sharing::Rows { claim: CLAIM_SCORES });
    }

    #[test]
    fn only_output_that_no_cache_keeps_is_streamed() {
        assert!(plan(4096, 4096, 2).streams);
        assert!(!plan(16, 4096, 2).streams);
        assert!(plan(usize::MAX, usize::MAX, 2).streams);
    }

    #[test]
    fn a_plan_prints_its_reasons() {
        let text = plan(1, 1 << 20, 2).to_string();
        assert!(text.starts_with("1 x 1048576 f32 on 2 threads: every row split into 64 parts"), "{text}");
        assert!(text.ends_with("stored past the caches (output of 4 MiB or more)"), "{text}");
    }
}
