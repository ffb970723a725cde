//! Device time of one call, for benchmarks.

use super::attention::{DecodeCall, MeasureCall};
use super::call::{Call, Workspace};
use super::engine::{DeviceMemory, Engine, Machine, Memory, check_range, foreign};
use crate::Result;
use std::time::Instant;

impl Engine {
    /// Device seconds of one [`Engine::launch_within`], between two events of its stream. On the simulator
    /// they are host seconds.
    ///
    /// `flush` is overwritten just before, outside of the measured time. If it is larger than the L2 cache,
    /// nothing of the operands stays there. It also keeps the GPU busy while the launch is prepared. Errors:
    /// those of [`Engine::launch_within`].
    #[doc(hidden)]
    pub fn time_within(
        &self,
        call: &Call,
        workspace: Option<Workspace>,
        memory: &mut [&mut DeviceMemory],
        flush: &mut DeviceMemory,
    ) -> Result<f64> {
        self.timed(flush, || self.begin_within(call, workspace, memory))
    }

    /// Device seconds of one [`Engine::decode_within`], all launches of it, as [`Engine::time_within`].
    ///
    /// Errors: those of [`Engine::decode_within`].
    #[doc(hidden)]
    pub fn time_decode(
        &self,
        call: &DecodeCall,
        workspace: Workspace,
        memory: &mut [&mut DeviceMemory],
        flush: &mut DeviceMemory,
    ) -> Result<f64> {
        let launches = call.check(self.arch(), workspace)?;
        self.timed(flush, || self.begin_all_in(&launches, memory))
    }

    /// Device seconds of one [`Engine::measure_within`], as [`Engine::time_decode`].
    ///
    /// Errors: those of [`Engine::measure_within`].
    #[doc(hidden)]
    pub fn time_measure(
        &self,
        call: &MeasureCall,
        workspace: Workspace,
        memory: &mut [&mut DeviceMemory],
        flush: &mut DeviceMemory,
    ) -> Result<f64> {
        let launches = call.check(self.arch(), workspace)?;
        self.timed(flush, || self.begin_all_in(&launches, memory))
    }

    /// Device seconds of a copy of all of `from` to the begin of `to`, measured as in
    /// [`Engine::time_within`].
    ///
    /// Errors: [`Error::Settings`](crate::Error::Settings) where `to` is smaller, and for memory of another
    /// engine; [`Error::Cuda`](crate::Error::Cuda).
    #[doc(hidden)]
    pub fn time_copy(
        &self,
        from: &DeviceMemory,
        to: &mut DeviceMemory,
        flush: &mut DeviceMemory,
    ) -> Result<f64> {
        check_range(to, 0, from.bytes())?;
        self.timed(flush, || match (&*self.machine, &from.0, &mut to.0) {
            (Machine::Driver(driver), Memory::Driver(from), Memory::Driver(to)) => driver.copy(from, to),
            (Machine::Simulator(_), Memory::Host(from), Memory::Host(to)) => {
                to.as_mut()[..from.bytes()].copy_from_slice(from.as_ref());
                Ok(())
            }
            _ => Err(foreign()),
        })
    }

    fn timed(&self, flush: &mut DeviceMemory, begin: impl FnOnce() -> Result<()>) -> Result<f64> {
        match (&*self.machine, &mut flush.0) {
            (Machine::Driver(driver), Memory::Driver(flush)) => driver.timed(flush, begin),
            (Machine::Simulator(_), Memory::Host(_)) => {
                let start = Instant::now();
                begin()?;
                Ok(start.elapsed().as_secs_f64())
            }
            _ => Err(foreign()),
        }
    }
}
