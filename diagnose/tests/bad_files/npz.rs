//! .npz archives give the arrays of their members, and bad ones are refused by the member's name.

use crate::build::*;
use crate::opened::*;
use crate::{bad, refuse_all, selecting};
use critbeta::DType;
use critbeta_diagnose::input::{Input, Selection, Source};
use flate2::{Compression, write::DeflateEncoder};
use rawzip::{CompressionMethod, ZipArchiveWriter};
use std::io::Write;

/// An archive as numpy.savez writes it, or as numpy.savez_compressed does.
pub fn npz(members: &[(&str, Vec<u8>)], compressed: bool) -> Vec<u8> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for (name, bytes) in members {
        let method = if compressed { CompressionMethod::DEFLATE } else { CompressionMethod::STORE };
        let (mut entry, config) = archive.new_file(name).compression_method(method).start().unwrap();
        let descriptor = if compressed {
            let mut writer = config.wrap(DeflateEncoder::new(&mut entry, Compression::default()));
            writer.write_all(bytes).unwrap();
            let (encoder, descriptor) = writer.finish().unwrap();
            encoder.finish().unwrap();
            descriptor
        } else {
            let mut writer = config.wrap(&mut entry);
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap().1
        };
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap()
}

fn f32_array(shape: &str, count: usize) -> Vec<u8> {
    npy("<f4", false, shape, &f32s(count))
}

fn values(input: &Input, at: usize) -> Vec<f64> {
    let Source::Scores(scores) = &input.sources[at] else { panic!("a pair") };
    let (mut all, mut out) = (Vec::new(), Vec::new());
    for (head, row) in (0..scores.heads()).flat_map(|head| (0..scores.rows()).map(move |row| (head, row))) {
        let shift = scores.read_row(head, row, 0, &mut out);
        all.extend(out.iter().map(|&v| f64::from(v) + shift));
    }
    all
}

#[test]
fn members_are_read_by_name_stored_and_deflated() {
    let quarters: Vec<f64> = (0..12).map(|i| i as f64 / 4.0).collect();
    let f64_body: Vec<u8> = quarters.iter().flat_map(|v| v.to_le_bytes()).collect();
    // The first dimension varies fastest.
    let turned: Vec<u8> =
        (0..12).flat_map(|at| (((at % 2) * 6 + at / 2) as f32 / 4.0).to_le_bytes()).collect();
    let members = [
        ("b.npy", f32_array("(2, 2, 3)", 12)),
        ("a/deep.npy", npy("<f2", false, "(4, 3)", &f16s(12))),
        ("wide.npy", npy("<f8", false, "(4, 3)", &f64_body)),
        ("turned.npy", npy("<f4", true, "(2, 6)", &turned)),
        ("positions.npy", npy("<i8", false, "(2,)", &i64s(&[3, 4]))),
        ("ids.npy", npy("<i4", false, "(2,)", &[0; 8])),
        ("text.npy", npy("<U3", false, "(1,)", &[0; 12])),
        (
            "table.npy",
            npy_of([1, 0], "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", &[0; 4]),
        ),
        ("complex.npy", npy("<c8", false, "(1,)", &[0; 8])),
        ("notes.txt", b"hello".to_vec()),
    ];
    for compressed in [false, true] {
        let without = [&members[..1], &members[4..]].concat();
        let input = open("all.npz", &npz(&without, compressed)).unwrap();
        assert_eq!((layers(&input), values(&input, 0)), (vec!["b"], quarters.clone()));
        let Source::Scores(scores) = &input.sources[0] else { panic!() };
        assert_eq!(
            (scores.shape(), scores.dtype(), scores.position(1)),
            (&[2, 2, 3][..], DType::F32, Some(4))
        );
        assert_eq!(input.skipped, ["ids", "text", "table", "complex", "notes.txt"]);
        let input = open("all.npz", &npz(&members[..4], compressed)).unwrap();
        assert_eq!(layers(&input), ["b", "a/deep", "wide", "turned"]);
        for at in 0..4 {
            assert_eq!(values(&input, at), quarters, "{at}");
        }
        let one = Selection { tensor: Some("wide"), scale: None };
        assert_eq!(layers(&open_part("all.npz", &npz(&members[..4], compressed), &one).unwrap()), ["wide"]);
    }
}

#[test]
fn queries_and_keys_of_an_archive_are_a_pair() {
    for (q, k, layer) in [("a.q.npy", "a.k.npy", "a"), ("q.npy", "k.npy", "text7")] {
        let members = [(q, f32_array("(1, 4, 3, 2)", 24)), (k, f32_array("(2, 5, 2)", 20))];
        for compressed in [false, true] {
            let input = open("text7.npz", &npz(&members, compressed)).unwrap();
            let [Source::Pair(pair)] = &input.sources[..] else { panic!("{:?}", input.sources) };
            assert_eq!((&**pair.layer(), pair.heads(), pair.kv_heads(), pair.keys()), (layer, 4, 2, 5));
            let mut out = Vec::new();
            pair.read_k(1, 2..3, &mut out);
            assert_eq!(out, [3.5, 3.75]);
            let only = Selection { tensor: Some(q.trim_end_matches(".npy")), scale: Some(3.0) };
            let input = open_part("text7.npz", &npz(&members, compressed), &only).unwrap();
            assert_eq!(layers(&input), [layer]);
        }
    }
}

#[test]
fn bad_archives_are_refused_by_member() {
    let good = || npz(&[("a.npy", f32_array("(2, 3)", 6)), ("b.npy", f32_array("(2, 3)", 6))], false);
    let of = |array: Vec<u8>| npz(&[("a.npy", array)], true);
    // One element of the stored b.
    let mut damaged = good();
    let at = damaged.len() - 1 - damaged.iter().rev().position(|&byte| byte == 0x3f).unwrap();
    damaged[at] ^= 1;
    let objects = npy("|O", false, "(1,)", &[0; 8]);
    let beside = npz(&[("a.npy", f32_array("(2, 3)", 6)), ("o.npy", objects.clone())], false);
    let table = vec![
        bad("cut.npz", good()[..good().len() - 30].to_vec(), "no .npz file"),
        bad("half.npz", good()[..good().len() / 2].to_vec(), "no .npz file"),
        bad("empty-archive.npz", npz(&[], false), "holds no tensor of scores"),
        bad("text.npz", b"no archive at all, but long enough for one".to_vec(), "no .npz file"),
        bad("damaged.npz", damaged, "member \"b.npy\": is damaged"),
        bad(
            "twice.npz",
            npz(&[("a.npy", f32_array("(2,)", 2)), ("a.npy", f32_array("(2,)", 2))], true),
            "\"a\" is there twice",
        ),
        bad("objects.npz", of(objects), "member \"a.npy\": dtype '|O' holds pickled Python objects"),
        bad("beside.npz", beside, "member \"o.npy\": dtype '|O' holds pickled"),
        bad("big-endian.npz", of(npy(">f4", false, "(2,)", &f32s(2))), "is big endian"),
        bad("bf16.npz", of(npy("|V2", false, "(2,)", &f16s(2))), "bfloat16 or another type"),
        bad("long.npz", of(npy("<f16", false, "(1,)", &[0; 16])), "expected '<f2', '<f4' or '<f8'"),
        bad("no-npy.npz", of(b"text".to_vec()), "member \"a.npy\": does not begin with"),
        bad("short.npz", of(npy("<f4", false, "(2, 3)", &f32s(5))), "holds 20 bytes, expected 24"),
        bad("huge.npz", of(npy("<f4", false, "(4611686018427387904, 8)", &f32s(5))), "overflows"),
        bad("integers.npz", of(npy("<i8", false, "(1,)", &i64s(&[1]))), "expected scores in F64"),
        bad("text-only.npz", of(npy("<U1", false, "(1,)", &[0; 4])), "holds no tensor of scores"),
        bad("rows.npz", of(npy("<f4", false, "(0, 3)", &[])), "nothing to diagnose"),
        selecting(
            Some("b"),
            None,
            bad("absent.npz", of(f32_array("(2,)", 2)), "has no tensor \"b\", but \"a\""),
        ),
        selecting(None, Some(1.0), bad("scale.npz", of(f32_array("(2,)", 2)), "scaled already")),
    ];
    refuse_all(table, 19);
}
