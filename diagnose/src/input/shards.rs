//! Shards: a folder of `.safetensors` files, or the `*.safetensors.index.json` that names them.

use super::named::NamedTensors;
use super::safetensors::SafetensorsFile;
use critbeta::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

const INDEX: &str = ".safetensors.index.json";

/// Whether `path` is a folder or an index.
pub(super) fn is_several(path: &Path) -> bool {
    path.is_dir() || file_name(path).ends_with(INDEX)
}

/// The files behind `path`: its shards, behind the index if there is one.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let Shards { index, shards, .. } = Shards::of(path)?;
    Ok(index.into_iter().map(|(index, _)| index).chain(shards).collect())
}

/// Opens all shards as one.
///
/// Errors: [`Error::File`] for a shard that is missing or lies outside of the folder, a tensor that is in two
/// shards, and one that the index and its shard do not both have; those of each shard.
pub(super) fn open(path: &Path) -> Result<NamedTensors> {
    let Shards { index, shards, others } = Shards::of(path)?;
    let (mut owners, mut metadata, mut tensors) = (HashMap::new(), BTreeMap::new(), Vec::new());
    let mut scale: Option<(&Path, Option<String>)> = None;
    let mut scales_differ = None;
    for shard in &shards {
        let file = SafetensorsFile::open(shard)?;
        for tensor in file.tensors() {
            if let Some(other) = owners.insert(tensor.name.to_string(), shard) {
                let remedy = "shards share no tensor; give files of several texts one by one";
                let detail = format!("tensor {:?} is in {} too: {remedy}", tensor.name, other.display());
                return Err(Error::file(shard, detail));
            }
        }
        let found = file.metadata().get("scale").cloned();
        match &scale {
            Some((first, one)) if *one != found => {
                let name = |path: &Path| file_name(path).to_owned();
                scales_differ = Some(format!(
                    "{} and {} differ in the scale of their metadata: give --scale",
                    name(first),
                    name(shard)
                ));
            }
            Some(_) => {}
            None => scale = Some((shard, found)),
        }
        tensors.extend(file.tensors().iter().cloned());
        metadata.extend(file.metadata().clone());
    }
    if let Some((index, entries)) = &index {
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut named = HashMap::with_capacity(entries.len());
        for (tensor, file) in entries {
            let shard = folder.join(file);
            if owners.get(tensor).is_none_or(|owner| **owner != shard) {
                return Err(Error::file(index, format!("tensor {tensor:?} is not in its shard {file:?}")));
            }
            if named.insert(tensor, file).is_some() {
                return Err(Error::file(index, format!("tensor {tensor:?} is there twice")));
            }
        }
        if let Some(tensor) = tensors.iter().find(|tensor| !named.contains_key(&tensor.name.to_string())) {
            let detail = format!("tensor {:?} is not in the index {}", tensor.name, index.display());
            return Err(Error::file(owners[&*tensor.name], detail));
        }
    }
    let mut named = NamedTensors::new(path, metadata, tensors)?;
    (named.others, named.scales_differ) = (others, scales_differ);
    Ok(named)
}

struct Shards {
    /// The index, and which shard it names for each tensor.
    index: Option<(PathBuf, Vec<(String, String)>)>,
    shards: Vec<PathBuf>,
    /// Names of files that hold arrays and are no shards.
    others: Vec<String>,
}

impl Shards {
    fn of(path: &Path) -> Result<Shards> {
        if !path.is_dir() {
            return Shards::indexed(path.to_owned(), Vec::new());
        }
        let fail = |e| Error::io(path, e);
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            // Such a name belongs to a system, not to a user.
            if !file_name(&file).starts_with('.') {
                files.push(file);
            }
        }
        files.sort();
        let ends =
            |end: &'static str| move |file: &&PathBuf| file_name(file).to_ascii_lowercase().ends_with(end);
        let names = |of: Vec<&PathBuf>| of.into_iter().map(|file| file_name(file).to_owned()).collect();
        let indices: Vec<&PathBuf> = files.iter().filter(ends(INDEX)).collect();
        let shards: Vec<&PathBuf> = files.iter().filter(ends(".safetensors")).collect();
        let mut others: Vec<String> = names(files.iter().filter(ends(".npy")).collect());
        others.extend::<Vec<String>>(names(files.iter().filter(ends(".npz")).collect()));
        match indices[..] {
            [] if shards.is_empty() => {
                let detail =
                    "is a directory without .safetensors files: expected a folder of shards, or a file";
                Err(Error::file(path, detail))
            }
            [] => {
                complete(path, &shards)?;
                Ok(Shards { index: None, shards: shards.into_iter().cloned().collect(), others })
            }
            [index] => {
                let found = Shards::indexed(index.clone(), others)?;
                let beside = shards.into_iter().filter(|file| !found.shards.contains(file)).collect();
                let others = found.others.into_iter().chain::<Vec<String>>(names(beside)).collect();
                Ok(Shards { others, ..found })
            }
            [first, second, ..] => {
                let detail = format!("has two indices, {:?} and {:?}", file_name(first), file_name(second));
                Err(Error::file(path, detail + ": give one of them"))
            }
        }
    }

    fn indexed(index: PathBuf, others: Vec<String>) -> Result<Shards> {
        let text = fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let expected = "expected the index of shards, {\"weight_map\": {tensor: file}}";
        let parsed: Index =
            serde_json::from_slice(&text).map_err(|e| Error::file(&index, format!("{e}: {expected}")))?;
        let entries = parsed.weight_map.0;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut shards = BTreeSet::new();
        for (tensor, file) in &entries {
            let within = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if !within || file.is_empty() {
                let detail = format!("shard {file:?} of tensor {tensor:?} lies outside of the folder");
                return Err(Error::file(&index, detail));
            }
            let shard = folder.join(file);
            if !shard.exists() {
                return Err(Error::file(&index, format!("shard {file:?} of tensor {tensor:?} is missing")));
            }
            shards.insert(shard);
        }
        if shards.is_empty() {
            return Err(Error::file(&index, format!("names no tensor: {expected}")));
        }
        Ok(Shards { index: Some((index, entries)), shards: shards.into_iter().collect(), others })
    }
}

/// Checks that no shard is missing where the names number them: `model-00002-of-00003.safetensors`.
fn complete(folder: &Path, shards: &[&PathBuf]) -> Result<()> {
    let mut numbers: BTreeMap<(String, u64), BTreeSet<u64>> = BTreeMap::new();
    for shard in shards {
        let stem = shard.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let parts = stem.rsplit_once("-of-").and_then(|(left, total)| {
            let (name, number) = left.rsplit_once('-')?;
            Some(((name.to_owned(), total.parse().ok()?), number.parse().ok()?))
        });
        if let Some((of, number)) = parts {
            numbers.entry(of).or_default().insert(number);
        }
    }
    for ((name, total), found) in numbers {
        if let Some(missing) = (1..=total).find(|number| !found.contains(number)) {
            let detail = format!("shard {missing} of the {total} of {name:?} is missing");
            return Err(Error::file(folder, detail));
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Entries,
}

/// The entries of a JSON object in order. A map would keep the last of two equal names.
struct Entries(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(map: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors and files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        map.deserialize_map(All)
    }
}
