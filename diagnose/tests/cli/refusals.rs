//! What the command refuses and how it says so. It must leave nothing behind.

use super::build::{f32s, npy, safetensors};
use super::*;

#[test]
fn usage_errors_exit_2_and_name_what_was_typed() {
    for (args, says) in [
        (&["diagnose"][..], "<FILE>"),
        (&["diagnose", EXAMPLE, "--beta", "-1"], "--beta"),
        (&["diagnose", EXAMPLE, "--beta", "nan"], "finite"),
        (&["diagnose", EXAMPLE, "--scale", "0"], "> 0"),
        (&["diagnose", EXAMPLE, "--resolve", "inf"], "finite"),
        (&["diagnose", EXAMPLE, "--top-k", "0"], "1..=2048"),
        (&["diagnose", EXAMPLE, "--top-k", "2049"], "1..=2048"),
        (&["diagnose", EXAMPLE, "--threads", "0"], "1 to 1024"),
        (&["diagnose", EXAMPLE, "--calibration", "-"], "not stdout"),
        (&["diagnose", EXAMPLE, "--calibration", "c.json", "--top-k", "9"], "cannot be used with"),
        (&["diagnose", EXAMPLE, "--rows", "rows.txt"], ".jsonl, .csv or .parquet"),
        (&["softmax", "a.npy", "--out", "b.npy", "--rescaling", "logn"], "unknown name \"logn\""),
        (&["softmax", "a.npy", "--out", "b.npy", "--rescaling", "ssmax"], "s is missing"),
        (&["softmax", "a.npy", "--out", "b.npy", "--rescaling", "identity", "--dtype", "int8"], "int8"),
        (&["laws", "--n", "0"], "0"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let error = stderr(2, args);
        assert!(error.contains(says), "{args:?}: {error}");
    }
}

#[test]
fn bad_input_exits_1_naming_the_file_and_leaves_no_output() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let cut = build::write(directory.path(), "cut.npy", &npy("<f4", false, "(2, 4)", &f32s(7)));
    let pairs = safetensors(&build::pair(), None);
    let pairs = build::write(directory.path(), "pairs.safetensors", &pairs);
    let good = build::write(directory.path(), "good.npy", &npy("<f4", false, "(2, 4)", &f32s(8)));
    std::fs::write(at("no.json"), "{\"heads\": 3}").unwrap();
    let before = names(directory.path());
    let (rows, json, calibration, out) = (at("r.csv"), at("s.json"), at("c.json"), at("out.npy"));
    let outputs = ["--rows", text(&rows), "--json", text(&json), "--calibration", text(&calibration)];
    let diagnose =
        |file: &Path, more: &[&str]| stderr(1, &[&["diagnose", text(file)], more, &outputs[..]].concat());
    let softmax = |file: &Path, out: &Path, more: &[&str]| {
        stderr(1, &[&["softmax", text(file), "--out", text(out), "--rescaling"], more].concat())
    };
    let no_calibration = format!("calibrated:{}", at("no.json").display());
    for (error, says) in [
        (diagnose(&at("absent.npy"), &[]), ["absent.npy", "No such file"]),
        (diagnose(&cut, &[]), ["cut.npy", "28 bytes, expected 32"]),
        (diagnose(&pairs, &["--tensor", "b"]), ["pairs.safetensors", "has no tensor \"b\", but \"a\""]),
        (diagnose(&good, &["--scale", "2"]), ["good.npy", "--scale is for pairs"]),
        (softmax(&pairs, &at("o.safetensors"), &["identity"]), ["pairs.safetensors", "expected scores"]),
        (softmax(&good, &at("o.safetensors"), &["identity"]), ["o.safetensors", "extension"]),
        (softmax(&good, &out, &["identity", "--dtype", "bf16"]), ["out.npy", "no bf16"]),
        (softmax(&good, &good, &["identity"]), ["good.npy", "named twice"]),
        (softmax(&good, &at("absent/out.npy"), &["identity"]), ["absent", "No such file"]),
        (softmax(&good, &out, &["calibrated:absent.json"]), ["absent.json", "No such file"]),
        (softmax(&good, &out, &[&no_calibration]), ["no.json", "not a calibration"]),
    ] {
        assert!(
            says.iter().all(|what| error.contains(what)) && error.lines().count() == 1,
            "{says:?}: {error}"
        );
    }
    assert_eq!(names(directory.path()), before);
    assert_eq!(std::fs::read(&good).unwrap(), npy("<f4", false, "(2, 4)", &f32s(8)));
}

#[test]
fn outputs_may_not_meet_each_other_or_an_input() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.csv");
    let same = stderr(1, &["diagnose", EXAMPLE, "--rows", text(&out), "--json", text(&out)]);
    assert!(same.contains("x.csv") && same.contains("named twice"), "{same}");
    let before = std::fs::read(EXAMPLE_FILE).unwrap();
    let input = stderr(1, &["diagnose", EXAMPLE, "--json", EXAMPLE]);
    assert!(input.contains("named twice"), "{input}");
    assert_eq!(std::fs::read(EXAMPLE_FILE).unwrap(), before);
    assert!(names(directory.path()).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_nothing_is_half_written() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["full.jsonl", "full.csv", "full.parquet"] {
        std::os::unix::fs::symlink("/dev/full", at(name)).unwrap();
        let json = at("summary.json");
        let error = stderr(1, &["diagnose", EXAMPLE, "--rows", text(&at(name)), "--json", text(&json)]);
        assert!(error.contains(name) && error.contains("No space left"), "{error}");
        assert!(!json.exists());
    }
    let error = stderr(1, &["diagnose", EXAMPLE, "--json", "/dev/full"]);
    assert_eq!(error, "error: /dev/full: No space left on device (os error 28)\n");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&["laws"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, b"error: stdout: No space left on device (os error 28)\n");
}

#[cfg(target_os = "linux")]
#[test]
fn rows_that_nobody_can_have_memory_for_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("long.safetensors");
    // The sparse file has 2^41 keys in 4 TiB.
    let header = r#"{"a.q":{"dtype":"F16","shape":[1,1,1],"data_offsets":[0,2]},"a.k":{"dtype":"F16","shape":[1,2199023255552,1],"data_offsets":[2,4398046511106]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(&file, &bytes).unwrap();
    let sparse = std::fs::File::options().write(true).open(&file).unwrap();
    if sparse.set_len(bytes.len() as u64 + 4_398_046_511_106).is_err() {
        eprintln!("skipped rows_that_nobody_can_have_memory_for_are_refused: no files of 4 TiB here");
        return;
    }
    let error = stderr(1, &["diagnose", text(&file)]);
    assert!(error.contains("long.safetensors") && error.contains("GiB of memory"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_whose_reader_hangs_up_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let pipe = at("rows.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || drop(std::fs::File::open(pipe).unwrap())
    });
    let json = at("summary.json");
    let error = stderr(1, &["diagnose", EXAMPLE, "--rows", text(&pipe), "--json", text(&json)]);
    assert!(error.contains("rows.jsonl: Broken pipe") && !json.exists(), "{error}");
    reader.join().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_ended_leaves_nothing_behind() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // The pipe is opened last and has no reader, so the run waits there after it has begun its other
        // outputs.
        let (json, pipe) = (at("summary.json"), at("rows.jsonl"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let args = ["diagnose", EXAMPLE, "--rows", text(&pipe), "--json", text(&json)];
        let mut child = command(&args).spawn().unwrap();
        while names(directory.path()).len() < 2 {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert_eq!(names(directory.path()), ["rows.jsonl"], "{signal}");
    }
}

/// The instruction set in the environment variable computes the same. A missing one is refused.
#[test]
fn lanes_are_chosen_by_a_name_that_this_machine_has() {
    let under = |name: &str, args: &[&str]| {
        command(args).env(critbeta::cpu::InstructionSet::VARIABLE, name).output().unwrap()
    };
    let args = ["diagnose", EXAMPLE, "--device", "cpu"];
    let expected = stdout(&args);
    for set in critbeta::cpu::InstructionSet::supported() {
        let output = under(&set.to_string(), &args);
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{set}");
    }
    let refused = under("sse9", &args);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("CRITBETA_LANES is \"sse9\": this machine has"), "{error}");
}
