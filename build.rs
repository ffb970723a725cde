//! Reads the table of kernels; builds their image where nvcc is found, and their simulator (feature `simt`)
//! where a C++ compiler is. Asks neither a network nor a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{collections::BTreeSet, env, fmt::Display, fs};

/// Every generation that kernels are tuned for, and PTX that the driver compiles for those to come.
const ARCHS: &str = "sm_80,sm_90,sm_100,sm_120,compute_80";

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rustc-check-cfg=cfg(critbeta_simulator)");
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default());
    let table = done(fs::read_to_string("kernels/variants.def"), "kernels/variants.def");
    done(fs::write(out.join("variants.rs"), variants(&table)), "variants.rs");
    if cfg!(feature = "cuda") {
        image(&out);
    }
    #[cfg(feature = "simt")]
    simulator();
}

/// `FAMILY(dtype, scope, threads, ctas)` lines as one invocation of `variants!` (src/cuda/variants.rs).
fn variants(table: &str) -> String {
    let mut rows = String::from("variants! {\n");
    let is_row = |line: &&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with('#');
    for line in table.lines().map(str::trim).filter(is_row) {
        let parsed = line.split_once('(').and_then(|(family, rest)| {
            let fields: Vec<&str> = rest.strip_suffix(')')?.split(',').map(str::trim).collect();
            let [dtype, scope, threads, ctas] = fields[..] else { return None };
            let symbol = format!("{}_{dtype}_{scope}{threads}x{ctas}", family.to_lowercase());
            let [name, family, dtype, scope] = [&symbol, family, dtype, scope].map(camel);
            Some(format!("    {name}, {symbol:?}, {family}, {dtype}, {scope}, {threads}, {ctas};\n"))
        });
        rows += &done(parsed.ok_or(line), "kernels/variants.def: not FAMILY(dtype, scope, threads, ctas)");
    }
    rows + "}\n"
}

fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..].to_lowercase();
    name.split('_').filter(|part| !part.is_empty()).map(word).collect()
}

/// Writes kernels.fatbin: the one given, one made by nvcc, or an empty file.
fn image(out: &Path) {
    let fatbin = out.join("kernels.fatbin");
    if let Some(given) = variable("CRITBETA_FATBIN") {
        println!("cargo::rerun-if-changed={given}");
        done(fs::copy(&given, &fatbin), "CRITBETA_FATBIN");
    } else if let Some(nvcc) = nvcc() {
        compile(&nvcc, out, &fatbin);
    } else if variable("CRITBETA_REQUIRE_CUDA").is_some_and(|value| value != "0") {
        fail("CRITBETA_REQUIRE_CUDA: no nvcc, set NVCC, CUDA_HOME or PATH, or CRITBETA_FATBIN to an image");
    } else {
        // Where a GPU is met, NVRTC compiles the kernels from their embedded sources.
        done(fs::write(&fatbin, []), "kernels.fatbin");
    }
}

fn nvcc() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].map(|home| Some(Path::new(&variable(home)?).join("bin/nvcc")));
    let site = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='/nvidia/cu13/bin/nvcc')"];
    let python = Command::new("python3").args(site).output().ok();
    let python = python.map(|nvcc| String::from_utf8_lossy(&nvcc.stdout).into_owned().into());
    let given = [variable("NVCC").map(PathBuf::from)].into_iter().chain(homes);
    let version = |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output();
    let runs = |nvcc: &PathBuf| version(nvcc).is_ok_and(|told| told.status.success());
    given.chain([Some("nvcc".into()), python]).flatten().find(runs)
}

/// One fatbin of all kernels: they are one translation unit, so that what they share is parsed once.
fn compile(nvcc: &Path, out: &Path, fatbin: &Path) {
    let files = done(fs::read_dir("kernels"), "kernels").flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let names = names.filter(|name| name.ends_with(".cu")).collect::<BTreeSet<String>>().into_iter();
    let (all, includes) = (out.join("kernels.cu"), names.map(|name| format!("#include \"{name}\"\n")));
    done(fs::write(&all, includes.collect::<String>()), "kernels.cu");
    let archs = variable("CRITBETA_CUDA_ARCHS").unwrap_or_else(|| ARCHS.to_owned());
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "-lineinfo", "--threads", "0", "-I", "kernels"]);
    for arch in archs.split([',', ' ']).filter(|arch| !arch.is_empty()) {
        let number = arch.split_once('_').ok_or(arch).map(|(_, number)| number);
        let number = done(number, "CRITBETA_CUDA_ARCHS: not sm_NN or compute_NN");
        command.arg("-gencode").arg(format!("arch=compute_{number},code={arch}"));
    }
    let ran = done(command.arg("-o").arg(fatbin).arg(&all).output(), "nvcc");
    if !ran.status.success() {
        let told = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        fail(&format!("{command:?}: {}\n{told}", ran.status));
    }
}

#[cfg(feature = "simt")]
fn simulator() {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).file("kernels/simt/host.cpp").include("kernels");
    // Gaps and roundings must be those of the GPU, bit for bit: no contraction behind the kernels' back.
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
    let compiler = build.try_get_compiler().map(|compiler| compiler.to_command().arg("--version").output());
    if matches!(compiler, Ok(Ok(_))) {
        done(build.try_compile("critbeta_simt"), "the simulator");
        println!("cargo::rustc-cfg=critbeta_simulator");
    }
}

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn done<T, E: Display>(result: Result<T, E>, what: &str) -> T {
    result.unwrap_or_else(|e| fail(&format!("{what}: {e}")))
}

fn fail(told: &str) -> ! {
    eprintln!("error: {told}");
    std::process::exit(1)
}
