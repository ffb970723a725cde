//! Text to tokens and back, as the model's own file says.

use anyhow::{Result, anyhow, bail};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
use tokenizers::{PreTokenizerWrapper, Tokenizer};

/// The vocabulary of a GGUF file.
pub struct Text {
    tokenizer: Tokenizer,
    end: Option<u32>,
    longest: usize,
}

impl Text {
    /// Errors: a tokenizer that is not written here, by name.
    pub fn read(content: &Content) -> Result<Text> {
        let mut tokenizer = Tokenizer::from_gguf(content)?;
        let given = |key: &str| content.metadata.get(key);
        let text = |key: &str| given(key).and_then(|value| value.to_string().ok()).cloned();
        // candle knows some splits of text before the merges; it takes all others for those of its default.
        let bytes = PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
        match text("tokenizer.ggml.pre").as_deref() {
            Some("qwen2" | "smaug-bpe" | "lfm2" | "llama3") => {}
            Some("smollm") => {
                let digits = PreTokenizerWrapper::from(Digits::new(true));
                tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![digits, bytes])));
            }
            Some("gpt-2" | "default") | None => {
                tokenizer.with_pre_tokenizer(Some(bytes));
            }
            Some(other) => bail!("tokenizer.ggml.pre is {other:?}: this split of text is not supported"),
        }
        let end = given("tokenizer.ggml.eos_token_id").map(Value::to_u32).transpose()?;
        // A vocabulary spells each byte in one character or more, which is a byte or more.
        let longest = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(0);
        Ok(Text { tokenizer, end, longest })
    }

    /// The tokens of a text as it is. Names of special tokens in it become those tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, true).map_err(|e| anyhow!("tokens of the text: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// At least the bytes of text of the longest token.
    #[allow(dead_code, reason = "of use to a server")]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Whether a token ends the text.
    pub fn is_end(&self, token: u32) -> bool {
        self.end == Some(token)
    }

    /// The tokenizer, for its stream of text.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}
