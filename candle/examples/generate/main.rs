//! Generates text with a GGUF Llama, rescaled and recorded.
//!
//!     cargo run --release -p critbeta-candle --example generate -- MODEL.gguf "prompt" [--rescaling SPEC]

mod chat;
#[path = "../common/record.rs"]
mod record;
#[path = "../common/start.rs"]
mod start;
#[path = "../common/text.rs"]
mod text;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use critbeta_candle::llama::{Step, Watch, greedy};
use critbeta_diagnose::signals::end_cleanly;
use record::{Record, keep_apart};
use start::Model;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Prompt tokens of one step. Their scores take 9 MiB for each 1,024 keys and 9 heads.
const CHUNK: usize = 256;

#[derive(Parser)]
#[command(about = "Generates text with a GGUF Llama, rescaled and recorded")]
struct Args {
    #[command(flatten)]
    model: Model,
    /// What the user says. The chat template of the file goes around it.
    prompt: String,
    /// Give the prompt as it is, without the chat template.
    #[arg(long)]
    raw: bool,
    /// The most tokens to generate.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Write queries and keys to this file, for `critbeta diagnose`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// How many query positions to record, evenly spaced.
    #[arg(long, default_value_t = 256, value_name = "N")]
    record_rows: usize,
    /// Print the ids of tokens in place of their text.
    #[arg(long)]
    ids: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    end_cleanly()?;
    if let Some(path) = &args.record {
        keep_apart(path, &args.model)?;
    }
    let begin = Instant::now();
    let (model, text, content) = args.model.load()?;
    eprintln!("loaded in {:.1} s", begin.elapsed().as_secs_f64());
    let prompt = match args.raw {
        true => args.prompt.clone(),
        false => chat::chat(&content, &args.prompt)?,
    };
    let prompt = text.encode(&prompt)?;
    ensure!(!prompt.is_empty(), "the prompt has no token");
    let total = prompt.len().checked_add(args.tokens);
    let total = total.with_context(|| format!("--tokens {}: more than a sequence can have", args.tokens))?;
    let mut cache = model.cache(total)?;
    let mut record =
        args.record.as_deref().map(|path| Record::new(path, model.config(), total, args.record_rows));

    let mut stdout = std::io::stdout().lock();
    let mut stream = text.tokenizer().decode_stream(true);
    let (mut next, mut made, mut speed) = (0, 0, [Instant::now(); 2]);
    let mut run = |tokens: &[u32]| -> Result<u32> {
        let watch = record.as_mut().map(|record| record as &mut dyn Watch);
        Ok(greedy(&model.forward(&mut [Step { tokens, cache: &mut cache, watch }])?)?[0])
    };
    for chunk in prompt.chunks(CHUNK) {
        next = run(chunk)?;
    }
    speed[1] = Instant::now();
    while made < args.tokens && !text.is_end(next) {
        made += 1;
        match (args.ids, stream.step(next)) {
            (true, _) => write!(stdout, "{next} ")?,
            (false, piece) => write!(
                stdout,
                "{}",
                piece.map_err(|e| anyhow::anyhow!("text of token {next}: {e}"))?.unwrap_or_default()
            )?,
        }
        stdout.flush()?;
        if made < args.tokens {
            next = run(&[next])?;
        }
    }
    writeln!(stdout)?;
    let rate = |tokens: usize, from: Instant, to: Instant| tokens as f64 / (to - from).as_secs_f64();
    eprintln!(
        "{} prompt tokens at {:.1} a second, {made} tokens at {:.1} a second",
        prompt.len(),
        rate(prompt.len(), speed[0], speed[1]),
        rate(made.saturating_sub(1), speed[1], Instant::now()),
    );
    if let Some(record) = record {
        record.finish(&cache);
    }
    Ok(())
}
