//! The tensors that the rest of the crate reads: scores, and queries with the keys they attend to.

use super::heads_last::{self, PairShape};
use super::named::NamedTensors;
use super::positions::Positions;
use super::rows::{FileRows, Order};
use super::safetensors::{Tensor, stored};
use crate::qk::Attended;
use critbeta::{DType, Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Errors name this where there is no file.
const MEMORY: &str = "memory";

/// Attention scores in a file. They are scaled already: the softmax sees these logits at beta = 1.
#[derive(Debug, Clone)]
pub struct ScoreTensor {
    layer: Arc<str>,
    rows: FileRows,
    positions: Option<Positions>,
}

impl ScoreTensor {
    /// A tensor without positions in the file.
    pub(super) fn new(layer: Arc<str>, rows: FileRows) -> Self {
        ScoreTensor { layer, rows, positions: None }
    }

    /// Errors: [`Error::Tensor`] unless it is a float tensor with a dimension, and any positions fit it.
    pub(super) fn of(file: &NamedTensors, tensor: &Tensor) -> Result<Self> {
        let rows = float_rows(file.path(), tensor)?;
        let count = Positions::count(file, &tensor.name);
        let turned = |count: usize| count > 1 && count == rows.heads() && count != rows.rows();
        if count.is_some_and(turned) {
            return Err(file.fail(tensor, heads_last::SCORES));
        }
        let positions = Positions::of(file, &tensor.name, rows.rows(), None)?;
        Ok(ScoreTensor { layer: Arc::clone(&tensor.name), rows, positions })
    }

    /// Whether there is no row at all.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The tensor's name; the file's stem for `.npy`.
    pub fn layer(&self) -> &Arc<str> {
        &self.layer
    }

    /// Element type in the file.
    pub fn dtype(&self) -> DType {
        self.rows.dtype()
    }

    /// Shape as in the file.
    pub fn shape(&self) -> &[usize] {
        self.rows.shape()
    }

    /// Product of all dimensions but the last two; 1 for one or two dimensions.
    pub fn heads(&self) -> usize {
        self.rows.heads()
    }

    /// Rows of one head.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// Scores of one row. Masked ones (-inf) count too.
    pub fn cols(&self) -> usize {
        self.rows.cols()
    }

    /// 0-based query position of a row, the same for every head, or `None` if the file does not say.
    pub fn position(&self, row: usize) -> Option<u64> {
        self.positions.as_ref().map(|positions| positions.at(row))
    }

    /// What its shape shows if it fits both ways.
    pub(super) fn note(&self) -> Option<String> {
        match self.shape() {
            [.., heads, rows, n] if self.positions.is_none() => {
                heads_last::note_on_scores(&self.layer, *heads, *rows, *n)
            }
            _ => None,
        }
    }

    /// As [`ScoreTensor::position`]. Without one it is the last key that the row `scores` does not mask.
    pub(crate) fn position_or_last(&self, row: usize, scores: &[f32]) -> u64 {
        let last = || scores.iter().rposition(|&score| score != f32::NEG_INFINITY).unwrap_or(0);
        self.position(row).unwrap_or_else(|| last() as u64)
    }

    /// Replaces `out` by one row and returns the shift that was subtracted: score = value in `out` + shift.
    /// The shift is 0 unless the tensor is f64. It does not depend on the first `excluded` scores.
    ///
    /// Panics unless `head < heads` and `row < rows`, as slice indexing does.
    pub fn read_row(&self, head: usize, row: usize, excluded: usize, out: &mut Vec<f32>) -> f64 {
        self.rows.read_row(head, row, excluded, out)
    }
}

/// Queries and the keys they attend to. Row `r` sees the keys `0..=positions[r]`, and its scores are
/// `scale` times the dot products.
#[derive(Debug, Clone)]
pub struct QkPair {
    layer: Arc<str>,
    q: FileRows,
    k: FileRows,
    scale: f64,
    positions: Positions,
}

/// Queries or keys in memory: little-endian elements in C order.
#[derive(Debug, Clone)]
pub struct Values {
    /// Element type.
    pub dtype: DType,
    /// [heads, rows or keys, head_dim].
    pub shape: [usize; 3],
    /// The elements.
    pub bytes: Vec<u8>,
}

impl Values {
    fn named(self, name: String) -> Tensor {
        let Values { dtype, shape, bytes } = self;
        Tensor { name: name.into(), dtype: stored(dtype), shape: shape.into(), bytes: bytes.into() }
    }
}

impl QkPair {
    /// Queries [heads, rows, head_dim] and keys [kv_heads, keys, head_dim] of layer `layer`, from memory.
    /// Without `positions` the rows are the last ones. The default scale is 1 / sqrt(head_dim).
    ///
    /// Errors: [`Error::Tensor`] of `LAYER.q` or `LAYER.k` for tensors that do not fit together, and for a
    /// pair without rows; [`Error::Settings`] for a scale that is not finite and above 0.
    pub fn new(
        layer: &str,
        q: Values,
        k: Values,
        positions: Option<Vec<u64>>,
        scale: Option<f64>,
    ) -> Result<Self> {
        if let Some(scale) = scale.filter(|scale| !(scale.is_finite() && *scale > 0.0)) {
            let detail = format!("the scale must be finite and above 0, found {scale}");
            return Err(Error::Settings { detail });
        }
        let memory = Path::new(MEMORY);
        let (q, k) = (q.named(format!("{layer}.q")), k.named(format!("{layer}.k")));
        let count = positions.as_ref().map(Vec::len);
        let given = |rows: usize, keys: usize| {
            let Some(positions) = positions else { return Ok(None) };
            if positions.len() != rows {
                return Err(q.fail(memory, format!("{} positions, expected one per row", positions.len())));
            }
            match positions.iter().position(|&position| position >= keys as u64) {
                None => Ok(Some(Positions::Given(positions.into()))),
                Some(row) => {
                    let found = positions[row];
                    Err(k
                        .fail(memory, format!("positions[{row}] is {found}, expected below the {keys} keys")))
                }
            }
        };
        let pair = QkPair::fit(memory, layer, &q, &k, scale, (count, given))?;
        pair.ok_or_else(|| q.fail(memory, "has no rows"))
    }

    /// The pair `NAME.q` [heads, rows, head_dim], `NAME.k` [kv_heads, keys, head_dim], or `None` if it
    /// has no rows. The default scale is 1 / sqrt(head_dim).
    ///
    /// Errors: [`Error::Tensor`] for dtypes, shapes or positions that do not fit together.
    pub(super) fn of(
        file: &NamedTensors,
        name: &str,
        q: &Tensor,
        k: &Tensor,
        scale: Option<f64>,
    ) -> Result<Option<Self>> {
        let positions = |rows, keys| Positions::of(file, name, rows, Some(keys));
        QkPair::fit(file.path(), name, q, k, scale, (Positions::count(file, name), positions))
    }

    /// As [`QkPair::of`]. `positions` says how many there are, and returns those for this many rows and keys.
    fn fit(
        path: &Path,
        name: &str,
        q: &Tensor,
        k: &Tensor,
        scale: Option<f64>,
        (count, positions): (Option<usize>, impl FnOnce(usize, usize) -> Result<Option<Positions>>),
    ) -> Result<Option<Self>> {
        let wrong_q = |detail: String| Err(q.fail(path, detail));
        let wrong_k = |detail: String| Err(k.fail(path, detail));
        // A batch of one text is as models hold it.
        let (&[heads, rows, head_dim] | &[1, heads, rows, head_dim]) = &q.shape[..] else {
            return wrong_q("expected [heads, rows, head_dim]".into());
        };
        let (&[kv_heads, keys, key_dim] | &[1, kv_heads, keys, key_dim]) = &k.shape[..] else {
            return wrong_k("expected [kv_heads, keys, head_dim]".into());
        };
        if head_dim == 0 {
            return wrong_q("head_dim is 0, expected at least 1".into());
        }
        if key_dim != head_dim {
            return wrong_k(format!("head_dim {key_dim}, expected {head_dim} as in {:?}", q.name));
        }
        if kv_heads == 0 {
            return wrong_k("kv_heads is 0, expected at least 1".into());
        }
        let shape = PairShape { heads, rows, kv_heads, keys, positions: count };
        if shape.is_turned() {
            return wrong_q(heads_last::PAIR.into());
        }
        if !heads.is_multiple_of(kv_heads) {
            return wrong_q(format!("{heads} heads, expected a multiple of the {kv_heads} of {:?}", k.name));
        }
        if keys == 0 && rows > 0 {
            return wrong_k(format!("no keys for the {rows} rows of {:?}", q.name));
        }
        let (q_rows, k_rows) = (float_rows(path, q)?, float_rows(path, k)?);
        // This comes before memory per row, because a tensor without heads may claim any number of rows.
        if q_rows.is_empty() {
            return Ok(None);
        }
        let of_rows = positions(rows, keys);
        let positions = match of_rows.map_err(|e| match shape.is_turned_beyond() {
            true => q.fail(path, heads_last::PAIR),
            false => e,
        })? {
            Some(positions) => positions,
            None if rows <= keys => Positions::Consecutive { first: (keys - rows) as u64 },
            None => {
                let detail = format!("{rows} rows for {keys} keys: such a pair needs positions");
                return wrong_q(format!(
                    "{detail}, or its heads come last, expected [heads, rows, head_dim]"
                ));
            }
        };
        let scale = scale.unwrap_or(1.0 / (head_dim as f64).sqrt());
        Ok(Some(QkPair { layer: name.into(), q: q_rows, k: k_rows, scale, positions }))
    }

    /// What its shape shows if it fits both ways.
    pub(super) fn note(&self) -> Option<String> {
        match self.positions {
            Positions::Consecutive { .. } => {
                heads_last::note_on_pair(&self.layer, self.kv_heads(), self.keys())
            }
            Positions::Given(_) | Positions::Stored { .. } => None,
        }
    }

    /// NAME of `NAME.q` and `NAME.k`.
    pub fn layer(&self) -> &Arc<str> {
        &self.layer
    }

    /// Query heads, a multiple of [`QkPair::kv_heads`].
    pub fn heads(&self) -> usize {
        self.q.heads()
    }

    /// Key heads. `heads / kv_heads` consecutive query heads share each.
    pub fn kv_heads(&self) -> usize {
        self.k.heads()
    }

    /// Queries per head.
    pub fn rows(&self) -> usize {
        self.q.rows()
    }

    /// Keys per key head.
    pub fn keys(&self) -> usize {
        self.k.rows()
    }

    /// Elements of one query or key.
    pub fn head_dim(&self) -> usize {
        self.q.cols()
    }

    /// Element types of queries and keys in the file.
    pub fn dtypes(&self) -> [DType; 2] {
        [self.q.dtype(), self.k.dtype()]
    }

    /// The factor on the dot products, finite and > 0.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// 0-based position of a row, below [`QkPair::keys`]. Without positions the rows are the last ones.
    pub fn position(&self, row: usize) -> u64 {
        self.positions.at(row)
    }

    /// The key head that query head `head` reads.
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.heads() / self.kv_heads())
    }

    /// Replaces `out` by the head_dim values of one query.
    ///
    /// Panics unless `head < heads` and `row < rows`, as slice indexing does.
    pub fn read_q(&self, head: usize, row: usize, out: &mut Vec<f32>) {
        out.clear();
        self.q.append_values(head, row..row + 1, out);
    }

    /// Replaces `out` by the keys `keys` of a key head, head_dim values each.
    ///
    /// Panics unless `kv_head < kv_heads` and `keys` lies within them, as slice indexing does.
    pub fn read_k(&self, kv_head: usize, keys: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        self.k.append_values(kv_head, keys, out);
    }
}

impl Attended for QkPair {
    fn heads(&self) -> [usize; 2] {
        [self.heads(), self.kv_heads()]
    }

    fn rows(&self) -> usize {
        self.rows()
    }

    fn keys(&self) -> usize {
        self.keys()
    }

    fn head_dim(&self) -> usize {
        self.head_dim()
    }

    fn scale(&self) -> f64 {
        self.scale
    }

    fn position(&self, row: usize) -> u64 {
        self.position(row)
    }

    fn append_queries(&self, head: usize, rows: Range<usize>, out: &mut Vec<f32>) {
        self.q.append_values(head, rows, out);
    }

    fn append_keys(&self, kv_head: usize, keys: Range<usize>, out: &mut Vec<f32>) {
        self.k.append_values(kv_head, keys, out);
    }
}

fn float_rows(path: &Path, tensor: &Tensor) -> Result<FileRows> {
    let fail = |detail: String| -> Error { tensor.fail(path, detail) };
    let dtype = tensor.float().ok_or_else(|| fail("expected F64, F32, F16 or BF16".into()))?;
    FileRows::new(tensor.bytes.clone(), dtype, tensor.shape.clone(), Order::C).map_err(fail)
}
