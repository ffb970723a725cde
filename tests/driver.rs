//! An engine and the host process: whose context is current, who compiles, and what stands on disk.
//!
//! The CUDA driver and NVRTC are small libraries in C, so this runs without a GPU. They must be found when
//! the process starts, so every test runs this executable again as a host. Without a C compiler it is
//! skipped.
#![cfg(all(feature = "cuda", target_os = "linux"))]

use critbeta::cpu::Measure;
use critbeta::cuda::Engine;
use critbeta::{Rescaling, Scores};
use cudarc::driver::result::ctx::get_current;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Builds both libraries in `folder`. False without a C compiler.
fn libraries(folder: &Path) -> bool {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    for (source, library) in [("cuda.c", "libcuda.so.1"), ("nvrtc.c", "libnvrtc.so.13")] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver").join(source);
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(folder.join(library)).arg(from);
        match command.status() {
            Ok(status) => assert!(status.success(), "{command:?}"),
            Err(_) => return false,
        }
    }
    true
}

/// The test in which a process that has `DRIVER_CURRENT` in its environment is a host.
const HOST: &str = "the_context_of_the_caller_stays_current";

/// This executable as a host process with the libraries of `folder`.
fn started(folder: &Path, home: Option<&Path>, current: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for name in ["XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"] {
        command.env_remove(name);
    }
    command.envs(home.map(|home| ("XDG_CACHE_HOME", home)));
    command
        .args(["--exact", HOST, "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env("NVRTC_LOG", folder.join("log"))
        .env("DRIVER_CURRENT", current)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the process said on stderr, after it succeeded.
fn said(host: Child) -> String {
    let done = host.wait_with_output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{said}");
    said
}

/// Calls an engine in every way, and checks after each that the context of the host is current.
fn be_host(current: &str) {
    let own = || get_current().unwrap().map(|context| context as usize);
    let expected = (current != "none").then_some(0x77);
    let engine = Engine::cuda(0).unwrap();
    assert_eq!(own(), expected, "after opening");
    let mut memory = engine.uploaded(&[7; 100]).unwrap();
    assert_eq!(own(), expected, "after an upload");
    engine.upload(&mut memory, 3, &[8; 5]).unwrap();
    let mut back = [0; 100];
    engine.download(&memory, 0, &mut back).unwrap();
    assert_eq!((back[2], back[3], back[8]), (7, 8, 7));
    assert_eq!(own(), expected, "after a download");
    engine.synchronize().unwrap();
    assert_eq!(own(), expected, "after waiting");
    let scores = [0.0f32; 32];
    let rows = Scores::dense(&scores, 2, 16).unwrap();
    engine.row_reports(&rows, 1.0, Measure::default()).unwrap();
    assert_eq!(own(), expected, "after reports");
    engine.softmax(&rows, &Rescaling::Identity, None, &mut [0.0; 32]).unwrap();
    assert_eq!(own(), expected, "after a softmax");
    let (mut to, mut flush) = (engine.zeroed(100).unwrap(), engine.zeroed(64).unwrap());
    engine.time_copy(&memory, &mut to, &mut flush).unwrap();
    assert_eq!(own(), expected, "after timing");
    // Memory and the engine are often freed by another thread than the one that made them.
    std::thread::spawn(move || {
        drop(memory);
        assert_eq!(own(), expected, "after freeing memory");
        drop((to, flush, engine));
        assert_eq!(own(), expected, "after closing");
    })
    .join()
    .unwrap();
    assert!(Engine::cuda(1).is_err());
    assert_eq!(own(), expected, "after an error");
}

#[test]
fn the_context_of_the_caller_stays_current() {
    if let Ok(current) = std::env::var("DRIVER_CURRENT") {
        return be_host(&current);
    }
    let folder = tempfile::tempdir().unwrap();
    if !libraries(folder.path()) {
        eprintln!("skipped the_context_of_the_caller_stays_current: no C compiler");
        return;
    }
    for current in ["theirs", "none"] {
        said(started(folder.path(), Some(&folder.path().join("home")), current));
    }
}

#[test]
fn kernels_are_compiled_once_by_all_processes_and_without_a_home() {
    let folder = tempfile::tempdir().unwrap();
    if !libraries(folder.path()) || has_image() {
        eprintln!("skipped kernels_are_compiled_once: no C compiler, or this build has its kernels");
        return;
    }
    let compiled = || fs::read_to_string(folder.path().join("log")).unwrap().lines().count();
    let home = folder.path().join("home");
    let hosts: Vec<Child> = (0..3).map(|_| started(folder.path(), Some(&home), "none")).collect();
    let texts: Vec<String> = hosts.into_iter().map(said).collect();
    // A host launches two of the kernels.
    assert_eq!(compiled(), 2, "{texts:?}");
    for kernel in ["gap_profile_f32_warp128x1", "critical_softmax_f32_warp128x1"] {
        let what = format!("compiling {kernel} for sm_90 by NVRTC 13.0;");
        assert_eq!(texts.iter().filter(|text| text.contains(&what)).count(), 1, "{texts:?}");
    }
    // A file in the place of the cache and /proc are like a home that cannot be written, also for root.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (runs, home) in [Some(&*file), Some(Path::new("/proc")), None].into_iter().enumerate() {
        let text = said(started(folder.path(), home, "none"));
        assert_eq!(text.matches("not cached").count(), 1, "{text}");
        assert!(text.contains("set XDG_CACHE_HOME"), "{text}");
        assert_eq!(compiled(), 4 + 2 * runs);
    }
}

/// Whether nvcc was there when this was built, so that nothing is left to compile.
fn has_image() -> bool {
    critbeta::cuda::facts()
        .iter()
        .any(|(name, value)| *name == "image of the kernels" && !value.starts_with("none"))
}
