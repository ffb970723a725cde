//! The sources of the kernels, embedded and made into one text, because NVRTC gets no files.

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../kernels/", $path))),)*]
    };
}
/// Every file that the device build reads, by its path under `kernels/`.
const FILES: &[(&str, &str)] = &embedded![
    "counts.cuh",
    "critical.cuh",
    "critical_softmax.cu",
    "dtype.cuh",
    "gap_profile.cu",
    "math.cuh",
    "params.cuh",
    "partition.cuh",
    "probs.cuh",
    "report.cuh",
    "row.cuh",
    "rule.cuh",
    "scope/block.cuh",
    "scope/cluster.cuh",
    "scope/record.cuh",
    "scope/split.cuh",
    "scope/warp.cuh",
    "search.cuh",
    "simt.cuh",
    "simt/device.cuh",
    "stats.cuh",
    "top.cuh",
    "variants.def",
    "verbs.cuh",
    "wrappers.cu",
];

/// All kernels as one translation unit, as build.rs gives them to nvcc.
pub(super) fn translation_unit() -> String {
    let (mut text, mut seen) = (String::new(), Vec::new());
    for &(path, source) in FILES.iter().filter(|(path, _)| path.ends_with(".cu")) {
        expand(path, source, &mut seen, &mut text);
    }
    text
}

/// Appends `source`, with the text of each quoted include in its place. An include that is not embedded stays
/// as it is: it is the host's body of simt.cuh, in a branch that no device compiler takes.
fn expand(path: &'static str, source: &'static str, seen: &mut Vec<&'static str>, text: &mut String) {
    if source.contains("#pragma once") {
        if seen.contains(&path) {
            return;
        }
        seen.push(path);
    }
    text.push_str(&format!("#line 1 \"{path}\"\n"));
    for (number, line) in source.lines().enumerate() {
        let name = line.trim().strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match name.and_then(|name| embedded_file(path, name)) {
            Some(&(path_of_it, source)) => {
                expand(path_of_it, source, seen, text);
                text.push_str(&format!("#line {} \"{path}\"\n", number + 2));
            }
            None if line.trim() == "#pragma once" => text.push('\n'),
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

/// The path that `#include "name"` in `from` stands for: beside `from`, or under kernels/.
fn embedded_file(from: &str, name: &str) -> Option<&'static (&'static str, &'static str)> {
    let mut beside: Vec<&str> = from.split('/').collect();
    beside.pop();
    for part in name.split('/') {
        match part {
            ".." => drop(beside.pop()),
            part => beside.push(part),
        }
    }
    let beside = beside.join("/");
    FILES.iter().find(|(path, _)| *path == beside).or_else(|| FILES.iter().find(|(path, _)| *path == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_file_is_embedded_and_in_its_place() {
        let mut missing = Vec::new();
        for folder in ["", "scope/", "simt/"] {
            let at = format!("{}/kernels/{folder}", env!("CARGO_MANIFEST_DIR"));
            for file in std::fs::read_dir(at).unwrap() {
                let name = format!("{folder}{}", file.unwrap().file_name().to_string_lossy());
                let is_source = [".cu", ".cuh", ".def"].iter().any(|end| name.ends_with(end));
                let is_of_the_host = name.starts_with("simt/") && name != "simt/device.cuh";
                if is_source && !is_of_the_host && !FILES.iter().any(|(path, _)| *path == name) {
                    missing.push(name);
                }
            }
        }
        assert_eq!(missing, [""; 0], "not in FILES");
        let text = translation_unit();
        let left: Vec<&str> = text.lines().filter(|line| line.trim().starts_with("#include")).collect();
        assert_eq!(left, ["#include \"simt/host.cuh\""]);
    }
}
