//! What a user should know about heads before trusting their numbers.

use super::summary::HeadSummary;
use crate::remarks::{LayerRows, Remarks, named, notes};
use std::collections::HashMap;

/// The heads of one layer together.
struct Layer<'a> {
    rows: LayerRows<'a>,
    /// The number of visible keys of each head where it is the same in all of its rows.
    lengths: Vec<Option<u64>>,
}

/// The notes on these heads; there are none where nothing is odd.
pub(super) fn notes_of(heads: &[HeadSummary]) -> Vec<String> {
    let layers = layers(heads);
    let turned: Vec<&str> =
        layers.iter().filter(|layer| layer.has_rows_for_heads()).map(|layer| layer.rows.name).collect();
    let rows: Vec<LayerRows> = layers.into_iter().map(|layer| layer.rows).collect();
    let mut notes = notes(&rows);
    notes.extend((!turned.is_empty()).then(|| {
        let found = "the visible keys grow from head to head and never within one, so heads come last";
        format!("{}: {found}: expected [..., heads, rows, n]", named(&turned))
    }));
    notes
}

/// The layers in order of first appearance.
fn layers(heads: &[HeadSummary]) -> Vec<Layer<'_>> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut places = HashMap::new();
    for head in heads {
        let at = *places.entry(&*head.layer).or_insert_with(|| {
            let rows = LayerRows { name: &head.layer, measured: 0, remarks: Remarks::default() };
            layers.push(Layer { rows, lengths: Vec::new() });
            layers.len() - 1
        });
        let Layer { rows, lengths } = &mut layers[at];
        rows.measured += head.measured;
        rows.remarks = rows.remarks.and(head.remarks);
        if let Some([low, high]) = head.n {
            lengths.push((low == high && head.measured > 1).then_some(low));
        }
    }
    layers
}

impl Layer<'_> {
    /// Whether the visible keys grow from head to head and never within one, as the rows of a causal mask do.
    fn has_rows_for_heads(&self) -> bool {
        let Some(lengths) = self.lengths.iter().copied().collect::<Option<Vec<u64>>>() else { return false };
        let grow = lengths.windows(2).all(|two| two[1] == two[0] || two[1] == two[0] + 1);
        // A window keeps them from growing further.
        grow && lengths.first().zip(lengths.last()).is_some_and(|(first, last)| *last >= first + 2)
    }
}
