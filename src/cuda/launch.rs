//! Launches on device memory: what a launch promises, and what it requires.
#![allow(unsafe_code)]

use super::attention::{DecodeCall, MeasureCall};
use super::call::{Call, Checked, Workspace};
use super::engine::{DeviceMemory, Engine, Machine};
use super::launch_simt;
#[cfg(doc)]
use crate::Error;
use crate::Result;

impl Engine {
    /// Enqueues one launch on `stream` (a raw `CUstream`; 0 is the legacy default stream) and returns.
    ///
    /// It allocates nothing on the device, does not wait for the GPU, and enqueues everything on `stream`. So
    /// a CUDA graph can capture it, from any stream but the legacy default one. The first launch of each
    /// kernel loads it, and may compile it for seconds; [`Engine::load`] does so before.
    /// The current context of the calling thread stays as it was. The simulator runs the launch to its end.
    ///
    /// `workspace` has at least [`Call::workspace_bytes`], and was filled with zeros once ([`Workspace`]). It
    /// belongs to this launch until the launch has run, so launches that may run at the same time need one
    /// each.
    ///
    /// Errors before anything is enqueued: [`Error::Launch`] for zero rows or columns, null, misaligned or
    /// overlapping buffers, a stride below the columns, a dtype that no kernel has, a workspace that is too
    /// small, a stream of another device or context, and a measure that makes no sense; [`Error::Spec`] for a
    /// rule that the kernels cannot apply; [`Error::NoImage`] where the kernel does not load. Later
    /// errors: [`Error::Cuda`] if the driver refuses, and [`Error::Simulated`] for a fault. After any of them
    /// the next call works.
    ///
    /// # Safety
    ///
    /// - Every address in `call` and `workspace` must be device memory of this engine's GPU (of
    ///   [`Engine::zeroed`] for the simulator), as large as rows, columns and strides require.
    /// - `workspace` must hold zeros, or what earlier launches that ran to their end left there.
    /// - Until the launch has run, the memory must stay allocated. Nobody else may write what it reads, and
    ///   nobody else may access what it writes.
    /// - `stream` must be a live stream.
    pub unsafe fn launch(&self, call: &Call, workspace: Option<Workspace>, stream: u64) -> Result<()> {
        let checked = call.check(self.arch(), workspace)?;
        // SAFETY: the caller's promise.
        unsafe { self.begin(&checked, stream) }
    }

    /// Runs one launch over memory of this engine to its end. It is safe, because it looks up every address
    /// in `memory`.
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

    /// Does the same as [`Engine::launch_within`], but returns before the launch has run. The caller must
    /// wait before it touches or frees `memory`.
    pub(super) fn begin_within(
        &self,
        call: &Call,
        workspace: Option<Workspace>,
        memory: &mut [&mut DeviceMemory],
    ) -> Result<()> {
        let checked = call.check(self.arch(), workspace)?;
        self.begin_in(&checked, memory)
    }

    /// Begins a launch whose every address lies in `memory`. The caller must wait before it touches or frees
    /// `memory`.
    pub(super) fn begin_in(&self, checked: &Checked, memory: &mut [&mut DeviceMemory]) -> Result<()> {
        for span in &checked.spans {
            let holds = |memory: &&mut DeviceMemory| {
                let start = memory.address();
                start <= span.address && span.address + span.bytes <= start + memory.bytes() as u64
            };
            if !memory.iter().any(holds) {
                return Err(checked.fail(format!(
                    "{} at {:#x} + {} bytes lie outside of the memory given",
                    span.name, span.address, span.bytes
                )));
            }
        }
        // SAFETY: all memory belongs to this call until the launch has run, and none of it is freed before.
        unsafe { self.begin(checked, self.own_stream()) }
    }

    /// Enqueues the launches of a [`MeasureCall`] on `stream` (a raw `CUstream`; 0 is the legacy default
    /// stream) and returns: two for every 32 MiB of scores, and for one sequence at least; or one where the
    /// scores stay on chip ([`MeasureCall::on_chip`]).
    ///
    /// As [`Engine::launch`], it allocates nothing on the device and does not wait, so a CUDA graph can
    /// capture it; lengths, pages and queries may be others at every replay. `workspace` has at least
    /// [`MeasureCall::workspace_bytes`], and was filled with zeros once.
    ///
    /// Errors: those of [`Engine::launch`]. Where the first launch was enqueued and a later one was refused,
    /// the betas are not all written.
    ///
    /// # Safety
    ///
    /// As for [`Engine::launch`]: every address is device memory of this engine's GPU, as large as the sizes
    /// and strides require.
    pub unsafe fn launch_measure(&self, call: &MeasureCall, workspace: Workspace, stream: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.begin_all(call.check(self.arch(), workspace)?, stream) }
    }

    /// Runs a [`MeasureCall`] over memory of this engine to its end. It is safe, because it looks up every
    /// address in `memory`.
    ///
    /// Errors: those of [`Engine::launch_measure`], and [`Error::Launch`] for an address outside of `memory`.
    pub fn measure_within(
        &self,
        call: &MeasureCall,
        workspace: Workspace,
        memory: &mut [&mut DeviceMemory],
    ) -> Result<()> {
        self.run_all(call.check(self.arch(), workspace)?, memory)
    }

    /// Enqueues the launches of a [`DecodeCall`] on `stream`, as [`Engine::launch_measure`] does: three for
    /// every 32 MiB of scores, and a fourth where values may stay unread; or one in a single pass
    /// ([`DecodeCall::one_pass`]), and one more that repairs; or one where the scores stay on chip.
    /// `workspace` has at least [`DecodeCall::workspace_bytes`].
    ///
    /// Errors: those of [`Engine::launch_measure`]. Where a launch was enqueued and a later one was refused,
    /// the output is not all written.
    ///
    /// # Safety
    ///
    /// As for [`Engine::launch_measure`].
    pub unsafe fn launch_decode(&self, call: &DecodeCall, workspace: Workspace, stream: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.begin_all(call.check(self.arch(), workspace)?, stream) }
    }

    /// Runs a [`DecodeCall`] over memory of this engine to its end. It is safe, because it looks up every
    /// address in `memory`.
    ///
    /// Errors: those of [`Engine::launch_decode`], and [`Error::Launch`] for an address outside of `memory`.
    pub fn decode_within(
        &self,
        call: &DecodeCall,
        workspace: Workspace,
        memory: &mut [&mut DeviceMemory],
    ) -> Result<()> {
        self.run_all(call.check(self.arch(), workspace)?, memory)
    }

    /// Enqueues launches, one after another.
    ///
    /// # Safety
    ///
    /// As for [`Engine::launch`].
    unsafe fn begin_all(&self, launches: Vec<Checked>, stream: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        launches.iter().try_for_each(|launch| unsafe { self.begin(launch, stream) })
    }

    fn run_all(&self, launches: Vec<Checked>, memory: &mut [&mut DeviceMemory]) -> Result<()> {
        self.begin_all_in(&launches, memory)?;
        self.synchronize()
    }

    /// As [`Engine::begin_in`], one after another.
    pub(super) fn begin_all_in(&self, launches: &[Checked], memory: &mut [&mut DeviceMemory]) -> Result<()> {
        launches.iter().try_for_each(|launch| self.begin_in(launch, memory))
    }

    /// Runs one launch to its end, over memory that nobody else uses.
    pub(super) fn begin_alone(&self, checked: &Checked) -> Result<()> {
        // SAFETY: the spans are the caller's own memory of this engine, alive until the work of its stream
        // has ended.
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
    pub(super) unsafe fn begin(&self, checked: &Checked, stream: u64) -> Result<()> {
        match &*self.machine {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Machine::Driver(driver) => unsafe {
                let (kernel, at_once) =
                    (driver.kernel(checked.launch.variant)?, driver.at_once(&checked.launch));
                super::launch_cuda::launch(kernel, checked, at_once, stream)
            },
            #[cfg(not(feature = "cuda"))]
            Machine::Driver(driver) => match **driver {},
            Machine::Simulator(simulator) => {
                simulator.check_stream(checked, stream)?;
                // SAFETY: the caller's promise.
                simulator.account(|options| unsafe { launch_simt::launch(options, checked) })
            }
        }
    }
}
