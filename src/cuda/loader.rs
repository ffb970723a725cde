//! Loads the kernels from the image of the build. If that fails, NVRTC compiles the embedded sources, and a
//! cache on disk keeps the result.

use super::arch::Arch;
use super::launch_cuda::Nvrtc;
use super::notice::Notice;
use super::sources;
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaModule, DriverError, sys::CUresult};
use cudarc::nvrtc::Ptx;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The image that build.rs made or was given. It is empty if there was neither.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// How often a compilation says that it goes on.
const TICK: Duration = Duration::from_secs(10);

/// The size of the image in this build, in bytes; 0 if there is none.
pub(super) const IMAGE_BYTES: usize = IMAGE.len();

/// The module of all kernels, and a text that names its origin.
///
/// Errors: [`Error::NoImage`] with every attempt.
pub(super) fn load(
    context: &Arc<CudaContext>,
    arch: &Arch,
    driver: &str,
    notice: Notice,
) -> Result<(Arc<CudaModule>, String)> {
    let mut attempts = Vec::new();
    if IMAGE.is_empty() {
        attempts.push("this build has no image (no nvcc was there)".to_owned());
    } else {
        match context.load_module(Ptx::from_binary(IMAGE.to_vec())) {
            Ok(module) => return Ok((module, "kernels of the build".into())),
            Err(error) => attempts.push(format!("the image of the build: {}", image_failure(error)?)),
        }
    }
    let target = format!("sm_{}", arch.sm);
    let compilers = Nvrtc::found();
    if compilers.is_empty() {
        attempts.push("NVRTC: no libnvrtc.so.13 or .12, nor one in CUDA_HOME".to_owned());
    }
    for nvrtc in compilers {
        let name = format!("NVRTC {}.{} ({})", nvrtc.version.0, nvrtc.version.1, nvrtc.name);
        let (cubin, cached) = match cubin(&nvrtc, &target, cache_folder().as_deref(), notice) {
            Ok(cubin) => cubin,
            Err(log) => {
                attempts.push(format!("{name}: {log}"));
                continue;
            }
        };
        match context.load_module(Ptx::from_binary(cubin)) {
            Ok(module) => return Ok((module, format!("kernels compiled by {name}, {cached}"))),
            Err(error) => attempts.push(format!("{name}: {}", image_failure(error)?)),
        }
    }
    Err(Error::NoImage {
        device: format!("{} (sm_{})", arch.name, arch.sm),
        driver: driver.to_owned(),
        attempts,
        remedy: "build critbeta where nvcc is, install NVRTC of the driver's CUDA version \
                 (pip install nvidia-cuda-nvrtc, on LD_LIBRARY_PATH), or update the driver",
    })
}

/// The text for an image that does not fit the device or the driver. Any other failure of the driver is an
/// error.
fn image_failure(DriverError(code): DriverError) -> Result<String> {
    use CUresult::*;
    let number = code as u32;
    match code {
        CUDA_ERROR_NO_BINARY_FOR_GPU => Ok(format!("error {number}, it has no kernels for this device")),
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_INVALID_IMAGE | CUDA_ERROR_INVALID_PTX => {
            Ok(format!("error {number}, the driver does not know its CUDA version"))
        }
        _ => Err(Error::Cuda { call: "loading the kernels".into(), code: number, name: format!("{code:?}") }),
    }
}

/// A cubin from the cache, or a new one that is then put there; and a text that says which.
///
/// Processes that need the same one wait for the first, because each would take minutes and all cores. Where
/// the folder takes no lock, as a read-only home does not, each compiles for itself.
fn cubin(
    nvrtc: &Nvrtc,
    target: &str,
    folder: Option<&Path>,
    notice: Notice,
) -> Result<(Vec<u8>, String), String> {
    let source = sources::translation_unit();
    let (major, minor) = nvrtc.version;
    let name = format!("kernels-{:016x}-{target}-nvrtc{major}.{minor}.cubin", hash(source.as_bytes()));
    let path = folder.map(|folder| folder.join(name));
    let from_cache = || Some((path.as_deref().and_then(read_cached)?, "from the cache".to_owned()));
    if let Some(cached) = from_cache() {
        return Ok(cached);
    }
    let _alone = folder.and_then(|folder| locked(folder, notice));
    if let Some(cached) = from_cache() {
        return Ok(cached);
    }
    let what = format!("compiling the CUDA kernels for {target} by NVRTC {major}.{minor}");
    notice(&format!("{what}; this takes minutes, and happens once"));
    let cubin = ticking(TICK, &what, notice, || nvrtc.compile(&source, target))?;
    let failed = match path {
        None => "no HOME".to_owned(),
        Some(path) => match write_cached(&path, &cubin) {
            Ok(()) => return Ok((cubin, format!("cached in {}", path.display()))),
            Err(e) => format!("{}: {e}", path.display()),
        },
    };
    notice(&format!(
        "the kernels are not cached, so the next start compiles them again ({failed}); \
         set XDG_CACHE_HOME to a folder that can be written"
    ));
    Ok((cubin, format!("not cached: {failed}")))
}

/// The lock of the folder, held until the file is dropped. `None` where there can be none.
fn locked(folder: &Path, notice: Notice) -> Option<fs::File> {
    fs::create_dir_all(folder).ok()?;
    let file = fs::File::options().create(true).append(true).open(folder.join("kernels.lock")).ok()?;
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        notice("another process compiles the CUDA kernels; waiting for it");
        file.lock().ok()?;
    }
    Some(file)
}

/// Does `work`, and gives `notice` a line at every `tick` until it ends.
fn ticking<R>(tick: Duration, what: &str, notice: Notice, work: impl FnOnce() -> R) -> R {
    let started = Instant::now();
    let (ends, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while end.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                notice(&format!("{what}: {:.0} s so far", started.elapsed().as_secs_f64()));
            }
        });
        let _ends = ends;
        work()
    })
}

fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(variable("HOME")?.join(".cache"));
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(home)?;
    Some(base.join("critbeta"))
}

/// FNV-1a. It is the same in every build, and enough to distinguish sources and damaged files.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Reads a cached image, which lies behind its hash. `None` for a missing or damaged file, which is then made
/// again.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let mut file = fs::read(path).ok()?;
    let cubin = file.split_off(file.len().min(8));
    (file == hash(&cubin).to_le_bytes()).then_some(cubin)
}

/// Writes the file beside its place and renames it, so that no other process ever reads half of it.
fn write_cached(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Each writer has its own number, because threads of one process may compile at the same time.
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let beside = folder.join(format!(".kernels.{}.{writer}.tmp", std::process::id()));
    let whole = [&hash(cubin).to_le_bytes()[..], cubin].concat();
    let written = fs::write(&beside, whole).and_then(|()| fs::rename(&beside, path));
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_damaged_cache_file_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/kernels.cubin");
        assert_eq!(read_cached(&path), None);
        write_cached(&path, b"an image").unwrap();
        assert_eq!(read_cached(&path).as_deref(), Some(&b"an image"[..]));
        let whole = fs::read(&path).unwrap();
        for broken in [&whole[..0], &whole[..5], &whole[..whole.len() - 1]] {
            fs::write(&path, broken).unwrap();
            assert_eq!(read_cached(&path), None, "{} bytes", broken.len());
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(read_cached(&path), None);
        write_cached(&path, b"an image").unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn one_compiles_and_the_others_wait_and_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let said = Mutex::new(Vec::new());
        let notice = |text: &str| said.lock().unwrap().push(text.to_owned());
        let first = locked(folder.path(), &notice).unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| locked(folder.path(), &notice).is_some());
            while said.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            assert!(!second.is_finished(), "two at once");
            drop(first);
            assert!(second.join().unwrap());
        });
        assert_eq!(said.lock().unwrap().len(), 1);
        // A file where the folder should be is like a home that cannot be written.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(locked(&file, &notice).is_none());
    }

    #[test]
    fn a_long_compilation_says_that_it_goes_on() {
        let lines = AtomicU32::new(0);
        let notice = |text: &str| {
            assert!(text.starts_with("compiling: ") && text.ends_with(" s so far"), "{text}");
            lines.fetch_add(1, Ordering::Relaxed);
        };
        let wait = || {
            while lines.load(Ordering::Relaxed) < 3 {
                thread::yield_now();
            }
            7
        };
        assert_eq!(ticking(Duration::from_millis(1), "compiling", &notice, wait), 7);
    }

    #[test]
    fn nvrtc_compiles_the_embedded_sources_without_a_header() {
        let Some(nvrtc) = Nvrtc::found().into_iter().next() else {
            eprintln!("skipped nvrtc_compiles_the_embedded_sources_without_a_header: no NVRTC here");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let (made, origin) =
            cubin(&nvrtc, "sm_80", Some(folder.path()), &|_| ()).unwrap_or_else(|log| panic!("{log}"));
        assert!(made.len() > 100_000 && origin.starts_with("cached in"), "{} bytes, {origin}", made.len());
        let (cached, origin) = cubin(&nvrtc, "sm_80", Some(folder.path()), &|_| ()).unwrap();
        assert_eq!((cached == made, origin.as_str()), (true, "from the cache"));
        assert!(
            nvrtc.compile("__global__ void broken() { absent(); }", "sm_90").unwrap_err().contains("absent")
        );
    }
}
