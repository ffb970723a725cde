//! What this machine and this build have of CUDA, for `critbeta doctor`.

use super::simulator;
use super::variants::Variant;

/// Pairs of a name and a finding: the image in the build, the driver, run-time compilers, the simulator.
pub fn facts() -> Vec<(&'static str, String)> {
    let simulator = match simulator::IS_BUILT {
        true => "in this build (--device simt)".to_owned(),
        false => simulator::not_built().to_string(),
    };
    let mut facts = vec![("kernels", format!("{} variants", Variant::ALL.len()))];
    facts.extend(of_cuda());
    facts.push(("simulator of the kernels", simulator));
    facts
}

#[cfg(not(feature = "cuda"))]
fn of_cuda() -> Vec<(&'static str, String)> {
    vec![("CUDA", "not in this build: build with --features cuda".to_owned())]
}

#[cfg(feature = "cuda")]
fn of_cuda() -> Vec<(&'static str, String)> {
    use super::{driver, launch_cuda, loader};
    let image = match loader::image_bytes() {
        0 => "none in this build (no nvcc was there): NVRTC compiles each at its first launch".to_owned(),
        bytes => format!("{bytes} bytes in this build"),
    };
    let driver = match launch_cuda::driver_version() {
        Ok(version) => format!("for {}", driver::version_text(version)),
        Err(error) => error.to_string(),
    };
    let compilers: Vec<String> = launch_cuda::Nvrtc::found().iter().map(launch_cuda::Nvrtc::name).collect();
    let compilers = match compilers.is_empty() {
        true => "none (libnvrtc.so.13 or .12, on LD_LIBRARY_PATH or in CUDA_HOME)".to_owned(),
        false => compilers.join(", "),
    };
    vec![("image of the kernels", image), ("CUDA driver", driver), ("NVRTC", compilers)]
}
