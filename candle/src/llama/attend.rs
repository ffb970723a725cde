//! The ways in which a model attends: ours, and candle's own beside it.

use super::{Config, Watch};
use crate::rules::{LayerRules, Rules};
use crate::{decode, softmax_last_dim};
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::attention::{AttnMask, cpu_flash};
use critbeta::attention::DecodeCall;

/// The most query tokens that [`decode`] takes. A longer step goes through [`composed`].
const FEW: usize = 8;

/// How a model attends.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Attention {
    /// [`decode`] for at most 8 query tokens. More go through products of candle around [`softmax_last_dim`].
    /// The values of weights that sum to at most `eps` may stay unread.
    Critbeta {
        /// [`DecodeCall::eps`].
        eps: f64,
    },
    /// As candle-transformers' `quantized_llama`: keys and values are repeated for the heads that share them.
    Candle,
    /// As [`Attention::Candle`], where the heads that share keys become rows of one product.
    Grouped,
    /// candle's fused attention for CPUs.
    Flash,
}

impl Attention {
    /// Errors: sizes or rules that this attention cannot run.
    pub(super) fn check(&self, config: &Config, rules: &Rules) -> Result<()> {
        rules.check(config.context)?;
        match *self {
            Attention::Critbeta { eps } => {
                let dim = config.head_dim;
                if !dim.is_multiple_of(8) || !(64..=256).contains(&dim) {
                    bail!("heads of {dim} elements: critbeta's decode expects a multiple of 8 in 64..=256");
                }
                if !(0.0..1.0).contains(&eps) {
                    bail!("eps {eps}: expected at least 0 and below 1");
                }
            }
            Attention::Flash => {
                if let Some((layer, rule)) = rules.measured() {
                    bail!(
                        "layer {:?}: rescaling {rule} needs the scores of a row, which fused attention never \
                         writes: choose another attention",
                        Config::layer_name(layer)
                    );
                }
            }
            Attention::Candle | Attention::Grouped => {}
        }
        Ok(())
    }

    /// The attention of `q` `[1, heads, tokens, head_dim]` over all of `k` and `v` `[1, kv_heads, keys,
    /// head_dim]`, whose last keys are those of the tokens. The result is `[1, heads, tokens, head_dim]`.
    pub(super) fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        rules: &LayerRules,
        layer: usize,
        watch: &mut Option<&mut dyn Watch>,
    ) -> Result<Tensor> {
        let tokens = q.dim(2)?;
        if let Attention::Critbeta { eps } = *self
            && tokens <= FEW
        {
            let mut call = DecodeCall::new(rules.as_slice());
            call.eps = eps;
            call.measure = watch.as_ref().and_then(|watch| watch.measure());
            let (out, rows) = decode(q, k, v, &call)?;
            if let Some(watch) = watch {
                watch.rows(layer, &rows);
            }
            return Ok(out);
        }
        let keys = k.dim(2)?;
        let scaled = match rules.factors(keys - tokens..keys)? {
            Some(betas) => q.broadcast_mul(&betas)?,
            None => q.clone(),
        };
        match self {
            Attention::Flash => {
                let scale = 1.0 / (q.dim(3)? as f32).sqrt();
                let [q, k, v] = [&scaled, k, v].map(|x| x.transpose(1, 2));
                let mask = AttnMask::causal_with_offset(keys - tokens);
                cpu_flash::flash_attn::<f32>(&q?, &k?, &v?, scale, mask, None, None)
            }
            Attention::Candle => {
                let group = q.dim(1)? / k.dim(1)?;
                composed(&scaled, &repeated(k, group)?, &repeated(v, group)?, rules)
            }
            Attention::Critbeta { .. } | Attention::Grouped => composed(&scaled, k, v, rules),
        }
    }
}

/// Keys or values once for each query head.
fn repeated(x: &Tensor, group: usize) -> Result<Tensor> {
    let (batch, heads, keys, dim) = x.dims4()?;
    Tensor::cat(&vec![x; group], 2)?.reshape((batch, heads * group, keys, dim))
}

/// Scores, their softmax and the weighted values, one product of candle each. Query heads that share keys are
/// rows of one product.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, rules: &LayerRules) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = q.dims4()?;
    let (_, kv_heads, keys, _) = k.dims4()?;
    let grouped = (batch, kv_heads, heads / kv_heads * tokens, dim);
    let scores = (q.reshape(grouped)?.matmul(&k.t()?)? / (dim as f64).sqrt())?;
    let scores = scores.reshape((batch, heads, tokens, keys))?;
    let scores = match tokens {
        1 => scores,
        // A choice, because a sum would carry a NaN of a hidden key into the row.
        _ => {
            let none = Tensor::new(f32::NEG_INFINITY, scores.device())?.broadcast_as(scores.shape())?;
            hidden(tokens, keys)?.broadcast_as(scores.shape())?.where_cond(&none, &scores)?
        }
    };
    let weights = match rules.measured() {
        None => candle_nn::ops::softmax_last_dim(&scores)?,
        Some(rule) => {
            let positions: Vec<u32> = (keys - tokens..keys).map(|at| at as u32).collect();
            softmax_last_dim(&scores, rule, Some(&positions))?
        }
    };
    let product = |weights: &Tensor, v: &Tensor| {
        let (_, _, tokens, keys) = weights.dims4()?;
        let grouped = weights.reshape((batch, kv_heads, heads / kv_heads * tokens, keys))?;
        grouped.matmul(v)?.reshape((batch, heads, tokens, dim))
    };
    let out = product(&weights, v)?;
    if tokens == 1 || out.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(out);
    }
    // A hidden value is multiplied by 0, and 0 times NaN is NaN. So each row takes the values that it sees.
    let rows = (0..tokens).map(|token| {
        let seen = keys - tokens + token + 1;
        product(&weights.narrow(2, token, 1)?.narrow(3, 0, seen)?, &v.narrow(2, 0, seen)?)
    });
    Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 2)
}

/// `[tokens, keys]`, 1 where a key comes after the token. The tokens are the last keys.
fn hidden(tokens: usize, keys: usize) -> Result<Tensor> {
    let before = keys - tokens;
    let row = |token: usize| (0..keys).map(move |key| u8::from(key > before + token));
    Tensor::from_iter((0..tokens).flat_map(row), &Device::Cpu)?.reshape((tokens, keys))
}
