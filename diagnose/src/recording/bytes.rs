//! Views whose last dimension is contiguous.

use ndarray::{ArrayView1, ArrayView2, s};

/// A row as a slice.
pub(super) fn contiguous<'a, T>(row: ArrayView1<'a, T>) -> &'a [T] {
    row.to_slice().expect("the last dimension was checked")
}

/// The contiguous parts of a view, in order: all of it, or its rows.
pub(super) fn parts<'a>(view: ArrayView2<'a, u8>) -> impl Iterator<Item = &'a [u8]> {
    let whole = view.to_slice();
    let rows = if whole.is_some() { 0 } else { view.nrows() };
    whole.into_iter().chain((0..rows).map(move |row| contiguous(view.slice_move(s![row, ..]))))
}

/// Turns [rows, heads, bytes] into [heads, rows, bytes].
pub(super) fn heads_first(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let size = bytes.len() / (rows * heads).max(1);
    let of = |head| (0..rows).map(move |row| &bytes[(row * heads + head) * size..][..size]);
    (0..heads).flat_map(of).collect::<Vec<_>>().concat()
}
