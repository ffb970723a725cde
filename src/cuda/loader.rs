//! Loads the kernels from the image of the build. If that fails, NVRTC compiles the embedded sources, and a
//! cache on disk keeps the result.

use super::arch::Arch;
use super::launch_cuda::Nvrtc;
use super::sources;
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaModule, DriverError, sys::CUresult};
use cudarc::nvrtc::Ptx;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The image that build.rs made or was given. It is empty if there was neither.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The size of the image in this build, in bytes; 0 if there is none.
pub(super) const IMAGE_BYTES: usize = IMAGE.len();

/// The module of all kernels, and a text that names its origin.
///
/// Errors: [`Error::NoImage`] with every attempt.
pub(super) fn load(
    context: &Arc<CudaContext>,
    arch: &Arch,
    driver: &str,
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
        let (cubin, cached) = match cubin(&nvrtc, &target, cache_folder().as_deref()) {
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
fn cubin(nvrtc: &Nvrtc, target: &str, folder: Option<&Path>) -> Result<(Vec<u8>, String), String> {
    let source = sources::translation_unit();
    let (major, minor) = nvrtc.version;
    let name = format!("kernels-{:016x}-{target}-nvrtc{major}.{minor}.cubin", hash(source.as_bytes()));
    let path = folder.map(|folder| folder.join(name));
    if let Some(cubin) = path.as_deref().and_then(read_cached) {
        return Ok((cubin, "from the cache".into()));
    }
    let cubin = nvrtc.compile(&source, target)?;
    let cached = match path {
        None => "not cached: no HOME".to_owned(),
        Some(path) => match write_cached(&path, &cubin) {
            Ok(()) => format!("cached in {}", path.display()),
            Err(e) => format!("not cached: {}: {e}", path.display()),
        },
    };
    Ok((cubin, cached))
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
    fn nvrtc_compiles_the_embedded_sources_without_a_header() {
        let Some(nvrtc) = Nvrtc::found().into_iter().next() else {
            eprintln!("skipped nvrtc_compiles_the_embedded_sources_without_a_header: no NVRTC here");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let (made, origin) =
            cubin(&nvrtc, "sm_80", Some(folder.path())).unwrap_or_else(|log| panic!("{log}"));
        assert!(made.len() > 100_000 && origin.starts_with("cached in"), "{} bytes, {origin}", made.len());
        let (cached, origin) = cubin(&nvrtc, "sm_80", Some(folder.path())).unwrap();
        assert_eq!((cached == made, origin.as_str()), (true, "from the cache"));
        assert!(
            nvrtc.compile("__global__ void broken() { absent(); }", "sm_90").unwrap_err().contains("absent")
        );
    }
}
