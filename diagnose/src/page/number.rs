//! Numbers and names as the page shows them.

use crate::figures::{self, significant};
use std::path::Path;

/// Three significant digits, or a dash for NaN.
pub(super) fn figure(value: f64) -> String {
    signed(&significant(value, 3))
}

/// Two decimals, for exponents.
pub(super) fn hundredths(value: f64) -> String {
    signed(&if value.is_nan() { "-".into() } else { figures::hundredths(value) })
}

/// A share in percent, or a dash for a share of nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { share(part as f64 / whole as f64) }
}

/// Like [`percent`]. Only an empty share is 0 %, and only a full one is 100 %.
pub(super) fn share(value: f64) -> String {
    let percent = 100.0 * value;
    if value.is_nan() {
        "–".into()
    } else if percent > 0.0 && percent < 0.1 {
        "under 0.1 %".into()
    } else if percent > 99.9 && percent < 100.0 {
        "over 99.9 %".into()
    } else {
        format!("{percent:.1} %")
    }
}

/// A count with a comma between its thousands.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + 6);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The text with minus signs that are as wide as a plus, and signs for no number and for infinity.
fn signed(text: &str) -> String {
    match text {
        "-" => "–".into(),
        "inf" => "∞".into(),
        _ => text.replace('-', "−"),
    }
}

/// Whether a character cannot be seen, or turns the text around it.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A name from a file, with its hidden characters spelt out.
pub(super) fn name(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if shown.is_empty() { "(no name)".into() } else { shown }
}

/// JSON of the same value, with its hidden characters spelt out.
pub(super) fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match hidden(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| shown += &format!("\\u{unit:04x}")),
            false => shown.push(c),
        }
    }
    shown
}

/// A name, cut in the middle if it has more than `most` characters.
pub(super) fn short(text: &str, most: usize) -> String {
    let shown = name(text);
    let length = shown.chars().count();
    if length <= most {
        return shown;
    }
    let (head, tail) = (most * 2 / 3, most - most * 2 / 3 - 1);
    let end: String = shown.chars().skip(length - tail).collect();
    format!("{}…{end}", shown.chars().take(head).collect::<String>())
}

/// A path as text. Bytes that are no UTF-8 are spelt `\xff`.
pub(super) fn path(path: &Path) -> String {
    let chunks = path.as_os_str().as_encoded_bytes().utf8_chunks();
    let mut text = String::new();
    for chunk in chunks {
        text += chunk.valid();
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02x}"));
    }
    name(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let shown =
            [0.9996, 12.345, 0.05, -1.2, 99999.0, 1e6, 1e-4, 0.0, f64::INFINITY, f64::NAN].map(figure);
        assert_eq!(shown, ["1.00", "12.3", "0.0500", "−1.20", "99999", "1.00e6", "1.00e−4", "0", "∞", "–"]);
        assert_eq!([0, 7, 1134, 3_932_160].map(count), ["0", "7", "1,134", "3,932,160"]);
        assert_eq!(
            [0.0, 1e-5, 0.312, 0.9999, 1.0].map(share),
            ["0.0 %", "under 0.1 %", "31.2 %", "over 99.9 %", "100.0 %"]
        );
        assert_eq!(percent(0, 0), "–");
    }

    #[test]
    fn names_show_their_hidden_characters() {
        assert_eq!(name("a\u{1b}[2J\u{202e}b"), r"a\u{1b}[2J\u{202e}b");
        assert_eq!(name("a\u{ad}b\u{e0041}"), r"a\u{ad}b\u{e0041}");
        let text = "a\u{61c}\u{e0041}";
        let quoted = json(&serde_json::to_string(text).unwrap());
        assert!(quoted.is_ascii() && serde_json::from_str::<String>(&quoted).unwrap() == text, "{quoted}");
        assert_eq!(short("abcdefghij", 7), "abcd…ij");
        assert_eq!(short("ab", 7), "ab");
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            assert_eq!(path(Path::new(std::ffi::OsStr::from_bytes(b"a\xff<b>"))), r"a\xff<b>");
        }
    }
}
