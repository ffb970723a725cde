//! The command `critbeta-gguf`: its files, its messages, and what bad input gets.

use crate::tiny::{EMBEDDING, KV_HEADS, Tiny, Value, prose};
use critbeta_diagnose::input::{Selection, open};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_critbeta-gguf"));
    command.current_dir(folder).arg("record").args(args).output().unwrap()
}

/// A folder with a model of two layers, tiny.gguf, and a text of 200 tokens, text.txt.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::new("llama", 2).write(folder.path());
    fs::write(folder.path().join("text.txt"), prose(200)).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn it_writes_what_diagnose_reads() {
    let folder = folder();
    let args =
        ["tiny.gguf", "text.txt", "out.safetensors", "--rows", "40", "--name", "model.layers.{}.self_attn"];
    let done = run(folder.path(), &args);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.starts_with("llama: 40 rows of 200 tokens, 2 layers (queries and keys)\n"), "{said}");
    assert!(said.ends_with("critbeta diagnose out.safetensors\n"), "{said}");
    let input = open(&folder.path().join("out.safetensors"), &Selection::default()).unwrap();
    let layers: Vec<String> = input.sources.iter().map(|source| source.layer().to_string()).collect();
    assert_eq!(layers, ["model.layers.0.self_attn", "model.layers.1.self_attn"]);
    assert_eq!(names(folder.path()), ["out.safetensors", "text.txt", "tiny.gguf"]);
}

#[test]
fn layers_and_context_are_chosen_and_quiet_is_quiet() {
    let folder = folder();
    let args = ["tiny.gguf", "text.txt", "out.safetensors", "--layers", "1", "--context", "64", "-q"];
    let done = run(folder.path(), &args);
    assert!(done.status.success() && done.stdout.is_empty() && done.stderr.is_empty());
    let input = open(&folder.path().join("out.safetensors"), &Selection::default()).unwrap();
    assert_eq!(input.sources.len(), 1);
    assert_eq!((&**input.sources[0].layer(), input.sources[0].rows()), ("blk.1", 64));
    let done = run(folder.path(), &args[..7]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(said, "note: text.txt: 64 of its 200 tokens are read: see --context\n");
}

#[test]
fn bad_input_gets_one_line_and_leaves_no_file() {
    let folder = folder();
    let at = folder.path();
    fs::write(at.join("empty.txt"), " \n").unwrap();
    fs::write(at.join("short.txt"), "four").unwrap();
    fs::write(at.join("latin.txt"), b"caf\xe9 au lait").unwrap();
    fs::write(at.join("no.gguf"), "text").unwrap();
    fs::write(at.join("cut.gguf"), &fs::read(at.join("tiny.gguf")).unwrap()[..20000]).unwrap();
    fs::write(at.join("head.gguf"), b"GGUF").unwrap();
    // llama.cpp aborts where keys and values of a LLaMA have other sizes.
    let whole = fs::read(at.join("tiny.gguf")).unwrap();
    let odd = Tiny::new("llama", 1).with("llama.attention.value_length", Value::U32(8));
    odd.without("attn_v").tensor("blk.0.attn_v.weight", &[EMBEDDING, KV_HEADS * 8]).write(at);
    fs::rename(at.join("tiny.gguf"), at.join("odd.gguf")).unwrap();
    fs::write(at.join("tiny.gguf"), whole).unwrap();
    fs::write(at.join("out.safetensors"), "as it was").unwrap();
    let before = names(at);
    for (args, says) in [
        (["none.gguf", "text.txt", "out.safetensors"], "none.gguf: No such file"),
        (["tiny.gguf", "none.txt", "out.safetensors"], "none.txt: No such file"),
        (["tiny.gguf", "empty.txt", "out.safetensors"], "empty.txt: is empty, expected a text"),
        (["tiny.gguf", "out.safetensors", "out.safetensors"], "out.safetensors: is named twice"),
        (["tiny.gguf", "short.txt", "out.safetensors"], "short.txt: is 4 tokens long, expected at least 8"),
        (["tiny.gguf", "latin.txt", "out.safetensors"], "latin.txt: byte 3 is no UTF-8"),
        (["no.gguf", "text.txt", "out.safetensors"], "no.gguf: begins with \"text\", expected \"GGUF\""),
        (["cut.gguf", "text.txt", "out.safetensors"], "cut.gguf: llama.cpp cannot load it: "),
        (["head.gguf", "text.txt", "out.safetensors"], "head.gguf: llama.cpp cannot load it: "),
        (["odd.gguf", "text.txt", "out.safetensors"], "odd.gguf: llama.cpp gives up: "),
        (["tiny.gguf", "text.txt", "none/out.safetensors"], "none: No such file"),
    ] {
        let done = run(at, &args);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!((done.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.starts_with(&format!("error: {says}")), "{said}");
        assert_eq!(names(at), before);
    }
    let text = ["tiny.gguf", "text.txt", "out.safetensors"];
    for (more, says) in [
        (["--layers", "2"], "expected numbers of 0 to 1"),
        (
            ["--max-bytes", "1000"],
            "blk.0: does not fit: queries, keys and scores take more than --max-bytes 1000",
        ),
    ] {
        let done = run(at, &[&text[..], &more[..]].concat());
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(1) && said.contains(says), "{said}");
    }
    assert_eq!(fs::read(at.join("out.safetensors")).unwrap(), b"as it was");
    for usage in [["tiny.gguf", "text.txt", "out.npy"].as_slice(), &["tiny.gguf", "text.txt"]] {
        assert_eq!(run(at, usage).status.code(), Some(2));
    }
}
