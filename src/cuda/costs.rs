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
    rest.split_whitespace().next()?.trim_end_matches('*').parse().ok()
}

const COSTS: [Row; 32] = [
    ("plain", Scope::Warp, [25.5, 15.2, 17.0], [3.0, 0.0, 0.0, 0.0]),
    ("plain", Scope::Block, [25.8, 15.6, 16.9], [4.0, 3.0, 0.0, 0.0]),
    ("plain", Scope::Cluster, [26.2, 16.0, 17.2], [6.0, 3.0, 3.0, 0.0]),
    ("plain", Scope::Split, [26.2, 15.6, 17.2], [9.0, 8.0, 0.0, 3.0]),
    ("near the top", Scope::Warp, [45.1, 28.4, 30.0], [26.0, 0.0, 0.0, 0.0]),
    ("near the top", Scope::Block, [29.8, 18.1, 19.0], [18.0, 20.0, 0.0, 0.0]),
    ("near the top", Scope::Cluster, [38.0, 27.0, 28.6], [34.0, 32.0, 9.0, 0.0]),
    ("near the top", Scope::Split, [38.5, 27.1, 28.9], [25.5, 31.0, 0.0, 6.5]),
    ("sink", Scope::Warp, [71.3, 58.8, 64.0], [39.0, 0.0, 0.0, 0.0]),
    ("sink", Scope::Block, [56.0, 51.6, 54.1], [38.0, 37.0, 0.0, 0.0]),
    ("sink", Scope::Cluster, [75.3, 66.7, 71.4], [59.0, 53.5, 11.5, 0.0]),
    ("sink", Scope::Split, [75.4, 65.8, 71.9], [90.5, 95.5, 0.0, 12.5]),
    ("student t", Scope::Warp, [72.1, 58.2, 63.4], [39.0, 0.0, 0.0, 0.0]),
    ("student t", Scope::Block, [62.7, 48.0, 50.5], [38.0, 37.0, 0.0, 0.0]),
    ("student t", Scope::Cluster, [62.5, 47.3, 50.5], [51.0, 46.0, 10.0, 0.0]),
    ("student t", Scope::Split, [62.5, 46.7, 50.9], [54.0, 58.5, 0.0, 9.0]),
    ("critical beta", Scope::Warp, [22.8, 14.7, 14.9], [25.0, 0.0, 0.0, 0.0]),
    ("critical beta", Scope::Block, [8.1, 4.1, 4.0], [16.0, 19.0, 0.0, 0.0]),
    ("critical beta", Scope::Cluster, [15.4, 12.7, 13.1], [31.0, 31.0, 8.0, 0.0]),
    ("critical beta", Scope::Split, [15.5, 12.9, 13.8], [22.5, 29.0, 0.0, 5.5]),
    ("critical beta of a sink", Scope::Warp, [49.6, 46.0, 48.4], [38.0, 0.0, 0.0, 0.0]),
    ("critical beta of a sink", Scope::Block, [34.7, 37.3, 39.1], [36.0, 36.0, 0.0, 0.0]),
    ("critical beta of a sink", Scope::Cluster, [51.5, 52.8, 55.7], [56.0, 52.5, 10.5, 0.0]),
    ("critical beta of a sink", Scope::Split, [51.7, 51.2, 55.9], [87.5, 93.5, 0.0, 12.0]),
    ("statistics", Scope::Warp, [34.5, 25.7, 26.6], [26.0, 0.0, 0.0, 0.0]),
    ("statistics", Scope::Block, [20.1, 15.1, 15.8], [18.0, 20.0, 0.0, 0.0]),
    ("statistics", Scope::Cluster, [27.4, 23.6, 24.6], [34.0, 32.0, 9.0, 0.0]),
    ("statistics", Scope::Split, [27.5, 23.9, 25.2], [25.5, 31.0, 0.0, 6.5]),
    ("statistics of a sink", Scope::Warp, [61.3, 57.0, 60.2], [39.0, 0.0, 0.0, 0.0]),
    ("statistics of a sink", Scope::Block, [46.7, 48.3, 50.8], [38.0, 37.0, 0.0, 0.0]),
    ("statistics of a sink", Scope::Cluster, [63.5, 63.6, 67.2], [59.0, 53.5, 11.5, 0.0]),
    ("statistics of a sink", Scope::Split, [63.7, 62.2, 67.3], [90.5, 95.5, 0.0, 12.5]),
];
