//! Articles that are written out only when they are chosen.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use maud::{Markup, PreEscaped};
use std::io::Write;

/// All articles as gzip in base64, which browsers can unpack. A NUL, which no page holds, parts them.
pub(super) fn pack(articles: &[Markup]) -> Markup {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    for (i, article) in articles.iter().enumerate() {
        let between: &[u8] = if i > 0 { b"\0" } else { b"" };
        // Writing into memory cannot fail.
        let _infallible = gzip.write_all(between).and_then(|()| gzip.write_all(article.0.as_bytes()));
    }
    PreEscaped(BASE64_STANDARD.encode(gzip.finish().unwrap_or_default()))
}
