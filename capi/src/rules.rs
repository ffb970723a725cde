//! Rules: one for every head, or one for each head of a layer.

use crate::args::Kind;
use crate::status::{Result, invalid};
use crate::tensor::{DLTensor, Numbers, Tensors};
use critbeta::Rescaling;
use critbeta::calibration::{HeadRescalings, RescalingSpec};
use critbeta::rescaling::RowFacts;

/// A rule, or a list of them: one for each of several heads.
pub struct Rule([u8; 0]);

/// What is behind a [`Rule`].
#[derive(Debug)]
pub struct Rules(Vec<Rescaling>);

impl Kind for Rules {
    const NAME: &'static str = "rule";
    const MARK: u64 = u64::from_le_bytes(*b"critbe-R");
}

impl Rules {
    /// The rule beta = 1.
    pub const IDENTITY: &'static [Rescaling] = &[Rescaling::Identity];

    pub fn of_beta(beta: f64) -> Result<Rules> {
        match beta >= 0.0 {
            true => Ok(Rules(vec![Rescaling::Fixed(beta)])),
            false => invalid(format!("rule: beta {beta}, expected at least 0")),
        }
    }

    /// Reads a rule text. A text that names a calibration file gives the rules of `heads` heads of `layer`,
    /// from `first_head` on.
    pub fn parse(text: &str, layer: Option<&str>, first_head: u64, heads: u64) -> Result<Rules> {
        let spec: RescalingSpec = text.parse()?;
        if let RescalingSpec::Uniform(rule) = spec {
            return Ok(Rules(vec![rule]));
        }
        let Some(layer) = layer.filter(|_| heads > 0) else {
            return invalid(format!(
                "rule {text:?}: it names a file with a rule for each head, so give a layer and a number of \
                 heads"
            ));
        };
        let Some(end) = first_head.checked_add(heads) else {
            return invalid(format!("rule {text:?}: {heads} heads from {first_head} on"));
        };
        let file = HeadRescalings::load(spec)?;
        let rules = (first_head..end).map(|head| file.of(layer, head));
        Ok(Rules(rules.collect::<critbeta::Result<_>>()?))
    }

    pub fn list(&self) -> &[Rescaling] {
        &self.0
    }
}

/// The only rule of a handle, for a call on rows.
pub fn only(rules: Option<&Rules>) -> Result<&Rescaling> {
    match rules.map_or(Rules::IDENTITY, Rules::list) {
        [rule] => Ok(rule),
        rules => invalid(format!("rule: {} rules, one for each head; rows take one rule", rules.len())),
    }
}

/// Writes the beta of every query token and head, as factors of the query: `out[t, h]` at `positions[t]`.
pub fn betas(
    mut tensors: Tensors,
    rules: &Rules,
    positions: *const DLTensor,
    out: *const DLTensor,
) -> Result<()> {
    let positions = tensors.read("positions", positions)?;
    let out = tensors.written("out", out)?;
    let [tokens] = positions.sizes("[tokens]")?;
    let [_, heads] = out.sizes("[tokens, heads]")?;
    positions.expect(&[tokens], "[tokens]")?;
    out.expect(&[tokens, heads], "[tokens, heads]")?;
    let list = rules.list();
    if ![1, heads].contains(&list.len()) {
        return out.refused(format!("the rule has {} heads", list.len()));
    }
    if let Some(rule) = list.iter().find(|rule| rule.resolve().is_some() || rule.needs_entropy()) {
        return invalid(format!("rule {rule}: its beta depends on the scores of a row, which are not here"));
    }
    let positions: Vec<i64> = match positions.numbers {
        Numbers::I64 => positions.slice::<i64>()?.to_vec(),
        Numbers::I32 => positions.slice::<i32>()?.iter().map(|&position| position.into()).collect(),
        _ => return positions.refused("expected int32 or int64"),
    };
    if let Some(token) = positions.iter().position(|&position| position < 0) {
        return invalid(format!("positions: {} of token {token}, expected at least 0", positions[token]));
    }
    let out = out.into_slice_mut::<f32>()?;
    let rows = positions.iter().map(|&at| RowFacts::new((at as u64).saturating_add(1), at as u64));
    let found: Vec<f32> = rows
        .flat_map(|row| (0..heads).map(move |head| (row, head)))
        .map(|(row, head)| list[if list.len() == 1 { 0 } else { head }].beta(&row) as f32)
        .collect();
    if let Some(at) = found.iter().position(|beta| !beta.is_finite()) {
        let (token, head) = (at / heads, at % heads);
        return invalid(format!(
            "rule: beta = {} for head {head} at position {}: expected a factor that float32 holds",
            found[at], positions[token]
        ));
    }
    out.copy_from_slice(&found);
    Ok(())
}
