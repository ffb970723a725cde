//! Rows that are bit-equal to one that was measured count once. A layer may call its attention twice, and
//! beams, copies of a prompt and texts with a common beginning repeat rows. Counted again they would look
//! like independent rows, and intervals would come out too narrow.

use super::bytes::{contiguous, parts};
use super::measure::{Rows, TextProducts};
use ndarray::{ArrayView2, ArrayView3, Axis, s};
use std::collections::HashSet;
use twox_hash::xxhash3_128::Hasher;

/// The rows that were measured, as digests.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    seen: HashSet<u128>,
}

impl Repeats {
    /// The indices of rows that are new, given the digests of all. They are known from now on.
    pub(super) fn new_of(&mut self, digests: &[u128]) -> Vec<usize> {
        let seen = &mut self.seen;
        digests.iter().enumerate().filter(|(_, digest)| seen.insert(**digest)).map(|(row, _)| row).collect()
    }
}

/// A digest of every row of a text: of its place, its position, and its scores or what they are made from.
pub(super) fn digests(layer: &str, rows: &Rows, positions: &[u64]) -> Vec<u128> {
    match rows {
        Rows::Products(of) => of_products(place(layer, Some(of.scale)), of, positions),
        Rows::Scores(tile) => of_scores(place(layer, None), *tile, positions),
    }
}

/// The digest of a layer, and of the scale of its products if there are any.
fn place(layer: &str, scale: Option<f64>) -> u128 {
    let scale = scale.map_or([0; 8], |scale| scale.to_bits().to_le_bytes());
    Hasher::oneshot(&[&scale, layer.as_bytes()].concat())
}

fn of_products(place: u128, of: &TextProducts, positions: &[u64]) -> Vec<u128> {
    let (mut digests, mut of_row) = (vec![0; positions.len()], Vec::new());
    let mut order: Vec<usize> = (0..positions.len()).collect();
    order.sort_by_key(|&row| positions[row]);
    // The keys of a longer row begin with those of a shorter one. A single row needs no state.
    let keys = if order.len() > 1 { of.k.dim().0 } else { 0 };
    let (mut seen, mut done) = (vec![Hasher::new(); keys], 0);
    for row in order {
        let end = positions[row] as usize + 1;
        of_row.clear();
        of_row.extend(place.to_le_bytes());
        of_row.extend(positions[row].to_le_bytes());
        for head in 0..of.k.dim().0 {
            let more = of.k.slice_move(s![head, done..end, ..]);
            let digest = match (seen.get_mut(head), more.to_slice()) {
                (Some(seen), _) => finished(seen, more),
                (None, Some(whole)) => Hasher::oneshot(whole),
                (None, None) => finished(&mut Hasher::new(), more),
            };
            of_row.extend(digest.to_le_bytes());
        }
        parts(of.q.index_axis_move(Axis(0), row)).for_each(|part| of_row.extend_from_slice(part));
        digests[row] = Hasher::oneshot(&of_row);
        done = end;
    }
    digests
}

fn finished(seen: &mut Hasher, more: ArrayView2<u8>) -> u128 {
    parts(more).for_each(|part| seen.write(part));
    seen.finish_128()
}

/// How many masked keys lie around those that a row sees does not matter.
fn of_scores(place: u128, tile: ArrayView3<f32>, positions: &[u64]) -> Vec<u128> {
    let mut of_row = Vec::new();
    let digest = |(row, &position): (usize, &u64)| {
        let of_heads = tile.index_axis_move(Axis(1), row);
        let visible = |column: &usize| of_heads.column(*column).iter().any(|&s| s != f32::NEG_INFINITY);
        let first = (0..of_heads.ncols()).find(visible).unwrap_or(0);
        let last = (0..of_heads.ncols()).rfind(visible).unwrap_or(0);
        of_row.clear();
        of_row.extend(place.to_le_bytes());
        of_row.extend(position.to_le_bytes());
        for head in 0..of_heads.nrows() {
            let scores = of_heads.slice_move(s![head, ..]);
            of_row.extend_from_slice(bytemuck::cast_slice(&contiguous(scores)[first..=last]));
        }
        Hasher::oneshot(&of_row)
    };
    positions.iter().enumerate().map(digest).collect()
}
