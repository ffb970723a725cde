//! Queries and keys of a GGUF model, read from llama.cpp while it runs a text.
//!
//! [`llama::Model::run`] evaluates a text and shows its nodes to a [`record::Recorder`]. That one reads the
//! two operands of every product of queries and keys, and the softmax behind it. So it needs no word of an
//! architecture: norms, rotary embedding and factors have been applied, and the mask says who sees whom. What
//! it records is checked against the probabilities that llama.cpp computes. [`save::save`] writes the files
//! for `critbeta diagnose`.

mod attention;
pub mod llama;
pub mod record;
pub mod rows;
pub mod save;
pub mod text;
