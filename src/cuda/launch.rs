//! The door to device memory: what a launch promises and asks for.
#![allow(unsafe_code)]

use super::call::{Call, Checked, Workspace};
use super::engine::{DeviceMemory, Engine, Machine};
use super::launch_simt;
use crate::{Error, Result};

impl Engine {
    /// Begins one launch on `stream` (a raw `CUstream`; 0 is the legacy default stream) and returns.
    ///
    /// Nothing is allocated on the device, nobody waits, and everything is enqueued on `stream`: a CUDA graph can
    /// capture it, from any stream but the legacy default one. `workspace` is at least [`Call::workspace_bytes`], and
    /// belongs to this launch until it has run: launches that may run at once need one each. The calling thread's
    /// current context is left as it was. The simulator runs the launch to its end.
    ///
    /// Errors, before anything is enqueued: [`Error::Launch`] for zero rows or columns, null, misaligned or overlapping
    /// buffers, a stride below the columns, a dtype that no kernel has, a workspace too small, a stream of another
    /// device or context, a measure that makes no sense; [`Error::Spec`] for a rule that the kernels cannot follow.
    /// Then [`Error::Cuda`] if the driver refuses, and [`Error::Simulated`] for a fault. After any of them the next call works.
    ///
    /// # Safety
    ///
    /// Every address in `call` and `workspace` must be device memory of this engine's GPU (of [`Engine::zeroed`] for
    /// the simulator), as large as rows, columns and strides say, and until the launch has run it must stay
    /// allocated, what is read must not be written, and what is written not be accessed by anybody else. `stream` must be a live stream.
    pub unsafe fn launch(&self, call: &Call, workspace: Option<Workspace>, stream: u64) -> Result<()> {
        let checked = call.check(call.problem().family, self.arch(), workspace)?;
        // SAFETY: the caller's promise.
        unsafe { self.begin(&checked, stream) }
    }

    /// One launch over memory of this engine, run to its end: safe, because every address is looked up in `memory`.
    ///
    /// Errors: those of [`Engine::launch`], and [`Error::Launch`] for an address outside of `memory`.
    pub fn launch_within(
        &self,
        call: &Call,
        workspace: Option<Workspace>,
        memory: &mut [&mut DeviceMemory],
    ) -> Result<()> {
        self.begin_within(call, workspace, memory)?;
        self.synchronize()
    }

    /// As [`Engine::launch_within`], but returns before it has run: wait before `memory` is touched or freed.
    pub(super) fn begin_within(
        &self,
        call: &Call,
        workspace: Option<Workspace>,
        memory: &mut [&mut DeviceMemory],
    ) -> Result<()> {
        for span in call.check(call.problem().family, self.arch(), workspace)?.spans {
            let holds = |memory: &&mut DeviceMemory| {
                let start = memory.address();
                start <= span.address && span.address + span.bytes <= start + memory.bytes() as u64
            };
            if !memory.iter().any(holds) {
                let detail = format!(
                    "{} at {:#x} + {} bytes lie outside of the memory given",
                    span.name, span.address, span.bytes
                );
                return Err(Error::Launch { rows: call.scores.rows, cols: call.scores.cols, detail });
            }
        }
        // SAFETY: all memory is this call's own until the launch has run, and none of it is freed before.
        unsafe { self.launch(call, workspace, self.own_stream()) }
    }

    /// One launch of memory that nobody else knows, run to its end.
    pub(super) fn begin_alone(&self, checked: &Checked) -> Result<()> {
        // SAFETY: the spans are the caller's own memory of this engine, alive until the work of its stream has ended.
        unsafe { self.begin(checked, self.own_stream())? };
        self.synchronize()
    }

    /// The stream that this engine's copies run on.
    fn own_stream(&self) -> u64 {
        match &*self.machine {
            Machine::Driver(driver) => driver.stream(),
            Machine::Simulator(_) => 0,
        }
    }

    /// # Safety
    ///
    /// As for [`Engine::launch`].
    unsafe fn begin(&self, checked: &Checked, stream: u64) -> Result<()> {
        match &*self.machine {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Machine::Driver(driver) => unsafe { super::launch_cuda::launch(driver, checked, stream) },
            #[cfg(not(feature = "cuda"))]
            Machine::Driver(driver) => match *driver {},
            Machine::Simulator(simulator) => {
                simulator.check_stream(checked, stream)?;
                // SAFETY: the caller's promise.
                simulator.account(|options| unsafe { launch_simt::launch(options, checked) })
            }
        }
    }
}
