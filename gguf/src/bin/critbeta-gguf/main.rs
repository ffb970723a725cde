//! The command `critbeta-gguf`: queries and keys of a GGUF model, as llama.cpp runs it, for `critbeta
//! diagnose`.

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use critbeta_diagnose::output::{Output, distinct};
use critbeta_gguf::llama::{Model, Observer, Run};
use critbeta_gguf::record::Recorder;
use critbeta_gguf::{rows, save, text};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Queries and keys of GGUF models, for critbeta.
#[derive(Parser)]
#[command(name = "critbeta-gguf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a text through llama.cpp and write the queries and keys of every layer for `critbeta diagnose`
    ///
    /// The output holds NAME.q [heads, rows, head_dim], NAME.k [key heads, keys, head_dim] and NAME.positions
    /// [rows] of every layer, with its scale. Layers with a softcap, ALiBi, or a window that hides keys
    /// become scores, in a file of their own (OUT-0.safetensors, OUT-1.safetensors). Learned sinks, encoders,
    /// and attention that llama.cpp computes in an unknown way are refused.
    Record(RecordArgs),
}

#[derive(Args)]
struct RecordArgs {
    /// The model
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// A text in UTF-8; - is stdin
    #[arg(value_name = "TEXT")]
    text: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT.safetensors", value_parser = safetensors)]
    out: PathBuf,
    /// About how many query positions to record: three quarters evenly in log n from n = 8 on, and the last
    /// ones
    #[arg(long, value_name = "N", default_value_t = 700, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Read at most this many tokens [default: what the model was trained with]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..))]
    context: Option<u32>,
    /// Evaluate this many tokens at once [default: 512, or fewer where their scores take more than 512 MB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Option<u32>,
    /// Compute with this many threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Record only these layers, as in 0,4-7
    #[arg(long, value_name = "LIST")]
    layers: Option<String>,
    /// Call layers so, with {} for the number. `model.layers.{}.self_attn` is what Transformers calls most of
    /// them
    #[arg(long, value_name = "NAME", default_value = "blk.{}", value_parser = layer_name)]
    name: String,
    /// Read special tokens that the text spells out (<|im_start|>) as tokens, not as text
    #[arg(long)]
    special: bool,
    /// Give up where queries, keys and scores take more bytes of memory than this
    #[arg(long, value_name = "N", default_value_t = 4 << 30)]
    max_bytes: u64,
    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
}

fn safetensors(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().is_some_and(|extension| extension == "safetensors") {
        true => Ok(path),
        false => Err("expected a name that ends in .safetensors".into()),
    }
}

fn layer_name(text: &str) -> Result<String, String> {
    match text.matches("{}").count() {
        1 => Ok(text.to_owned()),
        count => Err(format!("expected {{}} once, for the number of the layer, found it {count} times")),
    }
}

fn main() -> ExitCode {
    let Command::Record(args) = Cli::parse().command;
    match record(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", said(&error));
            ExitCode::from(1)
        }
    }
}

/// An error with its causes. Errors of the library say their own cause.
fn said(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match cause.to_string() {
        cause if said.is_empty() => cause,
        cause if said.ends_with(&cause) => said,
        cause => format!("{said}: {cause}"),
    })
}

fn record(args: &RecordArgs) -> Result<()> {
    critbeta_diagnose::signals::end_cleanly()?;
    let threads =
        args.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, Into::into), usize::from);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    distinct(&[&args.model, &args.text, &args.out])?;
    let text = text::read(&args.text)?;
    // What cannot be written is an error now, not after the model has run.
    drop(Output::create(&args.out)?);
    text::check_magic(&args.model)?;
    let of_model = || args.model.display().to_string();
    let model = Model::load(&args.model).with_context(of_model)?;
    let architecture = model.entry("general.architecture").unwrap_or_default();
    ensure!(!model.has_encoder(), "{}: {architecture} has an encoder, expected a decoder alone", of_model());
    let [layer_count, heads, trained] = model.sizes();
    let layers = match &args.layers {
        Some(list) => text::layers(list, layer_count)?,
        None => (0..layer_count).collect(),
    };
    let of_text = || args.text.display().to_string();
    let mut tokens = model.tokens(&text, args.special).with_context(of_text)?;
    let (found, most) = (tokens.len(), args.context.map_or(trained.max(rows::SHORTEST), |n| n as usize));
    ensure!(
        found >= rows::SHORTEST,
        "{}: is {found} tokens long, expected at least {}: shorter rows say nothing about a length law",
        of_text(),
        rows::SHORTEST
    );
    tokens.truncate(most);
    let note = |text: String| {
        if !args.quiet {
            eprintln!("note: {text}")
        }
    };
    if found > most {
        note(format!("{}: {most} of its {found} tokens are read: see --context", of_text()));
    } else if tokens.len() > trained && trained > 0 {
        note(format!("{} tokens are more than the {trained} that the model was trained with", tokens.len()));
    }
    let batch = args.batch.map_or_else(|| batch(tokens.len(), heads), |n| n as usize);
    let positions = rows::spread(tokens.len(), args.rows as usize);
    let row_count = positions.len();
    let mut recorder = Recorder::new(positions, layers.clone(), &args.name, args.max_bytes)?;
    let bar = progress(args.quiet, tokens.len());
    let observer: &mut dyn Observer = &mut recorder;
    let run = Run { batch: batch.min(tokens.len()), threads };
    model.run(&tokens, run, Some(observer), |done| bar.set_position(done as u64)).with_context(of_model)?;
    bar.finish_and_clear();
    let silent: Vec<String> = layers.difference(&recorder.seen).map(|&layer| recorder.name(layer)).collect();
    ensure!(
        !recorder.seen.is_empty(),
        "{}: {architecture} ran, and none of {} layers has attention that llama.cpp computes step by step",
        of_model(),
        layers.len()
    );
    if !silent.is_empty() {
        note(format!("without attention, so not recorded: {}", silent.join(", ")));
    }
    let name = args.model.file_name().unwrap_or_default().to_string_lossy();
    let files = save::save(&recorder.recording, &args.out, &name)?;
    if !args.quiet {
        report(&recorder, &architecture, [row_count, tokens.len()], &files)?;
    }
    Ok(())
}

/// How many tokens to evaluate at once: so many that their scores in one layer take at most 512 MB.
fn batch(tokens: usize, heads: usize) -> usize {
    let row = tokens.next_multiple_of(256) * heads.max(1) * size_of::<f32>();
    ((512 << 20) / row).clamp(32, 512)
}

fn progress(quiet: bool, tokens: usize) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tokens, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(tokens as u64), target).with_style(style)
}

fn report(
    recorder: &Recorder,
    architecture: &str,
    [rows, tokens]: [usize; 2],
    files: &[PathBuf],
) -> Result<()> {
    let (seen, scores) = (recorder.seen.len(), recorder.as_scores.len());
    let kinds = match scores {
        0 => "queries and keys".to_owned(),
        _ if scores == seen => "scores".to_owned(),
        _ => format!("queries and keys, {scores} of them scores"),
    };
    let shown = files.iter().map(|file| Path::display(file).to_string()).collect::<Vec<_>>().join(" ");
    let mut out = std::io::stdout().lock();
    writeln!(out, "{architecture}: {rows} rows of {tokens} tokens, {seen} layers ({kinds})")?;
    writeln!(out, "probabilities are within {:.1e} of those of llama.cpp", recorder.worst)?;
    writeln!(out, "critbeta diagnose {shown}")?;
    Ok(())
}
