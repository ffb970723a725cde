//! The rows of a model that runs, call by call of its attention: repeated rows are left out, the others are
//! measured, and what a file needs is kept in memory.

mod bytes;
mod kept;
mod measure;
mod repeats;
#[cfg(test)]
mod tests;

pub use kept::{KeptFile, KeptTensor};

use crate::records::record::RowRecord;
use crate::settings::Settings;
use critbeta::{DType, Error, Result};
use kept::Kept;
use measure::{Measured, Rows, TextProducts, measured};
use ndarray::{ArrayView3, ArrayView4, s};
use rayon::prelude::*;
use repeats::{Repeats, digests};
use std::ops::Range;
use std::sync::Arc;

/// Below this many bytes, digests are no work for several threads; so many texts are work for one.
const FEW_BYTES: usize = 1 << 20;
const FEW_TEXTS: usize = 16;

/// The rows of one text in a call, and where their scores are.
#[derive(Debug, Clone)]
pub struct TextRows {
    /// The number of the text.
    pub text: u64,
    /// Its index in the batch.
    pub batch: usize,
    /// The first of its rows among the queries, or among the rows of its tile.
    pub row: usize,
    /// 0-based position of each row in the text.
    pub positions: Vec<u64>,
    /// The keys of the text.
    pub keys: TextKeys,
}

/// The keys that the rows of a text see.
#[derive(Debug, Clone)]
pub enum TextKeys {
    /// Each row sees the keys from this one on, up to its position. Scores are products with them.
    From(usize),
    /// The scores are in a tile, in these of its columns.
    Within(Range<usize>),
}

/// One call of the attention of a layer.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The name of the layer.
    pub layer: &'a str,
    /// The number of its first head, which is not 0 where processes share the heads of a layer.
    pub first_head: u64,
    /// The texts that it measures, in the order of their records.
    pub texts: &'a [TextRows],
    /// What a text with [`TextKeys::From`] needs.
    pub products: Option<Products<'a>>,
    /// What a text with [`TextKeys::Within`] needs: scores [batch, heads, rows, keys], -inf where masked.
    pub tile: Option<ArrayView4<'a, f32>>,
}

/// Queries and keys of a call, as bytes.
#[derive(Debug, Clone)]
pub struct Products<'a> {
    /// Element types of queries and keys.
    pub dtypes: [DType; 2],
    /// [rows of all texts, heads, bytes of a query].
    pub q: ArrayView3<'a, u8>,
    /// [batch, kv_heads, keys, bytes of a key].
    pub k: ArrayView4<'a, u8>,
    /// The factor of the products.
    pub scale: f64,
}

/// The records of a model that runs, without repeated rows.
#[derive(Debug)]
pub struct Recording {
    settings: Settings,
    repeats: Repeats,
    kept: Kept,
    records: Arc<Vec<RowRecord>>,
}

impl Recording {
    /// Nothing yet. Up to `max_bytes` of queries, keys and scores are kept for files.
    ///
    /// Errors: those of [`Settings::check`].
    pub fn new(settings: Settings, max_bytes: u64) -> Result<Self> {
        settings.check()?;
        let (repeats, kept) = (Repeats::default(), Kept::new(max_bytes));
        Ok(Recording { settings, repeats, kept, records: Arc::default() })
    }

    /// Adds calls in their order. Rows that are bit-equal to one that was added before, at the same position
    /// and of the same layer, are left out.
    ///
    /// Errors: [`Error::Settings`] for rows, keys or a scale that do not fit. Nothing is recorded then.
    pub fn add(&mut self, calls: &[Call]) -> Result<()> {
        let rows = |call| move |text| rows_of(call, text).map(|rows| (call, text, rows));
        let given = calls.iter().flat_map(|call| call.texts.iter().map(rows(call)));
        let given = given.collect::<Result<Vec<(&Call, &TextRows, Rows)>>>()?;
        let digest =
            |(call, text, rows): &(&Call, &TextRows, Rows)| digests(call.layer, rows, &text.positions);
        let digests: Vec<Vec<u128>> = match calls.iter().map(Call::bytes).sum::<usize>() < FEW_BYTES {
            true => given.iter().map(digest).collect(),
            false => given.par_iter().with_min_len(FEW_TEXTS).map(digest).collect(),
        };
        let (mut new, mut layer) = (Vec::with_capacity(given.len()), (Arc::from(""), 0));
        for ((call, text, scores), digests) in given.iter().zip(digests) {
            let rows = self.repeats.new_of(&digests);
            if rows.is_empty() {
                continue;
            }
            if *layer.0 != *call.layer {
                layer = (Arc::from(call.layer), self.kept.layer(call.layer));
            }
            let positions: Vec<u64> = rows.iter().map(|&row| text.positions[row]).collect();
            match scores {
                Rows::Products(of) => self.kept.keep_pair(text.text, layer.1, of, &rows, &positions),
                Rows::Scores(tile) => self.kept.keep_scores(text.text, layer.1, *tile, &rows, &positions),
            }
            let (layer, first_head) = (Arc::clone(&layer.0), call.first_head);
            new.push(Measured { layer, first_head, rows, positions, scores: *scores });
        }
        Arc::make_mut(&mut self.records).extend(measured(&new, &self.settings));
        Ok(())
    }

    /// The records so far, in the order of the calls. They are shared, not copied.
    pub fn records(&self) -> Arc<Vec<RowRecord>> {
        Arc::clone(&self.records)
    }

    /// The settings of the measurement.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The rows that are kept for files, of all heads.
    pub fn kept_rows(&self) -> u64 {
        self.kept.rows
    }

    /// Whether some rows are not kept, for want of room.
    pub fn is_full(&self) -> bool {
        self.kept.full
    }

    /// How many files the kept rows make.
    pub fn file_count(&self) -> usize {
        self.kept.file_count()
    }

    /// A file of kept rows. Files have the order of their texts.
    ///
    /// Panics unless `index` is below [`Recording::file_count`], as slice indexing does.
    pub fn file(&self, index: usize) -> KeptFile {
        self.kept.file(index)
    }
}

impl Call<'_> {
    /// Errors: those of [`Recording::add`] for this call.
    pub fn check(&self) -> Result<()> {
        self.texts.iter().try_for_each(|text| rows_of(self, text).map(|_| ()))
    }

    /// Bytes of queries, keys and scores.
    pub fn bytes(&self) -> usize {
        let of_products = |of: &Products| of.q.len() + of.k.len();
        self.products.as_ref().map_or(0, of_products)
            + self.tile.map_or(0, |tile| size_of::<f32>() * tile.len())
    }
}

/// The rows of a text within what a call was given.
fn rows_of<'a>(call: &Call<'a>, text: &TextRows) -> Result<Rows<'a>> {
    let layer = call.layer;
    let fail = |what: &str, shape: &[usize]| {
        let detail = format!("{layer}: text {} does not lie within {what} of shape {shape:?}", text.text);
        Err(Error::Settings { detail })
    };
    let rows = text.row..text.row + text.positions.len();
    let last = text.positions.iter().max().map_or(0, |&last| last as usize + 1);
    match (&text.keys, &call.products, call.tile) {
        (TextKeys::From(first), Some(of), _) => {
            of.check(layer)?;
            let keys = *first..first.saturating_add(last);
            if rows.end > of.q.dim().0 {
                return fail("queries", of.q.shape());
            }
            if text.batch >= of.k.dim().0 || keys.end > of.k.dim().2 {
                return fail("keys", of.k.shape());
            }
            let q = of.q.slice_move(s![rows, .., ..]);
            let k = of.k.slice_move(s![text.batch, .., keys, ..]);
            Ok(Rows::Products(TextProducts { dtypes: of.dtypes, q, k, scale: of.scale }))
        }
        (TextKeys::Within(keys), _, Some(tile)) => {
            let (batch, _, most, width) = tile.dim();
            let contiguous = width < 2 || tile.strides()[3] == 1;
            if text.batch >= batch || rows.end > most || keys.end > width || keys.is_empty() || !contiguous {
                return fail("contiguous scores", tile.shape());
            }
            Ok(Rows::Scores(tile.slice_move(s![text.batch, .., rows, keys.clone()])))
        }
        _ => fail("nothing,", &[]),
    }
}

impl Products<'_> {
    fn check(&self, layer: &str) -> Result<()> {
        let Products { dtypes, q, k, scale } = self;
        let elements = |bytes: usize, dtype: DType| bytes / dtype.size_bytes();
        let (heads, kv_heads) = (q.dim().1, k.dim().1);
        let dims = [elements(q.dim().2, dtypes[0]), elements(k.dim().3, dtypes[1])];
        let contiguous = q.strides()[2] == 1 && k.strides()[3] == 1;
        let fits = dims[0] == dims[1] && dims[0] > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads.max(1));
        let detail = if !(fits && contiguous) {
            format!(
                "{layer}: queries of {heads} heads x {} and keys of {kv_heads} heads x {}: \
                 expected one contiguous head_dim, and a multiple of the key heads",
                dims[0], dims[1]
            )
        } else if !(scale.is_finite() && *scale > 0.0) {
            format!("{layer}: the scale must be finite and above 0, found {scale}")
        } else {
            return Ok(());
        };
        Err(Error::Settings { detail })
    }
}
