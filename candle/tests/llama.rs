//! A Llama of two layers, made here: what stays in its row, and what a file or a rule may not ask for.

#[path = "common/refused.rs"]
mod refused;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use critbeta::calibration::HeadRescalings;
use critbeta_candle::llama::{Attention, Config, Llama, Step, greedy};
use critbeta_candle::{Cache, Rules};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use refused::refused;
use std::fs;
use std::io::Cursor;
use std::path::Path;

const WAYS: [Attention; 4] =
    [Attention::Critbeta { eps: 0.0 }, Attention::Candle, Attention::Grouped, Attention::Flash];
/// The embedding of this token is NaN.
const NAN: u32 = 15;

/// The file, with `changes` in its metadata.
fn file(changes: &[(&str, u32)]) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let count = shape.iter().product();
        let mut numbers: Vec<f32> = (0..count).map(|_| rng.random_range(-0.4..0.4)).collect();
        if name == "token_embd.weight" {
            numbers[128 * NAN as usize..].fill(f32::NAN);
        }
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
        tensors.push((name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()));
    };
    add("token_embd.weight".to_owned(), &[16, 128]);
    add("output.weight".to_owned(), &[16, 128]);
    add("output_norm.weight".to_owned(), &[128]);
    for layer in 0..2 {
        let shapes: [(&str, &[usize]); 9] = [
            ("attn_norm", &[128]),
            ("attn_q", &[128, 128]),
            ("attn_k", &[64, 128]),
            ("attn_v", &[64, 128]),
            ("attn_output", &[128, 128]),
            ("ffn_norm", &[128]),
            ("ffn_gate", &[32, 128]),
            ("ffn_up", &[32, 128]),
            ("ffn_down", &[128, 32]),
        ];
        shapes.iter().for_each(|(name, shape)| add(format!("blk.{layer}.{name}.weight"), shape));
    }
    let mut metadata = vec![
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    for (key, number) in [
        ("llama.block_count", 2),
        ("llama.context_length", 64),
        ("llama.embedding_length", 128),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 64),
    ] {
        let changed = changes.iter().find(|(name, _)| *name == key);
        metadata.push((key, Value::U32(changed.map_or(number, |(_, number)| *number))));
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut out = Cursor::new(Vec::new());
    gguf_file::write(&mut out, &metadata, &tensors).unwrap();
    out.into_inner()
}

fn load(file: &[u8], spec: &str, attention: Attention) -> Result<Llama> {
    let mut reader = Cursor::new(file);
    let content = Content::read(&mut reader)?;
    let config = Config::read(&content)?;
    let given = HeadRescalings::load(spec.parse().unwrap()).unwrap();
    let rules = Rules::new(&given, &config.layer_names(), config.heads).unwrap();
    Llama::load(&content, &mut reader, rules, attention)
}

/// A calibration with c = 1 and xi for all heads, but this c for the last head.
fn calibrated(folder: &Path, xi: f64, last: f64) -> String {
    let heads = [(0, 0, 1.0), (0, 1, 1.0), (1, 0, 1.0), (1, 1, last)].map(|(layer, head, c)| {
        let law = format!("{{\"c\":{c:e},\"xi\":{xi},\"conclusive\":true,\"interval\":[{xi},{xi}]}}");
        format!("{{\"layer\":\"blk.{layer}\",\"head\":{head},\"critical\":{law},\"resolved\":null}}")
    });
    let path = folder.join(format!("{xi}-{last:e}.json"));
    let heads = heads.join(",");
    fs::write(
        &path,
        format!("{{\"critbeta\":\"0.1.0\",\"resolve\":0.0,\"exclude_sink\":0,\"heads\":[{heads}]}}"),
    )
    .unwrap();
    format!("calibrated:{}", path.display())
}

fn run(model: &Llama, tokens: &[u32]) -> Result<(Vec<f32>, Cache)> {
    let mut cache = model.cache(tokens.len() + 1)?;
    let logits = model.forward(&mut [Step { tokens, cache: &mut cache, watch: None }])?;
    Ok((logits.to_vec2()?.remove(0), cache))
}

/// Values of a layer by token.
fn values(cache: &Cache, layer: usize) -> Vec<Vec<f32>> {
    let [_, v] = cache.layer(layer).unwrap();
    v.squeeze(0).unwrap().squeeze(0).unwrap().contiguous().unwrap().to_vec2().unwrap()
}

#[test]
fn a_nan_stays_in_the_rows_that_see_it() -> Result<()> {
    let file = file(&[]);
    let mut tokens: Vec<u32> = (1..12).collect();
    for (at, spec) in (0..4).flat_map(|at| [(at, "identity"), (at, "critical:cap=8")]) {
        if (at, spec) == (3, "critical:cap=8") {
            continue;
        }
        let model = load(&file, spec, WAYS[at])?;
        tokens[9] = 0;
        let (logits, clean) = run(&model, &tokens)?;
        assert!(logits.iter().all(|x| x.is_finite()));
        tokens[9] = NAN;
        let (mut one, mut other) = (model.cache(11)?, model.cache(11)?);
        let both = model.forward(&mut [
            Step { tokens: &tokens, cache: &mut one, watch: None },
            Step { tokens: &tokens[..9], cache: &mut other, watch: None },
        ])?;
        // The values of the second layer show the rows of the first.
        for (token, (found, want)) in values(&one, 1).iter().zip(values(&clean, 1)).enumerate() {
            let far = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let same = if token < 9 { far < 1e-5 } else { found.iter().all(|x| x.is_nan()) };
            // `max` would drop a NaN.
            assert!(
                same && (token >= 9 || found.iter().all(|x| x.is_finite())),
                "{spec} {at} {token}: {far}"
            );
        }
        let both = both.to_vec2::<f32>()?;
        assert!(both[0].iter().all(|x| x.is_nan()) && both[1].iter().all(|x| x.is_finite()), "{spec} {at}");
        let error = greedy(&Tensor::new(both, &Device::Cpu)?).unwrap_err().to_string();
        assert!(error.contains("[2, 16]") && error.contains("a NaN or an infinity in row 0"), "{error}");
    }
    Ok(())
}

#[test]
fn a_row_of_one_key_takes_any_law() -> Result<()> {
    let (file, folder) = (file(&[]), tempfile::tempdir().unwrap());
    // Eight tokens are a step of decode, and a product of the others.
    let eight: Vec<u32> = (1..9).collect();
    for spec in [calibrated(folder.path(), -0.7, 1.0), calibrated(folder.path(), -0.7, 1.0) + ",anchor=8"] {
        let (mut of_one, mut of_eight) = (Vec::new(), Vec::new());
        for attention in WAYS {
            let model = load(&file, &spec, attention)?;
            of_one.push(run(&model, &eight[..1])?.0);
            of_eight.push(run(&model, &eight)?.0);
        }
        of_one.push(run(&load(&file, "identity", WAYS[0])?, &eight[..1])?.0);
        for all in [&of_one, &of_eight] {
            for logits in all {
                let far = logits.iter().zip(&all[0]).map(|(a, b)| (a - b).abs());
                assert!(far.clone().all(|far| far < 1e-4), "{spec}: {:?}", far.collect::<Vec<_>>());
            }
        }
        assert_ne!(of_eight[0], run(&load(&file, "identity", WAYS[0])?, &eight)?.0, "{spec}");
    }
    Ok(())
}

#[test]
fn a_factor_that_is_not_finite_is_refused_with_its_layer() {
    let (file, folder) = (file(&[]), tempfile::tempdir().unwrap());
    let large = calibrated(folder.path(), 0.5, 1e300);
    for attention in WAYS {
        refused(load(&file, &large, attention), &["blk.1", "head 1", "beta = inf", "finite"]);
    }
}

#[test]
fn sizes_that_no_memory_holds_are_refused() -> Result<()> {
    let most = u32::MAX;
    let of = |key: &str| load(&file(&[(key, most)]), "identity", WAYS[0]);
    refused(of("llama.block_count"), &["llama.block_count is 4294967295", "21 tensors"]);
    refused(of("llama.embedding_length"), &["do not divide"]);
    // A file may promise any context. What is asked for counts.
    let long = of("llama.context_length")?;
    assert_eq!(long.config().context, most as usize);
    let (logits, _) = run(&long, &[1, 2, 3])?;
    assert_eq!(logits, run(&load(&file(&[]), "identity", WAYS[0])?, &[1, 2, 3])?.0);
    refused(long.cache(1 << 33), &["8589934592 tokens", "context of 4294967295"]);
    for tokens in [1 << 50, usize::MAX / 2] {
        refused(Cache::new(2, [tokens, 1, 64], DType::F32, false), &["KV cache", "2 layers", "memory"]);
    }
    Ok(())
}
