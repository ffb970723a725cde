//! The images of the kernels, as build.rs makes them. It is a module of the build script, not of the library.

use super::{done, fail, sources, variable};
use std::{env, fs, path::Path, path::PathBuf, process::Command};

/// The generation that kernels are tuned for, and PTX that a driver compiles for others.
const ARCHS: &str = "sm_90,compute_90,compute_80";

/// Writes images.rs, a list with the image of every kernel: SYMBOL.fatbin of a given folder, or made by nvcc.
/// Otherwise the list is empty, and NVRTC compiles at run time.
pub fn write(symbols: &[String], out: &Path) {
    let folder = match variable("CRITBETA_FATBINS") {
        Some(given) => {
            println!("cargo::rerun-if-changed={given}");
            Some(done(fs::canonicalize(&given), "CRITBETA_FATBINS"))
        }
        None => nvcc().map(|nvcc| {
            compile(&nvcc, symbols, out);
            out.to_owned()
        }),
    };
    if folder.is_none() && variable("CRITBETA_REQUIRE_CUDA").is_some_and(|value| value != "0") {
        fail(
            "CRITBETA_REQUIRE_CUDA: no nvcc, set NVCC, CUDA_HOME or PATH, or CRITBETA_FATBINS to its images",
        );
    }
    let included = symbols.iter().filter_map(|symbol| {
        let image = folder.as_ref()?.join(format!("{symbol}.fatbin"));
        Some(format!("    include_bytes!({image:?}),\n"))
    });
    let list = format!("&[\n{}]\n", included.collect::<String>());
    done(fs::write(out.join("images.rs"), list), "images.rs");
}

fn nvcc() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].map(|home| Some(Path::new(&variable(home)?).join("bin/nvcc")));
    let site = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='/nvidia/cu13/bin/nvcc')"];
    let python = Command::new("python3").args(site).output().ok();
    let python = python.map(|nvcc| String::from_utf8_lossy(&nvcc.stdout).into_owned().into());
    let given = [variable("NVCC").map(PathBuf::from)].into_iter().chain(homes);
    let version = |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output();
    let runs = |nvcc: &PathBuf| version(nvcc).is_ok_and(|ran| ran.status.success());
    given.chain([Some("nvcc".into()), python]).flatten().find(runs)
}

/// One fatbin a kernel, on as many cores as cargo may use. One unit of all kernels took one core 130 s and
/// more (2026-11-29). What an earlier build made of the same text is kept.
fn compile(nvcc: &Path, symbols: &[String], out: &Path) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let archs = variable("CRITBETA_CUDA_ARCHS").unwrap_or_else(|| ARCHS.to_owned());
    let mut options: Vec<String> = ["-fatbin", "-O3", "-std=c++17"].map(str::to_owned).into();
    for arch in archs.split([',', ' ']).filter(|arch| !arch.is_empty()) {
        let (_, number) = done(arch.split_once('_').ok_or(arch), "CRITBETA_CUDA_ARCHS: no sm_NN, compute_NN");
        options.extend(["-gencode".to_owned(), format!("arch=compute_{number},code={arch}")]);
    }
    let one = |row: usize| {
        let symbol = &symbols[row];
        let file = |ending: &str| out.join(format!("{symbol}{ending}"));
        let (source, begun, image) = (file(".cu"), file(".begun.fatbin"), file(".fatbin"));
        let text = format!("// {nvcc:?} {options:?}\n{}", sources::translation_unit(row));
        if image.exists() && fs::read_to_string(&source).is_ok_and(|made| made == text) {
            return;
        }
        let _older = fs::remove_file(&image);
        done(fs::write(&source, text), "a kernel");
        let mut command = Command::new(nvcc);
        command.args(&options).arg("-o").arg(&begun).arg(&source);
        let status = done(command.status(), "nvcc");
        if !status.success() {
            fail(&format!("{command:?}: {status}"));
        }
        done(fs::rename(begun, image), "an image");
    };
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let rows = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&row| row < symbols.len());
                std::iter::from_fn(rows).for_each(one);
            });
        }
    });
}
