//! Every wrong file gives an error that names the file and says what is wrong.

#[path = "../common/files.rs"]
mod build;
mod good;
mod hostile;
mod npz;
mod opened;
mod probe;
mod shards;

use build::*;
use critbeta_diagnose::input::{Selection, open};

use std::path::Path;

/// A file name, its bytes, the selection, and the text that the error must contain.
struct Bad {
    name: &'static str,
    bytes: Vec<u8>,
    selection: Selection<'static>,
    says: &'static str,
}

fn bad(name: &'static str, bytes: Vec<u8>, says: &'static str) -> Bad {
    Bad { name, bytes, selection: Selection::default(), says }
}

fn selecting(tensor: Option<&'static str>, scale: Option<f64>, bad: Bad) -> Bad {
    Bad { selection: Selection { tensor, scale }, ..bad }
}

#[track_caller]
fn refuse(path: &Path, selection: &Selection, says: &str) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let error = open(path, selection).expect_err(name).to_string();
    assert!(error.contains(name), "{name}: {error}");
    assert!(error.contains(says), "{name}: expected {says:?} in: {error}");
    assert!(error.len() < 1000 && !error.contains('\n'), "{name}: {error}");
}

fn refuse_all(table: Vec<Bad>, at_least: usize) {
    assert!(table.len() >= at_least, "{}", table.len());
    let directory = tempfile::tempdir().unwrap();
    for Bad { name, bytes, selection, says } in table {
        let path = write(directory.path(), name, &bytes);
        refuse(&path, &selection, says);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn no_file_to_map() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let whole = Selection::default();
    for extension in ["npy", "safetensors"] {
        let [absent, folder, empty] =
            ["absent", "folder", "empty"].map(|name| at(&format!("{name}.{extension}")));
        refuse(&absent, &whole, "No such file");
        std::fs::create_dir(&folder).unwrap();
        refuse(&folder, &whole, "is a directory");
        std::fs::write(&empty, "").unwrap();
        refuse(&empty, &whole, "is empty");
    }
    #[cfg(unix)]
    {
        let fifo = at("fifo.npy");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        refuse(&fifo, &whole, "is a pipe, socket or device");
        let unnamed = at("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&unnamed).status().unwrap().success());
        refuse(&unnamed, &whole, "is a pipe, socket or device");
        let socket = at("socket.safetensors");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        refuse(&socket, &whole, "is a pipe, socket or device");
    }
}

#[test]
fn other_formats_come_with_a_remedy() {
    refuse_all(
        vec![
            bad("scores.npz", b"PK".to_vec(), "no .npz file"),
            bad("scores.PT", b"PK".to_vec(), "safetensors.torch.save_file"),
            bad("model.pth", b"PK".to_vec(), "safetensors.torch.save_file"),
            bad("model.bin", b"PK".to_vec(), "safetensors.torch.save_file"),
            bad("scores.npy.gz", b"\x1f\x8b".to_vec(), "unpack it first"),
            bad("model.gguf", b"GGUF".to_vec(), "holds weights"),
            bad("scores.csv", b"1,2".to_vec(), ".npy, .npz and .safetensors are read"),
            bad("scores", npy("<f4", false, "(2,)", &f32s(2)), ".npy, .npz and .safetensors are read"),
        ],
        8,
    );
}

#[test]
fn bad_npy_headers() {
    let header = |text: &str| npy_of([1, 0], text, &f32s(6));
    let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    let nested = format!("{{'descr': {}", "{".repeat(60));
    let sum = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (-{}+1.0, 3), }}", "9".repeat(400));
    let mut announced = npy_of([1, 0], good, &f32s(6));
    announced[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut huge = npy_of([2, 0], good, &f32s(6));
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    refuse_all(
        vec![
            bad("magic.npy", b"\x93NUMPX\x01\0v\0".to_vec(), "no .npy file"),
            bad("text.npy", b"1 2 3".to_vec(), "no .npy file"),
            bad("cut-magic.npy", b"\x93NUMPY\x01".to_vec(), "after the magic bytes"),
            bad("cut-length.npy", b"\x93NUMPY\x01\0v".to_vec(), "before the header's length"),
            bad("version.npy", npy_of([4, 0], good, &f32s(6)), "version 4.0"),
            bad("minor.npy", npy_of([1, 1], good, &f32s(6)), "version 1.1"),
            bad("announced.npy", announced, "65535 bytes announced"),
            bad("huge.npy", huge, "header of 4294967295 bytes, expected at most 65536"),
            bad("latin.npy", npy_of([3, 0], &good.replace("f4", "f4\u{e9}"), &f32s(6)), "not ASCII"),
            bad("blank.npy", header(""), "expected {'descr'"),
            bad("prose.npy", header("no dict at all"), "expected {'descr'"),
            bad("open.npy", header(good.trim_end_matches('}')), "expected {'descr'"),
            bad("nested.npy", header(&nested), "expected {'descr'"),
            bad("sum.npy", header(&sum), "unexpected"),
            bad("negative.npy", header(&good.replace('2', "-2")), "unexpected '-'"),
            bad("float.npy", header(&good.replace('2', "2.0")), "unexpected '.'"),
            bad("hexadecimal.npy", header(&good.replace('2', "0x2")), "unexpected"),
            bad("none.npy", header(&good.replace("False", "None")), "unexpected"),
            bad("no-shape.npy", header(&good.replace("shape", "shade")), "missing key 'shape'"),
            bad("no-order.npy", header(&good.replace("fortran", "pascal")), "missing key 'fortran_order'"),
            bad("extra.npy", header(&good.replace(", }", ", 'more': True}")), "expected {'descr'"),
            bad("order.npy", header(&good.replace("False", "1")), "not a bool"),
            bad("escape.npy", header(&good.replace("<f4", "<\\x664")), "expected {'descr'"),
        ],
        23,
    );
}

#[test]
fn bad_npy_arrays() {
    let structured = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,), }";
    let of = |descr: &str| npy(descr, false, "(2, 3)", &f32s(6));
    let shape = |shape: &str| npy("<f4", false, shape, &f32s(6));
    let good = || bad("scores.npy", shape("(2, 3)"), "");
    refuse_all(
        vec![
            bad("structured.npy", npy_of([1, 0], structured, &f32s(6)), "structured"),
            bad("big-endian.npy", of(">f4"), "big endian"),
            bad("object.npy", of("|O"), "pickled"),
            bad("integers.npy", of("<i4"), "dtype \"'<i4'\", expected '<f2', '<f4' or '<f8'"),
            bad("complex.npy", of("<c8"), "<c8"),
            bad("quad.npy", of("<f16"), "<f16"),
            bad("bool.npy", of("|b1"), "|b1"),
            bad("unknown.npy", of("<q4"), "<q4"),
            bad("bf16.npy", of("<V2"), "is bfloat16 or another type that .npy has no name for"),
            bad("single.npy", npy("<f4", false, "()", &f32s(1)), "at least one dimension"),
            bad("short.npy", npy("<f4", false, "(2, 3)", &f32s(5)), "holds 20 bytes, expected 24"),
            bad("trailing.npy", npy("<f4", false, "(2, 3)", &f32s(7)), "holds 28 bytes, expected 24"),
            bad("wide.npy", of("<f8"), "holds 24 bytes, expected 48"),
            bad("overflow.npy", shape("(4294967296, 4294967296, 3)"), "overflows"),
            bad("overflow-0.npy", shape("(0, 4294967296, 4294967296)"), "overflows"),
            bad("bytes-overflow.npy", shape("(4611686018427387904, 3)"), "overflows"),
            bad("past-u64.npy", shape("(18446744073709551616, 3)"), "unexpected"),
            bad("no-columns.npy", npy("<f4", false, "(2, 0)", &[]), "zero columns"),
            bad("empty-row.npy", npy("<f4", false, "(0,)", &[]), "zero columns"),
            bad("no-rows.npy", npy("<f4", false, "(2, 0, 3)", &[]), "has no rows"),
            bad("no-heads.npy", npy("<f4", true, "(0, 2, 3)", &[]), "has no rows"),
            selecting(Some("other"), None, Bad { says: "called \"scores\"", ..good() }),
            selecting(None, Some(0.5), Bad { says: "scaled already", ..good() }),
        ],
        23,
    );
}

#[test]
fn bad_safetensors_headers() {
    let entry = |offsets: &str, dtype: &str| {
        let header =
            format!("{{\"s\":{{\"dtype\":\"{dtype}\",\"shape\":[2,3],\"data_offsets\":{offsets}}}}}");
        safetensors_of(&header, &f32s(6))
    };
    let two = |first: &str, second: &str| {
        let tensor =
            |name, at| format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":{at}}}");
        safetensors_of(&format!("{{{},{}}}", tensor("a", first), tensor("b", second)), &f32s(6))
    };
    let entry_of = |dtype| format!("\"s\":{{\"dtype\":\"{dtype}\",\"shape\":[6],\"data_offsets\":[0,12]}}");
    let twice = safetensors_of(&format!("{{{},{}}}", entry_of("F16"), entry_of("BF16")), &f16s(6));
    let mut announced = entry("[0,24]", "F32");
    announced[..8].copy_from_slice(&1000u64.to_le_bytes());
    let mut huge = entry("[0,24]", "F32");
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let nested = format!("{{\"s\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let trailing = [entry("[0,24]", "F32"), vec![0]].concat();
    let overflow = "{\"s\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,24]}}";
    refuse_all(
        vec![
            bad("tiny.safetensors", vec![1, 2, 3], "expected at least 8"),
            bad("announced.safetensors", announced, "header of 1000 bytes"),
            bad("huge.safetensors", huge, "header of 18446744073709551615 bytes"),
            bad("no-json.safetensors", safetensors_of("<xml/>", &[]), "expected value"),
            bad("list.safetensors", safetensors_of("[]", &[]), "expected a JSON object of tensors"),
            bad("cut-json.safetensors", safetensors_of("{\"s\":", &[]), "EOF"),
            bad("nested.safetensors", safetensors_of(&nested, &[]), "recursion limit"),
            bad("latin.safetensors", [&7u64.to_le_bytes()[..], b"{\"\xe9\":0}"].concat(), "unicode"),
            bad("dtype.safetensors", entry("[0,24]", "F33\\u001b"), "unknown variant"),
            bad("beyond.safetensors", entry("[0,2400]", "F32"), "invalid shape"),
            bad("backwards.safetensors", entry("[24,0]", "F32"), "invalid offset"),
            bad("late.safetensors", entry("[4,28]", "F32"), "invalid offset"),
            bad("size.safetensors", entry("[0,24]", "F16"), "invalid shape"),
            bad("overlap.safetensors", two("[0,12]", "[8,20]"), "invalid offset"),
            bad("twice.safetensors", twice, "\"s\" is there twice"),
            bad("hole.safetensors", two("[0,12]", "[16,28]"), "invalid offset"),
            bad("trailing.safetensors", trailing, "not fully covered"),
            bad("cut.safetensors", entry("[0,24]", "F32")[..80].to_vec(), "not fully covered"),
            bad("overflow.safetensors", safetensors_of(overflow, &f32s(6)), "overflow"),
            bad("nothing.safetensors", safetensors_of("{}", &[]), "holds no tensor"),
        ],
        19,
    );
}

#[test]
fn bad_score_tensors() {
    let scores: Named = ("s", "F32", &[2, 3], f32s(6));
    let with = |dtype: &'static str, shape: &'static [usize], bytes: Vec<u8>| {
        safetensors(&[scores.clone(), ("s.positions", dtype, shape, bytes)], None)
    };
    let one = |dtype, shape: &'static [usize], bytes| safetensors(&[("s\u{1b}", dtype, shape, bytes)], None);
    let many: Vec<String> = (0..10).map(|i| format!("s{i}")).collect();
    let many: Vec<Named> = many.iter().map(|name| (&**name, "F32", &[1usize][..], f32s(1))).collect();
    let shared = [scores.clone(), ("positions", "I64", &[3], i64s(&[0, 1, 2]))];
    let ids = [scores.clone(), ("ids", "I64", &[1], i64s(&[7]))];
    let orphan = [scores.clone(), ("z.positions", "I64", &[2], i64s(&[0, 1]))];
    let good = || bad("scores.safetensors", with("U8", &[2], vec![0, 1]), "");
    refuse_all(
        vec![
            bad("integers.safetensors", one("I64", &[1], i64s(&[1])), "expected scores in F64"),
            bad("eight-bit.safetensors", one("F8_E4M3", &[2], vec![0; 2]), "tensor \"s\\u{1b}\" F8_E4M3 [2]"),
            bad("single.safetensors", one("F32", &[], f32s(1)), "at least one dimension"),
            bad("no-columns.safetensors", one("F32", &[2, 0], vec![]), "zero columns"),
            bad("no-rows.safetensors", one("F32", &[2, 0, 3], vec![]), "has no rows"),
            bad("claim.safetensors", one("F32", &[1 << 60, 0, 5], vec![]), "has no rows"),
            bad("few.safetensors", with("I64", &[1], i64s(&[0])), "expected [2], one position per row"),
            bad("square.safetensors", with("U8", &[1, 2], vec![0; 2]), "expected [2]"),
            bad(
                "shared.safetensors",
                safetensors(&shared, None),
                "expected [2], one position per row of \"s\"",
            ),
            bad("real.safetensors", with("F32", &[2], f32s(2)), "expected an integer dtype"),
            bad("negative.safetensors", with("I64", &[2], i64s(&[0, -7])), "positions[1] is -7"),
            bad("negative-8.safetensors", with("I8", &[2], vec![0x80, 0]), "positions[0] is -128"),
            bad("orphan.safetensors", safetensors(&orphan, None), "positions of \"z\""),
            bad("only.safetensors", safetensors(&shared[1..], None), "holds no tensor"),
            selecting(Some("t"), None, Bad { says: "has no tensor \"t\", but \"s\"", ..good() }),
            selecting(
                Some("t"),
                None,
                bad("many.safetensors", safetensors(&many, None), "\"s7\" and 2 more"),
            ),
            selecting(Some("s.positions"), None, Bad { says: "holds positions", ..good() }),
            selecting(
                Some("ids"),
                None,
                bad("picked.safetensors", safetensors(&ids, None), "\"ids\" I64 [1]"),
            ),
            selecting(None, Some(0.5), Bad { says: "scaled already", ..good() }),
        ],
        19,
    );
}

#[test]
fn bad_pairs() {
    let of = |q: &[usize], k: &[usize], more: &[Named]| {
        let count = |shape: &[usize]| shape.iter().product();
        let members: [Named; 2] = [("a.q", "F32", q, f32s(count(q))), ("a.k", "F32", k, f32s(count(k)))];
        safetensors(&[&members, more].concat(), None)
    };
    let scaled = |scale| safetensors(&pair(), Some(scale));
    let positions = |values: &[i64]| of(&[4, 3, 2], &[2, 5, 2], &[("positions", "I64", &[3], i64s(values))]);
    let mut integers = pair();
    integers[1] = ("a.k", "I16", &[2, 5, 2], f16s(20));
    let good = || bad("pair.safetensors", safetensors(&pair(), None), "");
    refuse_all(
        vec![
            bad("no-k.safetensors", safetensors(&pair()[..1], None), "has no \"a.k\" beside it"),
            bad("no-q.safetensors", safetensors(&pair()[1..], None), "has no \"a.q\" beside it"),
            bad("flat-q.safetensors", of(&[12, 2], &[2, 5, 2], &[]), "expected [heads, rows, head_dim]"),
            bad("flat-k.safetensors", of(&[4, 3, 2], &[10, 2], &[]), "expected [kv_heads, keys, head_dim]"),
            bad(
                "batched.safetensors",
                of(&[2, 4, 3, 2], &[2, 5, 2], &[]),
                "expected [heads, rows, head_dim]",
            ),
            bad("dim.safetensors", of(&[4, 3, 2], &[2, 5, 3], &[]), "head_dim 3, expected 2"),
            bad("dim-0.safetensors", of(&[4, 3, 0], &[2, 5, 0], &[]), "head_dim is 0"),
            bad(
                "heads.safetensors",
                of(&[3, 3, 2], &[2, 5, 2], &[]),
                "3 heads, expected a multiple of the 2",
            ),
            bad("kv-heads.safetensors", of(&[4, 3, 2], &[0, 5, 2], &[]), "kv_heads is 0"),
            bad("keys.safetensors", of(&[4, 3, 2], &[2, 0, 2], &[]), "no keys for the 3 rows"),
            bad(
                "rows.safetensors",
                of(&[4, 6, 2], &[2, 5, 2], &[]),
                "6 rows for 5 keys: such a pair needs positions, or its heads come last",
            ),
            bad("no-rows.safetensors", of(&[4, 0, 2], &[2, 5, 2], &[]), "has no rows"),
            bad("claim.safetensors", of(&[0, 1 << 60, 2], &[2, 5, 2], &[]), "has no rows"),
            bad("ahead.safetensors", positions(&[0, 5, 4]), "positions[1] is 5, expected below the 5 keys"),
            bad("behind.safetensors", positions(&[0, 1, -1]), "positions[2] is -1"),
            bad(
                "few.safetensors",
                of(&[4, 2, 2], &[2, 5, 2], &[("positions", "U8", &[3], vec![0; 3])]),
                "[2]",
            ),
            bad("integers.safetensors", safetensors(&integers, None), "tensor \"a.k\" I16 [2, 5, 2]"),
            bad("scale-0.safetensors", scaled("0"), "scale \"0\" in the file's metadata"),
            bad("scale-nan.safetensors", scaled("NaN"), "scale \"NaN\" in the file's metadata"),
            bad("scale-word.safetensors", scaled("rsqrt"), "scale \"rsqrt\" in the file's metadata"),
            selecting(None, Some(-1.0), Bad { says: "--scale -1", ..good() }),
            selecting(None, Some(f64::INFINITY), Bad { says: "--scale inf", ..good() }),
            selecting(Some("b"), None, Bad { says: "has no tensor \"b\", but \"a\"", ..good() }),
        ],
        23,
    );
}
