//! The example `generate` on SmolLM2: rules reach the rows on every path, and a record never costs a run.

mod common;

use common::{generate, text};
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

const PROMPT: &str = "In 1969 the first men walked on the Moon.";

/// The ids that a run prints.
fn ids(args: &[&str]) -> String {
    let output = generate(&[&[PROMPT, "--raw", "--ids", "--tokens", "48"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn it_answers_in_its_chat_template() {
    let output = generate(&["What is the capital of France?", "--tokens", "24"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("Paris"), "{}", text(&output.stdout));
}

/// A calibration in which every head has a law of its own.
fn calibration(folder: &Path, heads: usize) -> String {
    let entries = (0..30).flat_map(|layer| (0..heads).map(move |head| (layer, head))).map(|(layer, head)| {
        let law = format!(
            "{{\"c\":{},\"xi\":0.5,\"conclusive\":true,\"interval\":[0.4,0.6]}}",
            1.0 + 0.1 * head as f64
        );
        format!("{{\"layer\":\"blk.{layer}\",\"head\":{head},\"critical\":{law},\"resolved\":null}}")
    });
    let heads = entries.collect::<Vec<_>>().join(",");
    let path = folder.join(format!("calibration-{}.json", heads.len()));
    fs::write(
        &path,
        format!("{{\"critbeta\":\"0.1.0\",\"resolve\":0.0,\"exclude_sink\":0,\"heads\":[{heads}]}}"),
    )
    .unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn rules_give_the_same_tokens_on_every_path() {
    let folder = tempfile::tempdir().unwrap();
    let calibrated = format!("calibrated:{},anchor=16", calibration(folder.path(), 9));
    let plain = ids(&[]);
    for rule in ["identity", "fixed:1.2", "qwen-logn:train=16", &calibrated, "critical:ratio=1,cap=3"] {
        let found = ids(&["--rescaling", rule]);
        // What decode does by itself, the others do by a factor of the queries or by the softmax.
        assert_eq!(found, ids(&["--rescaling", rule, "--decode", "grouped"]), "{rule}");
        assert_eq!(found == plain, rule == "identity", "{rule} changes the text");
        if !rule.starts_with("critical") {
            assert_eq!(found, ids(&["--rescaling", rule, "--decode", "flash"]), "{rule}");
        }
    }
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_record_has_what_diagnose_reads_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qk.safetensors");
    let recorded = ids(&["--record", path.to_str().unwrap(), "--record-rows", "20"]);
    assert_eq!(recorded, ids(&[]));
    let bytes = fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["scale"], "0.125");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 61);
    let positions: Vec<i64> = {
        let data = tensors.tensor("positions").unwrap();
        data.data().chunks_exact(8).map(|of| i64::from_le_bytes(of.try_into().unwrap())).collect()
    };
    let (rows, keys) = (positions.len(), tensors.tensor("blk.0.k").unwrap().shape()[1]);
    assert!((15..=20).contains(&rows) && positions.iter().all(|&at| (at as usize) < keys), "{positions:?}");
    for layer in 0..30 {
        assert_eq!(tensors.tensor(&format!("blk.{layer}.q")).unwrap().shape(), [9, rows, 64]);
        assert_eq!(tensors.tensor(&format!("blk.{layer}.k")).unwrap().shape(), [3, keys, 64]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the record is left");
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_failing_record_warns_once_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::create_dir_all(taken.join("full")).unwrap();
    let plain = generate(&[PROMPT, "--raw", "--ids", "--tokens", "8"]);
    // A folder that does not exist fails at the start, and a place that is taken at the end.
    for path in [folder.path().join("none/qk.safetensors"), taken.clone()] {
        let args = [PROMPT, "--raw", "--ids", "--tokens", "8", "--record", path.to_str().unwrap()];
        let output = generate(&args);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(output.stdout, plain.stdout);
        assert_eq!(said.matches("warning:").count(), 1, "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left");
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_rule_that_cannot_apply_is_refused_before_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], parts: &[&str]| {
        let output = generate(&[&[PROMPT], args].concat());
        let said = text(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)) && !said.contains("panicked"), "{said}");
    };
    let few = format!("calibrated:{}", calibration(folder.path(), 8));
    refused(&["--rescaling", &few], &["blk.0", "head 8", "not among the 240 heads"]);
    let many = format!("calibrated:{}", calibration(folder.path(), 10));
    refused(&["--rescaling", &many], &["blk.0", "head 9", "9 query heads"]);
    refused(&["--rescaling", "critical", "--decode", "flash"], &["blk.0", "critical", "fused attention"]);
    refused(&["--rescaling", "unheard:of=1"], &["unheard"]);
    refused(&["--eps", "1"], &["eps 1", "below 1"]);
    refused(&["--tokens", "9000"], &["9", "context of 8192"]);
    let broken = folder.path().join("broken.gguf");
    fs::write(&broken, b"GGUF\x03\0\0\0").unwrap();
    let output = common::example("generate").arg(&broken).arg("x").output().unwrap();
    assert!(
        !output.status.success() && text(&output.stderr).contains("broken.gguf"),
        "{}",
        text(&output.stderr)
    );
}
