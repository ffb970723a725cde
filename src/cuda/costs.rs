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
    /// For each row: collectives of a warp, barriers of a CTA, of a cluster, and of a group of the grid.
    pub waits: [f64; 4],
}

/// A path, a scope, the slots of f32, f16 and bf16 scores, and the waits of a row.
pub(super) type Row = (&'static str, Scope, [f64; 3], [f64; 4]);

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
        let family = if path.starts_with("statistics") { "gap_profile" } else { "critical_softmax" };
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
        let of_family = move |path: &str| path.starts_with("statistics") == statistics;
        self.0.iter().filter(|row| row.1 == Scope::Warp).map(|row| row.0).filter(move |path| of_family(path))
    }

    pub(super) fn of(&self, path: &str, scope: Scope, dtype: DType) -> Option<Cost> {
        let at = DTYPES.iter().position(|&of| of == dtype)?;
        let &(.., slots, waits) = self.0.iter().find(|row| (row.0, row.1) == (path, scope))?;
        Some(Cost { slots: slots[at], waits })
    }
}

/// The slots in a line of the record, if it is of one of these kernels and of this path.
fn slots_of(line: &str, kernels: &str, path: &str) -> Option<f64> {
    let rest = line.strip_prefix(kernels)?.split_once(' ')?.1.trim_start();
    let rest = rest.strip_prefix(path)?.strip_prefix("  ")?;
    rest.split_whitespace().next()?.trim_end_matches('*').parse().ok()
}

const COSTS: [Row; 24] = [
    ("plain", Scope::Warp, [26.2, 38.5, 39.9], [3.0, 0.0, 0.0, 0.0]),
    ("plain", Scope::Block, [25.8, 38.1, 39.1], [4.0, 3.0, 0.0, 0.0]),
    ("plain", Scope::Cluster, [26.2, 38.5, 40.0], [6.0, 3.0, 3.0, 0.0]),
    ("plain", Scope::Split, [26.2, 39.6, 40.4], [9.0, 8.0, 0.0, 3.0]),
    ("near the top", Scope::Warp, [62.5, 77.7, 82.1], [23.0, 0.0, 0.0, 0.0]),
    ("near the top", Scope::Block, [52.8, 68.0, 70.5], [23.0, 22.0, 0.0, 0.0]),
    ("near the top", Scope::Cluster, [58.0, 73.8, 77.0], [27.0, 22.0, 8.0, 0.0]),
    ("near the top", Scope::Split, [56.2, 72.0, 75.9], [24.5, 25.0, 0.0, 5.5]),
    ("sink", Scope::Warp, [84.3, 101.8, 107.3], [30.0, 0.0, 0.0, 0.0]),
    ("sink", Scope::Block, [77.3, 96.2, 99.9], [30.0, 29.0, 0.0, 0.0]),
    ("sink", Scope::Cluster, [113.1, 134.7, 139.5], [44.5, 39.5, 10.5, 0.0]),
    ("sink", Scope::Split, [108.6, 127.7, 133.9], [60.5, 58.0, 0.0, 11.5]),
    ("student t", Scope::Warp, [86.9, 100.0, 105.3], [30.0, 0.0, 0.0, 0.0]),
    ("student t", Scope::Block, [76.3, 92.8, 96.4], [30.0, 29.0, 0.0, 0.0]),
    ("student t", Scope::Cluster, [86.2, 100.9, 104.6], [37.5, 32.5, 9.5, 0.0]),
    ("student t", Scope::Split, [82.7, 96.4, 101.1], [39.5, 41.5, 0.0, 7.5]),
    ("statistics", Scope::Warp, [83.5, 81.0, 86.2], [24.0, 0.0, 0.0, 0.0]),
    ("statistics", Scope::Block, [55.2, 54.9, 57.4], [25.0, 23.0, 0.0, 0.0]),
    ("statistics", Scope::Cluster, [58.0, 58.9, 62.0], [30.0, 23.0, 9.0, 0.0]),
    ("statistics", Scope::Split, [60.5, 60.2, 63.2], [27.5, 27.0, 0.0, 6.5]),
    ("statistics of a sink", Scope::Warp, [105.3, 105.5, 111.5], [31.0, 0.0, 0.0, 0.0]),
    ("statistics of a sink", Scope::Block, [81.7, 85.2, 88.4], [32.0, 30.0, 0.0, 0.0]),
    ("statistics of a sink", Scope::Cluster, [112.6, 116.8, 123.0], [47.5, 40.5, 11.5, 0.0]),
    ("statistics of a sink", Scope::Split, [113.4, 115.8, 119.9], [63.5, 60.0, 0.0, 12.5]),
];
