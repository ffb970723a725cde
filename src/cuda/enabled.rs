//! A GPU through the CUDA driver. Each kernel is loaded and set up when it is first needed.

use super::arch::Arch;
use super::launch_cuda::{self, CallersContext, Kernel, refused};
use super::loader::Loader;
use super::notice::Notice;
use super::plan::Launch;
use super::variants::{Scope, Variant};
use crate::{Error, Result};
use cudarc::driver::sys::CUclusterSchedulingPolicy as Policy;
use cudarc::driver::sys::{
    CUdevice_attribute as Attribute, CUevent_flags as Flags, CUfunction_attribute as OfFunction,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The oldest driver that works, as 1000 major + 10 minor. Clusters and `cuLaunchKernelEx` begin with 11.8.
/// The compiler of 12.0 is the first that knows everything that the kernels use on sm_90. Functions of later
/// drivers are never called, so no symbol is missing, whatever CUDA version the bindings were built for.
const OLDEST_DRIVER: i32 = 12_000;

pub(super) struct Driver {
    context: Arc<CudaContext>,
    /// The stream of this engine's own copies and host verbs.
    stream: Arc<CudaStream>,
    /// The loaded kernels, by `Variant`.
    functions: Vec<OnceLock<CudaFunction>>,
    /// Groups of CTAs that run at once, by kernel, CTAs of a group and their shared memory. A launch does not
    /// ask the driver again.
    at_once: Mutex<HashMap<(Variant, u32, u32), u32>>,
    /// Held while one is loaded, so that two threads do not compile it both.
    loading: Mutex<()>,
    loader: Loader,
    arch: Arch,
    description: String,
    /// Set while the fields above are dropped, and dropped after them.
    dropping: Option<CallersContext>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.dropping = Some(CallersContext::saved());
    }
}

pub(super) struct DriverMemory {
    slice: CudaSlice<u8>,
    address: u64,
    /// As in [`Driver`].
    dropping: Option<CallersContext>,
}

impl Drop for DriverMemory {
    fn drop(&mut self) {
        self.dropping = Some(CallersContext::saved());
    }
}

impl DriverMemory {
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.slice.len()
    }
}

fn no_gpu(found: String, remedy: &str) -> Error {
    Error::NoGpu { found, remedy: format!("{remedy}, or compute with --device cpu") }
}

/// `CUDA 12.4` for 12040.
pub(super) fn version_text(version: i32) -> String {
    format!("CUDA {}.{}", version / 1000, version % 1000 / 10)
}

impl Driver {
    pub fn open(ordinal: usize, notice: Notice) -> Result<Driver> {
        let version = launch_cuda::driver_version()?;
        let driver = version_text(version);
        if version < OLDEST_DRIVER {
            let found = format!("the driver is for {driver}, but {} is needed", version_text(OLDEST_DRIVER));
            return Err(no_gpu(found, "install driver 525 or later"));
        }
        let _callers = CallersContext::saved();
        let count = CudaContext::device_count().map_err(|DriverError(code)| {
            no_gpu(format!("the driver ({driver}) does not start: {code:?}"), "see what nvidia-smi says")
        })?;
        if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
            let found = format!("device {ordinal} of {count} (driver {driver})");
            return Err(no_gpu(found, "count devices from 0; CUDA_VISIBLE_DEVICES hides some"));
        }
        let context = CudaContext::new(ordinal).map_err(refused(format!("opening device {ordinal}")))?;
        let mut arch = arch_of(&context)?;
        if arch.sm < Arch::MIN_SM {
            let found =
                format!("{} is sm_{}, the kernels need sm_{} or later", arch.name, arch.sm, Arch::MIN_SM);
            return Err(no_gpu(found, "use a GPU of the Ampere generation or later"));
        }
        let loader = Loader::new(&context, &arch, &driver, notice)?;
        let stream = context.new_stream().map_err(refused("making a stream"))?;
        arch.max_cluster = max_cluster(&loader, &arch)?;
        arch.clusters = arch.max_cluster > 1;
        let (functions, loading) = (Variant::ALL.iter().map(|_| OnceLock::new()).collect(), Mutex::new(()));
        let (sm, origin, at_once, dropping) = (arch.sm, loader.origin(), Mutex::default(), None);
        let description = format!("cuda:{ordinal} {}, sm_{sm}, driver {driver}, {origin}", arch.name);
        Ok(Driver { context, stream, functions, at_once, loading, loader, arch, description, dropping })
    }

    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    /// The kernel, loaded when it is first asked for.
    pub fn kernel(&self, variant: Variant) -> Result<Kernel<'_>> {
        Ok(Kernel { context: &self.context, function: self.function(variant)? })
    }

    fn function(&self, variant: Variant) -> Result<&CudaFunction> {
        let place = &self.functions[variant as usize];
        if let Some(function) = place.get() {
            return Ok(function);
        }
        let _alone = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = place.get() {
            return Ok(function);
        }
        let _callers = CallersContext::saved();
        let function = self.loader.kernel(variant)?;
        set_up(&function, variant.symbol(), variant.scope() == Scope::Cluster, &self.arch)?;
        Ok(place.get_or_init(|| function))
    }

    /// Groups of CTAs of this launch that run at once. The driver is asked once for each kernel and size.
    pub fn at_once(&self, launch: &Launch) -> impl FnOnce(&dyn Fn(u32) -> u32) -> u32 {
        let size = (launch.variant, launch.ctas, launch.shared_bytes);
        move |ask| {
            let mut known = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
            *known.entry(size).or_insert_with(|| ask(self.arch.sm_count))
        }
    }

    pub fn load(&self, variant: Variant) -> Result<()> {
        self.function(variant).map(drop)
    }

    pub fn stream(&self) -> u64 {
        self.stream.cu_stream() as u64
    }

    pub fn zeroed(&self, bytes: usize) -> Result<DriverMemory> {
        let _callers = CallersContext::saved();
        let call = format!("allocating {bytes} bytes on {}", self.arch.name);
        let slice = self.stream.alloc_zeros::<u8>(bytes.max(1)).map_err(refused(call))?;
        let address = slice.device_ptr(&self.stream).0;
        // Other streams may use the memory as soon as this returns.
        self.stream.synchronize().map_err(refused("zeroing device memory"))?;
        Ok(DriverMemory { slice, address, dropping: None })
    }

    pub fn upload(&self, memory: &mut DriverMemory, at: usize, bytes: &[u8]) -> Result<()> {
        let _callers = CallersContext::saved();
        let mut target = memory.slice.slice_mut(at..at + bytes.len());
        let failed = || refused(format!("copying {} bytes to the device", bytes.len()));
        self.stream.memcpy_htod(bytes, &mut target).map_err(failed())?;
        self.stream.synchronize().map_err(failed())
    }

    pub fn download(&self, memory: &DriverMemory, at: usize, into: &mut [u8]) -> Result<()> {
        let _callers = CallersContext::saved();
        let source = memory.slice.slice(at..at + into.len());
        let call = format!("copying {} bytes from the device", into.len());
        self.stream.memcpy_dtoh(&source, into).map_err(refused(call.clone()))?;
        self.stream.synchronize().map_err(refused(call))
    }

    /// Enqueues a copy of all of `from` to the begin of `to`, which must be at least as large.
    pub fn copy(&self, from: &DriverMemory, to: &mut DriverMemory) -> Result<()> {
        let _callers = CallersContext::saved();
        let call = format!("copying {} bytes on {}", from.bytes(), self.arch.name);
        self.stream.memcpy_dtod(&from.slice, &mut to.slice).map_err(refused(call))
    }

    /// Device seconds of the work that `begin` enqueues on the engine's own stream. `flush` is overwritten
    /// before it.
    pub fn timed(&self, flush: &mut DriverMemory, begin: impl FnOnce() -> Result<()>) -> Result<f64> {
        let _callers = CallersContext::saved();
        let failed = || refused("timing with events");
        self.stream.memset_zeros(&mut flush.slice).map_err(failed())?;
        let mark = || self.stream.record_event(Some(Flags::CU_EVENT_DEFAULT)).map_err(failed());
        let start = mark()?;
        let begun = begin();
        let end = mark()?;
        // This waits for the end, even where nothing was enqueued.
        let milliseconds = start.elapsed_ms(&end).map_err(failed())?;
        begun.map(|()| f64::from(milliseconds) * 1e-3)
    }

    pub fn synchronize(&self) -> Result<()> {
        let _callers = CallersContext::saved();
        self.context.synchronize().map_err(refused(format!("work on {}", self.arch.name)))
    }
}

fn arch_of(context: &CudaContext) -> Result<Arch> {
    let attribute = |attribute: Attribute| {
        let value = context.attribute(attribute).map_err(refused(format!("{attribute:?}")))?;
        Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Arch {
        name: context.name().map_err(refused("the name of the device"))?,
        sm: 10 * major + minor,
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_per_sm_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        clusters: major >= 9,
        max_cluster: if major >= 9 { 16 } else { 1 },
    })
}

/// Gives a kernel all the shared memory that it may have. A launch then has nothing left to set.
fn set_up(function: &CudaFunction, name: &str, in_clusters: bool, arch: &Arch) -> Result<()> {
    let set = |attribute, value| {
        let call = format!("{attribute:?} = {value} of {name}");
        function.set_attribute(attribute, value).map_err(refused(call))
    };
    let fixed = function.shared_size_bytes().map_err(refused(format!("shared memory of {name}")))?;
    let dynamic = i32::try_from(arch.shared_per_block_bytes).unwrap_or(i32::MAX) - fixed;
    set(OfFunction::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic)?;
    if in_clusters {
        // A launch may ask for clusters of 16.
        set(OfFunction::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        // CTAs of one cluster go through their phases together. On SMs of their own they leave the memory to
        // other clusters while they compute.
        let spread = Policy::CU_CLUSTER_SCHEDULING_POLICY_SPREAD as i32;
        set(OfFunction::CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE, spread)?;
    }
    Ok(())
}

/// CTAs of the largest cluster that fits on the device with all the shared memory of its SMs; 1 if none fits.
fn max_cluster(loader: &Loader, arch: &Arch) -> Result<u32> {
    if !arch.clusters {
        return Ok(1);
    }
    // The empty kernel needs the driver's own compiler. Every device with clusters has those of 8.
    let Some(empty) = loader.empty() else { return Ok(8) };
    set_up(&empty, "an empty kernel", true, arch)?;
    let shared_bytes = arch.shared_per_block_bytes - super::ladder::STATIC_BYTES;
    let fits = |&ctas: &u32| launch_cuda::clusters_at_once(&empty, ctas, 256, shared_bytes) > 0;
    Ok([16, 8, 4, 2].into_iter().find(fits).unwrap_or(1))
}
