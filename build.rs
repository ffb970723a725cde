//! Reads the table of kernels. Builds their image if it finds nvcc, and their simulator (feature `simt`) if
//! it finds a C++ compiler. Uses neither a network nor a GPU.

use std::{collections::BTreeSet, env, fmt::Display, fs, path::Path, path::PathBuf, process::Command};

/// Every generation for which kernels are tuned, and PTX that a driver compiles for later ones.
const ARCHS: &str = "sm_80,sm_90,sm_100,sm_120,compute_80";

fn main() {
    println!("cargo::rerun-if-changed=kernels\ncargo::rustc-check-cfg=cfg(critbeta_simulator)");
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
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..].to_lowercase()).collect()
}

/// Writes kernels.fatbin: the given one, one made by nvcc, or an empty file, and then NVRTC compiles at run
/// time.
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
    let runs = |nvcc: &PathBuf| version(nvcc).is_ok_and(|ran| ran.status.success());
    given.chain([Some("nvcc".into()), python]).flatten().find(runs)
}

/// One fatbin of all kernels. They are one translation unit, so that what they share is parsed once.
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
        let (_, number) = done(arch.split_once('_').ok_or(arch), "CRITBETA_CUDA_ARCHS: no sm_NN, compute_NN");
        command.arg("-gencode").arg(format!("arch=compute_{number},code={arch}"));
    }
    let status = done(command.arg("-o").arg(fatbin).arg(&all).status(), "nvcc");
    if !status.success() {
        fail(&format!("{command:?}: {status}"));
    }
}

#[cfg(feature = "simt")]
fn simulator() {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).file("kernels/simt/host.cpp").include("kernels");
    // Gaps and roundings must be those of a GPU, bit for bit, so no operations may be contracted.
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-Wno-unknown-pragmas");
    // scripts/simt-check.sh. rustc leaves out gcc's libraries; of two runtimes only one may be whole.
    if let Some(kind) = variable("CRITBETA_SIMT_SANITIZE") {
        build.opt_level(1).flag(format!("-fsanitize={kind}")).flag("-fno-sanitize-recover=all");
        let whole = if kind.contains("address") { "libasan.a" } else { "libubsan.a" };
        println!("cargo::rustc-link-arg=-Wl,--whole-archive,-l:{whole},--no-whole-archive,-l:libubsan.a,-lm");
    }
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

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1)
}
