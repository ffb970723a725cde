//! Gives the shared library its soname. cargo-c gives it itself.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let cargo_c = std::env::var_os("CARGO_FEATURE_CAPI").is_some();
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") && !cargo_c {
        // As cargo-c has it: a new minor version before 1.0 is a new interface.
        let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcritbeta.so.{major}.{minor}");
    }
}
