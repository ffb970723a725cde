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
            [[38.48, 0.0], [38.48, 0.0], [38.48, 0.0], [76.97, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::F16,
        [
            [[11.97, 0.0], [13.34, 0.0], [13.34, 0.0], [19.66, 0.0]],
            [[6.41, 0.0], [7.09, 0.0], [7.09, 0.0], [10.69, 0.0]],
        ],
    ),
    (
        Family::AttentionScores,
        DType::Bf16,
        [
            [[11.97, 0.0], [13.34, 0.0], [13.34, 0.0], [19.66, 0.0]],
            [[6.41, 0.0], [7.09, 0.0], [7.09, 0.0], [10.69, 0.0]],
        ],
    ),
    (
        Family::AttentionMasses,
        DType::F32,
        [
            [[2.25, 0.0], [3.53, 0.0], [5.38, 0.0], [9.06, 0.0]],
            [[1.12, 0.0], [1.77, 0.0], [2.69, 0.0], [4.53, 0.0]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::F32,
        [
            [[19.53, 1.97], [20.44, 2.66], [21.66, 3.48], [41.38, 5.12]],
            [[18.53, 1.08], [19.14, 1.58], [19.97, 2.23], [38.91, 3.54]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::F16,
        [
            [[7.41, 2.0], [8.23, 2.66], [9.0, 3.45], [12.24, 5.01]],
            [[6.41, 1.09], [6.94, 1.56], [7.32, 2.18], [9.8, 3.41]],
        ],
    ),
    (
        Family::AttentionValues,
        DType::Bf16,
        [
            [[7.45, 2.0], [8.25, 2.65], [9.0, 3.43], [12.29, 4.97]],
            [[6.44, 1.09], [6.96, 1.55], [7.34, 2.16], [9.88, 3.38]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::F32,
        [
            [[34.65, 1.58], [36.08, 2.13], [38.0, 2.8], [75.99, 6.46]],
            [[27.31, 0.89], [28.12, 1.37], [29.19, 2.02], [58.37, 4.66]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::F16,
        [
            [[9.59, 1.67], [12.13, 2.21], [13.8, 2.88], [21.15, 4.31]],
            [[6.37, 0.93], [7.7, 1.41], [8.54, 2.05], [12.87, 3.38]],
        ],
    ),
    (
        Family::AttentionOnePass,
        DType::Bf16,
        [
            [[9.64, 1.66], [12.18, 2.17], [13.85, 2.82], [21.19, 4.18]],
            [[6.42, 0.92], [7.75, 1.38], [8.58, 1.99], [12.92, 3.25]],
        ],
    ),
];
