//! The sources of the kernels, embedded and made into one text a kernel. NVRTC gets no files, and build.rs
//! (which has this file as a module) gives nvcc the same texts.

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../kernels/", $path))),)*]
    };
}
/// Every file that the device build reads, by its path under `kernels/`.
const FILES: &[(&str, &str)] = &embedded![
    "attention/attention_betas.cu",
    "attention/attention_masses.cu",
    "attention/attention_on_chip.cu",
    "attention/attention_one_pass.cu",
    "attention/attention_scores.cu",
    "attention/attention_values.cu",
    "attention/decode.cuh",
    "attention/masses.cuh",
    "attention/on_chip.cuh",
    "attention/one_pass.cuh",
    "attention/params.cuh",
    "attention/pass_audit.cuh",
    "attention/pass_rows.cuh",
    "attention/pass_unit.cuh",
    "attention/products.cuh",
    "attention/queries.cuh",
    "attention/rows.cuh",
    "attention/scores.cuh",
    "attention/unit.cuh",
    "attention/values.cuh",
    "counts.cuh",
    "critical.cuh",
    "critical_softmax.cu",
    "dtype.cuh",
    "folds.cuh",
    "gap_profile.cu",
    "list.cuh",
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
    "simt/arithmetic.cuh",
    "simt/device.cuh",
    "simt/spaces.cuh",
    "stats.cuh",
    "top.cuh",
    "variants.def",
    "verbs.cuh",
    "wrappers.cu",
    "wrappers.cuh",
];

/// The translation unit of one kernel: all sources, with row number `row` of variants.def alone.
pub(super) fn translation_unit(row: usize) -> String {
    let mut unit = Unit { row, seen: Vec::new(), text: String::new() };
    for &(path, source) in FILES.iter().filter(|(path, _)| path.ends_with(".cu")) {
        unit.expand(path, source);
    }
    unit.text
}

/// Whether a line of variants.def is a row: `FAMILY(dtype, scope, threads, ctas)`.
pub(super) fn is_row(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_uppercase())
}

/// A translation unit as far as it is written.
struct Unit {
    row: usize,
    seen: Vec<&'static str>,
    text: String,
}

impl Unit {
    /// Appends `source`, with the text of each quoted include in its place. An include that is not embedded
    /// stays as it is: it is the host's body of simt.cuh, in a branch that no device compiler takes.
    fn expand(&mut self, path: &'static str, source: &'static str) {
        if source.contains("#pragma once") {
            if self.seen.contains(&path) {
                return;
            }
            self.seen.push(path);
        }
        self.text.push_str(&format!("#line 1 \"{path}\"\n"));
        let mut rows = 0;
        for (number, line) in source.lines().enumerate() {
            let name = line.trim().strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
            if let Some(&(path_of_it, source)) = name.and_then(|name| embedded_file(path, name)) {
                self.expand(path_of_it, source);
                self.text.push_str(&format!("#line {} \"{path}\"\n", number + 2));
                continue;
            }
            let is_other_row = path == "variants.def" && is_row(line) && {
                rows += 1;
                rows - 1 != self.row
            };
            if line.trim() != "#pragma once" && !is_other_row {
                self.text.push_str(line);
            }
            self.text.push('\n');
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
    use super::super::variants::Variant;
    use super::*;

    #[test]
    fn every_kernel_file_is_embedded_and_in_its_place() {
        let mut missing = Vec::new();
        for folder in ["", "attention/", "scope/", "simt/"] {
            let at = format!("{}/kernels/{folder}", env!("CARGO_MANIFEST_DIR"));
            for file in std::fs::read_dir(at).unwrap() {
                let name = format!("{folder}{}", file.unwrap().file_name().to_string_lossy());
                let is_source = [".cu", ".cuh", ".def"].iter().any(|end| name.ends_with(end));
                let of_a_device =
                    ["simt/arithmetic.cuh", "simt/device.cuh", "simt/spaces.cuh"].contains(&name.as_str());
                let is_of_the_host = name.starts_with("simt/") && !of_a_device;
                if is_source && !is_of_the_host && !FILES.iter().any(|(path, _)| *path == name) {
                    missing.push(name);
                }
            }
        }
        assert_eq!(missing, [""; 0], "not in FILES");
        let text = translation_unit(0);
        let left: Vec<&str> = text.lines().filter(|line| line.trim().starts_with("#include")).collect();
        assert_eq!(left, ["#include \"simt/host.cuh\""]);
    }

    /// The table takes the families away again, so that the next file does not make them too: no file may
    /// have it in a branch.
    #[test]
    fn every_file_includes_the_table_in_no_branch() {
        for (path, source) in FILES.iter().filter(|(path, _)| path.ends_with(".cu")) {
            let mut depth = 0;
            let mut found = Vec::new();
            for line in source.lines() {
                depth += i32::from(line.starts_with("#if")) - i32::from(line.starts_with("#endif"));
                if line.ends_with("variants.def\"") {
                    found.push(depth);
                }
            }
            assert_eq!(found, [0], "{path}");
        }
    }

    /// Each file of kernels includes the table, and makes only its own family.
    #[test]
    fn a_unit_has_one_row_of_the_table() {
        let files = FILES.iter().filter(|(path, _)| path.ends_with(".cu")).count();
        for &variant in Variant::ALL {
            let text = translation_unit(variant as usize);
            let symbol = |line: &str| {
                let (family, rest) = line.split_once('(').filter(|_| is_row(line))?;
                let fields: Vec<&str> = rest.strip_suffix(')')?.split(", ").collect();
                let [dtype, scope, threads, ctas] = fields[..] else { return None };
                Some(format!("{}_{dtype}_{scope}{threads}x{ctas}", family.to_lowercase()))
            };
            let rows: Vec<String> = text.lines().filter_map(symbol).collect();
            assert_eq!(rows, vec![variant.symbol(); files]);
        }
    }
}
