//! The example `generate` on SmolLM2: rules reach the rows on every path, and a record never costs a run.

mod common;

use common::{calibration, generate, model, text};
use safetensors::SafeTensors;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

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

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn rules_give_the_same_tokens_on_every_path() {
    let folder = tempfile::tempdir().unwrap();
    let [rising, falling] =
        [0.5, -0.5].map(|xi| format!("calibrated:{},anchor=16", calibration(folder.path(), 9, xi)));
    let plain = ids(&[]);
    for rule in ["identity", "fixed:1.2", "qwen-logn:train=16", &rising, &falling, "critical:ratio=1,cap=3"] {
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

#[cfg(unix)]
#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_record_replaces_what_a_record_may() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let [link, old, fixed, of_model] = ["link", "old", "fixed", "model"].map(|name| folder.path().join(name));
    fs::write(&old, "old").unwrap();
    fs::write(&fixed, "fixed").unwrap();
    symlink(&old, &link).unwrap();
    symlink(model(), &of_model).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(&fixed, fs::Permissions::from_mode(0o444)).unwrap();
    let run = |to: &std::path::Path| {
        let output = generate(&[PROMPT, "--raw", "--tokens", "2", "--record", to.to_str().unwrap()]);
        (output.status.success(), text(&output.stderr))
    };
    let (success, said) = run(&of_model);
    assert!(!success && said.contains("named twice"), "{said}");
    assert!(fs::symlink_metadata(&of_model).unwrap().is_symlink());
    let (success, said) = run(&fixed);
    assert!(success && said.matches("warning:").count() == 1, "{said}");
    assert_eq!((fs::read(&fixed).unwrap(), mode(&fixed)), (b"fixed".to_vec(), 0o444));
    let (success, said) = run(&link);
    assert!(success && !said.contains("warning:"), "{said}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(SafeTensors::deserialize(&fs::read(&old).unwrap()).is_ok());
    assert_eq!(mode(&old), 0o640);

    // Ctrl-C leaves nothing.
    let files = || fs::read_dir(folder.path()).unwrap().count();
    let before = files();
    let mut command = common::example("generate");
    command.arg(model()).args([PROMPT, "--raw", "--ids", "--tokens", "4000", "--record"]);
    let mut child = command.arg(folder.path().join("new")).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    assert_eq!(files(), before + 1, "the record is on its way");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(files(), before);
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
    let few = format!("calibrated:{}", calibration(folder.path(), 8, 0.5));
    refused(&["--rescaling", &few], &["blk.0", "head 8", "not among the 240 heads"]);
    let many = format!("calibrated:{}", calibration(folder.path(), 10, 0.5));
    refused(&["--rescaling", &many], &["blk.0", "head 9", "9 query heads"]);
    refused(&["--rescaling", "critical", "--decode", "flash"], &["blk.0", "critical", "fused attention"]);
    refused(&["--rescaling", "unheard:of=1"], &["unheard"]);
    refused(&["--eps", "1"], &["eps 1", "below 1"]);
    refused(&["--tokens", "9000"], &["9", "context of 8192"]);
    refused(&["--tokens", "18446744073709551615"], &["--tokens 18446744073709551615", "more than"]);
    let broken = folder.path().join("broken.gguf");
    fs::write(&broken, b"GGUF\x03\0\0\0").unwrap();
    let output = common::example("generate").arg(&broken).arg("x").output().unwrap();
    assert!(
        !output.status.success() && text(&output.stderr).contains("broken.gguf"),
        "{}",
        text(&output.stderr)
    );
}
