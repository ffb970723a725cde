//! Tensors whose heads come last: [rows, heads, ...] as some tools keep them, not [heads, rows, ...].
//!
//! Shapes show it, or they fit both ways. They fit both ways for scores whose heads and rows could be either,
//! and for queries and keys of one text with as many key heads as heads. Then a note is all that can be had.

/// The heads, the rows and the number of given positions of queries, and the heads and the rows of their
/// keys.
pub(super) struct PairShape {
    pub heads: usize,
    pub rows: usize,
    pub kv_heads: usize,
    pub keys: usize,
    pub positions: Option<usize>,
}

pub(super) const PAIR: &str = "its heads come last: expected [heads, rows, head_dim]";
pub(super) const SCORES: &str = "its heads come last: expected [..., heads, rows, n]";

impl PairShape {
    /// Whether the pair fits only if heads and rows change places.
    pub fn is_turned(&self) -> bool {
        match self.positions {
            Some(positions) => self.turns() && positions == self.heads && positions != self.rows,
            None => {
                let fits = self.rows <= self.keys && self.heads.is_multiple_of(self.kv_heads);
                self.turns() && self.heads <= self.kv_heads && !fits
            }
        }
    }

    /// The same for positions that reach beyond the keys.
    pub fn is_turned_beyond(&self) -> bool {
        self.turns() && self.positions == Some(self.heads) && self.rows > self.keys
    }

    fn turns(&self) -> bool {
        self.heads > 0 && self.rows > 0 && self.keys > 0 && self.rows.is_multiple_of(self.keys)
    }
}

/// A note on a pair that fits both ways and has more key heads than keys.
pub(super) fn note_on_pair(name: &str, kv_heads: usize, keys: usize) -> Option<String> {
    (kv_heads > keys).then(|| {
        format!(
            "{name:?}: {kv_heads} key heads with {keys} keys each: if its heads come last, turn it to \
             [heads, rows, head_dim]"
        )
    })
}

/// A note on scores that are square but for their rows, such as [300, 8, 300], or for their keys, such as
/// [300, 300, 8].
pub fn note_on_scores(name: &str, heads: usize, rows: usize, n: usize) -> Option<String> {
    let square = heads == n && rows != n && n > 2 || heads == rows && (1..rows).contains(&n) && heads > 2;
    square.then(|| {
        format!(
            "{name:?}: {heads} heads of {rows} rows with {n} keys each: if its heads come last, turn it to \
             [..., heads, rows, n]"
        )
    })
}
