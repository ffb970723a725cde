//! Small models of several architectures through llama.cpp: what is recorded, and what is refused.

use crate::tiny::{DIM, EMBEDDING, HEADS, KV_HEADS, Tiny, Value, poison, prose};
use anyhow::{Result, bail};
use critbeta_diagnose::input::{Selection, Source, open};
use critbeta_gguf::llama::{Model, Node, Observer, Run};
use critbeta_gguf::record::{Recorder, TOLERANCE};
use critbeta_gguf::{rows, save};
use std::ops::Range;
use std::path::{Path, PathBuf};

const TOKENS: usize = 300;
const RUN: Run = Run { batch: 512, threads: 2 };

struct Recorded {
    recorder: Recorder,
    plain: Vec<f32>,
    seen: Vec<f32>,
    files: Vec<PathBuf>,
    _folder: tempfile::TempDir,
}

/// Runs a text through a model without and with a recorder, and saves what it recorded.
fn record(tiny: &Tiny, run: Run) -> Result<Recorded> {
    let folder = tempfile::tempdir()?;
    let model = Model::load(&tiny.write(folder.path()))?;
    let tokens = model.tokens(&prose(TOKENS), false)?;
    assert_eq!(tokens.len(), TOKENS);
    let layers = (0..model.sizes()[0]).collect();
    let mut recorder = Recorder::new(rows::spread(TOKENS, 40), layers, "blk.{}", 1 << 30)?;
    let plain = model.run(&tokens, run, None, |_| ())?;
    let seen = model.run(&tokens, run, Some(&mut recorder), |_| ())?;
    if recorder.seen.is_empty() {
        bail!("nothing was recorded");
    }
    let files = save::save(&recorder.recording, &folder.path().join("out.safetensors"), "tiny.gguf")?;
    Ok(Recorded { recorder, plain, seen, files, _folder: folder })
}

fn sources(file: &Path) -> Vec<Source> {
    open(file, &Selection::default()).unwrap().sources
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-4)
}

/// All queries and keys of a file, layer by layer, with what else a pair has.
fn pairs(file: &Path, sizes: [usize; 3], scale: f64) -> Vec<[Vec<f32>; 2]> {
    let read = |source: Source| {
        let Source::Pair(pair) = source else { panic!("expected queries and keys") };
        assert_eq!([pair.heads(), pair.kv_heads(), pair.head_dim()], sizes);
        assert_eq!((pair.keys(), pair.scale()), (TOKENS, scale));
        let positions: Vec<usize> = (0..pair.rows()).map(|row| pair.position(row) as usize).collect();
        assert_eq!(positions, rows::spread(TOKENS, 40));
        let [mut q, mut k, mut part] = [const { Vec::new() }; 3];
        for (head, row) in (0..sizes[0]).flat_map(|head| (0..pair.rows()).map(move |row| (head, row))) {
            pair.read_q(head, row, &mut part);
            q.append(&mut part);
        }
        for head in 0..sizes[1] {
            pair.read_k(head, 0..TOKENS, &mut part);
            k.append(&mut part);
        }
        [q, k]
    };
    sources(file).into_iter().map(read).collect()
}

const SIZES: [usize; 3] = [HEADS as usize, KV_HEADS as usize, DIM as usize];

#[test]
fn recording_changes_no_bit_and_keeps_keys_over_chunks() {
    let whole = record(&Tiny::new("llama", 3), RUN).unwrap();
    assert!(whole.plain == whole.seen, "logits have other bits");
    assert!(whole.recorder.worst > 0.0 && whole.recorder.worst < TOLERANCE / 10.0);
    let chunks = record(&Tiny::new("llama", 3), Run { batch: 64, threads: 1 }).unwrap();
    assert!(chunks.plain == chunks.seen);
    assert!(close(&whole.plain, &chunks.plain));
    let [(whole, one), (chunks, many)] = [whole, chunks].map(|found| {
        assert!(found.recorder.as_scores.is_empty());
        let pairs = pairs(&found.files[0], SIZES, 0.25);
        (pairs, found.files.len())
    });
    assert_eq!([one, many, whole.len()], [1, 1, 3]);
    for (a, b) in whole.iter().zip(&chunks) {
        assert!(close(&a[0], &b[0]) && close(&a[1], &b[1]));
    }
}

#[test]
fn the_scale_is_the_one_of_the_model() {
    let mut tiny = Tiny::new("granite", 2).with("granite.attention.scale", Value::F32(0.375));
    for name in ["logit_scale", "residual_scale", "embedding_scale"] {
        tiny = tiny.with(&format!("granite.{name}"), Value::F32(1.0));
    }
    let found = record(&tiny, RUN).unwrap();
    assert_eq!(pairs(&found.files[0], SIZES, 0.375).len(), 2);
}

#[test]
fn queries_and_keys_are_those_behind_their_norms() {
    let mut tiny = Tiny::new("qwen3", 2);
    for layer in 0..2 {
        for name in ["attn_q_norm", "attn_k_norm"] {
            tiny = tiny.tensor(&format!("blk.{layer}.{name}.weight"), &[DIM]);
        }
    }
    let found = record(&tiny, RUN).unwrap();
    assert!(found.plain == found.seen);
    for vectors in pairs(&found.files[0], SIZES, 0.25).into_iter().flatten() {
        for vector in vectors.chunks_exact(DIM as usize) {
            // The norm's weights are 0.8 to 1.2; rotary embedding changes no length.
            let mean = vector.iter().map(|x| x * x).sum::<f32>() / DIM as f32;
            assert!((0.64..=1.44).contains(&mean), "{mean}");
        }
    }
}

fn gemma(architecture: &'static str, window: u32, windowed: &[bool]) -> Tiny {
    let mut tiny = Tiny::new(architecture, windowed.len() as u32)
        .with(&format!("{architecture}.attention.sliding_window"), Value::U32(window))
        .with(&format!("{architecture}.attention.sliding_window_pattern"), Value::Bools(windowed.to_vec()));
    for layer in 0..windowed.len() {
        for (name, size) in [
            ("post_attention_norm", EMBEDDING),
            ("post_ffw_norm", EMBEDDING),
            ("attn_q_norm", DIM),
            ("attn_k_norm", DIM),
        ] {
            if architecture == "gemma3" || size == EMBEDDING {
                tiny = tiny.tensor(&format!("blk.{layer}.{name}.weight"), &[size]);
            }
        }
    }
    tiny
}

/// A layer and its rows: position and scores of each.
type Layer = (String, Vec<(usize, Vec<f32>)>);

/// All scores of a file.
fn scores(file: &Path) -> Vec<Layer> {
    let read = |source: Source| {
        let Source::Scores(tensor) = source else { panic!("expected scores") };
        assert_eq!(tensor.heads(), HEADS as usize);
        let row = |head: usize, row: usize| {
            let mut scores = Vec::new();
            assert_eq!(tensor.read_row(head, row, 0, &mut scores), 0.0);
            (tensor.position(row).unwrap() as usize, scores)
        };
        let all = (0..HEADS as usize).flat_map(|head| (0..tensor.rows()).map(move |at| (head, at)));
        (tensor.layer().to_string(), all.map(|(head, at)| row(head, at)).collect())
    };
    sources(file).into_iter().map(read).collect()
}

/// Whether a row hides the keys beyond a window, and no others.
fn sees(window: usize) -> impl Fn(&(usize, Vec<f32>)) -> bool {
    move |(position, scores)| {
        let visible = |key| key <= *position && key + window > *position;
        scores.iter().enumerate().all(|(key, &score)| (score > f32::NEG_INFINITY) == visible(key))
    }
}

#[test]
fn a_softcap_and_a_window_become_scores() {
    let tiny = gemma("gemma2", 20, &[true, false]).with("gemma2.attn_logit_softcapping", Value::F32(1.5));
    let found = record(&tiny, RUN).unwrap();
    assert!(found.plain == found.seen);
    assert_eq!((found.files.len(), found.recorder.as_scores.len()), (1, 2));
    let layers = scores(&found.files[0]);
    assert_eq!([&layers[0].0, &layers[1].0], ["blk.0", "blk.1"]);
    assert!(layers[0].1.iter().all(sees(20)) && layers[1].1.iter().all(sees(TOKENS)));
    let visible = layers.iter().flat_map(|(_, rows)| rows).flat_map(|(_, scores)| scores);
    let largest = visible.filter(|score| score.is_finite()).fold(0.0f32, |most, score| most.max(score.abs()));
    assert!((1.0..=1.5).contains(&largest), "{largest}");
}

#[test]
fn layers_with_a_window_stand_beside_pairs_in_a_file_of_their_own() {
    let found = record(&gemma("gemma3", 20, &[true, false, true]), RUN).unwrap();
    assert!(found.plain == found.seen);
    assert_eq!(
        found.files.iter().map(|file| file.file_name().unwrap()).collect::<Vec<_>>(),
        ["out-0.safetensors", "out-1.safetensors"]
    );
    // The factor is in the queries of Gemma 3.
    let of_pairs = pairs(&found.files[0], SIZES, 1.0);
    let layers = scores(&found.files[1]);
    assert_eq!((of_pairs.len(), &*layers[0].0, &*layers[1].0), (1, "blk.0", "blk.2"));
    assert!(layers.iter().flat_map(|(_, rows)| rows).all(sees(20)));
}

#[test]
fn a_window_that_hides_nothing_is_no_window() {
    let found = record(&gemma("gemma3", 512, &[true, false]), RUN).unwrap();
    assert!(found.recorder.as_scores.is_empty());
    assert_eq!(pairs(&found.files[0], SIZES, 1.0).len(), 2);
}

#[test]
fn alibi_without_rotary_embedding_becomes_scores() {
    let dim = EMBEDDING / HEADS;
    let mut tiny = Tiny::new("mpt", 2).without(".attn_").without("gate").without(".ffn_");
    for name in ["key_length", "value_length"] {
        tiny = tiny.with(&format!("mpt.attention.{name}"), Value::U32(dim as u32));
    }
    tiny = tiny.with("mpt.attention.max_alibi_bias", Value::F32(8.0));
    for layer in 0..2 {
        for (name, shape) in [
            ("attn_norm", vec![EMBEDDING]),
            ("attn_qkv", vec![EMBEDDING, EMBEDDING + 2 * KV_HEADS * dim]),
            ("attn_output", vec![EMBEDDING, EMBEDDING]),
            ("ffn_norm", vec![EMBEDDING]),
            ("ffn_up", vec![EMBEDDING, 48]),
            ("ffn_down", vec![48, EMBEDDING]),
        ] {
            tiny = tiny.tensor(&format!("blk.{layer}.{name}.weight"), &shape);
        }
    }
    let found = record(&tiny, RUN).unwrap();
    assert!(found.plain == found.seen && found.recorder.worst < TOLERANCE / 10.0);
    let (_, of_layer) = scores(&found.files[0]).swap_remove(0);
    // The first head has the slope 1/4: far keys lie below near ones by about that much a key.
    let (position, row) = &of_layer[39];
    assert_eq!((*position, row.len()), (TOKENS - 1, TOKENS));
    assert!((row[TOKENS - 1] - row[0] - 0.25 * (TOKENS - 1) as f32).abs() < 20.0);
}

#[test]
fn latent_attention_is_a_pair_of_one_key_head() {
    let (q_rank, kv_rank, rope, of_value) = (16, 8, 8, 8);
    let mut tiny = Tiny::new("deepseek2", 2).without("attn_q").without("attn_k").without("attn_v");
    tiny = tiny.without("attn_output");
    for (name, number) in [
        ("leading_dense_block_count", 2),
        ("attention.q_lora_rank", q_rank),
        ("attention.kv_lora_rank", kv_rank),
        ("attention.key_length", kv_rank + rope),
        ("attention.value_length", kv_rank),
        ("attention.key_length_mla", 8 + rope),
        ("attention.value_length_mla", of_value),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", rope),
        ("expert_feed_forward_length", 8),
        ("expert_shared_count", 1),
        ("expert_gating_func", 1),
    ] {
        tiny = tiny.with(&format!("deepseek2.{name}"), Value::U32(number as u32));
    }
    for layer in 0..2 {
        for (name, shape) in [
            ("attn_q_a_norm", vec![q_rank]),
            ("attn_kv_a_norm", vec![kv_rank]),
            ("attn_q_a", vec![EMBEDDING, q_rank]),
            ("attn_q_b", vec![q_rank, HEADS * (8 + rope)]),
            ("attn_kv_a_mqa", vec![EMBEDDING, kv_rank + rope]),
            ("attn_k_b", vec![8, kv_rank, HEADS]),
            ("attn_v_b", vec![kv_rank, of_value, HEADS]),
            ("attn_output", vec![HEADS * of_value, EMBEDDING]),
        ] {
            tiny = tiny.tensor(&format!("blk.{layer}.{name}.weight"), &shape);
        }
    }
    let found = record(&tiny, RUN).unwrap();
    assert!(found.plain == found.seen && found.recorder.worst < TOLERANCE / 10.0);
    assert_eq!(pairs(&found.files[0], [HEADS as usize, 1, (kv_rank + rope) as usize], 0.25).len(), 2);
}

#[test]
fn learned_sinks_are_refused_by_name() {
    let mut tiny = Tiny::new("gpt-oss", 2).without("ffn").without("attn_output");
    for (name, number) in [("attention.sliding_window", 20), ("expert_count", 2), ("expert_used_count", 1)] {
        tiny = tiny.with(&format!("gpt-oss.{name}"), Value::U32(number));
    }
    tiny = tiny.with("gpt-oss.expert_feed_forward_length", Value::U32(8));
    tiny = tiny.tensor("output.weight", &[EMBEDDING, 256]);
    for layer in 0..2 {
        for (name, shape) in [
            ("post_attention_norm.weight", vec![EMBEDDING]),
            ("attn_output.weight", vec![HEADS * DIM, EMBEDDING]),
            ("attn_output.bias", vec![EMBEDDING]),
            ("attn_sinks.weight", vec![HEADS]),
            ("ffn_gate_inp.weight", vec![EMBEDDING, 2]),
            ("ffn_gate_inp.bias", vec![2]),
            ("ffn_gate_exps.weight", vec![EMBEDDING, 8, 2]),
            ("ffn_up_exps.weight", vec![EMBEDDING, 8, 2]),
            ("ffn_down_exps.weight", vec![8, EMBEDDING, 2]),
            ("ffn_gate_exps.bias", vec![8, 2]),
            ("ffn_up_exps.bias", vec![8, 2]),
            ("ffn_down_exps.bias", vec![EMBEDDING, 2]),
        ] {
            tiny = tiny.tensor(&format!("blk.{layer}.{name}"), &shape);
        }
    }
    let error = format!("{:#}", record(&tiny, RUN).err().unwrap());
    assert!(error.starts_with("blk.0: has learned sinks"), "{error}");
}

#[test]
fn a_model_without_attention_and_an_encoder_are_refused() {
    let mut tiny = Tiny::new("mamba", 1).without("blk.");
    for (name, number) in [("conv_kernel", 4), ("inner_size", 64), ("state_size", 8), ("time_step_rank", 4)] {
        tiny = tiny.with(&format!("mamba.ssm.{name}"), Value::U32(number));
    }
    for (name, shape) in [
        ("attn_norm.weight", vec![EMBEDDING]),
        ("ssm_in.weight", vec![EMBEDDING, 128]),
        ("ssm_conv1d.weight", vec![4, 64]),
        ("ssm_conv1d.bias", vec![64]),
        ("ssm_x.weight", vec![64, 20]),
        ("ssm_dt.weight", vec![4, 64]),
        ("ssm_dt.bias", vec![64]),
        ("ssm_a", vec![8, 64]),
        ("ssm_d", vec![64]),
        ("ssm_out.weight", vec![64, EMBEDDING]),
    ] {
        tiny = tiny.tensor(&format!("blk.0.{name}"), &shape);
    }
    assert_eq!(record(&tiny, RUN).err().unwrap().to_string(), "nothing was recorded");
    let encoder = Tiny::new("llama", 1).with("llama.attention.causal", Value::Bools(Vec::new()));
    let error = format!("{:#}", record(&encoder, RUN).err().unwrap());
    assert!(error.contains("llama.cpp cannot load it"), "{error}");
    let encoder = Tiny::new("llama", 1).with("llama.attention.causal", Value::Bool(false));
    let error = format!("{:#}", record(&encoder, RUN).err().unwrap());
    assert!(error.contains("an encoder"), "{error}");
}

#[test]
fn nan_poisons_the_rows_that_see_it_and_no_others() {
    let (folder, tiny) = (tempfile::tempdir().unwrap(), Tiny::new("llama", 2));
    let path = tiny.write(folder.path());
    poison(&path, &tiny, b'!');
    let model = Model::load(&path).unwrap();
    let text = format!("{}!{}", prose(150), prose(149));
    let tokens = model.tokens(&text, false).unwrap();
    let mut recorder = Recorder::new((0..TOKENS).collect(), [0, 1].into(), "blk.{}", 1 << 30).unwrap();
    model.run(&tokens, RUN, Some(&mut recorder), |_| ()).unwrap();
    let records = recorder.recording.records();
    assert_eq!(records.len(), 2 * TOKENS * HEADS as usize);
    // llama.cpp multiplies the values of hidden keys by 0, so it poisons the whole batch behind a layer.
    let mut first = records.iter().filter(|record| &*record.layer == "blk.0");
    assert!(first.all(|record| record.poisoned == (record.position >= 150)));
}

/// Fails, or panics, at the third node that it wants.
struct Broken {
    nodes: usize,
    panics: bool,
}

impl Observer for Broken {
    fn begin(&mut self, _: Range<usize>) {}

    fn wants(&mut self, _: Node) -> Result<bool> {
        Ok(true)
    }

    fn ready(&mut self, _: Node) -> Result<()> {
        self.nodes += 1;
        match (self.nodes, self.panics) {
            (3, true) => panic!("on purpose"),
            (3, false) => bail!("on purpose"),
            (4.., _) => panic!("a node after the failure"),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_failing_observer_ends_its_run_and_not_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load(&Tiny::new("llama", 2).write(folder.path())).unwrap();
    let tokens = model.tokens(&prose(TOKENS), false).unwrap();
    let plain = model.run(&tokens, RUN, None, |_| ()).unwrap();
    for (panics, says) in [(false, "on purpose"), (true, "this is a bug")] {
        let mut broken = Broken { nodes: 0, panics };
        let error = model.run(&tokens, Run { batch: 64, threads: 1 }, Some(&mut broken), |_| ()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(broken.nodes, 3);
    }
    assert!(model.run(&tokens, RUN, None, |_| ()).unwrap() == plain);
}
