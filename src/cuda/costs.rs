//! What a score and a row cost, by path and scope: the numbers that the [model](super::model) starts from.
//!
//! `tests/costs.rs` compares [`COSTS`] with the newest record of `benches/record/sass` and with the
//! simulator, and writes it if CRITBETA_COSTS=write is set.

use super::variants::{Family, Scope};
use crate::{DType, Error, Result};

/// What rows of one path cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Issue slots of a lane for each score on sm_90.
    pub slots: f64,
    /// For each row: collectives of a warp, by shuffles and of one step; barriers of a CTA, of a cluster, and
    /// of a group of the grid.
    pub waits: [f64; 5],
}

/// A path, a scope, the slots of f32, f16 and bf16 scores, and the waits of a row.
pub(super) type Row = (&'static str, Scope, [f64; 3], [f64; 5]);

/// The costs of every path. The record has the slots, and the simulator counts the waits.
pub struct Costs(Vec<Row>);

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

impl Costs {
    /// Those of the committed table.
    pub fn committed() -> Costs {
        Costs(COSTS.to_vec())
    }

    /// The committed waits with the slots of `record`, the text that `scripts/cuda-compile.sh --record`
    /// wrote.
    ///
    /// Errors: those of [`Costs::slots_in`].
    pub fn with_slots_of(record: &str) -> Result<Costs> {
        let mut rows = COSTS.to_vec();
        for (path, scope, slots, _) in &mut rows {
            *slots = Costs::slots_in(record, path, *scope)?;
        }
        Ok(Costs(rows))
    }

    /// Slots of f32, f16 and bf16 scores in `record`. Of the kernels of one scope the dearest counts.
    ///
    /// Errors: [`Error::Settings`] if the record has none.
    pub fn slots_in(record: &str, path: &str, scope: Scope) -> Result<[f64; 3]> {
        let family = if is_of_statistics(path) { "gap_profile" } else { "critical_softmax" };
        let mut slots = [0.0; 3];
        for (slots, dtype) in slots.iter_mut().zip(DTYPES) {
            let kernels = format!("{family}_{}_{}", dtype.name(), format!("{scope:?}").to_lowercase());
            *slots = record.lines().filter_map(|line| slots_of(line, &kernels, path)).fold(0.0, f64::max);
            if *slots == 0.0 {
                let detail = format!("no slots of {kernels}, path {path:?}, in the record");
                return Err(Error::Settings { detail });
            }
        }
        Ok(slots)
    }

    /// The paths of a family, in the order of the table.
    pub(super) fn paths(&self, family: Family) -> impl Iterator<Item = &'static str> {
        let statistics = family == Family::GapProfile;
        let of_family = move |path: &str| is_of_statistics(path) == statistics;
        self.0.iter().filter(|row| row.1 == Scope::Warp).map(|row| row.0).filter(move |path| of_family(path))
    }

    pub(super) fn of(&self, path: &str, scope: Scope, dtype: DType) -> Option<Cost> {
        let at = DTYPES.iter().position(|&of| of == dtype)?;
        let &(.., slots, waits) = self.0.iter().find(|row| (row.0, row.1) == (path, scope))?;
        Some(Cost { slots: slots[at], waits })
    }
}

/// Whether nobody asks for the probabilities of a row on this path.
fn is_of_statistics(path: &str) -> bool {
    path.starts_with("statistics") || path.starts_with("critical beta")
}

/// The slots in a line of the record, if it is of one of these kernels and of this path.
fn slots_of(line: &str, kernels: &str, path: &str) -> Option<f64> {
    let rest = line.strip_prefix(kernels)?.split_once(' ')?.1.trim_start();
    let rest = rest.strip_prefix(path)?.strip_prefix("  ")?;
    let slots: f64 = rest.split_whitespace().next()?.trim_end_matches('*').parse().ok()?;
    (slots.is_finite() && slots > 0.0).then_some(slots)
}

const COSTS: [Row; 32] = [
    ("plain", Scope::Warp, [29.2, 16.5, 18.8], [1.0, 4.0, 0.0, 0.0, 0.0]),
    ("plain", Scope::Block, [22.8, 13.5, 15.4], [2.0, 4.0, 3.0, 0.0, 0.0]),
    ("plain", Scope::Cluster, [22.8, 13.5, 15.4], [3.0, 6.0, 3.5, 3.0, 0.0]),
    ("plain", Scope::Split, [23.2, 13.6, 15.2], [6.0, 6.0, 7.0, 0.0, 3.0]),
    ("near the top", Scope::Warp, [48.4, 29.4, 31.5], [3.5, 31.0, 0.0, 0.0, 0.0]),
    ("near the top", Scope::Block, [26.8, 15.3, 17.1], [4.0, 28.0, 20.0, 0.0, 0.0]),
    ("near the top", Scope::Cluster, [29.9, 23.2, 24.8], [6.5, 46.0, 29.0, 8.5, 0.0]),
    ("near the top", Scope::Split, [35.0, 21.8, 24.1], [6.5, 37.0, 30.0, 0.0, 6.5]),
    ("sink", Scope::Warp, [73.2, 62.0, 65.5], [6.0, 43.0, 0.0, 0.0, 0.0]),
    ("sink", Scope::Block, [48.8, 46.5, 50.4], [8.0, 48.0, 37.0, 0.0, 0.0]),
    ("sink", Scope::Cluster, [73.1, 67.2, 71.5], [9.5, 67.0, 44.0, 10.5, 0.0]),
    ("sink", Scope::Split, [125.5, 96.3, 106.5], [16.0, 95.0, 75.0, 0.0, 12.0]),
    ("student t", Scope::Warp, [74.0, 61.4, 65.0], [6.0, 43.0, 0.0, 0.0, 0.0]),
    ("student t", Scope::Block, [55.0, 43.3, 46.9], [8.0, 48.0, 37.0, 0.0, 0.0]),
    ("student t", Scope::Cluster, [52.9, 42.0, 44.9], [10.0, 68.0, 46.5, 10.0, 0.0]),
    ("student t", Scope::Split, [59.9, 60.1, 66.4], [10.0, 62.0, 50.5, 0.0, 8.5]),
    ("critical beta", Scope::Warp, [22.9, 15.0, 14.5], [2.5, 30.0, 0.0, 0.0, 0.0]),
    ("critical beta", Scope::Block, [6.8, 2.7, 2.7], [2.0, 28.0, 19.0, 0.0, 0.0]),
    ("critical beta", Scope::Cluster, [13.1, 10.6, 11.2], [4.0, 50.0, 31.0, 8.0, 0.0]),
    ("critical beta", Scope::Split, [14.6, 9.0, 9.5], [3.5, 37.0, 28.0, 0.0, 5.5]),
    ("critical beta of a sink", Scope::Warp, [48.7, 47.3, 48.3], [5.0, 42.0, 0.0, 0.0, 0.0]),
    ("critical beta of a sink", Scope::Block, [30.2, 33.7, 36.2], [6.0, 48.0, 36.0, 0.0, 0.0]),
    ("critical beta of a sink", Scope::Cluster, [54.6, 51.8, 55.7], [6.5, 70.0, 44.5, 10.0, 0.0]),
    ("critical beta of a sink", Scope::Split, [111.3, 82.3, 89.4], [13.0, 95.0, 73.0, 0.0, 11.0]),
    ("statistics", Scope::Warp, [35.4, 26.1, 26.7], [3.5, 30.0, 0.0, 0.0, 0.0]),
    ("statistics", Scope::Block, [17.0, 12.8, 13.6], [4.0, 28.0, 20.0, 0.0, 0.0]),
    ("statistics", Scope::Cluster, [23.3, 20.7, 22.1], [7.0, 50.0, 32.0, 9.0, 0.0]),
    ("statistics", Scope::Split, [24.8, 19.0, 20.3], [6.5, 37.0, 30.0, 0.0, 6.5]),
    ("statistics of a sink", Scope::Warp, [61.2, 58.4, 60.4], [6.0, 42.0, 0.0, 0.0, 0.0]),
    ("statistics of a sink", Scope::Block, [40.3, 43.9, 47.1], [8.0, 48.0, 37.0, 0.0, 0.0]),
    ("statistics of a sink", Scope::Cluster, [64.8, 61.9, 66.7], [9.5, 70.0, 45.5, 11.0, 0.0]),
    ("statistics of a sink", Scope::Split, [121.6, 92.4, 100.3], [16.0, 95.0, 75.0, 0.0, 12.0]),
];
