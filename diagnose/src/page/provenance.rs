//! Section 7: what this page was made of, what its words mean, and whom to cite.

use super::number::{count, path};
use crate::input::{Input, Source};
use crate::{HeadSummary, Summary};
use critbeta::{Error, Result};
use maud::{Markup, html};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A file that a page was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Its path, bytes that are no UTF-8 spelt out.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// Dtype and scale of each of its tensors, in words; empty for row records, which do not say.
    pub tensors: Vec<String>,
}

/// What a page was made of and by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The command line, as it can be typed again.
    pub command: String,
    /// The files, in the order given; none for rows that were in memory.
    pub files: Vec<FileFacts>,
}

/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

impl FileFacts {
    /// Of row records. Errors: [`Error::Io`]; [`Error::File`] for a pipe or device, which has been read once.
    pub fn of_records(file: &Path) -> Result<FileFacts> {
        if !file.metadata().map_err(|e| Error::io(file, e))?.is_file() {
            return Err(Error::file(file, "expected a regular file: it is read twice, once for its hash"));
        }
        let (bytes, sha256) = hash(file)?;
        Ok(FileFacts { path: path(file), bytes, sha256, tensors: Vec::new() })
    }

    /// Of attention. Errors: [`Error::Io`].
    pub fn of(input: &Input) -> Result<FileFacts> {
        let tensor = |source: &Source| match source {
            Source::Scores(tensor) => {
                format!("{}: scores {} {:?}, scaled already", tensor.layer(), tensor.dtype(), tensor.shape())
            }
            Source::Pair(pair) => {
                let [q, k] = pair.dtypes();
                let dtype = if q == k { q.to_string() } else { format!("{q} (queries), {k} (keys)") };
                format!("{}: queries and keys {dtype}, scale {}", pair.layer(), pair.scale())
            }
        };
        Ok(FileFacts {
            tensors: input.sources.iter().map(tensor).collect(),
            ..Self::of_records(&input.path)?
        })
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

/// Tensors of a file that are listed.
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
                dt { "command" } dd { code.command { (super::number::name(&provenance.command)) } }
                @for file in &provenance.files {
                    dt { "file" } dd {
                        code { (file.path) } ", " (count(file.bytes)) " bytes, SHA-256 " code.hash { (file.sha256) }
                        @if file.tensors.is_empty() { p { "Row records: dtype and scale of the scores are not in them." } }
                        @else { ul {
                            @for tensor in file.tensors.iter().take(LISTED) { li { (super::number::name(tensor)) } }
                            @if file.tensors.len() > LISTED { li { "and " (file.tensors.len() - LISTED) " more" } }
                        } }
                    }
                }
                dt { "mask" } dd {
                    "n counts visible keys; a score of −∞ is masked. Queries and keys: row r sees keys 0 to its position."
                    @if summary.exclude_sink > 0 { " The first " (summary.exclude_sink) " keys of every row were left out." }
                }
                dt { "rows" } dd {
                    @if let Some([low, high]) = ends { "n from " (count(low)) " to " (count(high)) "; " }
                    "β = " (summary.beta) ", resolve r = " (summary.resolve) " nats, training length " (summary.train_length)
                    @if let Some(k) = summary.top_k { ", only the " (k) " largest scores of a row counted" }
                    ", seed " (summary.seed)
                }
                dt { "thinned" } dd {
                    (thinned) " Every number on this page is of all measured rows"
                    @if sampled > 0 { ", but quantiles of " (sampled) " long heads, which are of a uniform sample of their rows" }
                    @if drawn > 0 { ", but the what-if of " (drawn) " long heads, which is of rows drawn from theirs" }
                    "."
                }
                dt { "version" } dd { "critbeta " (summary.critbeta) }
            }
            h2 { "Glossary" }
            dl.glossary {
                dt { "score" } dd { "What the softmax sees at β = 1, after scale, position and mask." }
                dt { "gap" } dd { "How far a score lies below the largest of its row. N(t) counts the gaps of at most t." }
                dt { "critical β (Λ)" } dd { "The largest log N(t) / t over t > 0. Far below it the top keys are not told apart as n grows, far above it one key takes all." }
                dt { "resolved critical β" } dd { "The same with log N(t) − r: crowds of up to " i { "e" } sup { "r" } " keys need not be told apart, which tames ties." }
                dt { "operating ratio (ρ)" } dd { "β over critical β: which side of the border a row is on, and how far." }
                dt { "ξ" } dd { "Exponent of the length law critical β ~ (log n)" sup { "ξ" } ": 0 wants a fixed β, ½ wants √log n, 1 wants log n." }
            }
            h2 { "Citation" }
            p { "The theory: T. Hayase, R. Karakida, " cite { "A Unified Framework for Critical Scaling of Inverse Temperature in Self-Attention" }
                ", arXiv:2605.12697 (2026). This page: critbeta " (summary.critbeta) ". The bounds for finite n are critbeta's, derived and tested." }
        }
    }
}
