//! Small GGUF models of several architectures, with weights that are drawn at random.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::path::{Path, PathBuf};

/// A value of the metadata.
pub enum Value {
    U32(u32),
    F32(f32),
    Text(&'static str),
    Texts(Vec<String>),
    Bool(bool),
    Bools(Vec<bool>),
}

/// A GGUF file to be.
pub struct Tiny {
    entries: Vec<(String, Value)>,
    /// Names and shapes, the fastest dimension first.
    tensors: Vec<(String, Vec<u64>)>,
}

pub const EMBEDDING: u64 = 32;
pub const HEADS: u64 = 4;
pub const KV_HEADS: u64 = 2;
pub const DIM: u64 = 16;
const HIDDEN: u64 = 48;

impl Tiny {
    /// A model of some layers: embeddings, norms, attention and feed-forward as LLaMA calls them.
    pub fn new(architecture: &'static str, layers: u32) -> Self {
        let mut tiny = Tiny { entries: Vec::new(), tensors: Vec::new() };
        tiny.entries.push(("general.architecture".into(), Value::Text(architecture)));
        let numbers = [
            ("context_length", 4096),
            ("embedding_length", EMBEDDING as u32),
            ("block_count", layers),
            ("feed_forward_length", HIDDEN as u32),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", KV_HEADS as u32),
            ("attention.key_length", DIM as u32),
            ("attention.value_length", DIM as u32),
            ("rope.dimension_count", DIM as u32),
        ];
        for (name, number) in numbers {
            tiny = tiny.with(&format!("{architecture}.{name}"), Value::U32(number));
        }
        for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"] {
            tiny = tiny.with(&format!("{architecture}.{name}"), Value::F32(1e-5));
        }
        // One token per byte, as GPT-2 spells bytes.
        let tokens: Vec<String> = (0..=255u8).map(byte_token).map(String::from).collect();
        let count = tokens.len() as u64;
        tiny = tiny.with("tokenizer.ggml.model", Value::Text("gpt2"));
        tiny = tiny.with("tokenizer.ggml.pre", Value::Text("default"));
        tiny = tiny.with("tokenizer.ggml.tokens", Value::Texts(tokens));
        tiny = tiny.with("tokenizer.ggml.merges", Value::Texts(vec!["~ ~".into()]));
        tiny =
            tiny.tensor("token_embd.weight", &[EMBEDDING, count]).tensor("output_norm.weight", &[EMBEDDING]);
        for layer in 0..layers {
            let shapes: [(&str, &[u64]); 9] = [
                ("attn_norm", &[EMBEDDING]),
                ("attn_q", &[EMBEDDING, HEADS * DIM]),
                ("attn_k", &[EMBEDDING, KV_HEADS * DIM]),
                ("attn_v", &[EMBEDDING, KV_HEADS * DIM]),
                ("attn_output", &[HEADS * DIM, EMBEDDING]),
                ("ffn_norm", &[EMBEDDING]),
                ("ffn_gate", &[EMBEDDING, HIDDEN]),
                ("ffn_up", &[EMBEDDING, HIDDEN]),
                ("ffn_down", &[HIDDEN, EMBEDDING]),
            ];
            for (name, shape) in shapes {
                tiny = tiny.tensor(&format!("blk.{layer}.{name}.weight"), shape);
            }
        }
        tiny
    }

    /// Adds an entry, or replaces the one of that name.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.entries.retain(|(known, _)| known != name);
        self.entries.push((name.into(), value));
        self
    }

    /// Adds a tensor.
    pub fn tensor(mut self, name: &str, shape: &[u64]) -> Self {
        self.tensors.push((name.into(), shape.to_vec()));
        self
    }

    /// Leaves out the tensors whose names contain this.
    pub fn without(mut self, part: &str) -> Self {
        self.tensors.retain(|(name, _)| !name.contains(part));
        self
    }

    /// Writes it into a folder. Source: docs/gguf.md of ggml, version 3.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (name, value) in &self.entries {
            text(&mut bytes, name);
            value.write(&mut bytes);
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut data = Vec::new();
        for (name, shape) in &self.tensors {
            text(&mut bytes, name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            // f32, at this place in the data.
            bytes.extend(0u32.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            // Scores of a few nats: a uniform attention would hide what is wrong.
            let (centre, width) = if name.contains("norm") { (1.0, 0.2) } else { (0.0, 0.6) };
            for _ in 0..shape.iter().product::<u64>() {
                data.extend((centre + width * (rng.random::<f32>() * 2.0 - 1.0)).to_le_bytes());
            }
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        let path = folder.join("tiny.gguf");
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Value {
    fn write(&self, to: &mut Vec<u8>) {
        let array = |to: &mut Vec<u8>, kind: u32, count: usize| {
            to.extend(9u32.to_le_bytes());
            to.extend(kind.to_le_bytes());
            to.extend((count as u64).to_le_bytes());
        };
        match self {
            Value::U32(number) => to.extend([4u32.to_le_bytes(), number.to_le_bytes()].concat()),
            Value::F32(number) => to.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
            Value::Text(value) => {
                to.extend(8u32.to_le_bytes());
                text(to, value);
            }
            Value::Texts(values) => {
                array(to, 8, values.len());
                values.iter().for_each(|value| text(to, value));
            }
            &Value::Bool(value) => {
                to.extend(7u32.to_le_bytes());
                to.push(u8::from(value));
            }
            Value::Bools(values) => {
                array(to, 7, values.len());
                to.extend(values.iter().map(|&value| u8::from(value)));
            }
        }
    }
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// GPT-2's character for a byte.
fn byte_token(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte as char,
        0..=0x20 => char::from_u32(256 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(256 + u32::from(byte) - 0x7f + 33).unwrap(),
        0xad => char::from_u32(256 + 67).unwrap(),
    }
}

/// Makes the embedding of a byte NaN in a written model, whose first tensor the embeddings are.
pub fn poison(path: &Path, tiny: &Tiny, byte: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    let size = |(_, shape): &(String, Vec<u64>)| (4 * shape.iter().product::<u64>()).next_multiple_of(32);
    let data = bytes.len() - tiny.tensors.iter().map(size).sum::<u64>() as usize;
    let start = data + usize::from(byte) * EMBEDDING as usize * 4;
    bytes[start..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// A text of this many bytes, all ASCII, whose words repeat without a period.
pub fn prose(bytes: usize) -> String {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let words = ["the", "critical", "row", "of", "attention", "keys", "a", "beta", "in", "long", "texts"];
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(words[rng.random_range(0..words.len())]);
        text.push(' ');
    }
    text.truncate(bytes);
    text
}
