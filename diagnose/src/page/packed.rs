//! Articles that are written out only when they are asked for.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use maud::{Markup, PreEscaped};
use std::io::Write;

/// All of them, one behind the other with a NUL between (which no page holds), as gzip in base64: what browsers unpack.
pub(super) fn pack(articles: &[Markup]) -> Markup {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    for (i, article) in articles.iter().enumerate() {
        let between: &[u8] = if i > 0 { b"\0" } else { b"" };
        // Writing into memory cannot fail.
        let _infallible = gzip.write_all(between).and_then(|()| gzip.write_all(article.0.as_bytes()));
    }
    PreEscaped(BASE64_STANDARD.encode(gzip.finish().unwrap_or_default()))
}
