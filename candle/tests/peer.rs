//! Our Llama gives the greedy tokens of candle-transformers' quantized_llama.

mod common;
#[path = "../examples/common/text.rs"]
#[allow(dead_code, reason = "ids are enough here")]
mod text;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use critbeta::calibration::HeadRescalings;
use critbeta_candle::Rules;
use critbeta_candle::llama::{Attention, Config, Llama, Step, greedy};
use std::fs::File;

const TOKENS: usize = 64;
const PROMPTS: [&str; 3] = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "In 1969 the first men walked on the Moon.",
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
];

fn theirs(model: &mut ModelWeights, prompt: &[u32]) -> Vec<u32> {
    model.clear_kv_cache();
    let (mut next, mut at, mut out) = (prompt.to_vec(), 0, Vec::new());
    while out.len() < TOKENS {
        let given = Tensor::new(&next[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward(&given, at).unwrap();
        at += next.len();
        next = greedy(&logits).unwrap();
        out.extend(&next);
    }
    out
}

fn ours(model: &Llama, prompt: &[u32]) -> Vec<u32> {
    let mut cache = model.cache(prompt.len() + TOKENS).unwrap();
    let (mut next, mut out) = (prompt.to_vec(), Vec::new());
    while out.len() < TOKENS {
        next = greedy(&model.forward(&mut [Step { tokens: &next, cache: &mut cache, watch: None }]).unwrap())
            .unwrap();
        out.extend(&next);
    }
    out
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn greedy_tokens_are_those_of_quantized_llama() {
    assert!(
        std::env::var_os("CANDLE_DEQUANTIZE_ALL").is_some(),
        "with 8-bit activations rounding chooses tokens"
    );
    let mut file = File::open(common::model()).unwrap();
    let content = Content::read(&mut file).unwrap();
    let text = text::Text::read(&content).unwrap();
    let config = Config::read(&content).unwrap();
    let identity = HeadRescalings::load("identity".parse().unwrap()).unwrap();
    let rules = Rules::new(&identity, &config.layer_names(), config.heads).unwrap();
    let critbeta = Attention::Critbeta { eps: 0.0 };
    let model = Llama::load(&content, &mut file, rules.clone(), critbeta).unwrap();
    let mut peer = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    for prompt in PROMPTS {
        let prompt = text.encode(prompt).unwrap();
        let want = theirs(&mut peer, &prompt);
        for attention in [critbeta, Attention::Candle, Attention::Grouped, Attention::Flash] {
            let found = ours(&model.with(rules.clone(), attention).unwrap(), &prompt);
            assert_eq!(found, want, "{attention:?}");
        }
    }
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn sequences_of_one_step_do_not_see_each_other() {
    let mut file = File::open(common::model()).unwrap();
    let content = Content::read(&mut file).unwrap();
    let text = text::Text::read(&content).unwrap();
    let config = Config::read(&content).unwrap();
    let rule = HeadRescalings::load("critical:cap=8".parse().unwrap()).unwrap();
    let rules = Rules::new(&rule, &config.layer_names(), config.heads).unwrap();
    let model = Llama::load(&content, &mut file, rules, Attention::Critbeta { eps: 0.0 }).unwrap();
    let prompts = PROMPTS.map(|prompt| text.encode(prompt).unwrap());
    let mut caches: Vec<_> = prompts.iter().map(|prompt| model.cache(prompt.len() + 1).unwrap()).collect();
    let mut steps: Vec<Step> = prompts
        .iter()
        .zip(&mut caches)
        .map(|(tokens, cache)| Step { tokens: &tokens[..], cache, watch: None })
        .collect();
    let together = model.forward(&mut steps).unwrap().to_vec2::<f32>().unwrap();
    for (prompt, together) in prompts.iter().zip(together) {
        let mut cache = model.cache(prompt.len() + 1).unwrap();
        let alone = model.forward(&mut [Step { tokens: prompt, cache: &mut cache, watch: None }]).unwrap();
        let alone = alone.to_vec2::<f32>().unwrap().remove(0);
        let far = alone.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-2, "logits differ by {far}");
    }
    // A step that cannot run changes no cache.
    let lens: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
    let bad = |tokens: &[u32], caches: &mut Vec<critbeta_candle::Cache>| {
        model.forward(&mut [Step { tokens, cache: &mut caches[0], watch: None }]).unwrap_err().to_string()
    };
    assert!(bad(&[1, 2], &mut caches).contains("2 more do not fit"));
    assert!(bad(&[49152], &mut caches).contains("token 49152"));
    assert!(bad(&[], &mut caches).contains("no token"));
    assert_eq!(caches.iter().map(|cache| cache.len()).collect::<Vec<_>>(), lens);
}
