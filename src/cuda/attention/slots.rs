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
            [[55.34, 0.0], [55.34, 0.0], [55.34, 0.0], [110.69, 0.0]],
            [[38.42, 0.0], [38.42, 0.0], [38.42, 0.0], [76.84, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::F16,
        [
            [[11.75, 0.0], [13.31, 0.0], [13.31, 0.0], [20.0, 0.0]],
            [[6.31, 0.0], [7.09, 0.0], [7.09, 0.0], [10.89, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::Bf16,
        [
            [[11.75, 0.0], [13.31, 0.0], [13.31, 0.0], [20.0, 0.0]],
            [[6.31, 0.0], [7.09, 0.0], [7.09, 0.0], [10.89, 0.0]],
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
            [[20.33, 2.1], [21.12, 2.9], [22.19, 3.88], [42.27, 5.8]],
            [[19.27, 1.16], [19.82, 1.77], [20.58, 2.59], [40.03, 4.2]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::F16,
        [
            [[7.6, 2.09], [8.33, 2.88], [8.98, 3.83], [11.9, 5.73]],
            [[6.51, 1.16], [7.0, 1.75], [7.32, 2.54], [9.6, 4.11]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::Bf16,
        [
            [[7.66, 2.1], [8.39, 2.89], [9.04, 3.85], [12.02, 5.75]],
            [[6.57, 1.16], [7.06, 1.76], [7.39, 2.55], [9.72, 4.13]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::F32,
        [
            [[35.23, 1.66], [36.64, 2.27], [38.52, 3.03], [77.04, 6.92]],
            [[27.61, 0.94], [28.4, 1.49], [29.46, 2.22], [58.91, 5.07]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::F16,
        [
            [[9.57, 1.73], [12.09, 2.34], [13.75, 3.1], [21.07, 4.71]],
            [[6.36, 0.97], [7.68, 1.52], [8.51, 2.25], [12.84, 3.76]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::Bf16,
        [
            [[9.57, 1.72], [12.11, 2.33], [13.78, 3.09], [21.19, 4.69]],
            [[6.37, 0.97], [7.7, 1.51], [8.53, 2.25], [12.93, 3.75]],
        ],
    ),
];
