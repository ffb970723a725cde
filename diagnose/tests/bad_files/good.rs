//! Good files of every dtype, order and shape give the same scores.

use crate::build::*;
use crate::opened::*;
use critbeta::DType;
use critbeta_diagnose::input::safetensors::SafetensorsFile;
use critbeta_diagnose::input::{Input, Order, QkPair, ScoreTensor, Selection, Source};
use std::path::Path;

fn scores(input: &Input, at: usize) -> &ScoreTensor {
    match &input.sources[at] {
        Source::Scores(scores) => scores,
        Source::Pair(_) => panic!("{:?} is a pair", input.sources[at].layer()),
    }
}

fn the_pair(input: &Input) -> &QkPair {
    match &input.sources[..] {
        [Source::Pair(pair)] => pair,
        others => panic!("{others:?}"),
    }
}

/// Every score in the order of head and row, with the shift added back.
fn all_scores(tensor: &ScoreTensor) -> Vec<f64> {
    let (mut all, mut out) = (Vec::new(), Vec::new());
    for head in 0..tensor.heads() {
        for row in 0..tensor.rows() {
            let shift = tensor.read_row(head, row, 0, &mut out);
            all.extend(out.iter().map(|&v| f64::from(v) + shift));
        }
    }
    all
}

fn quarters(count: usize) -> Vec<f64> {
    (0..count).map(|i| i as f64 / 4.0).collect()
}

#[test]
fn npy_of_every_dtype_and_version() {
    for (descr, dtype, body) in
        [("<f2", DType::F16, f16s(6)), ("<f4", DType::F32, f32s(6)), ("<f8", DType::F64, f64s(6))]
    {
        let input = open("layer.npy", &npy(descr, false, "(2, 3)", &body)).unwrap();
        let tensor = scores(&input, 0);
        assert_eq!((&**tensor.layer(), tensor.dtype(), tensor.shape()), ("layer", dtype, &[2, 3][..]));
        assert_eq!((tensor.heads(), tensor.rows(), tensor.cols()), (1, 2, 3));
        assert_eq!(all_scores(tensor), quarters(6));
        assert_eq!(tensor.position(0), None);
    }
    let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }";
    for version in [[1, 0], [2, 0], [3, 0]] {
        let input = open("layer.npy", &npy_of(version, text, &f32s(6))).unwrap();
        let tensor = scores(&input, 0);
        assert_eq!((tensor.heads(), tensor.rows(), tensor.cols()), (1, 1, 6));
        assert_eq!(all_scores(tensor), quarters(6));
    }
}

#[test]
fn fortran_order_reads_as_the_same_scores() {
    let shape = [2, 3, 4, 5];
    let row_major = |i: [usize; 4]| i.iter().zip(shape).fold(0, |at, (&i, d)| at * d + i);
    let (mut body, mut wide) = (Vec::new(), Vec::new());
    // The first dimension varies fastest in the file.
    for at in 0..120 {
        let value = row_major([at % 2, at / 2 % 3, at / 6 % 4, at / 24]) as f64 / 4.0;
        body.extend((value as f32).to_le_bytes());
        wide.extend(value.to_le_bytes());
    }
    for (descr, body) in [("<f4", &body), ("<f8", &wide)] {
        let input = open("layer.npy", &npy(descr, true, "(2, 3, 4, 5)", body)).unwrap();
        let tensor = scores(&input, 0);
        assert_eq!((tensor.heads(), tensor.rows(), tensor.cols()), (6, 4, 5));
        assert_eq!(all_scores(tensor), quarters(120));
    }
    let input = open("layer.npy", &npy("<f4", true, "(3,)", &f32s(3))).unwrap();
    assert_eq!(all_scores(scores(&input, 0)), quarters(3));
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "layer.npy", &npy("<f4", true, "(2, 3, 4, 5)", &body));
    let file = critbeta_diagnose::input::npy::open(&path).unwrap();
    assert_eq!((file.dtype(), file.shape(), file.order()), (DType::F32, &shape[..], Order::Fortran));
    let mut out = Vec::new();
    assert_eq!(file.read_row(5, 3, 0, &mut out), 0.0);
    assert_eq!(out, [28.75, 29.0, 29.25, 29.5, 29.75]);
}

#[test]
fn safetensors_scores_of_every_dtype_with_positions_of_every_integer() {
    let tensors: [Named; 4] = [
        ("f32", "F32", &[2, 1, 3, 2], f32s(12)),
        ("f64", "F64", &[2, 3, 2], f64s(12)),
        ("f16", "F16", &[2, 3, 2], f16s(12)),
        ("bf16", "BF16", &[2, 3, 2], bf16s(12)),
    ];
    for (dtype, size) in
        [("I64", 8), ("U64", 8), ("I32", 4), ("U32", 4), ("I16", 2), ("U16", 2), ("I8", 1), ("U8", 1)]
    {
        let bytes = [3u64, 0, 127].iter().flat_map(|p| p.to_le_bytes()[..size].to_vec()).collect();
        let shape = [3];
        let mut all = tensors.to_vec();
        all.push(("positions", dtype, &shape, bytes));
        all.push(("f16.positions", "U64", &shape, i64s(&[7, 8, -1])));
        let input = open("layers.safetensors", &safetensors(&all, Some("irrelevant"))).unwrap();
        assert_eq!(layers(&input), ["f32", "f64", "f16", "bf16"]);
        for at in 0..4 {
            let tensor = scores(&input, at);
            assert_eq!((tensor.heads(), tensor.rows(), tensor.cols()), (2, 3, 2));
            assert_eq!(all_scores(tensor), quarters(12), "{}", tensor.layer());
            let expected = if at == 2 { [7, 8, u64::MAX] } else { [3, 0, 127] };
            assert_eq!([0, 1, 2].map(|row| tensor.position(row)), expected.map(Some));
        }
    }
}

fn three_positions(pair: &QkPair) -> [u64; 3] {
    [0, 1, 2].map(|row| pair.position(row))
}

#[test]
fn a_pair_reads_its_queries_keys_and_defaults() {
    let input = open("a.safetensors", &safetensors(&pair(), None)).unwrap();
    let a = the_pair(&input);
    assert_eq!((&**a.layer(), a.heads(), a.kv_heads(), a.rows()), ("a", 4, 2, 3));
    assert_eq!((a.keys(), a.head_dim(), three_positions(a)), (5, 2, [2, 3, 4]));
    assert_eq!([0, 1, 2, 3].map(|head| a.kv_head(head)), [0, 0, 1, 1]);
    assert_eq!(a.scale(), 1.0 / 2f64.sqrt());
    let mut out = Vec::new();
    a.read_q(3, 1, &mut out);
    assert_eq!(out, [5.0, 5.25]);
    a.read_k(1, 2..4, &mut out);
    assert_eq!(out, [3.5, 3.75, 4.0, 4.25]);
    a.read_k(1, 5..5, &mut out);
    assert!(out.is_empty());
    let mut wide = pair();
    wide[0] = ("a.q", "F64", &[4, 3, 2], f64s(24));
    let input = open("a.safetensors", &safetensors(&wide, None)).unwrap();
    the_pair(&input).read_q(3, 1, &mut out);
    assert_eq!(out, [5.0, 5.25]);
}

#[test]
fn scale_and_positions_come_from_the_nearest_who_says() {
    let mut tensors = pair();
    tensors.push(("positions", "U8", &[3], vec![0, 1, 2]));
    let shared = safetensors(&tensors, Some("0.25"));
    let input = open("a.safetensors", &shared).unwrap();
    assert_eq!((the_pair(&input).scale(), three_positions(the_pair(&input))), (0.25, [0, 1, 2]));
    let selection = Selection { tensor: None, scale: Some(3.0) };
    assert_eq!(the_pair(&open_part("a.safetensors", &shared, &selection).unwrap()).scale(), 3.0);
    tensors.push(("a.positions", "U8", &[3], vec![4, 0, 2]));
    let input = open("a.safetensors", &safetensors(&tensors, None)).unwrap();
    assert_eq!(three_positions(the_pair(&input)), [4, 0, 2]);
}

#[test]
fn pairs_come_before_scores_and_a_name_picks_either() {
    let mut tensors = pair();
    tensors.insert(0, ("z", "F32", &[2, 3], f32s(6)));
    tensors.push(("c.k", "F32", &[1, 2, 2], f32s(4)));
    tensors.push(("ids", "I64", &[1], i64s(&[1])));
    tensors.push(("b.q", "F32", &[1, 0, 2], vec![]));
    tensors.push(("b.k", "F32", &[1, 2, 2], f32s(4)));
    tensors.push(("c.q", "F32", &[1, 2, 2], f32s(4)));
    let file = safetensors(&tensors, None);
    let input = open("mixed.safetensors", &file).unwrap();
    assert_eq!(layers(&input), ["a", "c"]);
    assert_eq!(input.skipped, ["z", "ids", "b"]);
    for (name, layer) in [("a", "a"), ("c.q", "c"), ("c.k", "c"), ("z", "z")] {
        let selection = Selection { tensor: Some(name), scale: None };
        let input = open_part("mixed.safetensors", &file, &selection).unwrap();
        assert_eq!((layers(&input), input.skipped.len()), (vec![layer], 0));
    }
    let stem = Selection { tensor: Some("layer"), scale: None };
    assert!(open_part("layer.npy", &npy("<f4", false, "(2,)", &f32s(2)), &stem).is_ok());
}

/// Models add the lowest number of their dtype to masked keys, and a score may have been added before. f64
/// scores have the border of f32.
#[test]
fn the_lowest_numbers_of_a_dtype_are_masked() {
    let (f16_min, bf16_min) = (f64::from(half::f16::MIN), f64::from(half::bf16::MIN));
    let f32_min = f64::from(f32::MIN);
    for (dtype, lowest) in [("F16", f16_min), ("BF16", bf16_min), ("F32", f32_min), ("F64", f32_min)] {
        let inf = f64::INFINITY;
        let scores = [1.5, lowest, 0.6 * lowest, -inf, 0.4 * lowest, -3.0];
        let bytes = scores.iter().flat_map(|&score| match dtype {
            "F16" => half::f16::from_f64(score).to_le_bytes().to_vec(),
            "BF16" => half::bf16::from_f64(score).to_le_bytes().to_vec(),
            "F32" => (score as f32).to_le_bytes().to_vec(),
            _ => score.to_le_bytes().to_vec(),
        });
        let file = safetensors(&[("s", dtype, &[1, 6], bytes.collect())], None);
        let input = open("masked.safetensors", &file).unwrap();
        let found = all_scores(self::scores(&input, 0));
        assert_eq!(found[1..4], [-inf; 3], "{dtype}");
        assert!(found[0] == 1.5 && found[4].is_finite() && found[5] == -3.0, "{dtype}: {found:?}");
    }
}

#[test]
fn what_is_no_score_is_left_out_by_name() {
    let tensors = [
        ("scores", "F32", &[2usize, 3][..], f32s(6)),
        ("input_ids", "I64", &[1], i64s(&[7])),
        ("mask", "BOOL", &[2], vec![0, 1]),
        ("loss", "F32", &[], f32s(1)),
        ("attention_mask", "F32", &[1, 3], f32s(3)),
        ("layers.0.attn.weight", "F32", &[2, 3], f32s(6)),
        ("l.position_bias", "F32", &[2, 3], f32s(6)),
    ];
    let file = safetensors(&tensors, None);
    let input = open("beside.safetensors", &file).unwrap();
    assert_eq!(layers(&input), ["scores"]);
    let mut skipped = input.skipped.clone();
    skipped.sort();
    let left_out = ["attention_mask", "input_ids", "l.position_bias", "layers.0.attn.weight", "loss", "mask"];
    assert_eq!(skipped, left_out);
    let by_name = Selection { tensor: Some("attention_mask"), scale: None };
    assert_eq!(layers(&open_part("beside.safetensors", &file, &by_name).unwrap()), ["attention_mask"]);
    let only = safetensors(&tensors[4..5], None);
    let refused = open("only.safetensors", &only).unwrap_err().to_string();
    assert!(refused.contains("\"attention_mask\"") && refused.contains("select it by name"), "{refused}");
}

/// Tools call queries and keys by other names than ours. Read as scores, they would be silently wrong.
#[test]
fn pairs_have_many_spellings() {
    let words = [
        ["q", "k"],
        ["query", "key"],
        ["queries", "keys"],
        ["query_states", "key_states"],
        ["q_proj", "k_proj"],
    ];
    for [q, k] in words {
        for before in ["l.", "l_", "l/", "l-", ""] {
            let (q, k) = (format!("{before}{q}"), format!("{before}{k}"));
            let mut tensors = pair();
            (tensors[0].0, tensors[1].0) = (&q, &k);
            tensors.push(("value", "F32", &[2, 3], f32s(6)));
            let file = safetensors(&tensors, None);
            let layer = if before.is_empty() { "here" } else { "l" };
            let input = open("here.safetensors", &file).unwrap();
            assert_eq!((layers(&input), &input.skipped[..]), (vec![layer], &["value".to_owned()][..]), "{q}");
            the_pair(&input);
            for name in [&q, &k, "l"].into_iter().filter(|name| !before.is_empty() || *name != "l") {
                let by_name = Selection { tensor: Some(name), scale: None };
                the_pair(&open_part("here.safetensors", &file, &by_name).unwrap());
            }
            // Alone, any word but `.q` and `.k` may be a name of scores.
            if q != "l.q" {
                let alone = open("alone.safetensors", &safetensors(&tensors[..1], None)).unwrap();
                assert_eq!(layers(&alone), [q.as_str()]);
            }
        }
    }
}

#[test]
fn a_batch_of_one_text_is_a_pair() {
    let file = |q: &'static [usize], k: &'static [usize]| {
        let mut tensors = pair();
        (tensors[0].2, tensors[1].2) = (q, k);
        safetensors(&tensors, None)
    };
    let plain = open("a.safetensors", &file(&[4, 3, 2], &[2, 5, 2])).unwrap();
    let batch = open("a.safetensors", &file(&[1, 4, 3, 2], &[1, 2, 5, 2])).unwrap();
    let of = |input: &Input| {
        let (pair, mut rows) = (the_pair(input), Vec::new());
        let mut values = Vec::new();
        for (head, row) in (0..4).flat_map(|head| (0..3).map(move |row| (head, row))) {
            pair.read_q(head, row, &mut values);
            rows.push(values.clone());
        }
        (pair.heads(), pair.rows(), pair.kv_heads(), pair.keys(), pair.scale(), rows)
    };
    assert_eq!(of(&plain), of(&batch));
}

#[test]
fn tensors_come_in_the_order_of_their_bytes_with_dtype_shape_and_metadata() {
    let shape = [1, 0];
    let empty = |name| (name, "F32", &shape[..], vec![]);
    let tensors =
        [("y", "F16", &[2usize][..], f16s(2)), ("x", "I8", &[3], vec![1, 2, 3]), empty("n"), empty("m")];
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "f.safetensors", &safetensors(&tensors, Some("1")));
    let file = SafetensorsFile::open(&path).unwrap();
    let found: Vec<_> =
        file.tensors().iter().map(|t| (&*t.name, t.dtype.to_string(), t.bytes.len())).collect();
    let expected = [("y", "F16", 4), ("x", "I8", 3), ("m", "F32", 0), ("n", "F32", 0)];
    assert_eq!(found, expected.map(|(name, dtype, len)| (name, dtype.to_owned(), len)));
    assert_eq!(&file.tensor("x").unwrap().bytes[..], [1, 2, 3]);
    assert_eq!((file.path(), file.metadata()["scale"].as_str()), (&*path, "1"));
}

#[test]
fn the_example_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/smollm2_gpl3.safetensors");
    let input = critbeta_diagnose::input::open(&path, &Selection::default()).unwrap();
    assert_eq!(layers(&input), ["layer00", "layer10", "layer20", "layer29"]);
    let one = Selection { tensor: Some("layer10"), scale: None };
    let input = critbeta_diagnose::input::open(&path, &one).unwrap();
    let pair = the_pair(&input);
    assert_eq!((pair.heads(), pair.kv_heads(), pair.rows(), pair.keys()), (3, 1, 646, 7658));
    assert_eq!((pair.scale(), pair.position(0), pair.position(645)), (0.125, 63, 7657));
}

#[test]
fn inputs_are_read_and_outputs_written_by_many_threads() {
    fn shared<T: Clone + Send + Sync>() {}
    fn sent<T: Send + std::io::Write>() {}
    shared::<ScoreTensor>();
    shared::<QkPair>();
    shared::<SafetensorsFile>();
    sent::<critbeta_diagnose::output::Output>();
    let input = open("layer.npy", &npy("<f4", false, "(64, 3)", &f32s(192))).unwrap();
    let tensor = scores(&input, 0);
    let read = |row| {
        let mut out = Vec::new();
        tensor.read_row(0, row, 0, &mut out);
        out[0]
    };
    let firsts = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..64).map(|row| scope.spawn(move || read(row))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<f32>>()
    });
    assert_eq!(firsts, (0..64).map(|row| row as f32 * 0.75).collect::<Vec<f32>>());
}
