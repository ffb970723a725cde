//! Scores from queries and keys, tile by tile. A block of rows exists at a time, never a rows x keys matrix.
//!
//! The matrix products are ndarray's, on `matrixmultiply`. Of the kernels compared, only its score of a query
//! and a key has the same bits for any blocks of rows and keys (docs/adr/0003). Up to a head_dim of 256 the
//! score is a chain of fused multiply-adds over head_dim in order, where the processor has them (AVX2,
//! AVX-512, NEON). Beyond 256 it is a sum of such chains. Without fused multiply-adds its last bits differ.

use critbeta::cpu;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use std::ops::Range;

/// Keys per tile, and the most values in it unless one key is longer. These 256 KiB stay in the second-level
/// cache beside the copy that the product packs.
const TILE_KEYS: usize = 1024;
const TILE_VALUES: usize = 1 << 16;
/// One thread holds this many scores (16 MiB), and as many values of queries, unless two rows are longer.
/// With half as many, to read and pack 65,536 keys per 32 rows took longer than the product (2026-11-25).
const BLOCK_VALUES: usize = 1 << 22;
/// At most this many rows share a tile. To read and pack it cost 44 % of the product's time at 64 rows, 10 %
/// at 256, and nothing measurable at 512 (2048 keys of head_dim 64 in f32, 2026-11-25).
const BLOCK_ROWS: usize = 512;
/// Rows per product where the rows of a block see different keys. A product covers all keys that any of its
/// rows sees. Smaller groups waste fewer scores but pack keys more often (32 and 64: no faster, 256: a tenth
/// slower).
const GROUP_ROWS: usize = 128;
/// Heads that share keys share one product, if it has at most this many scores.
const SMALL: usize = 1 << 12;

/// Scratch of one thread: one tile of keys and one block of scores.
#[derive(Default)]
pub(crate) struct QkBlock {
    queries: Vec<f32>,
    keys: Vec<f32>,
    scores: Vec<f32>,
    width: usize,
    /// The factor that the products still need.
    rest: f64,
}

/// Queries and the keys that they attend to. Row `r` sees the keys `0..=position(r)`.
pub(crate) trait Attended {
    /// Query heads, and key heads. As many consecutive query heads share each.
    fn heads(&self) -> [usize; 2];
    /// Queries per head.
    fn rows(&self) -> usize;
    /// Keys per key head.
    fn keys(&self) -> usize;
    /// Elements of one query or key.
    fn head_dim(&self) -> usize;
    /// The factor of the products.
    fn scale(&self) -> f64;
    /// 0-based position of a row, below `keys`.
    fn position(&self, row: usize) -> u64;
    /// Appends queries of a head, head_dim values each.
    fn append_queries(&self, head: usize, rows: Range<usize>, out: &mut Vec<f32>);
    /// Appends keys of a key head, head_dim values each.
    fn append_keys(&self, kv_head: usize, keys: Range<usize>, out: &mut Vec<f32>);
}

/// Rows that share one pass over the keys. More rows save decoding; fewer rows save memory.
pub(crate) fn block_rows(pair: &impl Attended) -> usize {
    (BLOCK_VALUES / pair.keys().max(pair.head_dim())).clamp(2, BLOCK_ROWS)
}

/// Blocks of all rows of all heads, in order: some rows of one head, or all rows of heads that share keys.
pub(crate) fn blocks<P: Attended>(pair: &P) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<P> {
    let ([heads, kv_heads], rows, step) = (pair.heads(), pair.rows(), block_rows(pair));
    let group = heads / kv_heads;
    let share = (SMALL / (rows * pair.keys()).max(1)).min(step / rows.max(1)).clamp(1, group);
    let shares = move |first: usize| {
        let end = first + group;
        (first..end).step_by(share).map(move |head| head..(head + share).min(end))
    };
    let of_heads = move |heads: Range<usize>| {
        (0..rows).step_by(step).map(move |row| (heads.clone(), row..(row + step).min(rows)))
    };
    (0..heads).step_by(group).flat_map(shares).flat_map(of_heads)
}

fn tile_keys(head_dim: usize) -> usize {
    (TILE_VALUES / head_dim).clamp(1, TILE_KEYS)
}

/// Bytes of scratch that one thread needs for `pair`. The product packs queries and keys, so they count
/// twice.
pub(crate) fn scratch_bytes(pair: &impl Attended) -> u128 {
    let [rows, keys, dim, tile] =
        [block_rows(pair).min(pair.rows()), pair.keys(), pair.head_dim(), tile_keys(pair.head_dim())]
            .map(|n| n as u128);
    4 * (rows * keys + 2 * (rows + tile) * dim)
}

impl QkBlock {
    /// Computes scale * q k^T for `rows` of each of `heads`, which share a key head, and the keys that each
    /// row sees. There are at most [`block_rows`] rows of all heads. A score is a dot product in f32 with
    /// head_dim additions, times the scale in f64, rounded once.
    pub(crate) fn fill(&mut self, pair: &impl Attended, heads: Range<usize>, rows: Range<usize>) {
        let dim = pair.head_dim();
        let of_head = || rows.clone().map(|row| pair.position(row) as usize + 1);
        let seen: Vec<usize> = heads.clone().flat_map(|_| of_head()).collect();
        let (all_see, width) = (least(&seen), most(&seen));
        let groups: Vec<usize> = seen.chunks(GROUP_ROWS).map(most).collect();
        let QkBlock { queries, keys, scores, .. } = self;
        let [all_heads, kv_heads] = pair.heads();
        let kv_head = heads.start / (all_heads / kv_heads);
        queries.clear();
        heads.for_each(|head| pair.append_queries(head, rows.clone(), queries));
        // All blocks of the pair share this memory. Pages that causal rows do not reach are never touched.
        let room = seen.len().max(block_rows(pair).min(pair.rows())) * pair.keys();
        if scores.len() < room {
            *scores = vec![0.0; room];
        }
        let (exact, rest) = split_scale(pair.scale());
        let mut start = 0;
        while start < width {
            let end = (start + tile_keys(dim)).min(if start < all_see { all_see } else { width });
            keys.clear();
            pair.append_keys(kv_head, start..end, keys);
            let visible = |group: usize| group.clamp(start, end) - start;
            let mut first = 0;
            for run in groups.chunk_by(|&a, &b| visible(a) == visible(b)) {
                let rows = first..seen.len().min(first + run.len() * GROUP_ROWS);
                first = rows.end;
                let visible = visible(run[0]);
                if visible == 0 {
                    continue;
                }
                let block = &mut scores[rows.start * width + start..][..(rows.len() - 1) * width + visible];
                let queries = &queries[rows.start * dim..rows.end * dim];
                product(exact, queries, &keys[..visible * dim], dim, block, width);
            }
            start = end;
        }
        (self.width, self.rest) = (width, rest);
    }

    /// The scores of the `index`-th row of the block, counted head by head, for keys 0..=position. Call it
    /// once a row: it scales the scores here, just before they are read.
    pub(crate) fn row(&mut self, index: usize, position: u64) -> &mut [f32] {
        let row = &mut self.scores[index * self.width..][..position as usize + 1];
        cpu::scale(row, self.rest);
        row
    }
}

fn least(seen: &[usize]) -> usize {
    seen.iter().copied().min().unwrap_or(0)
}

fn most(seen: &[usize]) -> usize {
    seen.iter().copied().max().unwrap_or(0)
}

/// out[i][j] = alpha * (queries[i] . keys[j]). The rows of `out` are `stride` apart.
fn product(alpha: f32, queries: &[f32], keys: &[f32], dim: usize, out: &mut [f32], stride: usize) {
    let (rows, cols) = (queries.len() / dim, keys.len() / dim);
    let fits = "lengths are multiples of dim and stride";
    let queries = ArrayView2::from_shape((rows, dim), queries).expect(fits);
    let keys = ArrayView2::from_shape((cols, dim), keys).expect(fits);
    let mut out = ArrayViewMut2::from_shape((rows, cols).strides((stride, 1)), out).expect(fits);
    general_mat_mul(alpha, &queries, &keys.t(), 0.0, &mut out);
}

/// Splits the scale of the dot products into a power of two and a rest for [`cpu::scale`]. The product
/// applies the power of two exactly and at no cost (except for sums below 2^-126 of more than 256 terms).
fn split_scale(scale: f64) -> (f32, f64) {
    let exact = scale as f32;
    let power_of_two = exact.is_normal() && exact.to_bits().trailing_zeros() >= f32::MANTISSA_DIGITS - 1;
    match power_of_two && f64::from(exact) == scale {
        true => (exact, 1.0),
        false => (1.0, scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{QkPair, Selection, Source, open};

    /// A pair of two query heads on one key head, in f32, with these positions.
    fn pair(dim: usize, keys: usize, positions: &[u32], scale: f64, value: impl Fn(usize) -> f32) -> QkPair {
        let rows = positions.len();
        let floats = |count: usize, from: usize| {
            (from..from + count).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>()
        };
        let bytes = [
            floats(2 * rows * dim, 0),
            floats(keys * dim, 2 * rows * dim),
            positions.iter().flat_map(|p| p.to_le_bytes()).collect(),
        ];
        let [a, b, c] = [0, 1, 2].map(|i| bytes[..=i].iter().map(Vec::len).sum::<usize>());
        let header = format!(
            r#"{{"__metadata__":{{"scale":"{scale:e}"}},"a.q":{{"dtype":"F32","shape":[2,{rows},{dim}],"data_offsets":[0,{a}]}},"a.k":{{"dtype":"F32","shape":[1,{keys},{dim}],"data_offsets":[{a},{b}]}},"positions":{{"dtype":"U32","shape":[{rows}],"data_offsets":[{b},{c}]}}}}"#
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.safetensors");
        let parts = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes.concat()].concat();
        std::fs::write(&path, parts).unwrap();
        match open(&path, &Selection::default()).unwrap().sources.pop() {
            Some(Source::Pair(pair)) => pair,
            other => panic!("{other:?} is no pair"),
        }
    }

    fn wave(i: usize) -> f32 {
        (i as f32 * 0.754_877_7).fract().powi(5) * if i.is_multiple_of(3) { -40.0 } else { 3.0 }
    }

    fn bits(scores: &[f32]) -> Vec<u32> {
        scores.iter().map(|s| s.to_bits()).collect()
    }

    /// The scores of all rows when `step` rows make a block.
    fn filled(pair: &QkPair, head: usize, step: usize) -> Vec<Vec<f32>> {
        let mut block = QkBlock::default();
        let mut all = Vec::new();
        for start in (0..pair.rows()).step_by(step) {
            let rows = start..(start + step).min(pair.rows());
            block.fill(pair, head..head + 1, rows.clone());
            all.extend(rows.map(|row| block.row(row - start, pair.position(row)).to_vec()));
        }
        all
    }

    #[test]
    fn a_score_errs_as_its_head_dim_allows_and_has_the_same_bits_in_every_block() {
        // These are causal rows, rows in no order, and rows that all see the same keys.
        let orders: [fn(u32) -> u32; 3] = [|row| 880 + row, |row| row * 7919 % 1100, |_| 1099];
        for (dim, order) in [1, 2, 3, 7, 64, 80, 96, 257, 513].into_iter().zip(orders.into_iter().cycle()) {
            let positions: Vec<u32> = (0..200).map(order).collect();
            for scale in [1.0 / (dim as f64).sqrt(), 0.125, 1.0] {
                let pair = pair(dim, 1100, &positions, scale, wave);
                let (mut query, mut keys) = (Vec::new(), Vec::new());
                pair.read_k(0, 0..1100, &mut keys);
                let whole = filled(&pair, 1, 200);
                for (row, scores) in whole.iter().enumerate() {
                    assert_eq!(scores.len(), positions[row] as usize + 1);
                    pair.read_q(1, row, &mut query);
                    for (key, &score) in keys.chunks(dim).zip(scores) {
                        let products = || query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
                        let magnitude: f64 = products().map(f64::abs).sum();
                        let error = (f64::from(score) - products().sum::<f64>() * scale).abs();
                        let allowed = (dim + 2) as f64 * 2f64.powi(-24) * scale * magnitude;
                        assert!(error <= allowed, "dim {dim} row {row}: {error:e}, allowed {allowed:e}");
                    }
                }
                for step in [1, 2, 3, 33, 129] {
                    for (row, (one, other)) in whole.iter().zip(filled(&pair, 1, step)).enumerate() {
                        assert_eq!(bits(one), bits(&other), "dim {dim} scale {scale} row {row} of {step}");
                    }
                }
            }
        }
    }

    #[test]
    fn fused_sums_run_over_head_dim_in_order() {
        #[cfg(target_arch = "x86_64")]
        let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        #[cfg(not(target_arch = "x86_64"))]
        let fused = cfg!(target_arch = "aarch64");
        if !fused {
            eprintln!("not checked: this processor has no fused multiply-add");
            return;
        }
        for dim in [1, 2, 5, 64, 80, 256] {
            let pair = pair(dim, 70, &[69; 37], 1.0, wave);
            let (mut query, mut keys) = (Vec::new(), Vec::new());
            pair.read_k(0, 0..70, &mut keys);
            for (row, scores) in filled(&pair, 0, 37).iter().enumerate() {
                pair.read_q(0, row, &mut query);
                for (key, score) in keys.chunks(dim).zip(scores) {
                    let sum = query.iter().zip(key).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum));
                    assert_eq!(sum.to_bits(), score.to_bits(), "dim {dim} row {row}");
                }
            }
        }
    }

    #[test]
    fn a_scale_is_applied_in_f64_and_rounded_once() {
        let positions = [63; 5];
        for (dim, size) in [(16, 1.0), (16, 1e-19), (16, 5e17), (300, 1.0)] {
            let value = |i| wave(i) * size;
            let plain = filled(&pair(dim, 64, &positions, 1.0, value), 0, 5).concat();
            // The first two are not powers of two, though the second is an f32. The last do not fit in f32.
            for scale in [0.1, 0.75, 0.25, 64.0, 2f64.powi(-130), 1e-60, 2f64.powi(130)] {
                let scaled = filled(&pair(dim, 64, &positions, scale, value), 0, 5).concat();
                let expected: Vec<f32> = plain.iter().map(|&s| (f64::from(s) * scale) as f32).collect();
                for (&score, &e) in scaled.iter().zip(&expected) {
                    let same = score.to_bits() == e.to_bits();
                    assert!(
                        same || e < f32::MIN / 2.0 && score.is_nan(),
                        "{dim} {size} {scale}: {score}, {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_score_is_masked_whatever_the_values() {
        let rare = |i| match i % 67 {
            0 => f32::NEG_INFINITY,
            1 => f32::INFINITY,
            2 => f32::NAN,
            3 => 3e38,
            4 => -3e38,
            _ => wave(i),
        };
        let huge = |i| wave(i) * 1e19;
        let values: [&dyn Fn(usize) -> f32; 2] = [&rare, &huge];
        for value in values {
            for scale in [1.0, 0.3, 4.0] {
                let scores = filled(&pair(3, 500, &[499; 40], scale, value), 0, 40).concat();
                assert!(scores.iter().all(|&s| s.is_nan() || s >= f32::MIN / 2.0), "scale {scale}");
                assert!(scores.iter().any(|s| s.is_finite()) && scores.iter().any(|s| !s.is_finite()));
            }
        }
    }
}
