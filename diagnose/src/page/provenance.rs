//! Section 7 says what the page was made of, what its words mean, and whom to cite.

use super::number::{count, name, path};
use crate::input::{Input, Source};
use crate::{HeadSummary, Summary};
use critbeta::{Error, Result};
use maud::{Markup, html};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file that a page was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// The path. Bytes that are no UTF-8 are spelt out.
    pub path: String,
    /// The size of the file.
    pub bytes: u64,
    /// The SHA-256 of the bytes, in hex.
    pub sha256: String,
    /// The dtype and scale of each tensor, in words. Row records do not hold them: then this is empty.
    pub tensors: Vec<String>,
}

/// What a page was made of, and by which command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The command line, as it can be typed again.
    pub command: String,
    /// The files, in the order given. There are none if the rows were in memory.
    pub files: Vec<FileFacts>,
}

/// The number of bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

impl FileFacts {
    /// The facts of row records. Errors: [`Error::Io`]; [`Error::File`] for a pipe or device.
    pub fn of_records(file: &Path) -> Result<FileFacts> {
        if !file.metadata().map_err(|e| Error::io(file, e))?.is_file() {
            return Err(Error::file(file, "expected a regular file: it is read twice, once for its hash"));
        }
        let (bytes, sha256) = hash(file)?;
        Ok(FileFacts { path: path(file), bytes, sha256, tensors: Vec::new() })
    }

    /// The facts of the files of an input of attention. The first of several shards has the tensors of all.
    ///
    /// Errors: [`Error::Io`], and those of finding the shards.
    pub fn of(input: &Input) -> Result<Vec<FileFacts>> {
        let tensor = |source: &Source| match source {
            Source::Scores(tensor) => {
                format!("{}: scores {} {:?}, already scaled", tensor.layer(), tensor.dtype(), tensor.shape())
            }
            Source::Pair(pair) => {
                let [q, k] = pair.dtypes();
                let dtype = if q == k { q.to_string() } else { format!("{q} (queries), {k} (keys)") };
                format!("{}: queries and keys {dtype}, scale {}", pair.layer(), pair.scale())
            }
        };
        let mut tensors: Vec<String> = input.sources.iter().map(tensor).collect();
        let one = |file: PathBuf| {
            let rest = vec![format!("a shard of {}", path(&input.path))];
            let tensors = std::mem::replace(&mut tensors, rest);
            Ok(FileFacts { tensors, ..Self::of_records(&file)? })
        };
        input.files()?.into_iter().map(one).collect()
    }
}

fn hash(file: &Path) -> Result<(u64, String)> {
    let fail = |e| Error::io(file, e);
    let mut open = File::open(file).map_err(fail)?;
    let (mut digest, mut piece, mut bytes) = (Sha256::new(), vec![0; PIECE], 0);
    loop {
        match open.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => {
                digest.update(&piece[..read]);
                bytes += read as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    Ok((bytes, digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// The most tensors of a file that are listed.
const LISTED: usize = 40;

/// `thinned` says what charts leave out.
pub(super) fn section(summary: &Summary, provenance: &Provenance, thinned: &str) -> Markup {
    let ends = summary.heads.iter().filter_map(|head| head.n).reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]);
    let sampled = summary.heads.iter().filter(|head| head.sampled < head.measured).count();
    let looked_at = |head: &&HeadSummary| {
        let outcomes = head.what_if.as_ref().and_then(|outcomes| outcomes.first());
        outcomes.is_some_and(|outcome| outcome.rows < head.measured)
    };
    let drawn = summary.heads.iter().filter(looked_at).count();
    html! {
        section #provenance aria-labelledby="provenance-title" {
            h2 #provenance-title { "Provenance" }
            dl {
                dt { "command" } dd { code.command { (name(&provenance.command)) } }
                @for file in &provenance.files {
                    dt { "file" } dd {
                        code { (file.path) } ", " (count(file.bytes)) " bytes, SHA-256 "
                        code.hash { (file.sha256) }
                        @if file.tensors.is_empty() {
                            p { "These are row records. They do not hold the dtype and scale of the scores." }
                        } @else { ul {
                            @for tensor in file.tensors.iter().take(LISTED) { li { (name(tensor)) } }
                            @if let more @ 1.. = file.tensors.len().saturating_sub(LISTED) {
                                li { "and " (more) " more" }
                            }
                        } }
                    }
                }
                dt { "mask" } dd {
                    "n counts the visible keys. A score of −∞ is masked. "
                    "If the file holds queries and keys, a row sees the keys from 0 to its position."
                    @if summary.exclude_sink > 0 {
                        " The first " (summary.exclude_sink) " keys of every row were left out."
                    }
                }
                dt { "rows" } dd {
                    @if let Some([low, high]) = ends { "n from " (count(low)) " to " (count(high)) "; " }
                    "β = " (summary.beta) ", resolve r = " (summary.resolve) " nats, training length "
                    (summary.train_length) ", seed " (summary.seed)
                    @if let Some(k) = summary.top_k {
                        "; only the " (k) " largest scores of a row were counted"
                    }
                }
                dt { "thinned" } dd {
                    (thinned) " Every number on this page comes from all measured rows"
                    @if sampled > 0 || drawn > 0 { ", with these exceptions" } "."
                    @if sampled > 0 {
                        " The quantiles of " (sampled) " long heads come from a uniform sample of their rows."
                    }
                    @if drawn > 0 {
                        " The what-if of " (drawn) " long heads comes from rows drawn from theirs."
                    }
                }
                dt { "version" } dd { "critbeta " (summary.critbeta) }
            }
            h2 { "Glossary" }
            dl.glossary {
                dt { "score" } dd {
                    "A score is what the softmax sees at β = 1, after scale, position and mask."
                }
                dt { "gap" } dd {
                    "The gap of a score is how far it lies below the largest score of its row. "
                    "N(t) counts the gaps of at most t."
                }
                dt { "critical β (Λ)" } dd {
                    "It is the largest log N(t) / t over t > 0. Far below it the top keys cannot be told "
                    "apart as n grows. Far above it one key takes all."
                }
                dt { "resolved critical β" } dd {
                    "It is the same with log N(t) − r in place of log N(t). Groups of up to " i { "e" }
                    sup { "r" } " keys need not be told apart, so ties of that size do not make it infinite."
                }
                dt { "operating ratio (ρ)" } dd {
                    "It is β over critical β. It says on which side of the border a row is, and how far away."
                }
                dt { "ξ" } dd {
                    "It is the exponent of the length law critical β ~ (log n)" sup { "ξ" }
                    ". A ξ of 0 calls for a fixed β, ½ for a β that grows as √log n, and 1 for one that "
                    "grows as log n."
                }
            }
            h2 { "Citation" }
            p {
                "The theory is from T. Hayase and R. Karakida, "
                cite { "A Unified Framework for Critical Scaling of Inverse Temperature in Self-Attention" }
                ", arXiv:2605.12697 (2026). critbeta " (summary.critbeta) " made this page. "
                "The bounds for finite n are critbeta's own, derived and tested."
            }
        }
    }
}
