//! A small server: OpenAI-style completions of a GGUF Llama, rescaled, with the operating ratios of its
//! attention at /metrics.
//!
//!     cargo run --release -p critbeta-candle --example serve -- MODEL.gguf [--rescaling SPEC]

mod api;
mod engine;
mod metrics;
#[path = "../common/start.rs"]
mod start;
#[path = "../common/text.rs"]
mod text;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::sync::Arc;

#[derive(Parser)]
#[command(about = "Serves OpenAI-style completions of a GGUF Llama, rescaled and measured")]
struct Args {
    #[command(flatten)]
    model: start::Model,
    /// Where to listen. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: String,
    /// Sequences at once.
    #[arg(long, default_value_t = 8)]
    slots: usize,
    /// Requests that wait for a slot. One more gets 503.
    #[arg(long, default_value_t = 16)]
    waiting: usize,
    /// The most tokens of a prompt and its answer together.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// Measure the rows of every so many steps of a sequence; 0 for none.
    #[arg(long, default_value_t = 8)]
    measure_every: u64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.slots > 0, "--slots 0: expected at least 1");
    let (model, text, _) = args.model.load()?;
    let (limit, layers) = (model.config().context, model.config().layers);
    ensure!((1..=limit).contains(&args.context), "--context {}: expected 1 to {limit}", args.context);
    let listener = tokio::net::TcpListener::bind(&args.listen).await;
    let listener = listener.with_context(|| format!("--listen {}", args.listen))?;
    let (text, rescaling) = (Arc::new(text), args.model.rescaling.to_string());
    let metrics = Arc::new(metrics::Metrics::new(rescaling, layers, args.measure_every));
    let engine = engine::Engine::start(model, text.clone(), metrics.clone(), args.slots, args.waiting)?;
    let shared = api::Shared {
        engine,
        text,
        metrics,
        name: args.model.model.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        context: args.context,
        slots: args.slots,
        waiting: args.waiting,
        served: 0.into(),
    };
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, api::router(Arc::new(shared))).await?;
    Ok(())
}
