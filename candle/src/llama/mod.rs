//! A Llama from a GGUF file, whose attention is rescaled and can be watched.
//!
//! It is written on candle's GGUF reader and `QMatMul`, because the models of candle-transformers keep their
//! attention to themselves.

mod attend;
mod config;

pub use attend::Attention;
pub use config::Config;

use crate::{Cache, Rules};
use candle_core::quantized::{QMatMul, QTensor, gguf_file::Content};
use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::RmsNorm;
use critbeta::attention::DecodeRow;
use critbeta::cpu::Measure;
use std::io::{Read, Seek};

/// Sees what the attention of one step computes with. It never changes a result.
pub trait Watch {
    /// The queries of new tokens in one layer after rotary embedding and before any rescaling, `[1, heads,
    /// tokens, head_dim]`. The first sits at `position`.
    fn queries(&mut self, _layer: usize, _position: usize, _queries: &Tensor) {}

    /// What [`Watch::rows`] wants to know of each row beside its beta.
    fn measure(&self) -> Option<Measure> {
        None
    }

    /// The rows of a step of at most 8 tokens in one layer, in the order `[tokens, heads]`. Only
    /// [`Attention::Critbeta`] reports them.
    fn rows(&mut self, _layer: usize, _rows: &[DecodeRow]) {}
}

/// New tokens of one sequence.
pub struct Step<'a> {
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// What came before them, to which they are added.
    pub cache: &'a mut Cache,
    /// Who watches.
    pub watch: Option<&'a mut dyn Watch>,
}

#[derive(Clone)]
struct Layer {
    attn_norm: RmsNorm,
    q: QMatMul,
    k: QMatMul,
    v: QMatMul,
    o: QMatMul,
    ffn_norm: RmsNorm,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
}

/// The weights of a Llama, its rules and how it attends. The state of a sequence is in its [`Cache`].
#[derive(Clone)]
pub struct Llama {
    config: Config,
    rules: Rules,
    attention: Attention,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: QMatMul,
}

impl Llama {
    /// Reads the weights from `reader`, whose header is `content`. candle's `CANDLE_DEQUANTIZE_ALL=1` in the
    /// environment turns them to f32, which takes up to 8 times the memory. That is faster for a format
    /// without vector code in candle, such as Q4_1.
    ///
    /// Errors: an architecture or a rule that cannot run here, by name; a tensor that is missing.
    pub fn load<R: Read + Seek>(
        content: &Content,
        reader: &mut R,
        rules: Rules,
        attention: Attention,
    ) -> Result<Llama> {
        let config = Config::read(content)?;
        attention.check(&config, &rules)?;
        let mut tensor = |name: &str| content.tensor(reader, name, &Device::Cpu);
        let norm = |weights: QTensor| -> Result<RmsNorm> {
            Ok(RmsNorm::new(weights.dequantize(&Device::Cpu)?, config.eps))
        };
        let embedding = tensor("token_embd.weight")?;
        let embedded = embedding.dequantize(&Device::Cpu)?;
        // Without an output matrix of its own, a model uses that of the embedding.
        let output = match content.tensor_infos.contains_key("output.weight") {
            true => tensor("output.weight")?,
            false => embedding,
        };
        let layers = (0..config.layers).map(|layer| -> Result<Layer> {
            let mut weights = |name: &str| tensor(&format!("{}.{name}.weight", Config::layer_name(layer)));
            Ok(Layer {
                attn_norm: norm(weights("attn_norm")?)?,
                q: QMatMul::from_qtensor(weights("attn_q")?)?,
                k: QMatMul::from_qtensor(weights("attn_k")?)?,
                v: QMatMul::from_qtensor(weights("attn_v")?)?,
                o: QMatMul::from_qtensor(weights("attn_output")?)?,
                ffn_norm: norm(weights("ffn_norm")?)?,
                gate: QMatMul::from_qtensor(weights("ffn_gate")?)?,
                up: QMatMul::from_qtensor(weights("ffn_up")?)?,
                down: QMatMul::from_qtensor(weights("ffn_down")?)?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let norm = norm(tensor("output_norm.weight")?)?;
        let (embedding, output) = (embedded, QMatMul::from_qtensor(output)?);
        Ok(Llama { config, rules, attention, embedding, layers, norm, output })
    }

    /// The sizes of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same weights under other rules, or attending in another way. The weights are shared.
    ///
    /// Errors: a rule that this attention cannot run, by name.
    pub fn with(&self, rules: Rules, attention: Attention) -> Result<Llama> {
        attention.check(&self.config, &rules)?;
        Ok(Llama { rules, attention, ..self.clone() })
    }

    /// An empty cache for `capacity` tokens, as this attention reads it best.
    ///
    /// Errors: a capacity beyond the context of the model, or beyond the memory.
    pub fn cache(&self, capacity: usize) -> Result<Cache> {
        let Config { layers, kv_heads, head_dim, context, .. } = self.config;
        if capacity > context {
            bail!("a cache of {capacity} tokens: the model has a context of {context}");
        }
        let tokens_first = self.attention == Attention::Flash;
        Cache::new(layers, [capacity, kv_heads, head_dim], DType::F32, tokens_first)
    }

    /// Runs new tokens of several sequences, and returns the logits `[steps, vocabulary]` after the last
    /// token of each. The steps share the reading of the weights. They do not see each other.
    ///
    /// Errors: a step without tokens, a token beyond the vocabulary, a cache that is full. All caches then
    /// hold what they held before.
    pub fn forward(&self, steps: &mut [Step]) -> Result<Tensor> {
        let mut tokens = Vec::new();
        let mut ends = Vec::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            if let Some(token) = step.tokens.iter().find(|&&token| token as usize >= self.config.vocabulary) {
                bail!("token {token} of step {at}: the vocabulary has {}", self.config.vocabulary);
            }
            if step.tokens.is_empty() {
                bail!("step {at} has no token");
            }
            tokens.extend_from_slice(step.tokens);
            ends.push(tokens.len() as u32 - 1);
        }
        // The angles of these tokens alone: a file may promise any context.
        let rotary = steps.iter().map(|step| self.config.rotary(step.cache.len(), step.tokens.len()));
        let rotary = rotary.collect::<Result<Vec<_>>>()?;
        let mut x = self.embedding.index_select(&Tensor::new(&tokens[..], &Device::Cpu)?, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = layer.attn_norm.forward(&x)?;
            let projected = [layer.q.forward(&normed)?, layer.k.forward(&normed)?, layer.v.forward(&normed)?];
            let mut from = 0;
            let attended = steps.iter_mut().zip(&rotary).map(|(step, rotary)| {
                let first = from;
                from += step.tokens.len();
                self.step(index, step, &projected, first, rotary)
            });
            let attended = Tensor::cat(&attended.collect::<Result<Vec<_>>>()?, 0)?;
            x = (layer.o.forward(&attended)? + x)?;
            let normed = layer.ffn_norm.forward(&x)?;
            let gated =
                (candle_nn::ops::silu(&layer.gate.forward(&normed)?)? * layer.up.forward(&normed)?)?;
            x = (layer.down.forward(&gated)? + x)?;
        }
        let last = self.norm.forward(&x)?.index_select(&Tensor::new(&ends[..], &Device::Cpu)?, 0)?;
        let logits = self.output.forward(&last)?;
        steps.iter_mut().for_each(|step| step.cache.extend(step.tokens.len()));
        Ok(logits)
    }

    /// The attention of one step in one layer, `[tokens, heads * head_dim]`. The step's tokens are those from
    /// `first` on of the projected ones, and `rotary` has their cosines and sines.
    fn step(
        &self,
        layer: usize,
        step: &mut Step,
        projected: &[Tensor; 3],
        first: usize,
        [cos, sin]: &[Tensor; 2],
    ) -> Result<Tensor> {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let tokens = step.tokens.len();
        let of = |x: &Tensor, heads| {
            let x = x.narrow(0, first, tokens)?.reshape((1, tokens, heads, head_dim))?;
            x.transpose(1, 2)?.contiguous()
        };
        let position = step.cache.len();
        let q = candle_nn::rotary_emb::rope_i(&of(&projected[0], heads)?, cos, sin)?;
        let k = candle_nn::rotary_emb::rope_i(&of(&projected[1], kv_heads)?, cos, sin)?;
        let [k, v] = step.cache.write(layer, &k, &of(&projected[2], kv_heads)?)?;
        if let Some(watch) = &mut step.watch {
            watch.queries(layer, position, &q);
        }
        let out = self.attention.attend([&q, &k, &v], self.rules.layer(layer), layer, &mut step.watch)?;
        out.transpose(1, 2)?.reshape((tokens, heads * head_dim))
    }
}

/// The most probable token of each row of logits `[rows, vocabulary]`, the first of equals.
///
/// Errors: a row with a NaN or an infinity, which has no such token; those of candle.
pub fn greedy(logits: &Tensor) -> Result<Vec<u32>> {
    let (rows, shape) = (logits.to_vec2::<f32>()?, logits.shape());
    let found = rows.iter().enumerate().map(|(row, logits)| match most_probable(logits) {
        Some(token) => Ok(token),
        None => bail!("the logits {:?} hold a NaN or an infinity in row {row}", shape),
    });
    found.collect()
}

/// The token with the largest logit, the first of equals. It is `None` without logits, and where one is a NaN
/// or infinite.
pub fn most_probable(logits: &[f32]) -> Option<u32> {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return None;
        }
        if *logit > logits[best] {
            best = token;
        }
    }
    (!logits.is_empty()).then_some(best as u32)
}
