//! What the command reads.

use anyhow::{Result, anyhow, ensure};
use critbeta::Error;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads a text; `-` is stdin.
///
/// Errors: a file that cannot be read, is empty, or is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    let fail = |source| Error::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(fail)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow!("{}: byte {at} is no UTF-8, expected a text in UTF-8", path.display())
    })?;
    ensure!(!text.trim().is_empty(), "{}: is empty, expected a text", path.display());
    Ok(text)
}

/// Errors: a file that cannot be read, or does not begin as a GGUF file does.
pub fn check_magic(path: &Path) -> Result<()> {
    let fail = |source| Error::Io { path: path.to_owned(), source };
    let mut begin = Vec::new();
    File::open(path).and_then(|file| file.take(4).read_to_end(&mut begin)).map_err(fail)?;
    ensure!(
        begin == b"GGUF",
        "{}: begins with {:?}, expected \"GGUF\": no GGUF file",
        path.display(),
        begin.escape_ascii().to_string()
    );
    Ok(())
}

/// The layers of a list like `0,4-7`.
///
/// Errors: what is no such list, and a layer that is not below `count`.
pub fn layers(list: &str, count: usize) -> Result<BTreeSet<usize>> {
    let mut found = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let numbers = first.trim().parse().ok().zip(last.trim().parse().ok());
        let (first, last): (usize, usize) =
            numbers.ok_or_else(|| anyhow!("--layers {list:?}: expected numbers and ranges, as in 0,4-7"))?;
        ensure!(
            first <= last && last < count,
            "--layers {list:?}: {part} is no range of layers, expected numbers of 0 to {}",
            count.saturating_sub(1)
        );
        found.extend(first..=last);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::layers;

    #[test]
    fn layers_are_numbers_and_ranges_below_the_count() {
        assert_eq!(layers("0,4-6", 8).unwrap().into_iter().collect::<Vec<_>>(), [0, 4, 5, 6]);
        for (list, says) in
            [("8", "0 to 7"), ("3-2", "3-2"), ("", "0,4-7"), ("a", "0,4-7"), ("1--2", "0,4-7")]
        {
            let error = layers(list, 8).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
