"""vLLM in this process, with and without critbeta, and the same model in transformers."""

import functools
import os
import sys
from pathlib import Path

os.environ |= {
    # The engine runs in this process, so that tests see its layers.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # The tests register by themselves.
    "VLLM_PLUGINS": "none",
}
MODEL = os.environ["CRITBETA_TEST_MODEL"]
LENGTH, STEPS = 2048, 64


def model(**options):
    """A new engine. Chunks of 256 tokens cut long prompts."""
    from vllm import LLM

    sizes = dict(max_model_len=LENGTH, max_num_batched_tokens=256, max_num_seqs=8)
    given = dict(model=MODEL, dtype="float32", enforce_eager=True, seed=0, **sizes) | options
    return LLM(**given)


@functools.cache
def text():
    """Token ids of the text of a licence."""
    from transformers import AutoTokenizer

    words = Path(sys.prefix).glob("lib/python*/site-packages/*.dist-info/licenses/LICENSE*")
    longest = max((path.read_text(errors="ignore") for path in words), key=len)
    return AutoTokenizer.from_pretrained(MODEL)(longest)["input_ids"]


def generate(engine, prompts, steps=STEPS, scores=True):
    """Returns (ids of prompt and answer, log probability of each but the first, cached tokens) for each prompt."""
    from vllm import SamplingParams

    asked = SamplingParams(
        temperature=0, max_tokens=steps, ignore_eos=True, logprobs=1, prompt_logprobs=1 if scores else None
    )
    found = []
    for out in engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False):
        answer = out.outputs[0]
        logprobs = [entry[token].logprob for entry, token in zip(answer.logprobs, answer.token_ids)]
        if scores:
            of_prompt = zip(out.prompt_logprobs[1:], out.prompt_token_ids[1:])
            logprobs = [entry[token].logprob for entry, token in of_prompt] + logprobs
        found.append(([*out.prompt_token_ids, *answer.token_ids], logprobs, out.num_cached_tokens))
    return found


@functools.cache
def transformer():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()


def transformer_says(ids, prompt):
    """Returns the log probability of each token but the first, and the greedy answer to the first `prompt` ids."""
    import torch

    with torch.no_grad():
        of_all = transformer()(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    scores = of_all[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    return scores, of_all[prompt - 1 : -1].argmax(-1).tolist()
