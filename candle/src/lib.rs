//! critbeta in candle: a softmax over scores and attention over a KV cache, each row at its own inverse
//! temperature, and a Llama from GGUF files that runs through them.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use critbeta::{Rescaling, attention::DecodeCall};
//!
//! let rule: Rescaling = "critical:cap=8".parse()?;
//! // Scores [batch, heads, query tokens, keys]. A score of -inf is masked.
//! let scores = Tensor::randn(0f32, 3.0, (1, 6, 2, 100), &Device::Cpu)?;
//! let weights = critbeta_candle::softmax_last_dim(&scores, &rule, None)?;
//! assert_eq!(weights.dims(), [1, 6, 2, 100]);
//!
//! // One query token of 6 heads, and 100 keys and values of 2 heads.
//! let query = Tensor::randn(0f32, 1.0, (1, 6, 1, 64), &Device::Cpu)?;
//! let keys = Tensor::randn(0f32, 1.0, (1, 2, 100, 64), &Device::Cpu)?;
//! let values = Tensor::randn(0f32, 1.0, (1, 2, 100, 64), &Device::Cpu)?;
//! let rules = [rule];
//! let (out, rows) = critbeta_candle::decode(&query, &keys, &values, &DecodeCall::new(&rules))?;
//! assert_eq!((out.dims(), rows.len()), (&[1, 6, 1, 64][..], 6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! No gradient flows through either, as through candle's own `softmax_last_dim`.
//!
//! Feature `cuda` gives [`softmax_last_dim`] on NVIDIA GPUs. **It was type-checked only, and never linked nor
//! run**: the build of candle itself needs nvcc and minutes for it. [`decode`] is for CPUs.

mod cache;
#[cfg(feature = "cuda")]
mod cuda;
mod decode;
pub mod llama;
mod rules;
mod softmax;

pub use cache::Cache;
pub use decode::decode;
pub use rules::{LayerRules, Rules};
pub use softmax::softmax_last_dim;
