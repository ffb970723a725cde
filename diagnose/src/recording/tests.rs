//! One call of many texts is as many calls of one text.

use super::*;
use ndarray::{Array3, Array4};

/// Values that differ from each other, and from those of another `seed`.
fn wave(seed: usize) -> impl Fn(usize) -> f32 {
    move |i| ((i * 7919 + seed * 104_729) as f32 * 0.754_877_7).fract() * 4.0 - 2.0
}

fn bytes_of(dtype: DType, shape: [usize; 3], seed: usize) -> Array3<u8> {
    let values: Vec<f32> = (0..shape.iter().product()).map(wave(seed)).collect();
    let mut bytes = Vec::new();
    crate::input::elements::write(dtype, &values, &mut bytes);
    Array3::from_shape_vec([shape[0], shape[1], shape[2] * dtype.size_bytes()], bytes).unwrap()
}

/// Three texts with 1, 4 and 9 rows: queries [rows, heads, bytes], keys [batch, keys, kv_heads, bytes].
fn call(dtypes: [DType; 2], first: [usize; 3]) -> (Array3<u8>, Array4<u8>, Vec<TextRows>) {
    let q = bytes_of(dtypes[0], [14, 6, 5], 1);
    let k = bytes_of(dtypes[1], [3 * 20, 2, 5], 2);
    let bytes = k.dim().2;
    let k = k.into_shape_with_order((3, 20, 2, bytes)).unwrap();
    let text = |(batch, (rows, row)): (usize, (usize, usize))| TextRows {
        text: 10 + batch as u64,
        batch,
        row,
        positions: (11 - rows as u64..11).collect(),
        keys: TextKeys::From(first[batch]),
    };
    (q, k, [(1, 0), (4, 1), (9, 5)].into_iter().enumerate().map(text).collect())
}

fn of_products<'a>(texts: &'a [TextRows], of: &Products<'a>) -> Call<'a> {
    Call { layer: "model.layers.0", first_head: 0, texts, products: Some(of.clone()), tile: None }
}

fn recording(max_bytes: u64) -> Recording {
    Recording::new(Settings::default(), max_bytes).unwrap()
}

fn files(recording: &Recording) -> Vec<String> {
    (0..recording.file_count()).map(|index| format!("{:?}", recording.file(index))).collect()
}

#[test]
fn a_call_of_many_texts_is_as_many_calls_of_one_text() {
    for dtypes in DType::ALL.into_iter().flat_map(|q| DType::ALL.map(|k| [q, k])) {
        let (q, k, texts) = call(dtypes, [0, 3, 9]);
        // Keys in the order of a cache, and in that of a projection.
        let by_head = k.clone().permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
        let projected = k.view().permuted_axes([0, 2, 1, 3]);
        let mut found = Vec::new();
        for k in [by_head.view(), projected] {
            let of = Products { dtypes, q: q.view(), k, scale: 0.3 };
            let (mut one, mut many) = (recording(1 << 20), recording(1 << 20));
            one.add(&[of_products(&texts, &of)]).unwrap();
            let single = |text| of_products(std::slice::from_ref(text), &of);
            texts.iter().for_each(|text| many.add(&[single(text)]).unwrap());
            // Calls that waited for each other make the same records.
            let mut waited = recording(1 << 20);
            waited.add(&texts.iter().map(single).collect::<Vec<_>>()).unwrap();
            assert_eq!((waited.records(), files(&waited)), (many.records(), files(&many)));
            assert_eq!(one.records(), many.records());
            assert_eq!((one.records().len(), one.kept_rows()), (6 * 14, 6 * 14));
            assert_eq!(files(&one), files(&many));
            found.push((one.records(), files(&one)));
        }
        assert_eq!(found[0], found[1]);
    }
}

#[test]
fn a_tile_of_many_texts_is_as_many_tiles_of_one_text() {
    let mut tile =
        Array4::from_shape_fn((3, 2, 9, 20), |(b, h, r, k)| wave(3)(b * 360 + h * 180 + r * 20 + k));
    tile.slice_mut(s![.., .., .., 15..]).fill(f32::NEG_INFINITY);
    let text = |(batch, rows): (usize, u64)| TextRows {
        text: batch as u64,
        batch,
        row: batch,
        positions: (0..rows).collect(),
        keys: TextKeys::Within(batch..15 + batch),
    };
    let texts: Vec<TextRows> = [1, 4, 7].into_iter().enumerate().map(text).collect();
    let (mut one, mut many) = (recording(1 << 20), recording(1 << 20));
    let of = |texts| Call { layer: "a", first_head: 0, texts, products: None, tile: Some(tile.view()) };
    one.add(&[of(&texts)]).unwrap();
    texts.iter().for_each(|text| many.add(&[of(std::slice::from_ref(text))]).unwrap());
    assert_eq!(one.records(), many.records());
    assert_eq!((one.records().len(), files(&one)), (2 * 12, files(&many)));
    // A text sees the columns from its own to the fifteenth.
    let seen = |text: u64| 15 - text;
    let expected: Vec<u64> = (0..3).flat_map(|text| vec![seen(text); 2 * [1, 4, 7][text as usize]]).collect();
    assert_eq!(one.records().iter().map(|row| row.n).collect::<Vec<_>>(), expected);
}

#[test]
fn steps_are_one_take_and_a_cache_that_was_cut_back_begins_another() {
    let dtypes = [DType::F32; 2];
    let (q, k, _) = call(dtypes, [0; 3]);
    let k = k.permuted_axes([0, 2, 1, 3]);
    let mut recording = recording(1 << 20);
    let mut step = |row: usize, batch, position| {
        let (positions, keys) = (vec![position], TextKeys::From(0));
        let text = TextRows { text: 0, batch, row, positions, keys };
        let of = Products { dtypes, q: q.view(), k: k.view(), scale: 0.3 };
        recording.add(&[of_products(&[text], &of)]).unwrap();
    };
    (0..9).for_each(|at| step(at, 0, 5 + at as u64));
    // The same step again is no new row. Other keys are another take.
    step(8, 0, 13);
    step(9, 1, 7);
    assert_eq!((recording.records().len(), recording.file_count()), (6 * 10, 2));
    let [first, second] = [0, 1].map(|index| recording.file(index));
    assert_eq!((first.tensors[0].1.shape.as_slice(), first.tensors[1].1.shape[1]), (&[6, 9, 5][..], 14));
    assert_eq!((second.tensors[0].1.shape.as_slice(), second.tensors[1].1.shape[1]), (&[6, 1, 5][..], 8));
    // Queries are [heads, rows, head_dim].
    let query = q.slice(s![4, 3, ..]).to_vec();
    assert_eq!(first.tensors[0].1.bytes[(3 * 9 + 4) * 20..][..20], query);
    let keys = k.slice(s![0, 1, ..14, ..]);
    assert_eq!(first.tensors[1].1.bytes[14 * 20..], keys.iter().copied().collect::<Vec<u8>>());
}

#[test]
fn what_does_not_fit_into_memory_is_left_out_of_files_only() {
    let (q, k, texts) = call([DType::F32; 2], [0, 3, 9]);
    let of = Products {
        dtypes: [DType::F32; 2],
        q: q.view(),
        k: k.view().permuted_axes([0, 2, 1, 3]),
        scale: 1.0,
    };
    let first = (6 * 5 + 2 * 11 * 5) * 4;
    for (most, rows) in [(0, 0), (first - 1, 0), (first, 6), (1 << 20, 6 * 14)] {
        let mut recording = recording(most);
        recording.add(&[of_products(&texts, &of)]).unwrap();
        assert_eq!((recording.records().len(), recording.kept_rows()), (6 * 14, rows));
        assert_eq!(recording.is_full(), rows < 6 * 14);
    }
}

#[test]
fn what_does_not_fit_together_is_an_error_and_records_nothing() {
    let (q, k, texts) = call([DType::F32; 2], [0, 3, 9]);
    let k = k.permuted_axes([0, 2, 1, 3]);
    let good = Products { dtypes: [DType::F32; 2], q: q.view(), k: k.view(), scale: 1.0 };
    let narrow = k.slice(s![.., .., .., ..16]);
    let (few, batch) = (k.slice(s![.., .., ..19, ..]), k.slice(s![..2, .., .., ..]));
    let bad = [
        Products { scale: 0.0, ..good.clone() },
        Products { scale: f64::NAN, ..good.clone() },
        Products { k: narrow, ..good.clone() },
        Products { k: few, ..good.clone() },
        Products { k: batch, ..good.clone() },
        Products { q: q.slice(s![..13, .., ..]), ..good.clone() },
        Products { q: q.slice(s![.., ..5, ..]), ..good.clone() },
        Products { dtypes: [DType::F16, DType::F32], ..good.clone() },
        Products { q: q.view().permuted_axes([0, 2, 1]), ..good.clone() },
    ];
    let mut recording = recording(1 << 20);
    for of in bad {
        let error =
            recording.add(&[of_products(&texts, &good), of_products(&texts, &of)]).unwrap_err().to_string();
        assert!(error.contains("model.layers.0"), "{error}");
        assert!(of_products(&texts, &of).check().is_err());
    }
    let nothing = Call { layer: "a", first_head: 0, texts: &texts, products: None, tile: None };
    assert!(recording.add(&[nothing]).is_err());
    assert_eq!((recording.records().len(), recording.file_count()), (0, 0));
    recording.add(&[of_products(&texts, &good)]).unwrap();
    assert_eq!(recording.records().len(), 6 * 14);
}
