//! Selects the tensors to diagnose by their names.

use super::named::NamedTensors;
use super::safetensors::Tensor;
use super::source::{Input, SCALE_OF_SCORES, Selection, Source};
use super::tensors::{QkPair, ScoreTensor};
use critbeta::{Error, Result};
use std::borrow::Cow;
use std::collections::HashSet;

/// What a tensor's name says about it.
enum Role<'a> {
    /// `NAME.q`.
    Query(&'a str),
    /// `NAME.k`.
    Key(&'a str),
    /// `positions`, for every tensor.
    SharedPositions,
    /// `NAME.positions`.
    Positions(&'a str),
    Scores,
}

fn role(name: &str) -> Role<'_> {
    if let Some(stem) = name.strip_suffix(".q") {
        Role::Query(stem)
    } else if let Some(stem) = name.strip_suffix(".k") {
        Role::Key(stem)
    } else if let Some(stem) = name.strip_suffix(".positions") {
        Role::Positions(stem)
    } else if name == "positions" {
        Role::SharedPositions
    } else {
        Role::Scores
    }
}

/// As [`role`], among the tensors of `file`: `q` and `k` side by side are a pair without a NAME.
fn role_in<'a>(file: &NamedTensors, name: &'a str) -> Role<'a> {
    let bare = ["q", "k"].iter().all(|name| file.tensor(name).is_some());
    match name {
        "q" if bare => Role::Query(""),
        "k" if bare => Role::Key(""),
        _ => role(name),
    }
}

/// The tensor whose positions are in the tensor `name`. `Some(None)` stands for all tensors, `None` for none.
pub(crate) fn positions_of(name: &str) -> Option<Option<&str>> {
    match role(name) {
        Role::Positions(owner) => Some(Some(owner)),
        Role::SharedPositions => Some(None),
        Role::Query(_) | Role::Key(_) | Role::Scores => None,
    }
}

enum Pick<'a> {
    Scores(&'a Tensor),
    Pair { name: &'a str, q: &'a Tensor, k: &'a Tensor },
}

/// Picks from `file` the tensor or pair that `selection` names, else all pairs, else all score tensors.
///
/// Errors: [`Error::Tensor`] if a picked tensor does not fit; [`Error::File`] for a name that does not
/// exist, and if no row is left to diagnose.
pub(super) fn select(file: &NamedTensors, selection: &Selection) -> Result<Input> {
    let (picks, mut skipped) = match selection.tensor {
        Some(name) => (vec![named(file, name)?], Vec::new()),
        None => {
            let (picks, skipped) = all(file)?;
            (picks, skipped.into_iter().chain(file.others.iter().cloned()).collect())
        }
    };
    let nothing = picks.is_empty();
    let any_pair = picks.iter().any(|pick| matches!(pick, Pick::Pair { .. }));
    let scale = if any_pair { scale(file, selection)? } else { None };
    let mut sources = Vec::new();
    for pick in picks {
        match pick {
            Pick::Scores(tensor) if selection.scale.is_some() => {
                return Err(file.fail(tensor, SCALE_OF_SCORES));
            }
            Pick::Scores(tensor) => match ScoreTensor::of(file, tensor)? {
                empty if empty.is_empty() => skipped.push(tensor.name.to_string()),
                scores => sources.push(Source::Scores(scores)),
            },
            Pick::Pair { name, q, k } => match QkPair::of(file, &layer(file, name), q, k, scale)? {
                None => skipped.push(layer(file, name).into_owned()),
                Some(pair) => sources.push(Source::Pair(pair)),
            },
        }
    }
    if sources.is_empty() {
        let detail = match skipped.first().filter(|_| !nothing) {
            None => "holds no tensor of scores and no pair of queries and keys".to_owned(),
            Some(first) => format!("has nothing to diagnose: {first:?} has no rows, nor has any other"),
        };
        return Err(Error::file(file.path(), detail));
    }
    Ok(Input { path: file.path().to_owned(), sources, skipped })
}

/// Every pair in file order, and the names of the other tensors. Without pairs, every tensor that can be
/// scores, and the names of the others.
fn all(file: &NamedTensors) -> Result<(Vec<Pick<'_>>, Vec<String>)> {
    let (mut stems, mut seen, mut others) = (Vec::new(), HashSet::new(), Vec::new());
    for tensor in file.tensors() {
        match role_in(file, &tensor.name) {
            Role::Query(stem) | Role::Key(stem) => {
                if seen.insert(stem) {
                    stems.push(stem);
                }
            }
            Role::Positions(stem) => {
                let owners = [stem.to_owned(), format!("{stem}.q"), format!("{stem}.k")];
                if !owners.iter().any(|owner| file.tensor(owner).is_some()) {
                    return Err(file.fail(tensor, format!("are positions of {stem:?}, which is not there")));
                }
            }
            Role::SharedPositions => {}
            Role::Scores => others.push(tensor),
        }
    }
    if !stems.is_empty() {
        let pairs = stems.into_iter().map(|stem| pair(file, stem)).collect::<Result<_>>()?;
        return Ok((pairs, others.iter().map(|tensor| tensor.name.to_string()).collect()));
    }
    // Token ids and masks often lie beside scores.
    let is_score = |tensor: &&Tensor| tensor.float().is_some() && !tensor.shape.is_empty();
    let (scores, skipped): (Vec<_>, Vec<_>) = others.into_iter().partition(is_score);
    if let (true, Some(odd)) = (scores.is_empty(), skipped.first()) {
        let detail = "expected scores in F64, F32, F16 or BF16 of at least one dimension";
        return Err(file.fail(odd, detail));
    }
    let skipped = skipped.iter().map(|tensor| tensor.name.to_string()).collect();
    Ok((scores.into_iter().map(Pick::Scores).collect(), skipped))
}

/// The tensor called `name`, or the pair with that stem or member.
fn named<'a>(file: &'a NamedTensors, name: &'a str) -> Result<Pick<'a>> {
    if let Some(tensor) = file.tensor(name) {
        return match role_in(file, &tensor.name) {
            Role::Query(stem) | Role::Key(stem) => pair(file, stem),
            Role::Positions(_) | Role::SharedPositions => {
                Err(file.fail(tensor, "holds positions: expected the name of scores or of a pair"))
            }
            Role::Scores => Ok(Pick::Scores(tensor)),
        };
    }
    if file.tensor(&format!("{name}.q")).or_else(|| file.tensor(&format!("{name}.k"))).is_some() {
        return pair(file, name);
    }
    let mut there: Vec<&str> = Vec::new();
    for tensor in file.tensors() {
        match role_in(file, &tensor.name) {
            Role::Query(stem) => there.push(if stem.is_empty() { "q" } else { stem }),
            Role::Scores => there.push(&tensor.name),
            Role::Key(_) | Role::Positions(_) | Role::SharedPositions => {}
        }
    }
    let listed: Vec<String> = there.iter().take(8).map(|name| format!("{name:?}")).collect();
    let more = if there.len() > 8 { format!(" and {} more", there.len() - 8) } else { String::new() };
    let detail = match listed.is_empty() {
        true => format!("has no tensor {name:?}, nor any other to diagnose"),
        false => format!("has no tensor {name:?}, but {}{more}", listed.join(", ")),
    };
    Err(Error::file(file.path(), detail))
}

fn pair<'a>(file: &'a NamedTensors, name: &'a str) -> Result<Pick<'a>> {
    let (q_name, k_name) = match name {
        "" => ("q".to_owned(), "k".to_owned()),
        _ => (format!("{name}.q"), format!("{name}.k")),
    };
    match (file.tensor(&q_name), file.tensor(&k_name)) {
        (Some(q), Some(k)) => Ok(Pick::Pair { name, q, k }),
        (Some(q), None) => Err(file.fail(q, format!("has no {k_name:?} beside it"))),
        (None, Some(k)) => Err(file.fail(k, format!("has no {q_name:?} beside it"))),
        (None, None) => Err(Error::file(file.path(), format!("has no pair {name:?}"))),
    }
}

/// The name of a pair's layer; that of the file where the pair has none.
fn layer<'a>(file: &NamedTensors, name: &'a str) -> Cow<'a, str> {
    match name {
        "" => Cow::Owned(file.path().file_stem().unwrap_or_default().to_string_lossy().into_owned()),
        _ => Cow::Borrowed(name),
    }
}

/// The scale of `selection`, else the one in the file's metadata, else `None`.
fn scale(file: &NamedTensors, selection: &Selection) -> Result<Option<f64>> {
    let legal = |scale: f64| scale.is_finite() && scale > 0.0;
    let fail = |detail: String| Err(Error::file(file.path(), detail));
    if let Some(scale) = selection.scale {
        return match legal(scale) {
            true => Ok(Some(scale)),
            false => fail(format!("--scale {scale}: expected a finite number above 0")),
        };
    }
    if let Some(why) = &file.scales_differ {
        return fail(why.clone());
    }
    let Some(text) = file.metadata().get("scale") else { return Ok(None) };
    match text.trim().parse() {
        Ok(scale) if legal(scale) => Ok(Some(scale)),
        _ => fail(format!("scale {text:?} in the file's metadata: expected a finite number above 0")),
    }
}
