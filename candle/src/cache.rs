//! Keys and values of one sequence in every layer.

use candle_core::{DType, Device, Result, Tensor, bail};

/// The KV cache of one sequence. Its memory is taken at once and never moves, so a step writes its own keys
/// and copies none.
pub struct Cache {
    /// Keys and values of each layer.
    layers: Vec<[Tensor; 2]>,
    /// The axis of the tokens: 2 in `[1, kv_heads, capacity, head_dim]`, 1 in `[1, capacity, kv_heads,
    /// head_dim]`.
    axis: usize,
    len: usize,
    capacity: usize,
}

impl Cache {
    /// An empty cache for `layers` layers of `capacity` tokens, `kv_heads` heads of `head_dim` elements each.
    /// In memory the heads come first, or the tokens. [`crate::decode`] reads both; the kernels of candle
    /// would copy the one that is not theirs.
    ///
    /// Errors: keys and values that the memory does not hold.
    pub fn new(
        layers: usize,
        [capacity, kv_heads, head_dim]: [usize; 3],
        dtype: DType,
        tokens_first: bool,
    ) -> Result<Self> {
        let shape = match tokens_first {
            true => (1, capacity, kv_heads, head_dim),
            false => (1, kv_heads, capacity, head_dim),
        };
        // The allocations of candle end the process where they fail.
        let bytes = [2, layers, kv_heads, head_dim, dtype.size_in_bytes()];
        let bytes = bytes.iter().try_fold(capacity, |product, factor| product.checked_mul(*factor));
        if bytes.is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            bail!(
                "a KV cache {shape:?} in {layers} layers, keys and values in {dtype:?}: the memory does not hold it"
            );
        }
        let empty = || Tensor::zeros(shape, dtype, &Device::Cpu);
        let layers = (0..layers).map(|_| Ok([empty()?, empty()?])).collect::<Result<_>>()?;
        Ok(Cache { layers, axis: if tokens_first { 1 } else { 2 }, len: 0, capacity })
    }

    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Keys and values of one layer as views, `[1, kv_heads, tokens, head_dim]`.
    ///
    /// Errors: a layer that the model does not have.
    pub fn layer(&self, layer: usize) -> Result<[Tensor; 2]> {
        self.first(layer, self.len)
    }

    /// Writes keys and values of new tokens, `[1, kv_heads, tokens, head_dim]`, behind those it holds, and
    /// returns all of them as views. They count once [`Cache::extend`] says so.
    pub(crate) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<[Tensor; 2]> {
        let end = self.len + k.dim(2)?;
        if end > self.capacity {
            bail!(
                "the KV cache holds {} of {} tokens: {} more do not fit",
                self.len,
                self.capacity,
                k.dim(2)?
            );
        }
        for (all, new) in self.layers[layer].iter().zip([k, v]) {
            let new = if self.axis == 1 { new.transpose(1, 2)? } else { new.clone() };
            all.slice_set(&new.to_dtype(all.dtype())?.contiguous()?, self.axis, self.len)?;
        }
        self.first(layer, end)
    }

    /// Counts `tokens` more, which every layer has written.
    pub(crate) fn extend(&mut self, tokens: usize) {
        self.len += tokens;
    }

    fn first(&self, layer: usize, len: usize) -> Result<[Tensor; 2]> {
        let Some([k, v]) = self.layers.get(layer) else {
            bail!("layer {layer} of a KV cache of {} layers", self.layers.len());
        };
        let view = |all: &Tensor| {
            let first = all.narrow(self.axis, 0, len)?;
            if self.axis == 1 { first.transpose(1, 2) } else { Ok(first) }
        };
        Ok([view(k)?, view(v)?])
    }
}
