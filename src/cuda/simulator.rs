//! Settings, memory and counters of the simulator. The simulator itself is in `kernels/simt/`.

use super::arch::Arch;
use super::call::Checked;
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::sync::{Mutex, PoisonError};

/// Whether the simulator was compiled in.
pub(super) const IS_BUILT: bool = cfg!(critbeta_simulator);

pub(super) fn not_built() -> Error {
    Error::NotBuilt {
        what: "the simulator of the CUDA kernels",
        remedy: "build with --features simt, where a C++17 compiler is (CXX, or c++ on PATH)",
    }
}

/// How the simulator runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimtOptions {
    /// Seed of the order in which threads take turns. Results do not depend on it.
    pub seed: u64,
    /// Checks every access of shared and global memory for races, bounds, and reads of memory that nobody
    /// wrote. A launch is then several times slower.
    pub shadow: bool,
    /// The GPU whose limits the plans use.
    pub arch: Arch,
}

impl SimtOptions {
    /// Options with seed 1, without the shadow, and with the limits of `arch`.
    pub fn of(arch: Arch) -> Self {
        SimtOptions { seed: 1, shadow: false, arch }
    }
}

/// What kernels did with global memory and scores. An atomic counts as a read and a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Traffic {
    /// Bytes read.
    pub load_bytes: u64,
    /// Bytes written.
    pub store_bytes: u64,
    /// 16-byte vectors of scores that warps looked at, in each pass of `enum Pass` (kernels/stats.cuh). A
    /// warp of 32 threads goes through a pass as long as one of them does.
    pub looks: [u64; PASSES],
    /// How often all threads came to a collective of a warp, one of shuffles and one of a single step, and to
    /// a barrier of a CTA, a cluster and a group of the split scope.
    pub waits: [u64; WAITS],
}

pub(super) const PASSES: usize = 10;
pub(super) const WAITS: usize = 5;

pub(super) struct Simulator {
    options: SimtOptions,
    traffic: Mutex<Traffic>,
}

impl Simulator {
    pub fn new(options: SimtOptions) -> Result<Self> {
        if !IS_BUILT {
            return Err(not_built());
        }
        Ok(Simulator { options, traffic: Mutex::default() })
    }

    pub fn arch(&self) -> &Arch {
        &self.options.arch
    }

    pub fn traffic(&self) -> Traffic {
        *self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a launch to its end and counts its traffic.
    pub fn account(&self, run: impl FnOnce(&SimtOptions) -> Result<Traffic>) -> Result<()> {
        let Traffic { load_bytes, store_bytes, looks, waits } = run(&self.options)?;
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.load_bytes += load_bytes;
        traffic.store_bytes += store_bytes;
        traffic.looks.iter_mut().zip(looks).for_each(|(all, of)| *all += of);
        traffic.waits.iter_mut().zip(waits).for_each(|(all, of)| *all += of);
        Ok(())
    }

    /// Errors: [`Error::Launch`] for any stream but the default one.
    pub fn check_stream(&self, checked: &Checked, stream: u64) -> Result<()> {
        if stream == 0 {
            return Ok(());
        }
        Err(checked.fail(format!("stream {stream:#x}: the simulator has only the default stream, 0")))
    }
}

/// 256 bytes with the alignment of device memory.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(256))]
struct Page([u8; 256]);

/// Host memory that stands in for device memory.
pub(super) struct HostMemory {
    pages: Vec<Page>,
    /// The address. It comes from a mutable pointer that was taken when the memory was made, because kernels
    /// write to it.
    address: u64,
    bytes: usize,
}

impl HostMemory {
    pub fn zeroed(bytes: usize) -> Self {
        let mut pages = vec![Page([0; 256]); bytes.div_ceil(256).max(1)];
        HostMemory { address: pages.as_mut_ptr() as u64, pages, bytes }
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.bytes]
    }

    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.bytes]
    }
}
