//! `critbeta report`, and the command line that a page shows.

use crate::args::{Cli, Report};
use crate::{json_output, print};
use anyhow::Result;
use critbeta_diagnose::RecordSettings;
use critbeta_diagnose::output::{self, Output};
use critbeta_diagnose::page::write_of_records;
use std::ffi::OsStr;
use std::path::Path;

pub fn run(args: &Report, cli: &Cli) -> Result<()> {
    let paths: Vec<&Path> =
        [&args.rows, &args.html].into_iter().chain(&args.json).map(|p| p.as_path()).collect();
    output::distinct(&paths)?;
    let html = Output::create(&args.html)?;
    let json = args.json.as_deref().map(Output::create).transpose()?;
    let settings = RecordSettings {
        resolve: args.resolve,
        top_k: args.top_k.map(usize::from),
        exclude_sink: args.exclude_sink,
        train_length: args.train_length as f64,
    };
    let (page, summary) = write_of_records(html, &args.rows, &settings, cli.seed, command())?;
    let mut outputs = vec![page];
    if let Some(out) = json {
        outputs.push(json_output(out, &summary)?);
    }
    output::commit_all(outputs)?;
    print(|out| out.write_all(crate::report::summary(&summary).as_bytes()))?;
    Ok(())
}

/// The command line in a form that a shell accepts. It has the name of the command, without its path.
pub fn command() -> String {
    std::iter::once("critbeta".to_owned())
        .chain(std::env::args_os().skip(1).map(|argument| quoted(&argument)))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(argument: &OsStr) -> String {
    let plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c))
    };
    match argument.to_str() {
        Some(text) if plain(text) => text.to_owned(),
        Some(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        // Bash writes bytes that are not text like this.
        _ => {
            let byte = |&byte: &u8| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(byte)),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            };
            format!("$'{}'", argument.as_encoded_bytes().iter().map(byte).collect::<String>())
        }
    }
}
