//! Calls into C: NVRTC, and the functions of the CUDA driver for which cudarc has no safe form.
#![allow(unsafe_code)]

use super::call::{Checked, Params};
use super::variants::Scope;
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, DriverError, sys};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

const DRIVER_NAMES: [&str; 3] = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];

/// Turns an error of the driver into ours, which names the call that failed.
pub(super) fn refused(call: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    |DriverError(code)| Error::Cuda { call: call.into(), code: code as u32, name: format!("{code:?}") }
}

/// The CUDA version of the driver: 1000 major + 10 minor.
///
/// Errors: [`Error::NoDriver`]. This looks for the library first, because cudarc panics if there is none.
pub(super) fn driver_version() -> Result<i32> {
    // SAFETY: NVIDIA's driver library has no initialisers that depend on anything of ours.
    let found = DRIVER_NAMES.into_iter().any(|name| unsafe { Library::new(name) }.is_ok());
    if !found {
        return Err(Error::NoDriver {
            tried: DRIVER_NAMES.join(", "),
            remedy: "install NVIDIA's driver (a container must be started with GPUs), \
                     or compute with --device cpu",
        });
    }
    let mut version = 0;
    // SAFETY: the call may precede cuInit and writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(refused("cuDriverGetVersion"))?;
    Ok(version)
}

/// The context that is current on the calling thread, or none. It is current again when this is dropped.
/// cudarc makes its own context current in almost every call, so every door saves the caller's first.
pub(super) struct CallersContext {
    /// A `CUcontext`; null if none is current.
    context: usize,
}

impl CallersContext {
    pub(super) fn saved() -> CallersContext {
        let mut context = ptr::null_mut();
        // SAFETY: it writes one pointer. Before the driver has started it fails, and no context is current.
        let found = unsafe { sys::cuCtxGetCurrent(&mut context) }.result();
        CallersContext { context: found.map_or(0, |()| context as usize) }
    }
}

impl Drop for CallersContext {
    fn drop(&mut self) {
        // SAFETY: the context was current on this thread, and the caller keeps it alive. Null takes ours
        // away. If this fails, every later call of the driver fails too.
        let _seen_by_the_next_call = unsafe { sys::cuCtxSetCurrent(self.context as sys::CUcontext) };
    }
}

/// Makes a context current until this is dropped. The thread then has its own context again.
struct Current;

impl Current {
    fn push(context: sys::CUcontext) -> Result<Current> {
        // SAFETY: the context is alive, because its engine holds it.
        unsafe { sys::cuCtxPushCurrent_v2(context) }.result().map_err(refused("cuCtxPushCurrent"))?;
        Ok(Current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: it pops what `push` pushed. If it fails, every later call of the driver fails too.
        let _told_by_the_next_call = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}

/// Lets this thread load kernels while it captures a graph, until this is dropped. A load enqueues nothing.
pub(super) struct RelaxedCapture(sys::CUstreamCaptureMode);

impl RelaxedCapture {
    pub(super) fn begun() -> RelaxedCapture {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: it exchanges a mode of this thread. If it fails, the load fails too where it matters.
        let _seen_by_the_load = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        RelaxedCapture(mode)
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _seen_by_the_next_call = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

/// A loaded kernel.
pub(super) struct Kernel<'a> {
    pub context: &'a CudaContext,
    pub function: &'a CudaFunction,
}

/// `at_once`: the groups of CTAs that run at once, as it is asked of this file or was before.
///
/// # Safety
///
/// As for `Engine::launch`.
pub(super) unsafe fn launch(
    Kernel { context, function }: Kernel<'_>,
    checked: &Checked,
    at_once: impl FnOnce(&dyn Fn(u32) -> u32) -> u32,
    stream: u64,
) -> Result<()> {
    let Checked { launch, size: (rows, _), params, .. } = checked;
    let stream = stream as sys::CUstream;
    let _current = Current::push(context.cu_ctx())?;
    // SAFETY: the caller's stream is alive.
    if let Some(theirs) = unsafe { other_device(context, stream) }? {
        let own = context.ordinal();
        return Err(checked.fail(format!("the stream belongs to {theirs}, the engine to device {own}")));
    }
    let mut attribute = match launch.variant.scope() {
        Scope::Warp | Scope::Block => None,
        Scope::Cluster => Some(in_clusters(launch.cluster_ctas())),
        Scope::Split => Some(all_at_once()),
    };
    let (threads, shared_bytes) = (launch.variant.threads(), launch.shared_bytes);
    let (mut params, mut grid, ctas) = (*params, launch.grid, launch.ctas);
    if let Params::Rows(params) = &mut params
        && launch.loads_ahead(*rows)
    {
        // What does not run at once with the others would take its rows when they are done. If nothing fits,
        // the launch is refused and says so.
        let most = at_once(&|sm_count| match launch.variant.scope() {
            Scope::Cluster => clusters_at_once(function, ctas, threads, shared_bytes),
            _ => ctas_of_an_sm(function, threads, shared_bytes) * sm_count,
        });
        params.groups = if most > 0 { params.groups.min(most) } else { params.groups };
        grid = params.groups * ctas;
    }
    let config = config(grid, threads, shared_bytes, stream, attribute.as_mut());
    let mut arguments = [params.address().cast_mut()];
    // SAFETY: the kernel takes one struct of these, which is copied before the call returns. The caller
    // vouches for addresses.
    unsafe { sys::cuLaunchKernelEx(&config, function.cu_function(), arguments.as_mut_ptr(), ptr::null_mut()) }
        .result()
        .map_err(refused(format!("launching {} with {grid} CTAs", launch.variant)))
}

/// CTAs of the split scope wait for each other, so the driver must run all of them at once, or refuse.
fn all_at_once() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { cooperative: 1 },
    }
}

/// The grid consists of clusters of so many CTAs.
fn in_clusters(ctas: u32) -> sys::CUlaunchAttribute {
    // In steps, because cudarc has no name for the type of the three numbers.
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    (value.clusterDim.x, value.clusterDim.y, value.clusterDim.z) = (ctas, 1, 1);
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    }
}

fn config(
    grid: u32,
    threads: u32,
    shared_bytes: u32,
    stream: sys::CUstream,
    attribute: Option<&mut sys::CUlaunchAttribute>,
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream,
        numAttrs: u32::from(attribute.is_some()),
        attrs: attribute.map_or(ptr::null_mut(), ptr::from_mut),
    }
}

/// Clusters of so many CTAs of this size that run at once on the device; 0 if none fits. The context of the
/// function must be current.
pub(super) fn clusters_at_once(function: &CudaFunction, ctas: u32, threads: u32, shared_bytes: u32) -> u32 {
    let mut attribute = in_clusters(ctas);
    let config = config(ctas, threads, shared_bytes, ptr::null_mut(), Some(&mut attribute));
    let mut clusters = 0;
    // SAFETY: the function is loaded, and the configuration and its attribute live through the call.
    let asked =
        unsafe { sys::cuOccupancyMaxActiveClusters(&mut clusters, function.cu_function(), &config) }.result();
    if asked.is_ok() { u32::try_from(clusters).unwrap_or(0) } else { 0 }
}

/// CTAs of this size that share an SM of the device; 0 if none fits. The context of the function must be
/// current.
fn ctas_of_an_sm(function: &CudaFunction, threads: u32, shared_bytes: u32) -> u32 {
    let mut ctas = 0;
    // SAFETY: the function is loaded, and the call writes one number.
    let asked = unsafe {
        sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &mut ctas,
            function.cu_function(),
            threads as i32,
            shared_bytes as usize,
        )
    };
    if asked.result().is_ok() { u32::try_from(ctas).unwrap_or(0) } else { 0 }
}

/// The owner of `stream`, unless that is the context of this engine.
///
/// # Safety
///
/// `stream` must be alive. This engine's context must be current.
unsafe fn other_device(engines: &CudaContext, stream: sys::CUstream) -> Result<Option<String>> {
    // The default streams, legacy (0, 1) and per thread (2), belong to the current context.
    if stream as usize <= 2 {
        return Ok(None);
    }
    let mut context = ptr::null_mut();
    // SAFETY: the stream is alive by the caller's promise.
    unsafe { sys::cuStreamGetCtx(stream, &mut context) }
        .result()
        .map_err(refused(format!("the context of stream {stream:?}")))?;
    if context == engines.cu_ctx() {
        return Ok(None);
    }
    let _theirs = Current::push(context)?;
    let mut device = -1;
    // SAFETY: a context is current.
    unsafe { sys::cuCtxGetDevice(&mut device) }.result().map_err(refused("cuCtxGetDevice"))?;
    let same = device == engines.cu_device();
    let which = if same { "another context of device" } else { "device" };
    Ok(Some(format!("{which} {device}")))
}

type Program = *mut c_void;

/// NVRTC is the run-time compiler of CUDA. It is bound by hand: eight functions, and no panic if a library is
/// missing.
pub(super) struct Nvrtc {
    library: Library,
    /// The library that NVRTC loads by its bare name when it compiles. It is loaded here from the folder of
    /// NVRTC, so it need not be on LD_LIBRARY_PATH.
    _builtins: Option<Library>,
    /// The path or name that it was found under.
    name: String,
    /// Major, minor.
    pub version: (i32, i32),
}

impl Nvrtc {
    /// Every NVRTC that loads, newest first. It is looked for by name, then in CUDA_HOME and CUDA_PATH.
    pub fn found() -> Vec<Nvrtc> {
        let names =
            ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
        let folders: Vec<PathBuf> = homes.flat_map(|home| [home.join("lib64"), home.join("lib")]).collect();
        let mut found: Vec<Nvrtc> = Vec::new();
        for folder in std::iter::once(PathBuf::new()).chain(folders) {
            for name in names {
                let Some(nvrtc) = Nvrtc::open(folder.join(name)) else { continue };
                if found.iter().all(|other| other.version != nvrtc.version) {
                    found.push(nvrtc);
                }
            }
        }
        found.sort_by_key(|nvrtc| std::cmp::Reverse(nvrtc.version));
        found
    }

    /// Its version, and the path or name that it was found under.
    pub fn name(&self) -> String {
        format!("NVRTC {}.{} ({})", self.version.0, self.version.1, self.name)
    }

    fn open(path: PathBuf) -> Option<Nvrtc> {
        // SAFETY: NVRTC has no initialisers that depend on anything of ours.
        let library = unsafe { Library::new(&path) }.ok()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is nvrtc.h's.
        let status = unsafe {
            let version: libloading::Symbol<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
                library.get(b"nvrtcVersion\0").ok()?;
            version(&mut major, &mut minor)
        };
        let builtins = path.with_file_name(format!("libnvrtc-builtins.so.{major}.{minor}"));
        // SAFETY: this is a part of NVRTC, and it has no such initialisers either.
        let _builtins = unsafe { Library::new(builtins) }.ok();
        let name = path.to_string_lossy().into_owned();
        (status == 0).then_some(Nvrtc { library, _builtins, name, version: (major, minor) })
    }

    /// Compiles `source` to a cubin for `arch` (`sm_90`). Errors: the log of the compiler.
    pub fn compile(&self, source: &str, arch: &str) -> Result<Vec<u8>, String> {
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-default-device".into()];
        let options: Vec<CString> =
            options.into_iter().filter_map(|option| CString::new(option).ok()).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = ptr::null_mut();
        // SAFETY: the signatures are those of nvrtc.h. The source and the options live through the calls, and
        // the program lives until it is destroyed.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            let create: Create = self.function(b"nvrtcCreateProgram\0")?;
            let compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int =
                self.function(b"nvrtcCompileProgram\0")?;
            let destroy: unsafe extern "C" fn(*mut Program) -> c_int =
                self.function(b"nvrtcDestroyProgram\0")?;
            let name = c"critbeta.cu".as_ptr();
            self.checked(create(&mut program, source.as_ptr(), name, 0, ptr::null(), ptr::null()))?;
            let compiled = self.checked(compile(program, options.len() as c_int, options.as_ptr()));
            let cubin = match compiled {
                Ok(()) => self.output(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0"),
                Err(status) => {
                    let log = self.output(program, b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0");
                    let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
                    Err(format!("{status}\n{}", log.trim_end_matches(['\0', '\n'])))
                }
            };
            destroy(&mut program);
            cubin
        }
    }

    /// # Safety
    ///
    /// `F` must be the function's type in nvrtc.h.
    unsafe fn function<F: Copy>(&self, name: &[u8]) -> Result<F, String> {
        // SAFETY: the caller's promise.
        unsafe { self.library.get::<F>(name) }.map(|symbol| *symbol).map_err(|e| e.to_string())
    }

    /// # Safety
    ///
    /// `program` must be alive. `size` and `bytes` must name the two functions of one output.
    unsafe fn output(&self, program: Program, size: &[u8], bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the signatures are those of nvrtc.h. The second call writes as many bytes as the first one
        // returns.
        unsafe {
            let size: unsafe extern "C" fn(Program, *mut usize) -> c_int = self.function(size)?;
            let bytes: unsafe extern "C" fn(Program, *mut u8) -> c_int = self.function(bytes)?;
            self.checked(size(program, &mut length))?;
            let mut output = vec![0u8; length];
            self.checked(bytes(program, output.as_mut_ptr()))?;
            Ok(output)
        }
    }

    fn checked(&self, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the signature is that of nvrtc.h, and the text is static.
        let text = unsafe {
            let text: unsafe extern "C" fn(c_int) -> *const c_char =
                self.function(b"nvrtcGetErrorString\0")?;
            CStr::from_ptr(text(status)).to_string_lossy().into_owned()
        };
        Err(text)
    }
}
