//! Checks that must hold for any bytes. The tests call them with seeded bytes, the fuzz targets with found
//! ones.

use critbeta::cpu::{Measure, row_report};
use critbeta::reference::Row;
use critbeta_diagnose::input::{Selection, Source, open};
use std::path::Path;

/// Reads every row of the file at `path` and returns the number of values. An error is fine.
pub fn read_everything(path: &Path) -> critbeta::Result<usize> {
    let (mut values, mut out) = (0, Vec::new());
    for source in open(path, &Selection::default())?.sources {
        match source {
            Source::Scores(scores) => {
                let _last = scores.position(scores.rows() - 1);
                for (head, row) in places(scores.heads(), scores.rows()) {
                    let shift = scores.read_row(head, row, 0, &mut out);
                    assert!(shift.is_finite() && out.len() == scores.cols());
                    values += out.len();
                }
            }
            Source::Pair(pair) => {
                assert!(pair.scale() > 0.0);
                assert!((0..pair.rows()).all(|row| pair.position(row) < pair.keys() as u64));
                for (head, row) in places(pair.heads(), pair.rows()) {
                    assert!(pair.kv_head(head) < pair.kv_heads());
                    pair.read_q(head, row, &mut out);
                    assert_eq!(out.len(), pair.head_dim());
                    values += out.len();
                }
                for head in 0..pair.kv_heads() {
                    pair.read_k(head, 0..pair.keys(), &mut out);
                    assert_eq!(out.len(), pair.keys() * pair.head_dim());
                    values += out.len();
                }
            }
        }
    }
    Ok(values)
}

fn places(heads: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..heads).flat_map(move |head| (0..rows).map(move |row| (head, row)))
}

/// Takes `bytes` as a row and a resolve: the fast path must agree with the reference to the last bit.
///
/// The first byte sets the resolve (0 to 8 nats) and the type of the rest: f32, or bytes in sixteenths, which
/// make ties.
pub fn compare_with_reference(bytes: &[u8]) {
    let Some((&mode, rest)) = bytes.split_first() else { return };
    let resolve = f64::from(mode >> 1) / 16.0;
    let scores: Vec<f32> = match mode & 1 {
        0 => rest.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        _ => rest.iter().map(|&byte| f32::from(byte as i8) / 16.0).collect(),
    };
    let fast = row_report(&scores, 1.0, Measure::new(resolve, None));
    let row = Row::from_f32(&scores);
    assert_eq!((fast.top.len, fast.top.poisoned), (row.n(), row.is_poisoned()));
    let slow = [row.critical_beta(), row.resolved_critical_beta(resolve)];
    for (fast, slow) in [fast.critical, fast.resolved].into_iter().zip(slow) {
        if row.is_poisoned() {
            assert!(fast.beta.is_nan() && slow.beta.is_nan());
        } else {
            assert_eq!(fast.beta.to_bits(), slow.beta.to_bits(), "{fast:?} {slow:?} {scores:?}");
            assert_eq!(fast.contact_gap.to_bits(), slow.contact_gap.to_bits(), "{scores:?}");
            assert_eq!(fast.contact_rank, slow.contact_rank, "{scores:?}");
        }
    }
}
