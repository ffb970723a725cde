//! Lane slots of an element of a key or a value in the attention kernels, for the plan.
//!
//! `tests/costs.rs` compares [`SLOTS`] with the newest record of `benches/record/sass`, and writes it if
//! CRITBETA_COSTS=write is set.

use crate::cuda::attention_params::{CHUNKS, UNIT, VALUE_ROWS, VALUE_THREADS};
use crate::cuda::variants::Family;
use crate::{DType, Error, Result};

/// Elements of a head and query rows of a key head that are counted.
const DIMS: [u32; 2] = [64, 128];
const ROWS: [u32; 4] = [1, 4, 8, 16];
/// Keys of the shortest chunk, which the record counts.
const SHORTEST: u32 = VALUE_THREADS / 32 * UNIT;

/// Slots of an element on sm_90, by `DIMS` and `ROWS`: what its key or value takes, and its share of what a
/// chunk of 512 keys takes beside them.
pub type Slots = [[[f64; 2]; 4]; 2];

/// The slots in `record`, the text that `scripts/cuda-compile.sh --record` wrote, of the kernel whose name
/// begins so.
///
/// Errors: [`Error::Settings`] if the record does not have all of them.
pub fn slots_in(record: &str, kernel: &str) -> Result<Slots> {
    let mut slots = Slots::default();
    for (of_dim, dim) in slots.iter_mut().zip(DIMS) {
        for (found, rows) in of_dim.iter_mut().zip(ROWS) {
            let path = format!("{rows} row{} of {dim}", if rows > 1 { "s" } else { "" });
            let line = record.lines().find_map(|line| {
                let rest = line.strip_prefix(kernel)?.split_once(' ')?.1.trim_start();
                parts_of(rest.strip_prefix(&path)?.strip_prefix("  ")?)
            });
            *found = line.ok_or_else(|| Error::Settings {
                detail: format!("no slots of {kernel}, path {path:?}, in the record"),
            })?;
        }
    }
    Ok(slots)
}

/// The numbers of `... keys 8.67, chunks 3.18`.
fn parts_of(line: &str) -> Option<[f64; 2]> {
    let (keys, chunks) = line.split_once("  keys ")?.1.split_once(", chunks ")?;
    let parts = [keys.parse().ok()?, chunks.parse().ok()?];
    parts.iter().all(|part: &f64| part.is_finite()).then_some(parts)
}

/// Lane slots of a key, or of its value, by a kernel of this family over sequences of `len` keys, of which it
/// reads a share. Sizes that are not counted lie on lines through those that are. 0 if it has no slots.
pub(super) fn of_key(family: Family, dtype: DType, [dim, rows, len]: [u64; 3], share: f64) -> f64 {
    // Masses are those of f32 probabilities.
    let dtype = if family == Family::AttentionMasses { DType::F32 } else { dtype };
    let Some((.., slots)) = SLOTS.iter().find(|row| (row.0, row.1) == (family, dtype)) else { return 0.0 };
    let mut chunk = u64::from(SHORTEST);
    while chunk.saturating_mul(u64::from(CHUNKS)) < len {
        chunk *= 2;
    }
    let longer = f64::from(SHORTEST) / chunk as f64;
    let of_rows = |rows: u64| {
        // Rows of one tile cost the same.
        let rows = if rows > 4 { rows.next_multiple_of(8) } else { rows };
        let of_dim = |i: usize| {
            let of_element = slots[i].map(|[keys, chunks]| share * keys + chunks * longer);
            f64::from(DIMS[i]) * on_line(ROWS, of_element, rows)
        };
        on_line(DIMS, [of_dim(0), of_dim(1)], dim)
    };
    let most = u64::from(VALUE_ROWS);
    if family != Family::AttentionValues || rows <= most {
        return of_rows(rows);
    }
    let rest = if rows % most > 0 { of_rows(rows % most) } else { 0.0 };
    (rows / most) as f64 * of_rows(most) + rest
}

/// The line through the two points round `x`, or through the nearest two.
fn on_line<const N: usize>(xs: [u32; N], ys: [f64; N], x: u64) -> f64 {
    let (xs, x) = (xs.map(f64::from), x as f64);
    let at = (1..N - 1).filter(|&i| xs[i] <= x).max().unwrap_or(0);
    ys[at] + (ys[at + 1] - ys[at]) * (x - xs[at]) / (xs[at + 1] - xs[at])
}

const SLOTS: [(Family, DType, Slots); 7] = [
    (
        Family::AttentionScores,
        DType::F32,
        [
            [[63.34, 0.0], [63.34, 0.0], [63.34, 0.0], [126.69, 0.0]],
            [[42.67, 0.0], [42.67, 0.0], [42.67, 0.0], [85.34, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::F16,
        [
            [[13.03, 0.0], [14.59, 0.0], [14.59, 0.0], [21.22, 0.0]],
            [[6.97, 0.0], [7.75, 0.0], [7.75, 0.0], [11.52, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::Bf16,
        [
            [[13.03, 0.0], [14.59, 0.0], [14.59, 0.0], [21.22, 0.0]],
            [[6.97, 0.0], [7.75, 0.0], [7.75, 0.0], [11.52, 0.0]],
        ],
    ),
    (
        Family::AttentionMasses,
        DType::F32,
        [
            [[2.31, 0.0], [3.59, 0.0], [5.44, 0.0], [9.12, 0.0]],
            [[1.16, 0.0], [1.8, 0.0], [2.72, 0.0], [4.56, 0.0]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::F32,
        [
            [[21.71, 1.84], [22.61, 3.06], [23.8, 4.17], [44.7, 6.39]],
            [[19.32, 1.15], [20.06, 2.09], [21.05, 3.2], [40.58, 5.41]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::F16,
        [
            [[10.39, 1.83], [11.05, 3.03], [11.45, 4.12], [16.0, 6.31]],
            [[7.92, 1.14], [8.43, 2.06], [8.63, 3.15], [11.75, 5.34]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::Bf16,
        [
            [[10.41, 1.84], [11.07, 3.05], [11.48, 4.15], [16.05, 6.36]],
            [[7.96, 1.15], [8.47, 2.08], [8.67, 3.18], [11.84, 5.38]],
        ],
    ),
];
