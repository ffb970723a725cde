//! The `critbeta` command. It turns its arguments into calls of the library.

mod args;
mod bench;
mod bench_decode;
mod diagnose;
mod doctor;
mod families;
mod laws;
#[cfg(feature = "html")]
mod page;
mod plan;
mod report;
mod softmax;

use args::{Cli, Command};
use clap::Parser;
use critbeta_diagnose::output::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(passed) => ExitCode::from(u8::from(!passed)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

/// Returns whether all is well. `Ok(false)` is a check that failed and printed why.
fn run(cli: &Cli) -> anyhow::Result<bool> {
    critbeta_diagnose::signals::end_cleanly()?;
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    silence_caught_panics();
    // An instruction set that this machine lacks is an error of every command, not only of those that use it.
    critbeta::cpu::InstructionSet::chosen()?;
    match &cli.command {
        Command::Diagnose(args) => diagnose::run(args, cli).map(|()| true),
        #[cfg(feature = "html")]
        Command::Report(args) => page::run(args, cli).map(|()| true),
        Command::Softmax(args) => softmax::run(args, cli).map(|()| true),
        Command::Families(args) => families::run(args, cli),
        Command::Laws(args) => laws::run(args).map(|()| true),
        Command::Bench(args) => bench::run(args, cli),
        Command::Plan(args) => plan::run(args, cli).map(|()| true),
        Command::Doctor => doctor::run(cli).map(|()| true),
    }
}

/// The Parquet reader panics on damaged files. The library makes an error of it, so stderr hides the panic.
fn silence_caught_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let caught = |file: &str| file.contains("/parquet-") || file.contains("/bytes-");
        if !panic.location().is_some_and(|at| caught(at.file())) {
            report(panic);
        }
    }));
}

/// A progress bar on stderr. indicatif hides it if stderr is not a terminal.
fn progress(cli: &Cli, total: u64, unit: &'static str) -> ProgressBar {
    let target = if cli.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let template = format!("{{bar:40}} {{pos}}/{{len}} {unit}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

/// Writes to stdout. A reader that closes its end has what it wanted, so that is not an error.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), critbeta::Error> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(io_error("stdout".as_ref(), source)),
        _ => Ok(()),
    }
}

fn write_json(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")
}

/// Writes `value` to an output file, which the caller commits.
fn json_output(mut out: Output, value: &impl Serialize) -> Result<Output, critbeta::Error> {
    write_json(&mut out, value).map_err(|source| io_error(out.path(), source))?;
    Ok(out)
}

fn io_error(path: &Path, source: io::Error) -> critbeta::Error {
    critbeta::Error::Io { path: path.to_owned(), source }
}
