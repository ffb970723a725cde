//! Short names of layers: they show what tells the layers apart.

use super::number::short;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The most characters of a layer's name beside its heads, and in the map.
const BESIDE: usize = 24;
const IN_MAP: usize = 14;

/// The layers of a page, in order of first appearance.
pub(super) struct Layers {
    pub names: Vec<Arc<str>>,
    labels: HashMap<Arc<str>, String>,
    shared: [usize; 2],
}

impl Layers {
    pub(super) fn of(names: impl Iterator<Item = Arc<str>>) -> Layers {
        let mut seen = HashSet::new();
        let names: Vec<Arc<str>> = names.filter(|name| seen.insert(name.clone())).collect();
        let texts: Vec<&str> = names.iter().map(|name| &**name).collect();
        let shared = shared(&texts);
        let own = |name: &str| format!("…{}", short(&name[shared[0]..name.len() - shared[1]], BESIDE - 1));
        // The names as they are, without what they share, or with a number: the first in which all differ.
        let tries = [
            names.iter().map(|name| short(name, BESIDE)).collect::<Vec<_>>(),
            names.iter().map(|name| own(name)).collect(),
            names
                .iter()
                .enumerate()
                .map(|(i, name)| format!("{} {}", i + 1, short(name, BESIDE - 5)))
                .collect(),
        ];
        let differ = |labels: &Vec<String>| labels.iter().collect::<HashSet<_>>().len() == labels.len();
        let labels = tries.into_iter().find(differ).unwrap_or_default();
        Layers { labels: names.iter().cloned().zip(labels).collect(), names, shared }
    }

    /// The name beside the number of a head.
    pub(super) fn label(&self, layer: &str) -> &str {
        self.labels.get(layer).map_or("", |label| label)
    }

    /// The name in the map, whose rows say only what differs.
    pub(super) fn in_map(&self, layer: &str) -> String {
        let [start, end] = self.shared;
        short(layer.get(start..layer.len() - end).unwrap_or(layer), IN_MAP)
    }
}

/// How many bytes all names share at their beginning and at their end. No number is cut.
fn shared(names: &[&str]) -> [usize; 2] {
    let (Some((first, rest)), false) = (names.split_first(), names.len() < 2) else { return [0, 0] };
    let common = |same: &dyn Fn(usize) -> bool| (0..first.len()).take_while(|&i| same(i)).count();
    let bytes = first.as_bytes();
    let mut start = common(&|i| rest.iter().all(|name| name.as_bytes().get(i) == Some(&bytes[i])));
    // The shortest name keeps a part of its own, and no character is cut.
    let least = names.iter().map(|name| name.len()).min().unwrap_or(0);
    start = start.min(least.saturating_sub(1));
    let at_end =
        |name: &str, i: usize| name.len().checked_sub(i + 1).and_then(|at| name.as_bytes().get(at)).copied();
    let mut end = common(&|i| rest.iter().all(|name| at_end(name, i) == at_end(first, i)))
        .min(least - start - least.min(1));
    let cut =
        |at: usize| first.as_bytes().get(at).is_some_and(u8::is_ascii_digit) || !first.is_char_boundary(at);
    while start > 0 && cut(start - 1) {
        start -= 1;
    }
    while start > 0 && !names.iter().all(|name| name.is_char_boundary(start)) {
        start -= 1;
    }
    while end > 0
        && (at_end(first, end - 1).is_some_and(|b| b.is_ascii_digit())
            || !names.iter().all(|name| name.is_char_boundary(name.len() - end)))
    {
        end -= 1;
    }
    [start, end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_by_what_tells_them_apart() {
        let shown = |names: &[&str]| -> Vec<String> {
            let [start, end] = shared(names);
            names.iter().map(|name| name[start..name.len() - end].to_owned()).collect()
        };
        assert_eq!(
            shown(&["model.layers.00.attn", "model.layers.01.attn", "model.layers.10.attn"]),
            ["00", "01", "10"]
        );
        assert_eq!(shown(&["layer9", "layer10"]), ["9", "10"]);
        assert_eq!(shown(&["layer9"]), ["layer9"]);
        assert_eq!(shown(&["a", "ab", ""]), ["a", "ab", ""]);
        assert_eq!(shown(&["é1", "è1"]), ["é1", "è1"]);
        assert_eq!(shown(&["aXb", "aXXb"]), ["b", "Xb"]);
        assert_eq!(shown(&["same", "same"]).len(), 2);
    }

    #[test]
    fn no_two_layers_have_one_label() {
        let labels = |names: &[&str]| -> Vec<String> {
            let layers = Layers::of(names.iter().map(|&name| name.into()));
            names.iter().map(|name| layers.label(name).to_owned()).collect()
        };
        assert_eq!(labels(&["layer00", "layer10"]), ["layer00", "layer10"]);
        let long = |i: usize| format!("language_model.model.layers.{i}.self_attn");
        let (nine, ten) = (long(9), long(10));
        assert_eq!(labels(&[&nine, &ten]), ["…9", "…10"]);
        let deep = |c: char| format!("{}{c}{}", "a".repeat(40), "b".repeat(40));
        let odd = [deep('x'), deep('y'), "z".to_owned()];
        let labels = labels(&[&odd[0], &odd[1], &odd[2]]);
        assert_eq!(labels.iter().collect::<HashSet<_>>().len(), 3, "{labels:?}");
    }
}
