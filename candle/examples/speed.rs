//! Tokens a second of decoding at a long context: critbeta's decode beside candle's own attention, in the
//! same model code and in turns.
//!
//!     cargo run --release -p critbeta-candle --features peer --example speed -- MODEL.gguf
//!
//! With CANDLE_DEQUANTIZE_ALL=1 the weights are f32. Feature `peer` adds quantized_llama itself.

#[path = "common/text.rs"]
#[allow(dead_code, reason = "ids are enough here")]
mod text;

use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file::Content;
use clap::Parser;
use critbeta::calibration::HeadRescalings;
use critbeta_candle::llama::{Attention, Config, Llama, Step, greedy};
use critbeta_candle::{Cache, Rules};
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    /// A GGUF file of a Llama.
    model: PathBuf,
    /// Keys in the cache before the tokens that are timed.
    #[arg(long, default_value_t = 4096)]
    keys: usize,
    /// Tokens of one turn.
    #[arg(long, default_value_t = 8)]
    tokens: usize,
    /// Turns of each way.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// One way to decode: it makes tokens after the prompt, which is in the cache.
type Way<'a> = Box<dyn FnMut(&mut [Cache]) -> Result<Vec<u32>> + 'a>;

fn main() -> Result<()> {
    let args = Args::parse();
    let mut file = File::open(&args.model).with_context(|| args.model.display().to_string())?;
    let content = Content::read(&mut file)?;
    let config = Config::read(&content)?;
    let text = text::Text::read(&content)?;
    let prose = text.encode(include_str!("../../docs/how-it-works.md"))?;
    let prompt: Vec<u32> = prose.into_iter().cycle().take(args.keys).collect();
    let identity = HeadRescalings::load("identity".parse()?)?;
    let rules = Rules::new(&identity, &config.layer_names(), config.heads)?;
    let exact = Attention::Critbeta { eps: 0.0 };
    let model = Llama::load(&content, &mut file, rules.clone(), exact)?;
    let critical = HeadRescalings::load("critical".parse()?)?;
    let critical = Rules::new(&critical, &config.layer_names(), config.heads)?;
    let named = [
        ("critbeta", &rules, exact),
        ("critbeta, eps 0.001", &rules, Attention::Critbeta { eps: 1e-3 }),
        ("critbeta, critical rule", &critical, exact),
        ("candle, as quantized_llama", &rules, Attention::Candle),
        ("candle, grouped heads", &rules, Attention::Grouped),
        ("candle, cpu_flash", &rules, Attention::Flash),
    ];
    // One cache for each layout: candle's products and its fused attention read different ones.
    let mut caches = Vec::new();
    let mut first = 0;
    for attention in [exact, Attention::Flash] {
        let model = model.with(rules.clone(), attention)?;
        let mut cache = model.cache(args.keys + args.tokens)?;
        for chunk in prompt.chunks(256) {
            first = step(&model, chunk, &mut cache)?;
        }
        caches.push(cache);
    }
    let (keys, tokens) = (args.keys, args.tokens);
    let mut ways: Vec<(&str, Way)> = Vec::new();
    for (name, rules, attention) in named {
        let model = model.with(rules.clone(), attention)?;
        let way = move |caches: &mut [Cache]| {
            let cache = &mut caches[usize::from(attention == Attention::Flash)];
            cache.truncate(keys);
            let mut out = vec![first];
            while out.len() <= tokens {
                out.push(step(&model, &out[out.len() - 1..], cache)?);
            }
            Ok(out)
        };
        ways.push((name, Box::new(way)));
    }
    #[cfg(feature = "peer")]
    ways.push(("candle-transformers quantized_llama", peer(&args, content, file, &prompt)?));

    // Before anything is timed: all exact ways at beta 1 make the same tokens.
    let first: Vec<Vec<u32>> = ways.iter_mut().map(|(_, way)| way(&mut caches)).collect::<Result<_>>()?;
    for ((name, _), tokens) in ways.iter().zip(&first) {
        let same = tokens == &first[0];
        let may_differ = name.contains("critical") || name.contains("eps") || name.contains("transformers");
        ensure!(same || may_differ, "{name} made {tokens:?}, and critbeta {:?}", first[0]);
    }
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..args.rounds {
        for ((_, way), times) in ways.iter_mut().zip(&mut times) {
            let begin = Instant::now();
            way(&mut caches)?;
            times.push(begin.elapsed().as_secs_f64() * 1e3 / args.tokens as f64);
        }
    }
    println!(
        "{} tokens after {} keys, {} layers, {} query heads over {} of {}, {} rounds in turns, {} threads",
        args.tokens,
        args.keys,
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        args.rounds,
        std::thread::available_parallelism()?,
    );
    println!("{:<38} {:>9} {:>9} {:>9} {:>11}", "way", "median ms", "least ms", "tokens/s", "of critbeta");
    let median = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        (sorted[sorted.len() / 2], sorted[0])
    };
    for ((name, _), of) in ways.iter().zip(&times) {
        let (middle, least) = median(of);
        // Turns that follow each other met the same machine, so the ratio is that of each round.
        let ratios: Vec<f64> = of.iter().zip(&times[0]).map(|(a, b)| a / b).collect();
        let rate = 1e3 / middle;
        println!("{name:<38} {middle:>9.1} {least:>9.1} {rate:>9.1} {:>11.2}", median(&ratios).0);
    }
    Ok(())
}

fn step(model: &Llama, tokens: &[u32], cache: &mut Cache) -> Result<u32> {
    Ok(greedy(&model.forward(&mut [Step { tokens, cache, watch: None }])?)?[0])
}

/// quantized_llama forgets nothing and ends at 4,096 keys, so its context grows up to that.
#[cfg(feature = "peer")]
fn peer<'a>(args: &Args, content: Content, mut file: File, prompt: &[u32]) -> Result<Way<'a>> {
    use candle_core::{Device, Tensor};
    use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut at = 0;
    let mut next = 0;
    let mut run = move |tokens: &[u32]| -> Result<u32> {
        let logits = model.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, at)?;
        at += tokens.len();
        Ok(greedy(&logits)?[0])
    };
    let room = MAX_SEQ_LEN.saturating_sub(args.tokens * (args.rounds + 1));
    for chunk in prompt[..prompt.len().min(room)].chunks(256) {
        next = run(chunk)?;
    }
    let tokens = args.tokens;
    Ok(Box::new(move |_| {
        let mut out = vec![next];
        for _ in 0..tokens {
            next = run(&[next])?;
            out.push(next);
        }
        Ok(out)
    }))
}
