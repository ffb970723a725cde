//! The model file, and the examples as programs.
#![allow(dead_code, reason = "each test uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The model file of `scripts/candle-test.sh`.
pub fn model() -> PathBuf {
    let path =
        std::env::var_os("CRITBETA_GGUF").expect("CRITBETA_GGUF: expected the path of SmolLM2's GGUF file");
    PathBuf::from(path)
}

/// An example that cargo has built beside this test.
pub fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not there: build it with cargo build --examples", path.display());
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

/// Runs `generate` on the model. Its weights are f32, so that rounding does not choose tokens.
pub fn generate(args: &[&str]) -> Output {
    let mut command = example("generate");
    command.env("CANDLE_DEQUANTIZE_ALL", "1").arg(model()).args(args);
    command.output().unwrap()
}

/// The text of a stream.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A calibration of SmolLM2 in which every head has a law of its own, with this xi.
pub fn calibration(folder: &Path, heads: usize, xi: f64) -> String {
    let entries = (0..30).flat_map(|layer| (0..heads).map(move |head| (layer, head))).map(|(layer, head)| {
        let c = 1.0 + 0.1 * head as f64;
        let law = format!("{{\"c\":{c},\"xi\":{xi},\"conclusive\":true,\"interval\":[{xi},{xi}]}}");
        format!("{{\"layer\":\"blk.{layer}\",\"head\":{head},\"critical\":{law},\"resolved\":null}}")
    });
    let entries = entries.collect::<Vec<_>>().join(",");
    let path = folder.join(format!("calibration-{heads}-{xi}.json"));
    fs::write(
        &path,
        format!("{{\"critbeta\":\"0.1.0\",\"resolve\":0.0,\"exclude_sink\":0,\"heads\":[{entries}]}}"),
    )
    .unwrap();
    path.to_string_lossy().into_owned()
}
