//! A 2 GiB file and rows of a million keys are diagnosed in 64 MB beside the mapped file.
#![cfg(all(target_os = "linux", feature = "cli"))]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const ALLOWED_BYTES: u64 = 64 << 20;

/// The highest memory of a run of `diagnose`, without mapped files and the program. It is read every few
/// milliseconds.
fn peak_of_diagnose(file: &Path, more: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_critbeta"))
        .args(["diagnose", "--threads", "2", "--resolve", "0.7", "--json", "-"])
        .args(more)
        .arg(file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (mut peak, mut looks) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        if let Some(kib) = anonymous.and_then(|line| line.split_whitespace().next()) {
            peak = peak.max(kib.parse::<u64>().unwrap() << 10);
            looks += 1;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(child.wait().unwrap().success());
    assert!(looks >= 10, "only {looks} looks at its memory");
    peak
}

/// A sparse file of `header` and `bytes` of zeros, with some rows in it.
fn sparse(path: &Path, header: &[u8], bytes: u64, rows: impl Iterator<Item = (u64, Vec<u8>)>) {
    let mut file = File::create(path).unwrap();
    file.write_all(header).unwrap();
    file.set_len(header.len() as u64 + bytes).unwrap();
    for (at, row) in rows {
        file.seek(SeekFrom::Start(header.len() as u64 + at)).unwrap();
        file.write_all(&row).unwrap();
    }
}

fn safetensors_header(tensors: &str) -> Vec<u8> {
    let text = format!("{{{tensors}}}");
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Scores without structure: the fraction of a multiple, as f16.
fn wave(count: usize, seed: usize) -> Vec<u8> {
    let score = |i: usize| ((i + seed) as f32 * 0.754_877_7).fract() * 8.0 - 4.0;
    (0..count).flat_map(|i| half::f16::from_f32(score(i)).to_le_bytes()).collect()
}

#[test]
fn memory_stays_flat() {
    let directory = tempfile::tempdir().unwrap();
    let rows = directory.path().join("rows.csv");
    let rows = ["--rows", rows.to_str().unwrap()];

    // Of 2 GiB of scores every 64th row is drawn. The others are all tied.
    let file = directory.path().join("scores.safetensors");
    let (cols, row_bytes) = (1usize << 16, 2u64 << 16);
    let header =
        safetensors_header(r#""a":{"dtype":"F16","shape":[4,4096,65536],"data_offsets":[0,2147483648]}"#);
    let drawn = (0..16384).step_by(64).map(|row| (row as u64 * row_bytes, wave(cols, row)));
    sparse(&file, &header, 2 << 30, drawn);
    let peak = peak_of_diagnose(&file, &rows);
    eprintln!("2 GiB of scores: {} MiB beside the file", peak >> 20);
    assert!(peak <= ALLOWED_BYTES, "{peak} bytes beside a 2 GiB file");
    std::fs::remove_file(&file).unwrap();

    // These rows see a million keys, as scores of q and k and as score rows.
    let file = directory.path().join("keys.safetensors");
    let header = safetensors_header(
        r#""a.q":{"dtype":"F16","shape":[2,8,8],"data_offsets":[0,256]},"a.k":{"dtype":"F16","shape":[1,1048576,8],"data_offsets":[256,16777472]}"#,
    );
    sparse(&file, &header, 16_777_472, [(0, wave(128, 5)), (256, wave(8 << 20, 0))].into_iter());
    let peak = peak_of_diagnose(&file, &rows);
    eprintln!("rows of 2^20 keys from q and k: {} MiB beside the file", peak >> 20);
    assert!(peak <= ALLOWED_BYTES, "{peak} bytes for rows of a million keys");

    let file = directory.path().join("long.safetensors");
    let header = safetensors_header(r#""a":{"dtype":"F16","shape":[8,1048576],"data_offsets":[0,16777216]}"#);
    sparse(&file, &header, 16 << 20, [(0, wave(8 << 20, 0))].into_iter());
    let peak = peak_of_diagnose(&file, &rows);
    eprintln!("score rows of 2^20: {} MiB beside the file", peak >> 20);
    assert!(peak <= ALLOWED_BYTES, "{peak} bytes for rows of a million scores");

    // The memory for the summary does not grow with a million rows of one head.
    let file = directory.path().join("rows.safetensors");
    let header =
        safetensors_header(r#""a":{"dtype":"F16","shape":[1048576,32],"data_offsets":[0,67108864]}"#);
    sparse(&file, &header, 64 << 20, [(0, wave(32 << 20, 0))].into_iter());
    let peak = peak_of_diagnose(&file, &[]);
    eprintln!("2^20 rows of one head: {} MiB beside the file", peak >> 20);
    assert!(peak <= ALLOWED_BYTES, "{peak} bytes for a million rows");
}
