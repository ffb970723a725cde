//! Reads the table of kernels. Builds an image of each if it finds nvcc, and their simulator (feature `simt`)
//! if it finds a C++ compiler. Uses neither a network nor a GPU.

use std::{env, fmt::Display, fs, path::Path, path::PathBuf};

#[cfg(feature = "cuda")]
use std::process::Command;

#[cfg(feature = "cuda")]
#[allow(dead_code)] // its tests, which run in the library
#[path = "src/cuda/sources.rs"]
mod sources;

/// The generation that kernels are tuned for, and PTX that a driver compiles for others.
#[cfg(feature = "cuda")]
const ARCHS: &str = "sm_90,compute_90,compute_80";

fn main() {
    println!("cargo::rerun-if-changed=kernels\ncargo::rustc-check-cfg=cfg(critbeta_simulator)");
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default());
    let table = done(fs::read_to_string("kernels/variants.def"), "kernels/variants.def");
    let symbols = variants(&table, &out);
    #[cfg(feature = "cuda")]
    images(&symbols, &out);
    #[cfg(not(feature = "cuda"))]
    let _images_of = symbols;
    #[cfg(feature = "simt")]
    simulator();
}

/// Writes the `FAMILY(dtype, scope, threads, ctas)` lines as one invocation of `variants!`
/// (src/cuda/variants.rs), and returns their symbols.
fn variants(table: &str, out: &Path) -> Vec<String> {
    let (mut rows, mut symbols) = (String::from("variants! {\n"), Vec::new());
    let is_row = |line: &&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with('#');
    for line in table.lines().map(str::trim).filter(is_row) {
        let parsed = line.split_once('(').and_then(|(family, rest)| {
            let fields: Vec<&str> = rest.strip_suffix(')')?.split(',').map(str::trim).collect();
            let [dtype, scope, threads, ctas] = fields[..] else { return None };
            let symbol = format!("{}_{dtype}_{scope}{threads}x{ctas}", family.to_lowercase());
            let [name, family, dtype, scope] = [&symbol, family, dtype, scope].map(camel);
            let row = format!("    {name}, {symbol:?}, {family}, {dtype}, {scope}, {threads}, {ctas};\n");
            symbols.push(symbol);
            Some(row)
        });
        rows += &done(parsed.ok_or(line), "kernels/variants.def: not FAMILY(dtype, scope, threads, ctas)");
    }
    done(fs::write(out.join("variants.rs"), rows + "}\n"), "variants.rs");
    symbols
}

fn camel(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..].to_lowercase()).collect()
}

/// Writes images.rs, a list with the image of every kernel: SYMBOL.fatbin of a given folder, or made by nvcc.
/// Otherwise the list is empty, and NVRTC compiles at run time.
#[cfg(feature = "cuda")]
fn images(symbols: &[String], out: &Path) {
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

#[cfg(feature = "cuda")]
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
#[cfg(feature = "cuda")]
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
