//! A small server: OpenAI-style completions of a GGUF Llama, rescaled, with the operating ratios of its
//! attention at /metrics.
//!
//!     cargo run --release -p critbeta-candle --example serve -- MODEL.gguf [--rescaling SPEC]

mod api;
mod engine;
mod metrics;
mod request;
#[path = "../common/start.rs"]
mod start;
#[path = "../common/text.rs"]
mod text;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use clap::builder::RangedU64ValueParser;
use std::sync::Arc;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Serves OpenAI-style completions of a GGUF Llama, rescaled and measured")]
struct Args {
    #[command(flatten)]
    model: start::Model,
    /// Where to listen. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: String,
    /// Sequences at once.
    #[arg(long, default_value_t = 8, value_parser = from_to(1, 1024))]
    slots: usize,
    /// Requests that wait for a slot. One more gets 503.
    #[arg(long, default_value_t = 16, value_parser = from_to(0, 65_536))]
    waiting: usize,
    /// The most tokens of a prompt and its answer together.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// Measure the rows of every so many tokens that a sequence makes; 0 for none.
    #[arg(long, default_value_t = 8)]
    measure_every: usize,
}

fn from_to(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// How long running requests may go on once the server is told to end.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let (model, text, _) = args.model.load()?;
    let (limit, layers) = (model.config().context, model.config().layers);
    ensure!((2..=limit).contains(&args.context), "--context {}: expected 2 to {limit}", args.context);
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
    // No new client is taken once the first future ends, and none is waited for once the second does.
    let (first, last) = (told_to_end()?, told_to_end()?);
    let served = axum::serve(listener, api::router(Arc::new(shared))).with_graceful_shutdown(first);
    let late = async {
        last.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = served => result?,
        () = late => eprintln!("warning: requests still ran {} s after the signal to end", GRACE.as_secs()),
    }
    Ok(())
}

/// Ends with Ctrl-C or SIGTERM.
#[cfg(unix)]
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Ends with Ctrl-C.
#[cfg(not(unix))]
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}
