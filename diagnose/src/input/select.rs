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
    /// One of the two tensors of a pair.
    Member(Pair<'a>),
    /// `positions`, for every tensor.
    SharedPositions,
    /// `NAME.positions`.
    Positions(&'a str),
    Scores,
}

/// The names of a pair's tensors.
struct Pair<'a> {
    /// NAME of `NAME.q` and `NAME.k`; empty without one.
    name: &'a str,
    q: String,
    k: String,
}

/// How people call queries and the keys that they attend to.
const MEMBERS: [[&str; 2]; 5] =
    [["q", "k"], ["query", "key"], ["queries", "keys"], ["query_states", "key_states"], ["q_proj", "k_proj"]];

impl<'a> Pair<'a> {
    /// The pair that the tensor `member` of `file` belongs to, if its name says so and its partner is there.
    /// `NAME.q` and `NAME.k` need no partner to say it.
    fn of(file: &NamedTensors, member: &'a str) -> Option<Self> {
        let spelled = MEMBERS.iter().flat_map(|&[q, k]| [(q, q, k), (k, q, k)]);
        spelled.into_iter().find_map(|(own, q, k)| {
            let stem = member.strip_suffix(own)?;
            let name = if stem.is_empty() { stem } else { stem.strip_suffix(['.', '_', '/', '-'])? };
            let pair = Pair { name, q: format!("{stem}{q}"), k: format!("{stem}{k}") };
            let both = [&pair.q, &pair.k].iter().all(|name| file.tensor(name).is_some());
            (both || own.len() == 1 && stem.ends_with('.')).then_some(pair)
        })
    }
}

fn role<'a>(file: &NamedTensors, name: &'a str) -> Role<'a> {
    match positions_of(name) {
        Some(Some(owner)) => Role::Positions(owner),
        Some(None) => Role::SharedPositions,
        None => Pair::of(file, name).map_or(Role::Scores, Role::Member),
    }
}

/// The tensor whose positions are in the tensor `name`. `Some(None)` stands for all tensors, `None` for none.
pub(crate) fn positions_of(name: &str) -> Option<Option<&str>> {
    if name == "positions" { Some(None) } else { name.strip_suffix(".positions").map(Some) }
}

/// Whether a tensor is called a mask or a bias, as `attention_mask` is, or a weight, as parameters of a model
/// are. Its numbers are no scores.
fn is_no_score(name: &str) -> bool {
    let last = name.rsplit(['.', '/']).next().unwrap_or(name).to_ascii_lowercase();
    last == "weight" || last.split(['_', '-']).any(|word| ["mask", "masks", "bias"].contains(&word))
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
    let (mut pairs, mut seen, mut others) = (Vec::new(), HashSet::new(), Vec::new());
    let (mut names, mut owners) = (HashSet::new(), Vec::new());
    for tensor in file.tensors() {
        match role(file, &tensor.name) {
            Role::Member(pair) => {
                names.insert(pair.name);
                if seen.insert(pair.q.clone()) {
                    pairs.push(pair);
                }
            }
            Role::Positions(owner) => owners.push((owner, tensor)),
            Role::SharedPositions => {}
            Role::Scores => others.push(tensor),
        }
    }
    let lost = |&&(owner, _): &&(&str, &Tensor)| !names.contains(owner) && file.tensor(owner).is_none();
    if let Some((owner, tensor)) = owners.iter().find(lost) {
        return Err(file.fail(tensor, format!("are positions of {owner:?}, which is not there")));
    }
    if !pairs.is_empty() {
        let pairs = pairs.into_iter().map(|pair| pick(file, pair)).collect::<Result<_>>()?;
        return Ok((pairs, others.iter().map(|tensor| tensor.name.to_string()).collect()));
    }
    // Token ids and masks often lie beside scores.
    let is_score =
        |tensor: &&Tensor| tensor.float().is_some() && !tensor.shape.is_empty() && !is_no_score(&tensor.name);
    let (scores, skipped): (Vec<_>, Vec<_>) = others.into_iter().partition(is_score);
    if let (true, Some(odd)) = (scores.is_empty(), skipped.first()) {
        let detail = match is_no_score(&odd.name) && odd.float().is_some() {
            true => "is no scores by its name (a mask, bias or weight): if it is, select it by name",
            false => "expected scores in F64, F32, F16 or BF16 of at least one dimension",
        };
        return Err(file.fail(odd, detail));
    }
    let skipped = skipped.iter().map(|tensor| tensor.name.to_string()).collect();
    Ok((scores.into_iter().map(Pick::Scores).collect(), skipped))
}

/// The tensor called `name`, or the pair with that stem or member.
fn named<'a>(file: &'a NamedTensors, name: &'a str) -> Result<Pick<'a>> {
    if let Some(tensor) = file.tensor(name) {
        return match role(file, &tensor.name) {
            Role::Member(pair) => pick(file, pair),
            Role::Positions(_) | Role::SharedPositions => {
                Err(file.fail(tensor, "holds positions: expected the name of scores or of a pair"))
            }
            Role::Scores => Ok(Pick::Scores(tensor)),
        };
    }
    let mut there: Vec<&str> = Vec::new();
    for tensor in file.tensors() {
        match role(file, &tensor.name) {
            Role::Member(pair) if pair.name == name => return pick(file, pair),
            // A pair is listed once, by the name that selects it.
            Role::Member(pair) if *pair.q == *tensor.name => {
                there.push(if pair.name.is_empty() { &tensor.name } else { pair.name });
            }
            Role::Scores => there.push(&tensor.name),
            Role::Member(_) | Role::Positions(_) | Role::SharedPositions => {}
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

fn pick<'a>(file: &'a NamedTensors, pair: Pair<'a>) -> Result<Pick<'a>> {
    let Pair { name, q: q_name, k: k_name } = pair;
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
