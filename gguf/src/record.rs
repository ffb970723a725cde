//! The recorder: what it takes from an evaluation, checked against llama.cpp's own probabilities.

use crate::attention::{Form, Softmax, Vectors, layer_of_products};
use crate::llama::{Node, Observer, Op};
use anyhow::{Context, Result, anyhow, bail, ensure};
use critbeta::DType;
use critbeta_diagnose::Settings;
use critbeta_diagnose::recording::{Call, Products, Recording, TextKeys, TextRows};
use ndarray::{ArrayView3, ArrayView4};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// How far probabilities from recorded queries and keys may be from those of llama.cpp. Both come of the same
/// f32 numbers: on SmolLM2 they were within 5e-7 (2026-11-30).
pub const TOLERANCE: f64 = 1e-3;

/// Records the rows at some positions of one text.
pub struct Recorder {
    /// Ascending.
    positions: Vec<usize>,
    layers: BTreeSet<usize>,
    name: String,
    tokens: Range<usize>,
    /// The rows of this evaluation: indices into its tokens.
    rows: Vec<usize>,
    /// Queries and keys whose softmax is not computed yet.
    waiting: BTreeMap<usize, Vectors>,
    /// Layers that were recorded.
    pub seen: BTreeSet<usize>,
    /// Those of them that became scores.
    pub as_scores: BTreeSet<usize>,
    /// What is recorded.
    pub recording: Recording,
    max_bytes: u64,
    /// The largest distance from a probability of llama.cpp so far.
    pub worst: f64,
}

impl Recorder {
    /// `name` is that of a layer, with `{}` for its number.
    pub fn new(
        positions: Vec<usize>,
        layers: BTreeSet<usize>,
        name: &str,
        max_bytes: u64,
    ) -> critbeta::Result<Self> {
        Ok(Recorder {
            positions,
            layers,
            name: name.to_owned(),
            tokens: 0..0,
            rows: Vec::new(),
            waiting: BTreeMap::new(),
            seen: BTreeSet::new(),
            as_scores: BTreeSet::new(),
            recording: Recording::new(Settings::default(), max_bytes)?,
            max_bytes,
            worst: 0.0,
        })
    }

    /// The name of a layer in the file.
    pub fn name(&self, layer: usize) -> String {
        self.name.replace("{}", &layer.to_string())
    }

    fn wanted(&self, layer: usize) -> bool {
        !self.rows.is_empty() && self.layers.contains(&layer)
    }

    /// The number of keys up to the last row of this evaluation.
    fn keys(&self) -> usize {
        self.rows.last().map_or(0, |row| self.tokens.start + row + 1)
    }

    fn take(&mut self, softmax: &Softmax) -> Result<()> {
        let form = softmax.form()?;
        let vectors = self.waiting.remove(&softmax.layer);
        let vectors = vectors.ok_or_else(|| anyhow!("has a softmax whose products were not seen"))?;
        let masks: Vec<Vec<f32>> =
            self.rows.iter().map(|&row| softmax.mask(row, vectors.cells)).collect::<Result<_>>()?;
        let mut hides = false;
        for (mask, row) in masks.iter().zip(&self.rows) {
            let own = self.tokens.start + row;
            let visible = |&number: &f32| number != f32::NEG_INFINITY;
            if let Some(later) = mask[own + 1..].iter().position(visible) {
                bail!(
                    "lets the token at {own} see the key at {}: expected attention to earlier keys only",
                    own + 1 + later
                );
            }
            hides = hides || mask[..=own].iter().any(|&number| number != 0.0);
        }
        self.compare(softmax, &form, &vectors, &masks)?;
        let plain = form.is_plain() && !hides;
        self.keep(softmax.layer, &form, &vectors, &masks, plain)?;
        self.seen.insert(softmax.layer);
        if !plain {
            self.as_scores.insert(softmax.layer);
        }
        Ok(())
    }

    /// Compares the last row of this evaluation, of every head, with what llama.cpp has made of it.
    fn compare(
        &mut self,
        softmax: &Softmax,
        form: &Form,
        vectors: &Vectors,
        masks: &[Vec<f32>],
    ) -> Result<()> {
        let (Some(mask), Some(&row)) = (masks.last(), self.rows.last()) else { return Ok(()) };
        let heads = 0..vectors.sizes[0];
        let theirs = heads.map(|head| softmax.probabilities(row, head, vectors.keys));
        let theirs: Vec<Vec<f32>> = theirs.collect::<Result<_>>()?;
        let distances = theirs.par_iter().enumerate().map(|(head, theirs)| {
            distance(&vectors.scores(form, masks.len() - 1, head, &mask[..vectors.keys]), theirs)
        });
        let worst = distances.reduce(|| 0.0, f64::max);
        ensure!(
            worst <= TOLERANCE,
            "has probabilities that differ by {worst:.1e} from those of its queries and keys, expected at \
             most {TOLERANCE:.0e}: llama.cpp computes this attention in a way that is not known here"
        );
        self.worst = self.worst.max(worst);
        Ok(())
    }

    fn keep(
        &mut self,
        layer: usize,
        form: &Form,
        vectors: &Vectors,
        masks: &[Vec<f32>],
        plain: bool,
    ) -> Result<()> {
        let ([heads, kv_heads, dim], keys, rows) = (vectors.sizes, vectors.keys, self.rows.len());
        let name = self.name(layer);
        let positions = self.rows.iter().map(|row| (self.tokens.start + row) as u64).collect();
        let mut text = TextRows { text: 0, batch: 0, row: 0, positions, keys: TextKeys::From(0) };
        let mut scores = Vec::new();
        let mut call = Call { layer: &name, first_head: 0, texts: &[], products: None, tile: None };
        if plain {
            let bytes = dim * size_of::<f32>();
            let q = ArrayView3::from_shape((rows, heads, bytes), bytemuck::cast_slice(&vectors.q))?;
            let k = ArrayView4::from_shape((1, kv_heads, keys, bytes), bytemuck::cast_slice(&vectors.k))?;
            call.products = Some(Products { dtypes: [DType::F32; 2], q, k, scale: form.scale });
        } else {
            text.keys = TextKeys::Within(0..keys);
            let of = |i: usize| vectors.scores(form, i % rows, i / rows, &masks[i % rows][..keys]);
            scores.par_extend((0..heads * rows).into_par_iter().flat_map_iter(of));
            call.tile = Some(ArrayView4::from_shape((1, heads, rows, keys), &scores)?);
        }
        call.texts = std::slice::from_ref(&text);
        self.recording.add(&[call])?;
        let most = self.max_bytes;
        ensure!(
            !self.recording.is_full(),
            "does not fit: queries, keys and scores take more than --max-bytes {most}. Record fewer --layers \
             or --rows, or give more"
        );
        Ok(())
    }
}

impl Observer for Recorder {
    fn begin(&mut self, tokens: Range<usize>) {
        let first = self.positions.partition_point(|&position| position < tokens.start);
        let end = self.positions.partition_point(|&position| position < tokens.end);
        self.rows = self.positions[first..end].iter().map(|position| position - tokens.start).collect();
        self.tokens = tokens;
        self.waiting.clear();
    }

    fn wants(&mut self, node: Node) -> Result<bool> {
        ensure!(
            node.op() != Op::Flash,
            "{}: llama.cpp computes this layer by flash attention, which shows no scores",
            node.name()
        );
        let layer = layer_of_products(node).or_else(|| Softmax::of(node).map(|softmax| softmax.layer));
        Ok(layer.is_some_and(|layer| self.wanted(layer)))
    }

    fn ready(&mut self, node: Node) -> Result<()> {
        if let Some(layer) = layer_of_products(node) {
            let vectors = Vectors::read(node, &self.rows, self.tokens.len(), self.keys());
            self.waiting.insert(layer, vectors.with_context(|| self.name(layer))?);
        } else if let Some(softmax) = Softmax::of(node) {
            self.take(&softmax).with_context(|| self.name(softmax.layer))?;
        }
        Ok(())
    }
}

/// The largest distance of the softmax of `scores` from `theirs`. NaN is far from all but NaN.
fn distance(scores: &[f32], theirs: &[f32]) -> f64 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let poisoned = scores.iter().any(|score| score.is_nan()) || most == f32::INFINITY;
    if poisoned {
        return if theirs.iter().any(|p| p.is_nan()) { 0.0 } else { f64::INFINITY };
    }
    let weights: Vec<f64> = scores.iter().map(|&score| (f64::from(score) - f64::from(most)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let far = |(weight, &p): (&f64, &f32)| match p.is_nan() {
        true => f64::INFINITY,
        false => (weight / sum - f64::from(p)).abs(),
    };
    weights.iter().zip(theirs).map(far).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distance_is_of_probabilities_and_nan_is_far() {
        assert_eq!(distance(&[0.0, 0.0], &[0.5, 0.5]), 0.0);
        assert!((distance(&[0.0, f32::NEG_INFINITY], &[0.75, 0.25]) - 0.25).abs() < 1e-12);
        assert_eq!(distance(&[0.0, 0.0], &[f32::NAN, 0.5]), f64::INFINITY);
        assert_eq!(distance(&[0.0, f32::NAN], &[0.5, 0.5]), f64::INFINITY);
        assert_eq!(distance(&[0.0, f32::NAN], &[f32::NAN, f32::NAN]), 0.0);
    }
}
