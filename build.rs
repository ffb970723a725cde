//! Reads the table of kernels. Builds an image of each if it finds nvcc, and their simulator (feature `simt`)
//! if it finds a C++ compiler. Uses neither a network nor a GPU.

use std::{env, fmt::Display, fs, path::Path, path::PathBuf};

#[cfg(feature = "cuda")]
#[path = "src/cuda/images.rs"]
mod images;
#[cfg(feature = "cuda")]
#[allow(dead_code)] // its tests, which run in the library
#[path = "src/cuda/sources.rs"]
mod sources;

fn main() {
    println!("cargo::rerun-if-changed=kernels\ncargo::rustc-check-cfg=cfg(critbeta_simulator)");
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default());
    let table = done(fs::read_to_string("kernels/variants.def"), "kernels/variants.def");
    let symbols = variants(&table, &out);
    #[cfg(feature = "cuda")]
    images::write(&symbols, &out);
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
