//! The sizes of a Llama, as its GGUF file gives them.

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Result, Tensor, bail};

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// The base of the rotary frequencies.
    pub rope_base: f32,
}

impl Config {
    /// Reads the metadata of a file.
    ///
    /// Errors: an architecture other than `llama`, experts, scaled rotary frequencies or a rotary part of the
    /// head, none of which is written here; an entry that is missing or makes no sense.
    pub fn read(content: &Content) -> Result<Config> {
        let given = |key: &str| content.metadata.get(key);
        let text = |key: &str| given(key).and_then(|value| value.to_string().ok()).map(String::as_str);
        match text("general.architecture") {
            Some("llama") => {}
            other => bail!("general.architecture is {other:?}: expected \"llama\""),
        }
        let number = |key: &str| match given(key).map(Value::to_u32) {
            Some(Ok(number)) if number > 0 => Ok(number as usize),
            _ => bail!("{key} is {:?}: expected a number above 0", given(key)),
        };
        if let Some(experts) = given("llama.expert_count").and_then(|v| v.to_u32().ok()).filter(|&n| n > 0) {
            bail!("llama.expert_count is {experts}: experts are not supported");
        }
        if let Some(kind) = text("llama.rope.scaling.type").filter(|&kind| kind != "none") {
            bail!("llama.rope.scaling.type is {kind:?}: scaled rotary frequencies are not supported");
        }
        if content.tensor_infos.contains_key("rope_freqs.weight") {
            bail!("rope_freqs.weight: scaled rotary frequencies are not supported");
        }
        let (heads, kv_heads) =
            (number("llama.attention.head_count")?, number("llama.attention.head_count_kv")?);
        let embedding = number("llama.embedding_length")?;
        if heads % kv_heads > 0 || embedding % heads > 0 {
            bail!("{heads} query heads, {kv_heads} kv heads and {embedding} elements do not divide");
        }
        let head_dim = embedding / heads;
        let rotary = number("llama.rope.dimension_count")?;
        if rotary != head_dim || rotary % 2 > 0 {
            bail!("llama.rope.dimension_count is {rotary}: expected head_dim {head_dim}, and even");
        }
        let Some(embeddings) = content.tensor_infos.get("token_embd.weight") else {
            bail!("the file has no tensor token_embd.weight");
        };
        let &[vocabulary, width] = embeddings.shape.dims() else {
            bail!("token_embd.weight is {:?}: expected [vocabulary, {embedding}]", embeddings.shape);
        };
        if width != embedding {
            bail!("token_embd.weight is {:?}: expected [vocabulary, {embedding}]", embeddings.shape);
        }
        let (layers, tensors) = (number("llama.block_count")?, content.tensor_infos.len());
        if layers > tensors {
            bail!("llama.block_count is {layers}: the file has {tensors} tensors in all");
        }
        let float = |key: &str| given(key).and_then(|value| value.to_f32().ok());
        let Some(eps) = float("llama.attention.layer_norm_rms_epsilon") else {
            bail!("llama.attention.layer_norm_rms_epsilon is missing");
        };
        Ok(Config {
            layers,
            heads,
            kv_heads,
            head_dim,
            context: number("llama.context_length")?,
            vocabulary,
            eps: eps.into(),
            rope_base: float("llama.rope.freq_base").unwrap_or(10_000.0),
        })
    }

    /// The name of a layer, as its tensors begin. Records and calibrations use it.
    pub fn layer_name(layer: usize) -> String {
        format!("blk.{layer}")
    }

    /// The names of all layers.
    pub fn layer_names(&self) -> Vec<String> {
        (0..self.layers).map(Config::layer_name).collect()
    }

    /// Cosines and sines `[tokens, head_dim / 2]` of tokens from a position on.
    pub(super) fn rotary(&self, position: usize, tokens: usize) -> Result<[Tensor; 2]> {
        let (base, dim) = (self.rope_base, self.head_dim as f32);
        let theta = (0..self.head_dim).step_by(2).map(|i| 1.0 / base.powf(i as f32 / dim));
        let theta = Tensor::from_iter(theta, &Device::Cpu)?.reshape((1, self.head_dim / 2))?;
        let positions = (position..position + tokens).map(|at| at as f32);
        let angles = Tensor::from_iter(positions, &Device::Cpu)?.reshape((tokens, 1))?.matmul(&theta)?;
        Ok([angles.cos()?, angles.sin()?])
    }
}
