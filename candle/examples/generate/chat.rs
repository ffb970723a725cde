//! The chat template of a file.

use anyhow::{Context, Result, bail};
use candle_core::quantized::gguf_file::Content;
use minijinja::{Environment, context};

/// What a user says, in the chat template of the file, up to where the model answers.
///
/// Errors: a file without a template, or one that does not render.
pub fn chat(content: &Content, user: &str) -> Result<String> {
    let template = content.metadata.get("tokenizer.chat_template").and_then(|value| value.to_string().ok());
    let Some(template) = template else {
        bail!("the file has no tokenizer.chat_template: give the prompt as it is, with --raw");
    };
    let messages = [context! { role => "user", content => user }];
    let given = context! { messages, add_generation_prompt => true };
    Environment::new().render_str(template, given).context("the chat template of the file")
}
