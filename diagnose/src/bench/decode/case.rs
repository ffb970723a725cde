//! The cases of a decode bench: sequences of queries over a cache of keys and values.

use crate::input::{self, QkPair, Selection, Source};
use critbeta::families::Family;
use critbeta::{DType, Element, Error, Result};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use std::path::Path;

/// Elements of keys that are drawn at most; further sequences repeat them.
const DRAWN: usize = 1 << 25;

/// One token of `seqs` sequences over their caches.
#[derive(Debug, Clone)]
pub struct DecodeCase {
    /// Sequences.
    pub seqs: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads, a divisor of [`DecodeCase::heads`].
    pub kv_heads: usize,
    /// Keys of the longest sequence.
    pub len: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Slots of a page.
    pub page: usize,
    /// Type of queries, keys, values and output.
    pub dtype: DType,
    /// The share of weights whose values may stay unread.
    pub eps: f64,
    /// Where the scores come from.
    pub rows: DecodeRows,
}

/// Where the scores of a decode bench come from. Values are standard normal.
#[derive(Debug, Clone)]
pub enum DecodeRows {
    /// Each head's row is drawn from a family.
    Family(Family),
    /// The last rows of a layer that see at most `len` keys, a sequence for each.
    Layer(Box<QkPair>),
}

/// What every decode case has, however its rows come.
#[derive(Debug, Clone, Copy)]
pub struct DecodeShape {
    /// As [`DecodeCase::seqs`].
    pub seqs: usize,
    /// As [`DecodeCase::page`].
    pub page: usize,
    /// As [`DecodeCase::eps`].
    pub eps: f64,
}

impl DecodeCase {
    /// A case whose rows are drawn. The sizes are `[heads, kv_heads, len, head_dim]`.
    ///
    /// Errors: [`Error::Settings`] for an unknown family, one with masked scores, f64, or a size of 0.
    pub fn of_family(
        shape: DecodeShape,
        [heads, kv_heads, len, head_dim]: [usize; 4],
        dtype: DType,
        family: &str,
    ) -> Result<Self> {
        let family: Family = family.parse().map_err(|detail| Error::Settings { detail })?;
        if matches!(family, Family::Masked { .. }) {
            let detail = format!("a decode bench of {family}: no product of a query and a key is masked");
            return Err(Error::Settings { detail });
        }
        let DecodeShape { seqs, page, eps } = shape;
        let rows = DecodeRows::Family(family);
        DecodeCase { seqs, heads, kv_heads, len, head_dim, page, dtype, eps, rows }.checked()
    }

    /// A case for each layer of a file of queries and keys, or for the one called `layer`. A sequence is one
    /// of the last rows that see at most `len` keys, with its keys.
    ///
    /// Errors: those of [`input::open`]; [`Error::File`] for scores without queries, and for a layer with
    /// fewer such rows than sequences; [`Error::Settings`] as for [`DecodeCase::of_family`].
    pub fn of_file(
        shape: DecodeShape,
        path: &Path,
        layer: Option<&str>,
        len: Option<usize>,
        dtype: Option<DType>,
    ) -> Result<Vec<Self>> {
        let input = input::open(path, &Selection { tensor: layer, scale: None })?;
        let case = |source| {
            let Source::Pair(pair) = source else {
                return Err(Error::file(path, "holds scores: expected queries and keys"));
            };
            let rows = last_rows(&pair, shape.seqs, len);
            if rows.len() < shape.seqs {
                let most = len.map_or(String::new(), |len| format!(" that see at most {len} keys"));
                let detail = format!(
                    "layer {:?} has {} rows{most}, expected one for each of {} sequences",
                    pair.layer(),
                    rows.len(),
                    shape.seqs
                );
                return Err(Error::file(path, detail));
            }
            let longest = rows.iter().map(|&row| pair.position(row) as usize + 1).max().unwrap_or(0);
            let stored = pair.dtypes()[1];
            let dtype = dtype.unwrap_or(if stored == DType::F64 { DType::F32 } else { stored });
            let DecodeShape { seqs, page, eps } = shape;
            let (heads, kv_heads, head_dim) = (pair.heads(), pair.kv_heads(), pair.head_dim());
            let rows = DecodeRows::Layer(Box::new(pair));
            DecodeCase { seqs, heads, kv_heads, len: longest, head_dim, page, dtype, eps, rows }.checked()
        };
        input.sources.into_iter().map(case).collect()
    }

    fn checked(self) -> Result<Self> {
        let DecodeCase { seqs, heads, kv_heads, len, head_dim, page, dtype, .. } = self;
        let sizes = [seqs, heads, kv_heads, len, head_dim, page];
        if sizes.contains(&0) || dtype == DType::F64 {
            let detail = format!("{}: expected sizes above 0 and f32, f16 or bf16", self.label());
            return Err(Error::Settings { detail });
        }
        if !heads.is_multiple_of(kv_heads) {
            let detail = format!("{heads} query heads: expected a multiple of the {kv_heads} key heads");
            return Err(Error::Settings { detail });
        }
        Ok(self)
    }

    /// The name of the family or layer.
    pub fn rows_name(&self) -> String {
        match &self.rows {
            DecodeRows::Family(family) if Family::ALL.contains(family) => family.name().to_owned(),
            DecodeRows::Family(family) => family.to_string(),
            DecodeRows::Layer(pair) => pair.layer().to_string(),
        }
    }

    /// The case in words.
    pub fn label(&self) -> String {
        let DecodeCase { seqs, heads, kv_heads, len, head_dim, page, dtype, .. } = self;
        format!("{seqs} x {heads}/{kv_heads} heads x {len} x {head_dim} {dtype}, pages of {page}")
    }

    /// The keys of each sequence.
    pub(super) fn lens(&self) -> Vec<usize> {
        match &self.rows {
            DecodeRows::Family(_) => vec![self.len; self.seqs],
            DecodeRows::Layer(pair) => {
                let rows = last_rows(pair, self.seqs, Some(self.len));
                rows.iter().map(|&row| pair.position(row) as usize + 1).collect()
            }
        }
    }
}

/// The last rows of a pair that see at most `len` keys, the last first.
fn last_rows(pair: &QkPair, count: usize, len: Option<usize>) -> Vec<usize> {
    let mut rows: Vec<usize> =
        (0..pair.rows()).filter(|&row| len.is_none_or(|len| pair.position(row) < len as u64)).collect();
    rows.sort_by_key(|&row| std::cmp::Reverse(pair.position(row)));
    rows.truncate(count);
    rows
}

/// What a sequence attends with and to. Sequences repeat them in turn.
pub(super) struct Drawn<T> {
    /// [heads, head_dim].
    pub q: Vec<T>,
    /// [kv_heads, len, head_dim].
    pub k: Vec<T>,
    /// As k.
    pub v: Vec<T>,
}

/// Queries, keys and values of a case, for as many sequences as differ.
pub(super) fn draw<T: Element>(case: &DecodeCase, seed: u64) -> Vec<Drawn<T>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let DecodeCase { seqs, heads, kv_heads, head_dim, .. } = *case;
    let group = heads / kv_heads.max(1);
    // An element of the keys holds the score of a head; its query is 0 elsewhere.
    let element = |head: usize| head % group % (head_dim / 2).max(1);
    let lens = case.lens();
    let count = match &case.rows {
        DecodeRows::Family(_) => (DRAWN / (kv_heads * case.len * head_dim).max(1)).clamp(1, seqs),
        DecodeRows::Layer(_) => seqs,
    };
    let mut normal = |count: usize| -> Vec<T> {
        (0..count).map(|_| T::from_f32(rng.sample::<f32, _>(StandardNormal))).collect()
    };
    let mut scores = (Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(1)), Vec::new());
    let mut one = |seq: usize| {
        let len = lens[seq];
        let v = normal(kv_heads * len * head_dim);
        match &case.rows {
            DecodeRows::Family(family) => {
                let mut q = vec![T::zeroed(); heads * head_dim];
                let mut k = normal(kv_heads * len * head_dim);
                for head in 0..heads {
                    q[head * head_dim + element(head)] = T::from_f32((head_dim as f32).sqrt());
                    if head % group >= (head_dim / 2).max(1) {
                        continue;
                    }
                    family.draw(len, &mut scores.0, &mut scores.1);
                    let of_head = &mut k[head / group * len * head_dim..];
                    for (score, key) in scores.1.iter().zip(of_head.chunks_mut(head_dim)) {
                        key[element(head)] = T::from_f32(*score);
                    }
                }
                Drawn { q, k, v }
            }
            DecodeRows::Layer(pair) => {
                let row = last_rows(pair, seqs, Some(case.len))[seq];
                let (mut q, mut k, mut values) = (Vec::new(), Vec::new(), Vec::new());
                for head in 0..heads {
                    pair.read_q(head, row, &mut values);
                    // The file has a scale of its own; the bench has the default one.
                    let factor = (pair.scale() * (head_dim as f64).sqrt()) as f32;
                    q.extend(values.iter().map(|value| T::from_f32(value * factor)));
                }
                for head in 0..kv_heads {
                    pair.read_k(head, 0..len, &mut values);
                    k.extend(values.iter().map(|value| T::from_f32(*value)));
                }
                Drawn { q, k, v }
            }
        }
    };
    (0..count).map(&mut one).collect()
}
