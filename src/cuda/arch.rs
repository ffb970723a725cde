//! The limits of a GPU that decide which kernel runs.

use crate::{Error, Result};

/// The limits of a GPU that a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arch {
    /// `sm_90`, or the name of the device.
    pub name: String,
    /// Compute capability: 90 for 9.0.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Bytes of shared memory, dynamic and static, that one CTA may have when it opts in.
    pub shared_per_block_bytes: u32,
    /// Bytes of shared memory of one SM.
    pub shared_per_sm_bytes: u32,
    /// Threads that one SM holds.
    pub threads_per_sm: u32,
    /// Whether CTAs can form clusters (sm_90 and later).
    pub clusters: bool,
    /// CTAs of the largest cluster. 8 is portable; 16 needs the non-portable size.
    pub max_cluster: u32,
}

/// Each row holds: name, SMs, KiB of shared memory per CTA and per SM, threads per SM, largest cluster (1 is
/// none). The limits are published ones. The number of SMs is that of the part in the comment.
const PRESETS: [(&str, u32, u32, u32, u32, u32); 7] = [
    ("sm_80", 108, 163, 164, 2048, 1),   // A100
    ("sm_86", 84, 99, 100, 1536, 1),     // A40, RTX 3090
    ("sm_89", 142, 99, 100, 1536, 1),    // L40S
    ("sm_90", 132, 227, 228, 2048, 16),  // H100, H200
    ("sm_100", 148, 227, 228, 2048, 16), // B200
    ("sm_103", 148, 227, 228, 2048, 16), // B300
    ("sm_120", 170, 99, 100, 1536, 8),   // RTX 5090
];

impl Arch {
    /// The smallest compute capability that kernels are compiled for. Asynchronous copies and bf16 begin with
    /// it.
    pub const MIN_SM: u32 = 80;

    /// Names of the [presets](Arch::named).
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.0)
    }

    /// A preset: `sm_80` (A100), `sm_86`, `sm_89`, `sm_90` (H100, H200), `sm_100` (B200), `sm_103`, `sm_120`.
    ///
    /// Errors: [`Error::Settings`] for another name.
    pub fn named(name: &str) -> Result<Arch> {
        let Some(&(name, sm_count, per_block, per_sm, threads_per_sm, max_cluster)) =
            PRESETS.iter().find(|preset| preset.0 == name)
        else {
            let names = Arch::names().collect::<Vec<_>>().join(", ");
            return Err(Error::Settings { detail: format!("unknown arch {name:?}: expected {names}") });
        };
        Ok(Arch {
            name: name.to_owned(),
            sm: name[3..].parse().unwrap_or(0),
            sm_count,
            shared_per_block_bytes: per_block << 10,
            shared_per_sm_bytes: per_sm << 10,
            threads_per_sm,
            clusters: max_cluster > 1,
            max_cluster,
        })
    }
}
