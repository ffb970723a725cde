//! The command as its users see it: what it prints, writes and refuses.

mod bench;
#[path = "../common/files.rs"]
mod build;
mod device;
mod diagnose;
mod notes;
mod page;
mod refusals;
mod report;
mod softmax;

use std::path::Path;
use std::process::{Command, Output};

const EXAMPLE: &str = "examples/data/smollm2_gpl3.safetensors";
/// The same file, for tests that read it themselves.
const EXAMPLE_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/smollm2_gpl3.safetensors");

/// The command in the root of the repository, where the README runs it.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_critbeta"));
    command.args(args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

fn critbeta(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Stdout of a run that must succeed and print nothing on stderr.
#[track_caller]
fn stdout(args: &[&str]) -> String {
    let output = critbeta(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.is_empty(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Stderr of a run that must fail with this code and print nothing.
#[track_caller]
fn stderr(code: i32, args: &[&str]) -> String {
    let output = critbeta(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty() && stderr.starts_with("error: "), "{args:?}: {stderr}");
    stderr
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_names_every_command() {
    insta::assert_snapshot!(stdout(&["--help"]));
}

#[test]
fn laws_prints_the_registry() {
    insta::assert_snapshot!(stdout(&["laws", "--n", "512,8192,1000000"]));
}

#[test]
fn families_measure_as_they_should_and_say_so_in_json() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("families.json");
    let table = stdout(&["families", "--seed", "11", "--json", text(&file)]);
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let families = json["families"].as_array().unwrap();
    for name in ["simplex", "gaussian", "exponential", "edge", "log-grid", "sphere", "pareto", "sink"] {
        assert!(families.iter().any(|family| family["name"].as_str().unwrap().contains(name)), "{name}");
        assert!(table.contains(name));
    }
    for family in families {
        let number = |key: &str| family[key].as_f64().unwrap();
        assert!((number("measured") - number("expected")).abs() <= number("tolerance"), "{family}");
        assert_eq!(family["pass"], true);
    }
    assert_eq!(stdout(&["families", "--seed", "11", "--threads", "1"]), table);
}

#[test]
fn doctor_checks_the_exact_path_here() {
    let text = stdout(&["doctor"]);
    assert!(text.contains("cores") && text.contains("equal (critical beta"), "{text}");
}

#[test]
fn a_reader_that_hangs_up_is_no_error() {
    use std::io::Read;
    let mut child = command(&["diagnose", EXAMPLE, "--json", "-"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success() && stderr.is_empty(), "{stderr}");
}
