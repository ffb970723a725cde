//! This file stands in for the driver in a build without the feature `cuda`. It never opens.

use super::arch::Arch;
use super::notice::Notice;
use super::variants::Variant;
use crate::{Error, Result};

pub(super) enum Driver {}
pub(super) enum DriverMemory {}

impl DriverMemory {
    pub fn address(&self) -> u64 {
        match *self {}
    }

    pub fn bytes(&self) -> usize {
        match *self {}
    }
}

impl Driver {
    pub fn open(_: usize, _: Notice) -> Result<Driver> {
        Err(Error::NotBuilt { what: "CUDA", remedy: "build with --features cuda" })
    }

    pub fn arch(&self) -> &Arch {
        match *self {}
    }

    pub fn description(&self) -> &str {
        match *self {}
    }

    pub fn load(&self, _: Variant) -> Result<()> {
        match *self {}
    }

    pub fn stream(&self) -> u64 {
        match *self {}
    }

    pub fn zeroed(&self, _: usize) -> Result<DriverMemory> {
        match *self {}
    }

    pub fn upload(&self, _: &mut DriverMemory, _: usize, _: &[u8]) -> Result<()> {
        match *self {}
    }

    pub fn download(&self, _: &DriverMemory, _: usize, _: &mut [u8]) -> Result<()> {
        match *self {}
    }

    pub fn synchronize(&self) -> Result<()> {
        match *self {}
    }

    pub fn copy(&self, _: &DriverMemory, _: &mut DriverMemory) -> Result<()> {
        match *self {}
    }

    pub fn timed(&self, _: &mut DriverMemory, _: impl FnOnce() -> Result<()>) -> Result<f64> {
        match *self {}
    }
}
