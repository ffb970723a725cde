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
/// reads a share; in one pass half of both. Sizes that are not counted lie on lines through those that are.
/// 0 if it has no slots.
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
    let shared = matches!(family, Family::AttentionValues | Family::AttentionOnePass);
    if !shared || rows <= most {
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

const SLOTS: [(Family, DType, Slots); 10] = [
    (
        Family::AttentionScores,
        DType::F32,
        [
            [[55.22, 0.0], [55.22, 0.0], [55.22, 0.0], [110.44, 0.0]],
            [[38.3, 0.0], [38.3, 0.0], [38.3, 0.0], [76.59, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::F16,
        [
            [[11.66, 0.0], [13.22, 0.0], [13.22, 0.0], [19.91, 0.0]],
            [[6.27, 0.0], [7.05, 0.0], [7.05, 0.0], [10.83, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::Bf16,
        [
            [[11.66, 0.0], [13.22, 0.0], [13.22, 0.0], [19.91, 0.0]],
            [[6.27, 0.0], [7.05, 0.0], [7.05, 0.0], [10.83, 0.0]],
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
            [[20.4, 2.05], [21.21, 2.85], [22.3, 3.84], [42.5, 5.77]],
            [[19.34, 1.14], [19.92, 1.75], [20.7, 2.57], [40.27, 4.18]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::F16,
        [
            [[7.6, 2.08], [8.29, 2.87], [8.91, 3.83], [11.78, 5.73]],
            [[6.5, 1.16], [6.97, 1.75], [7.28, 2.54], [9.54, 4.11]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::Bf16,
        [
            [[7.63, 2.09], [8.34, 2.88], [8.96, 3.84], [11.93, 5.75]],
            [[6.54, 1.16], [7.02, 1.75], [7.33, 2.54], [9.68, 4.12]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::F32,
        [
            [[34.65, 1.65], [36.08, 2.28], [38.0, 3.06], [75.99, 6.99]],
            [[27.31, 0.94], [28.12, 1.5], [29.19, 2.25], [58.37, 5.14]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::F16,
        [
            [[9.57, 1.73], [12.12, 2.33], [13.8, 3.08], [21.18, 4.65]],
            [[6.36, 0.97], [7.7, 1.51], [8.54, 2.23], [12.89, 3.7]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::Bf16,
        [
            [[9.63, 1.74], [12.16, 2.34], [13.84, 3.11], [21.24, 4.71]],
            [[6.4, 0.97], [7.73, 1.52], [8.57, 2.26], [12.96, 3.76]],
        ],
    ),
];
