//! A folder of shards or its index is one source, and every way in which they do not fit is named.

use crate::build::*;
use crate::opened::layers;
use critbeta_diagnose::input::{Input, Selection, Source, open};
use serde_json::json;
use std::fs;
use std::path::Path;

const NAMES: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX: &str = "model.safetensors.index.json";

fn part(at: usize) -> Vec<Named<'static>> {
    pair().into_iter().filter(|(name, ..)| name.ends_with(["q", "k"][at])).collect()
}

/// A pair whose queries and keys are in different shards.
fn folder(scales: [Option<&str>; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for at in 0..2 {
        write(folder.path(), NAMES[at], &safetensors(&part(at), scales[at]));
    }
    folder
}

fn index(folder: &Path, entries: &[(&str, &str)]) {
    let entries: Vec<String> =
        entries.iter().map(|(tensor, file)| format!("{}:{}", json!(tensor), json!(file))).collect();
    let text = format!("{{\"metadata\":{{\"total_size\":1}},\"weight_map\":{{{}}}}}", entries.join(","));
    fs::write(folder.join(INDEX), text).unwrap();
}

fn all(path: &Path) -> critbeta::Result<Input> {
    open(path, &Selection::default())
}

#[track_caller]
fn refused(path: &Path, says: &str) {
    let error = all(path).expect_err(says).to_string();
    assert!(error.contains(says) && error.starts_with(&*path.parent().unwrap().to_string_lossy()), "{error}");
}

#[test]
fn a_folder_and_its_index_are_one_source() {
    let folder = folder([Some("0.25"); 2]);
    let check = |path: &Path| {
        let input = all(path).unwrap();
        let [Source::Pair(pair)] = &input.sources[..] else { panic!("{:?}", input.sources) };
        assert_eq!((pair.heads(), pair.keys(), pair.scale()), (4, 5, 0.25));
        (input.files().unwrap().len(), input.skipped)
    };
    assert_eq!(check(folder.path()), (2, vec![]));
    index(folder.path(), &[("a.q", NAMES[0]), ("a.k", NAMES[1])]);
    assert_eq!(check(&folder.path().join(INDEX)), (3, vec![]));
    // What lies beside the shards is named, if it holds arrays.
    for name in ["config.json", "other.npy", "consolidated.safetensors", "._model.safetensors"] {
        fs::write(folder.path().join(name), "{}").unwrap();
    }
    let skipped = ["other.npy", "consolidated.safetensors"].map(str::to_owned).to_vec();
    assert_eq!(check(folder.path()), (3, skipped));
    let one = Selection { tensor: Some("a"), scale: Some(2.0) };
    assert_eq!(layers(&open(folder.path(), &one).unwrap()), ["a"]);
}

#[test]
#[cfg(unix)]
fn links_to_shards_elsewhere_are_shards_of_the_folder() {
    // This is how the cache of Hugging Face keeps them.
    let (blobs, snapshot) = (folder([None; 2]), tempfile::tempdir().unwrap());
    for name in NAMES {
        std::os::unix::fs::symlink(blobs.path().join(name), snapshot.path().join(name)).unwrap();
    }
    index(snapshot.path(), &[("a.q", NAMES[0]), ("a.k", NAMES[1])]);
    assert_eq!(layers(&all(snapshot.path()).unwrap()), ["a"]);
}

#[test]
fn shards_that_do_not_fit_are_named() {
    let of = |entries: &[(&str, &str)], says: &str| {
        let folder = folder([None; 2]);
        index(folder.path(), entries);
        for path in [folder.path().to_owned(), folder.path().join(INDEX)] {
            refused(&path, says);
        }
    };
    let good = [("a.q", NAMES[0]), ("a.k", NAMES[1])];
    of(
        &[good[0], ("a.k", "model-3.safetensors")],
        "shard \"model-3.safetensors\" of tensor \"a.k\" is missing",
    );
    of(&[good[0], ("a.k", "../x.safetensors")], "lies outside of the folder");
    of(&[good[0], ("a.k", "/etc/passwd")], "lies outside of the folder");
    of(&[good[0], ("a.k", "")], "lies outside of the folder");
    of(&[good[0], good[1], ("b", NAMES[1])], "tensor \"b\" is not in its shard");
    of(&[good[0], ("a.k", NAMES[0])], "tensor \"a.k\" is not in its shard");
    of(&[good[0], good[1], good[0]], "tensor \"a.q\" is there twice");
    of(&[], "names no tensor");
    let folder = folder([None; 2]);
    for (text, says) in [
        ("{}", "missing field `weight_map`"),
        ("[1", "expected the index of shards"),
        ("", "expected the index"),
    ] {
        fs::write(folder.path().join(INDEX), text).unwrap();
        refused(folder.path(), says);
    }
    let mut more = part(1);
    more.push(("extra", "F32", &[2, 3], f32s(6)));
    write(folder.path(), NAMES[1], &safetensors(&more, None));
    index(folder.path(), &good);
    refused(folder.path(), "tensor \"extra\" is not in the index");
    fs::write(folder.path().join("b.safetensors.index.json"), "{}").unwrap();
    refused(folder.path(), "has two indices");
}

#[test]
fn folders_without_an_index_are_checked_too() {
    let two = folder([None; 2]);
    fs::remove_file(two.path().join(NAMES[0])).unwrap();
    refused(two.path(), "shard 1 of the 2 of \"model\" is missing");
    let twice = folder([None; 2]);
    write(twice.path(), "more.safetensors", &safetensors(&part(0), None));
    refused(twice.path(), "tensor \"a.q\" is in");
    refused(folder([Some("0.5"), None]).path(), "differ in the scale of their metadata: give --scale");
    let scaled = Selection { tensor: None, scale: Some(0.5) };
    assert!(open(folder([Some("0.5"), None]).path(), &scaled).is_ok());
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), "is a directory without .safetensors files");
    let bad = folder([None; 2]);
    write(bad.path(), NAMES[1], b"nonsense");
    refused(bad.path(), NAMES[1]);
}
