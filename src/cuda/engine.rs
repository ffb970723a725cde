//! A GPU with its kernels, or the simulator in its place, and device memory.

use super::arch::Arch;
use super::driver::{Driver, DriverMemory};
use super::notice::Notice;
use super::plan::Plan;
use super::simulator::{HostMemory, SimtOptions, Simulator, Traffic};
use crate::{Error, Result};
use std::sync::Arc;

/// A GPU with its kernels, or the simulator in its place. Threads may share it by reference.
pub struct Engine {
    pub(super) machine: Arc<Machine>,
    arch: Arch,
}

pub(super) enum Machine {
    Driver(Box<Driver>),
    Simulator(Box<Simulator>),
}

/// Memory of an [`Engine`], aligned to 256 bytes. It is zeroed when it is made, and freed when it is dropped.
///
/// It must outlive every launch that uses it: the caller synchronizes before it drops the memory.
pub struct DeviceMemory(pub(super) Memory);

// Servers share an engine between threads, and pass its memory from one to another. This fails to compile
// otherwise.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Engine>();
    sent::<DeviceMemory>();
};

pub(super) enum Memory {
    Driver(DriverMemory),
    Host(HostMemory),
}

impl DeviceMemory {
    /// Its device address.
    pub fn address(&self) -> u64 {
        match &self.0 {
            Memory::Driver(memory) => memory.address(),
            Memory::Host(memory) => memory.address(),
        }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Memory::Driver(memory) => memory.bytes(),
            Memory::Host(memory) => memory.bytes(),
        }
    }
}

impl Engine {
    /// Opens the GPU of this number. Each kernel is loaded when it is first launched, or by
    /// [`Engine::load`]. Where it must be compiled first, which takes seconds, this says so on stderr.
    ///
    /// Errors: [`Error::NotBuilt`] without the feature `cuda`; [`Error::NoDriver`] without a driver;
    /// [`Error::NoGpu`] for a driver before CUDA 12.0, a number that the driver does not show, and a device
    /// before sm_80; [`Error::NoImage`] without images of the kernels and without NVRTC;
    /// [`Error::Cuda`] for anything else that the driver refuses.
    pub fn cuda(ordinal: usize) -> Result<Engine> {
        Engine::cuda_with(ordinal, Box::new(|text| eprintln!("critbeta: {text}")))
    }

    /// Like [`Engine::cuda`]. `notice` gets a line of text when a kernel must be compiled, every ten seconds
    /// until it is, and where another process compiles it or it cannot be cached.
    ///
    /// Errors: those of [`Engine::cuda`].
    pub fn cuda_with(ordinal: usize, notice: Notice) -> Result<Engine> {
        let driver = Driver::open(ordinal, notice)?;
        Ok(Engine { arch: driver.arch().clone(), machine: Arc::new(Machine::Driver(Box::new(driver))) })
    }

    /// Loads the kernel of a plan, so that no launch of it has to. The simulator has nothing to load.
    ///
    /// Errors: [`Error::NoImage`] where it does not load on the device; [`Error::Cuda`].
    pub fn load(&self, plan: &Plan) -> Result<()> {
        match &*self.machine {
            Machine::Driver(driver) => driver.load(plan.launch.variant),
            Machine::Simulator(_) => Ok(()),
        }
    }

    /// Opens the simulator, which runs the same kernels on this CPU. Every GPU thread is a fiber.
    ///
    /// Errors: [`Error::NotBuilt`] unless this build has the feature `simt` and found a C++ compiler.
    pub fn simulated(options: SimtOptions) -> Result<Engine> {
        let arch = options.arch.clone();
        Ok(Engine { arch, machine: Arc::new(Machine::Simulator(Box::new(Simulator::new(options)?))) })
    }

    /// The limits that the plans of this engine use.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// An engine on the same device that plans as for a smaller GPU: none of its limits is above those of
    /// `arch`.
    ///
    /// Tests use it to run every kernel on rows of any length.
    #[doc(hidden)]
    pub fn limited_to(&self, arch: &Arch) -> Engine {
        let (own, max_cluster) = (&self.arch, self.arch.max_cluster.min(arch.max_cluster));
        let arch = Arch {
            name: own.name.clone(),
            sm: own.sm,
            sm_count: own.sm_count.min(arch.sm_count),
            shared_per_block_bytes: own.shared_per_block_bytes.min(arch.shared_per_block_bytes),
            shared_per_sm_bytes: own.shared_per_sm_bytes.min(arch.shared_per_sm_bytes),
            threads_per_sm: own.threads_per_sm.min(arch.threads_per_sm),
            clusters: own.clusters && arch.clusters,
            max_cluster,
        };
        Engine { machine: Arc::clone(&self.machine), arch }
    }

    /// Whether this is the simulator.
    pub fn is_simulated(&self) -> bool {
        matches!(*self.machine, Machine::Simulator(_))
    }

    /// A line of text that names the device, its capability, and the origin of its kernels.
    pub fn description(&self) -> String {
        match &*self.machine {
            Machine::Driver(driver) => driver.description().to_owned(),
            Machine::Simulator(simulator) => format!("the simulator, as {}", simulator.arch().name),
        }
    }

    /// Global memory traffic of all launches of the simulator so far; `None` on a GPU.
    pub fn traffic(&self) -> Option<Traffic> {
        match &*self.machine {
            Machine::Driver(_) => None,
            Machine::Simulator(simulator) => Some(simulator.traffic()),
        }
    }

    /// Allocates `bytes` of device memory and zeroes them. Errors: [`Error::Cuda`] if there is not enough.
    pub fn zeroed(&self, bytes: usize) -> Result<DeviceMemory> {
        Ok(DeviceMemory(match &*self.machine {
            Machine::Driver(driver) => Memory::Driver(driver.zeroed(bytes)?),
            Machine::Simulator(_) => Memory::Host(HostMemory::zeroed(bytes)),
        }))
    }

    /// Allocates device memory that holds `bytes`. Errors: as [`Engine::zeroed`].
    pub fn uploaded(&self, bytes: &[u8]) -> Result<DeviceMemory> {
        let mut memory = self.zeroed(bytes.len())?;
        self.upload(&mut memory, 0, bytes)?;
        Ok(memory)
    }

    /// Copies `bytes` into `memory`, from byte `at` on. The copy is complete when this returns.
    ///
    /// Errors: [`Error::Settings`] for a range outside of `memory` or memory of another engine;
    /// [`Error::Cuda`].
    pub fn upload(&self, memory: &mut DeviceMemory, at: usize, bytes: &[u8]) -> Result<()> {
        check_range(memory, at, bytes.len())?;
        match (&*self.machine, &mut memory.0) {
            (Machine::Driver(driver), Memory::Driver(memory)) => driver.upload(memory, at, bytes),
            (Machine::Simulator(_), Memory::Host(memory)) => {
                memory.as_mut()[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(foreign()),
        }
    }

    /// Copies `memory`, from byte `at` on, to `into`. The copy runs after every [`Engine::launch_within`].
    ///
    /// Errors: as [`Engine::upload`].
    pub fn download(&self, memory: &DeviceMemory, at: usize, into: &mut [u8]) -> Result<()> {
        check_range(memory, at, into.len())?;
        match (&*self.machine, &memory.0) {
            (Machine::Driver(driver), Memory::Driver(memory)) => driver.download(memory, at, into),
            (Machine::Simulator(_), Memory::Host(memory)) => {
                into.copy_from_slice(&memory.as_ref()[at..at + into.len()]);
                Ok(())
            }
            _ => Err(foreign()),
        }
    }

    /// Waits for all work of the device, on every stream. Errors: [`Error::Cuda`] if some of it failed.
    pub fn synchronize(&self) -> Result<()> {
        match &*self.machine {
            Machine::Driver(driver) => driver.synchronize(),
            Machine::Simulator(_) => Ok(()),
        }
    }
}

pub(super) fn check_range(memory: &DeviceMemory, at: usize, bytes: usize) -> Result<()> {
    match at.checked_add(bytes).is_some_and(|end| end <= memory.bytes()) {
        true => Ok(()),
        false => {
            let detail =
                format!("{bytes} bytes from byte {at} on of device memory of {} bytes", memory.bytes());
            Err(Error::Settings { detail })
        }
    }
}

pub(super) fn foreign() -> Error {
    Error::Settings { detail: "device memory of another engine".into() }
}
