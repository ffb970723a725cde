//! The rescaling of every layer and head of a model, checked before the first token.

use candle_core::{Device, Tensor, bail};
use critbeta::calibration::HeadRescalings;
use critbeta::rescaling::RowFacts;
use critbeta::{Error, Rescaling, Result};
use std::ops::Range;

/// The rules of a model, one entry for each layer.
#[derive(Debug, Clone)]
pub struct Rules(Vec<LayerRules>);

/// The rules of one layer: one for all its query heads, or one for each.
#[derive(Debug, Clone)]
pub struct LayerRules {
    layer: String,
    rules: Vec<Rescaling>,
}

impl Rules {
    /// The rules of a model that names its layers so, each with `heads` query heads.
    ///
    /// Errors: a calibration that lacks a head of the model, has a head or layer that the model has not, or
    /// has no law for one. The message names the layer and the reason.
    pub fn new(given: &HeadRescalings, layers: &[String], heads: usize) -> Result<Rules> {
        if let Some((layer, head)) =
            given.heads().find(|(layer, head)| !layers.iter().any(|l| l == layer) || *head >= heads as u64)
        {
            let first = layers.first().map_or("", String::as_str);
            return Err(Error::Settings {
                detail: format!(
                    "the calibration has layer {layer:?} head {head}, and the model has {} layers from \
                     {first:?} on with {heads} query heads each",
                    layers.len()
                ),
            });
        }
        // A calibration without heads is uniform.
        let uniform = given.heads().next().is_none();
        let of = |layer: &String| {
            let heads = if uniform { 1 } else { heads };
            let rules = (0..heads as u64).map(|head| given.of(layer, head)).collect::<Result<_>>()?;
            Ok(LayerRules { layer: layer.clone(), rules })
        };
        layers.iter().map(of).collect::<Result<_>>().map(Rules)
    }

    /// The rules of one layer.
    pub fn layer(&self, layer: usize) -> &LayerRules {
        &self.0[layer]
    }

    /// Checks the inverse temperatures of sequences of up to `context` tokens at both ends: a law is extreme
    /// at one of them.
    ///
    /// Errors: those of [`LayerRules::factors`].
    pub(crate) fn check(&self, context: usize) -> candle_core::Result<()> {
        for layer in &self.0 {
            layer.factors(0..1)?;
            layer.factors(context.saturating_sub(1)..context)?;
        }
        Ok(())
    }

    /// The first layer whose rule measures the rows, and so needs their scores, and that rule.
    pub fn measured(&self) -> Option<(usize, &Rescaling)> {
        self.0.iter().enumerate().find_map(|(index, layer)| Some((index, layer.measured()?)))
    }
}

impl LayerRules {
    /// One rule, or one for each query head.
    pub fn as_slice(&self) -> &[Rescaling] {
        &self.rules
    }

    /// The rule that measures the rows, if it does. It then holds for all heads: only laws of the length are
    /// given for each head.
    pub fn measured(&self) -> Option<&Rescaling> {
        self.rules.first().filter(|rule| rule.resolve().is_some() || rule.needs_entropy())
    }

    /// The inverse temperatures `[1, 1 or heads, tokens, 1]` in f32 that multiply the queries at these
    /// positions. It is `None` where queries stay as they are: for the identity, and for a rule that measures
    /// the rows.
    ///
    /// Errors: an inverse temperature that is not finite in f32, with the layer and the rule.
    pub fn factors(&self, positions: Range<usize>) -> candle_core::Result<Option<Tensor>> {
        if self.measured().is_some() || self.rules.iter().all(|rule| *rule == Rescaling::Identity) {
            return Ok(None);
        }
        let shape = (1, self.rules.len(), positions.len(), 1);
        let mut betas = Vec::with_capacity(shape.1 * shape.2);
        for (head, rule) in self.rules.iter().enumerate() {
            for position in positions.clone() {
                let position = position as u64;
                let beta = rule.beta(&RowFacts::new(position + 1, position)) as f32;
                if !beta.is_finite() {
                    bail!(
                        "layer {:?}: rescaling {rule} of head {head} gives beta = {beta} at position \
                         {position}: a factor of queries must be finite",
                        self.layer
                    );
                }
                betas.push(beta);
            }
        }
        Tensor::from_vec(betas, shape, &Device::Cpu).map(Some)
    }
}
