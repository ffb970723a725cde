//! `critbeta.h` is what cbindgen makes of the sources. `CRITBETA_HEADER=write` writes it.

use std::path::Path;

/// The files whose items are in the header, in its order.
const SOURCES: [&str; 7] = ["status", "engine", "rules", "reports", "rows", "attention", "entries"];

#[test]
fn the_header_is_what_cbindgen_makes_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join(format!("src/{source}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let (made, path) = (String::from_utf8(made).unwrap(), root.join("critbeta.h"));
    if std::env::var_os("CRITBETA_HEADER").is_some_and(|wish| wish == "write") {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let at = made.lines().zip(kept.lines()).position(|(made, kept)| made != kept);
    assert!(
        made == kept,
        "critbeta.h is not fresh from line {at:?} on: CRITBETA_HEADER=write cargo test writes it"
    );
    // Nothing of the inside, and all of the outside.
    for name in ["critbeta_softmax(", "critbeta_rule_betas(", "CRITBETA_INTERNAL 6", "critbeta_row_report"] {
        assert!(kept.contains(name), "{name}");
    }
    for name in ["Handle", "Failure", "__tvm_ffi"] {
        assert!(!kept.contains(name), "{name}");
    }
}
