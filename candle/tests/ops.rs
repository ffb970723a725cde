//! The ops against the definition in f64, and what they refuse.

#[path = "common/refused.rs"]
mod refused;

use candle_core::{DType, Device, Result, Tensor};
use critbeta::Rescaling;
use critbeta::attention::DecodeCall;
use critbeta::cpu::Measure;
use critbeta::reference::Row;
use critbeta::rescaling::RowFacts;
use critbeta_candle::{decode, softmax_last_dim};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use refused::refused;

const RULES: [&str; 5] =
    ["identity", "fixed:1.3", "qwen-logn:train=16", "critical:cap=8", "asentmax:delta=1,b=1,g=0.5"];
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Spiky numbers: most are small, and some stand out.
fn spiky(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut one = || {
        let x: f32 = rng.random_range(-1.0..1.0);
        if rng.random_range(0..16) == 0 { 4.0 * x } else { x }
    };
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| one()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// The relative step of a dtype, and its smallest number.
fn step_of(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F16 => (2f64.powi(-10), 2f64.powi(-24)),
        DType::BF16 => (2f64.powi(-7), 2f64.powi(-133)),
        _ => (2f64.powi(-23), 2f64.powi(-149)),
    }
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The beta of a row by the definition.
fn beta(rule: &Rescaling, row: &Row, position: u64) -> f64 {
    let mut facts = RowFacts::new(row.n(), position);
    facts.entropy = row.entropy(1.0);
    facts.critical = row.resolved_critical_beta(rule.resolve().unwrap_or(0.0)).beta;
    rule.beta(&facts)
}

/// Weights of all scores, masked ones included, by the definition.
fn weights(scores: &[f32], rule: &Rescaling, position: u64) -> Vec<f64> {
    let row = Row::from_f32(scores);
    let beta = beta(rule, &row, position);
    let weight =
        |&s: &f32| if s == f32::NEG_INFINITY { 0.0 } else { (beta * (f64::from(s) - row.max())).exp() };
    let sum: f64 = scores.iter().map(weight).sum();
    scores.iter().map(|s| if sum == 0.0 { 0.0 } else { weight(s) / sum }).collect()
}

#[test]
fn softmax_is_the_definition_in_every_dtype() -> Result<()> {
    let (heads, tokens, keys) = (3, 5, 77);
    let mut scores = numbers(&spiky(&[2, heads, tokens, keys], 1));
    // Causal masks, a tied maximum, and a row without scores.
    for (at, score) in scores.iter_mut().enumerate() {
        if at % keys > 40 + at / keys % tokens {
            *score = f32::NEG_INFINITY;
        }
    }
    scores[3] = 9.0;
    scores[7] = 9.0;
    scores[keys..2 * keys].fill(f32::NEG_INFINITY);
    let positions: Vec<u32> = (0..tokens as u32).map(|t| 40 + t).collect();
    for dtype in DTYPES {
        let x = Tensor::from_vec(scores.clone(), (2, heads, tokens, keys), &Device::Cpu)?.to_dtype(dtype)?;
        let given = numbers(&x);
        for spec in RULES {
            let rule: Rescaling = spec.parse().unwrap();
            let out = softmax_last_dim(&x, &rule, Some(&positions))?;
            assert_eq!((out.dims(), out.dtype()), (x.dims(), dtype));
            for (row, found) in numbers(&out).chunks(keys).enumerate() {
                let scores = &given[row * keys..][..keys];
                let want = weights(scores, &rule, positions[row % tokens].into());
                for (key, (found, want)) in found.iter().zip(want).enumerate() {
                    // (4 + z) steps of f32, where z = beta * gap is below 110 here, and one of the dtype.
                    let (step, smallest) = step_of(dtype);
                    let bound = want * (step + 114.0 * 2f64.powi(-23)) + smallest;
                    let error = (f64::from(*found) - want).abs();
                    assert!(error <= bound, "{dtype:?} {spec} row {row} key {key}: {found}, not {want}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn views_have_the_bits_of_their_copies() -> Result<()> {
    let rule: Rescaling = "critical".parse().unwrap();
    let whole = spiky(&[4, 6, 40], 2);
    for view in
        [whole.narrow(2, 3, 21)?, whole.narrow(1, 2, 3)?, whole.transpose(0, 1)?, whole.narrow(0, 3, 1)?]
    {
        let copy = Tensor::from_vec(numbers(&view), view.dims(), &Device::Cpu)?;
        let found = [&view, &copy].map(|x| numbers(&softmax_last_dim(x, &rule, None).unwrap()));
        assert_eq!(found[0], found[1], "{:?}", view.layout());
    }
    Ok(())
}

#[test]
fn positions_are_for_rows_or_for_tokens() -> Result<()> {
    let rule: Rescaling = "grok2:train=4".parse().unwrap();
    let x = spiky(&[2, 3, 16], 3);
    let of_tokens = softmax_last_dim(&x, &rule, Some(&[5, 9, 30]))?;
    let of_rows = softmax_last_dim(&x, &rule, Some(&[5, 9, 30, 5, 9, 30]))?;
    assert_eq!(numbers(&of_tokens), numbers(&of_rows));
    assert_ne!(numbers(&of_tokens), numbers(&softmax_last_dim(&x, &rule, None)?));
    // One axis is one row, and no rows are no rows.
    assert_eq!(softmax_last_dim(&x.flatten_all()?, &rule, Some(&[7]))?.dims(), [96]);
    assert_eq!(softmax_last_dim(&x.narrow(1, 0, 0)?, &rule, Some(&[]))?.dims(), [2, 0, 16]);
    assert_eq!(softmax_last_dim(&x.narrow(2, 0, 0)?, &rule, None)?.dims(), [2, 3, 0]);
    Ok(())
}

#[test]
fn softmax_refuses_by_shape_and_dtype() -> Result<()> {
    let rule = Rescaling::Identity;
    let x = spiky(&[2, 3, 16], 4);
    refused(softmax_last_dim(&x, &rule, Some(&[1, 2])), &["[2, 3, 16]", "2 positions", "expected 3", "6"]);
    for dtype in [DType::F64, DType::U32] {
        let text = format!("{dtype:?}");
        refused(
            softmax_last_dim(&x.to_dtype(dtype)?, &rule, None),
            &["[2, 3, 16]", &text, "f32, f16 or bf16"],
        );
    }
    refused(softmax_last_dim(&Tensor::new(1f32, &Device::Cpu)?, &rule, None), &["without axes"]);
    Ok(())
}

#[test]
fn a_nan_stays_in_its_row() -> Result<()> {
    let mut scores = numbers(&spiky(&[4, 32], 5));
    let clean = scores.clone();
    scores[32 + 5] = f32::NAN;
    scores[64 + 9] = f32::INFINITY;
    for spec in RULES {
        let rule: Rescaling = spec.parse().unwrap();
        let [found, want] = [&scores, &clean].map(|scores| {
            let x = Tensor::from_vec(scores.clone(), (4, 32), &Device::Cpu).unwrap();
            numbers(&softmax_last_dim(&x, &rule, None).unwrap())
        });
        assert_eq!((&found[..32], &found[96..]), (&want[..32], &want[96..]), "{spec}");
        assert!(found[32..96].iter().all(|p| p.is_nan()), "{spec}");
    }
    let (q, k, v) =
        (spiky(&[1, 4, 1, 64], 6), numbers(&spiky(&[1, 2, 50, 64], 7)), spiky(&[1, 2, 50, 64], 8));
    let poisoned: Vec<f32> =
        k.iter().enumerate().map(|(at, k)| if at == 700 { f32::NAN } else { *k }).collect();
    let rules = [Rescaling::Identity];
    let [found, want] = [poisoned, k].map(|k| {
        let k = Tensor::from_vec(k, (1, 2, 50, 64), &Device::Cpu).unwrap();
        numbers(&decode(&q, &k, &v, &DecodeCall::new(&rules)).unwrap().0)
    });
    assert!(found[..128].iter().all(|x| x.is_nan()), "the two heads of the poisoned key head");
    assert_eq!(found[128..], want[128..]);
    Ok(())
}

/// Attention by its definition: outputs `[batch, heads, tokens, v_dim]` and the sizes of their terms.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, rule: impl Fn(usize) -> Rescaling) -> Vec<[f64; 2]> {
    let ((batch, heads, tokens, dim), (_, kv_heads, keys, _)) = (q.dims4().unwrap(), k.dims4().unwrap());
    let v_dim = v.dim(3).unwrap();
    let (q, k, v) = (numbers(q), numbers(k), numbers(v));
    let mut out = Vec::new();
    for (b, h, t) in (0..batch).flat_map(|b| (0..heads * tokens).map(move |r| (b, r / tokens, r % tokens))) {
        let (of_q, of_kv) = ((b * heads + h) * tokens + t, (b * kv_heads + h / (heads / kv_heads)) * keys);
        let seen = keys - tokens + t + 1;
        let dot = |key: usize| -> f64 {
            let pairs = q[of_q * dim..][..dim].iter().zip(&k[(of_kv + key) * dim..][..dim]);
            pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() / (dim as f64).sqrt()
        };
        let row = Row::new(&(0..seen).map(dot).collect::<Vec<_>>());
        let beta = beta(&rule(h), &row, seen as u64 - 1);
        let weights: Vec<f64> = (0..seen).map(|key| (beta * (dot(key) - row.max())).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for e in 0..v_dim {
            let terms =
                weights.iter().enumerate().map(|(j, w)| w / sum * f64::from(v[(of_kv + j) * v_dim + e]));
            out.push(terms.fold([0.0, 0.0], |[total, size], x| [total + x, size + x.abs()]));
        }
    }
    out
}

#[test]
fn decode_is_the_definition_for_every_view_and_dtype() -> Result<()> {
    let (batch, heads, kv_heads, keys, dim) = (2, 6, 2, 130, 64);
    for (tokens, dtype) in [(1, DType::F32), (3, DType::F32), (8, DType::F16), (2, DType::BF16)] {
        let q = spiky(&[batch, heads, tokens, dim], 10).to_dtype(dtype)?;
        // A view of the first keys of a larger cache, and one of [batch, keys, heads, dim].
        let k = spiky(&[batch, kv_heads, keys + 30, dim], 11).to_dtype(dtype)?.narrow(2, 0, keys)?;
        let v = spiky(&[batch, keys, kv_heads, dim + 8], 12).to_dtype(dtype)?.transpose(1, 2)?;
        for spec in RULES {
            let rules = [spec.parse::<Rescaling>().unwrap()];
            let mut call = DecodeCall::new(&rules);
            call.measure = Some(Measure::default());
            let (out, rows) = decode(&q, &k, &v, &call)?;
            assert_eq!((out.dims(), out.dtype()), (&[batch, heads, tokens, dim + 8][..], dtype));
            assert_eq!(rows.len(), batch * tokens * heads);
            let (step, _) = step_of(dtype);
            let want = attention(&q, &k, &v, |_| rules[0].clone());
            for (at, (found, [want, size])) in numbers(&out).iter().zip(want).enumerate() {
                // Scores err by 1e-6 here, weights by that times beta, below 9.
                let error = (f64::from(*found) - want).abs();
                let bound = want.abs() * step + 3e-5 * size;
                assert!(error <= bound, "{dtype:?} {spec} element {at}: {found}, not {want}");
            }
            // Rows come in the order [batch, tokens, heads].
            let seen = |row: usize| (keys - tokens + row / heads % tokens + 1) as u64;
            assert!(rows.iter().enumerate().all(|(row, found)| found.row.top.len == seen(row)));
            assert!(rows.iter().all(|row| row.report.is_some_and(|report| report.critical.beta > 0.0)));
        }
    }
    Ok(())
}

#[test]
fn decode_takes_a_rule_for_each_head_and_an_eps() -> Result<()> {
    let (q, k, v) = (spiky(&[1, 4, 1, 64], 20), spiky(&[1, 2, 300, 64], 21), spiky(&[1, 2, 300, 64], 22));
    let rules: Vec<Rescaling> =
        ["identity", "fixed:4", "critical", "su"].map(|s| s.parse().unwrap()).to_vec();
    let (out, rows) = decode(&q, &k, &v, &DecodeCall::new(&rules))?;
    let want = attention(&q, &k, &v, |head| rules[head].clone());
    for (found, [want, size]) in numbers(&out).iter().zip(&want) {
        assert!((f64::from(*found) - want).abs() <= 3e-5 * size, "{found}, not {want}");
    }
    assert!(rows.iter().all(|row| row.kept == 300));
    let mut call = DecodeCall::new(&rules);
    call.eps = 0.01;
    let (_, rows) = decode(&(q * 8.0)?, &k, &v, &call)?;
    assert!(rows.iter().any(|row| row.kept < 300) && rows.iter().all(|row| row.dropped < 1 << 26));
    Ok(())
}

#[test]
fn decode_refuses_by_shape_and_dtype() -> Result<()> {
    let rules = [Rescaling::Identity];
    let call = DecodeCall::new(&rules);
    let (q, k) = (spiky(&[1, 4, 1, 64], 30), spiky(&[1, 2, 9, 64], 31));
    let of = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    refused(decode(&q.squeeze(0)?, &k, &k, &call), &["[4, 1, 64]", "expected [batch, heads"]);
    refused(
        decode(&q, &k, &of(&[1, 2, 8, 64]), &call),
        &["[1, 2, 9, 64]", "[1, 2, 8, 64]", "as many heads and keys"],
    );
    refused(decode(&q, &of(&[2, 2, 9, 64]), &of(&[2, 2, 9, 64]), &call), &["[2, 2, 9, 64]", "one batch"]);
    refused(decode(&of(&[1, 3, 1, 64]), &k, &k, &call), &["[1, 3, 1, 64]", "2 kv heads"]);
    refused(decode(&of(&[1, 4, 10, 64]), &k, &k, &call), &["[1, 4, 10, 64]", "all 10 query tokens"]);
    refused(decode(&of(&[1, 4, 9, 64]), &k, &k, &call), &["query length 9", "expected 0 to 8"]);
    refused(
        decode(&of(&[1, 4, 1, 48]), &of(&[1, 2, 9, 48]), &of(&[1, 2, 9, 48]), &call),
        &["48", "multiple of 8"],
    );
    refused(decode(&of(&[1, 4, 1, 72]), &k, &k, &call), &["queries of 72 elements", "64"]);
    refused(
        decode(&q, &k.to_dtype(DType::F64)?, &k.to_dtype(DType::F64)?, &call),
        &["F64", "f32, f16 or bf16"],
    );
    refused(decode(&q.to_dtype(DType::U8)?, &k, &k, &call), &["U8", "f32, f16 or bf16"]);
    refused(decode(&q, &k, &k.to_dtype(DType::F16)?, &call), &["F32", "F16", "one dtype"]);
    let none = k.narrow(2, 0, 0)?;
    refused(decode(&q, &none, &none, &call), &["[1, 2, 0, 64]", "1 query tokens"]);
    let two = [Rescaling::Identity, Rescaling::Identity];
    refused(decode(&q, &k, &k, &DecodeCall::new(&two)), &["2 rescalings", "4 query heads"]);
    Ok(())
}
