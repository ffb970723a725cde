//! Scores from queries and keys, tile by tile: a block of rows at a time, never a rows x keys matrix.

use crate::input::QkPair;
use std::ops::Range;

/// Keys per tile, and the values that it holds at most unless one key is longer: with head_dim 64 a
/// transposed tile is 128 KiB and stays in the second-level cache.
const TILE_KEYS: usize = 512;
const TILE_VALUES: usize = 1 << 18;
/// Scores, and values of queries, that one thread holds at once unless two rows are longer.
const BLOCK_VALUES: usize = 1 << 20;

/// Scratch of one thread: one tile of keys and one block of scores.
#[derive(Default)]
pub(super) struct QkBlock {
    queries: Vec<f32>,
    tile: Vec<f32>,
    transposed: Vec<f32>,
    scores: Vec<f32>,
    width: usize,
}

/// Rows that share one pass over the keys: more save decoding, fewer save memory.
pub(super) fn block_rows(pair: &QkPair) -> usize {
    (BLOCK_VALUES / pair.keys().max(pair.head_dim())).clamp(2, 64)
}

fn tile_keys(head_dim: usize) -> usize {
    (TILE_VALUES / head_dim).clamp(1, TILE_KEYS)
}

/// Bytes of scratch that one thread needs for `pair`.
pub(super) fn scratch_bytes(pair: &QkPair) -> u128 {
    let [rows, keys, dim] =
        [block_rows(pair).min(pair.rows()), pair.keys(), pair.head_dim()].map(|n| n as u128);
    4 * (rows * (keys + dim) + 2 * tile_keys(pair.head_dim()) as u128 * dim)
}

impl QkBlock {
    /// Computes scale * q k^T for `rows` of query head `head`, in f32 accumulation over head_dim in
    /// ascending order, as far as each row sees keys.
    pub(super) fn fill(&mut self, pair: &QkPair, head: usize, rows: Range<usize>) {
        let dim = pair.head_dim();
        let positions = rows.clone().map(|row| pair.position(row));
        self.width = positions.clone().max().map_or(0, |last| last as usize + 1);
        self.scores.clear();
        self.scores.resize(self.width * rows.len(), 0.0);
        self.queries.clear();
        let mut query = Vec::with_capacity(dim);
        for row in rows {
            pair.read_q(head, row, &mut query);
            self.queries.extend(&query);
        }
        let QkBlock { queries, tile, transposed, scores, width } = self;
        let step = tile_keys(dim);
        for start in (0..*width).step_by(step) {
            let keys = start..(start + step).min(*width);
            let len = keys.len();
            pair.read_k(pair.kv_head(head), keys, tile);
            transpose(tile, dim, len, transposed);
            let rows = queries.chunks_exact(dim).zip(scores.chunks_exact_mut(*width));
            for ((query, row), position) in rows.zip(positions.clone()) {
                let visible = (position as usize + 1).saturating_sub(start).min(len);
                accumulate(query, transposed, len, &mut row[start..][..visible]);
            }
        }
        let scale = pair.scale();
        for score in scores.iter_mut() {
            let scaled = (f64::from(*score) * scale) as f32;
            // An overflow to -inf must poison its row: as a score it would read as masked.
            *score = if scaled == f32::NEG_INFINITY { f32::NAN } else { scaled };
        }
    }

    /// The scores of the `index`-th row of the block, for keys 0..=position.
    pub(super) fn row(&mut self, index: usize, position: u64) -> &mut [f32] {
        &mut self.scores[index * self.width..][..position as usize + 1]
    }
}

fn transpose(tile: &[f32], dim: usize, len: usize, out: &mut Vec<f32>) {
    out.clear();
    out.resize(dim * len, 0.0);
    for (key, values) in tile.chunks_exact(dim).enumerate() {
        for (d, &value) in values.iter().enumerate() {
            out[d * len + key] = value;
        }
    }
}

/// out[j] += q[d] * keys[d][j] for ascending d, four d per pass over `out`: a quarter of its loads and stores.
fn accumulate(query: &[f32], keys: &[f32], len: usize, out: &mut [f32]) {
    let visible = out.len();
    let mut query = query.chunks_exact(4);
    let mut keys = keys.chunks_exact(4 * len);
    for (q, k) in query.by_ref().zip(keys.by_ref()) {
        let [k0, k1, k2, k3] = [0, 1, 2, 3].map(|d| &k[d * len..][..visible]);
        for (j, score) in out.iter_mut().enumerate() {
            *score = (((*score + q[0] * k0[j]) + q[1] * k1[j]) + q[2] * k2[j]) + q[3] * k3[j];
        }
    }
    for (q, k) in query.remainder().iter().zip(keys.remainder().chunks_exact(len)) {
        for (score, k) in out.iter_mut().zip(k) {
            *score += q * k;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_run_over_head_dim_in_order_whatever_its_remainder() {
        for dim in 1..=9 {
            let (len, visible) = (7, 5);
            let query: Vec<f32> = (0..dim).map(|d| (d as f32 * 0.7).sin()).collect();
            let tile: Vec<f32> = (0..dim * len).map(|i| (i as f32 * 1.3).cos()).collect();
            let mut transposed = Vec::new();
            transpose(&tile, dim, len, &mut transposed);
            let mut out = vec![0.0; visible];
            accumulate(&query, &transposed, len, &mut out);
            for (j, &score) in out.iter().enumerate() {
                let expected = (0..dim).fold(0.0f32, |sum, d| sum + query[d] * tile[j * dim + d]);
                assert_eq!(score, expected, "dim {dim} key {j}");
            }
        }
    }
}
