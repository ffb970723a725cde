//! The `critbeta` command: arguments as typed, then as meant, then the library.

mod args;
mod diagnose;
mod doctor;
mod families;
mod laws;
mod report;
mod softmax;

use args::{Cli, Command};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(passed) => ExitCode::from(u8::from(!passed)),
        // A reader that closed its end has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Whether all is well; `Ok(false)` is a check that failed and said so.
fn run(cli: &Cli) -> anyhow::Result<bool> {
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    match &cli.command {
        Command::Diagnose(args) => diagnose::run(args, cli).map(|()| true),
        Command::Softmax(args) => softmax::run(args, cli).map(|()| true),
        Command::Families(args) => families::run(args, cli),
        Command::Laws(args) => laws::run(args).map(|()| true),
        Command::Doctor => doctor::run().map(|()| true),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}

/// A bar on stderr, which indicatif hides where that is not a terminal.
fn progress(cli: &Cli, total: u64, unit: &'static str) -> ProgressBar {
    let target = if cli.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let template = format!("{{bar:40}} {{pos}}/{{len}} {unit}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

/// Writes to stdout, where errors are errors and not panics.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
