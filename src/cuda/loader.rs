//! Loads one kernel when it is first launched: from the image of the build, or compiled by NVRTC from the
//! embedded sources, through a cache on disk.

use super::arch::Arch;
use super::cache::{self, Cache};
use super::launch_cuda::{Nvrtc, RelaxedCapture};
use super::notice::Notice;
use super::sources;
use super::variants::Variant;
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, DriverError, sys::CUresult};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// The image of every kernel, in the order of `Variant`. It is empty if build.rs found no nvcc and was given
/// none.
const IMAGES: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// An empty kernel, which the driver's own compiler takes. Which clusters fit is asked of it.
const EMPTY: &str =
    ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry empty()\n{\n    ret;\n}\n";

/// The bytes of the images in this build; 0 if there are none.
pub(super) fn image_bytes() -> usize {
    IMAGES.iter().map(|image| image.len()).sum()
}

pub(super) struct Loader {
    context: Arc<CudaContext>,
    /// `sm_90`
    target: String,
    device: String,
    driver: String,
    /// Every NVRTC of this machine, newest first.
    compilers: Vec<Nvrtc>,
    cache: Cache,
    notice: Notice,
}

impl Loader {
    /// Errors: [`Error::NoImage`] where there is neither an image nor a compiler.
    pub fn new(context: &Arc<CudaContext>, arch: &Arch, driver: &str, notice: Notice) -> Result<Loader> {
        let loader = Loader {
            context: Arc::clone(context),
            target: format!("sm_{}", arch.sm),
            device: format!("{} (sm_{})", arch.name, arch.sm),
            driver: driver.to_owned(),
            compilers: Nvrtc::found(),
            cache: Cache::of_user(),
            notice,
        };
        match IMAGES.is_empty() && loader.compilers.is_empty() {
            true => Err(loader.no_image(vec![NO_IMAGE.to_owned(), NO_COMPILER.to_owned()])),
            false => Ok(loader),
        }
    }

    /// Where kernels come from.
    pub fn origin(&self) -> String {
        match (IMAGES, &self.compilers[..]) {
            ([], [nvrtc, ..]) => format!("kernels compiled by {}", nvrtc.name()),
            _ => "kernels of the build".to_owned(),
        }
    }

    /// Loads a kernel. The driver may be in the middle of a capture by this thread.
    ///
    /// Errors: [`Error::NoImage`] with every attempt.
    pub fn kernel(&self, variant: Variant) -> Result<CudaFunction> {
        let mut attempts = Vec::new();
        match IMAGES.get(variant as usize) {
            None => attempts.push(NO_IMAGE.to_owned()),
            Some(image) => match self.loaded(Ptx::from_binary(image.to_vec()), variant.symbol()) {
                Ok(function) => return Ok(function),
                Err(error) => attempts.push(format!("the image of the build: {}", image_failure(error)?)),
            },
        }
        if self.compilers.is_empty() {
            attempts.push(NO_COMPILER.to_owned());
        }
        for nvrtc in &self.compilers {
            match self.compiled(nvrtc, variant) {
                Err(log) => attempts.push(format!("{}: {log}", nvrtc.name())),
                Ok(cubin) => match self.loaded(Ptx::from_binary(cubin), variant.symbol()) {
                    Ok(function) => return Ok(function),
                    Err(error) => attempts.push(format!("{}: {}", nvrtc.name(), image_failure(error)?)),
                },
            }
        }
        Err(self.no_image(attempts))
    }

    /// The empty kernel, where the driver has a compiler for it.
    pub fn empty(&self) -> Option<CudaFunction> {
        self.loaded(Ptx::from_src(EMPTY), "empty").ok()
    }

    fn loaded(&self, image: Ptx, symbol: &str) -> Result<CudaFunction, DriverError> {
        let _relaxed = RelaxedCapture::begun();
        self.context.load_module(image)?.load_function(symbol)
    }

    /// The cubin of a kernel, from the cache or from the compiler. Errors: the log of the compiler.
    fn compiled(&self, nvrtc: &Nvrtc, variant: Variant) -> Result<Vec<u8>, String> {
        compiled(&self.cache, nvrtc, variant, &self.target, &self.notice)
    }

    fn no_image(&self, attempts: Vec<String>) -> Error {
        Error::NoImage {
            device: self.device.clone(),
            driver: self.driver.clone(),
            attempts,
            remedy: "build critbeta where nvcc is, install NVRTC of the driver's CUDA version \
                     (pip install nvidia-cuda-nvrtc, on LD_LIBRARY_PATH), or update the driver",
        }
    }
}

const NO_IMAGE: &str = "this build has no images (no nvcc was there)";
const NO_COMPILER: &str = "NVRTC: no libnvrtc.so.13 or .12, nor one in CUDA_HOME";

fn compiled(
    cache: &Cache,
    nvrtc: &Nvrtc,
    variant: Variant,
    target: &str,
    notice: &(dyn Fn(&str) + Sync),
) -> Result<Vec<u8>, String> {
    let source = sources::translation_unit(variant as usize);
    let ((major, minor), hash) = (nvrtc.version, cache::hash(source.as_bytes()));
    let name = format!("{variant}-{hash:016x}-{target}-nvrtc{major}.{minor}.cubin");
    let what = format!("compiling {variant} for {target} by NVRTC {major}.{minor}");
    cache.image(&name, &what, notice, || nvrtc.compile(&source, target))
}

/// The text for an image that does not fit the device or the driver. Any other failure of the driver is an
/// error.
fn image_failure(DriverError(code): DriverError) -> Result<String> {
    use CUresult::*;
    let number = code as u32;
    match code {
        // PTX for sm_80 has no clusters.
        CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_NOT_FOUND => {
            Ok(format!("error {number}, it has no kernel for this device"))
        }
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_INVALID_IMAGE | CUDA_ERROR_INVALID_PTX => {
            Ok(format!("error {number}, the driver does not know its CUDA version"))
        }
        _ => Err(Error::Cuda { call: "loading a kernel".into(), code: number, name: format!("{code:?}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Prints the seconds; the bound is wide, because other tests run beside this one.
    #[test]
    fn nvrtc_compiles_a_kernel_without_a_header_and_the_cache_keeps_it() {
        let Some(nvrtc) = Nvrtc::found().into_iter().next() else {
            eprintln!("skipped nvrtc_compiles_a_kernel_without_a_header: no NVRTC here");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(Some(folder.path().into()));
        let begun = Instant::now();
        let made = compiled(&cache, &nvrtc, Variant::CriticalSoftmaxF32Cluster256x1, "sm_90", &|_| ());
        let made = made.unwrap_or_else(|log| panic!("{log}"));
        eprintln!("compiled {} bytes in {:?}", made.len(), begun.elapsed());
        let symbol = Variant::CriticalSoftmaxF32Cluster256x1.symbol().as_bytes();
        let holds = |symbol: &[u8]| made.windows(symbol.len()).any(|bytes| bytes == symbol);
        assert!(holds(symbol) && !holds(b"critical_softmax_f32_block256x1"));
        let refused = |_: &str| panic!("compiled again");
        let again = compiled(&cache, &nvrtc, Variant::CriticalSoftmaxF32Cluster256x1, "sm_90", &refused);
        assert_eq!(again, Ok(made));
        let broken = nvrtc.compile("__global__ void broken() { absent(); }", "sm_90");
        assert!(broken.unwrap_err().contains("absent"));
    }
}
