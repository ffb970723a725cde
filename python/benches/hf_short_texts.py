"""Times models that read many short texts with and without a recorder. The two alternate, and each ratio
comes from one round.

    python python/benches/hf_short_texts.py [ROUNDS] [CASE...]

The model is a Llama of 12 layers with random weights, so small that a call of its attention takes less than a
millisecond. The goal: recording takes at most 1.5 times as long for 32 texts of 60 decoding steps. The case
"8,192 tokens" is here for the opposite: one long text must not get slower. This needs torch and transformers.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import critbeta.hf  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

SIZES = dict(hidden_size=48, intermediate_size=64, num_attention_heads=6, num_key_value_heads=2)
THREADS = 2


def tokens(texts: int, length: int) -> torch.Tensor:
    return torch.randint(3, 97, (texts, length), generator=torch.Generator().manual_seed(length))


def ragged(texts: int, length: int) -> dict[str, torch.Tensor]:
    """Returns texts of length / 2 to length tokens, padded on the left."""
    starts = torch.arange(texts)[:, None] % (length // 2)
    return {"input_ids": tokens(texts, length), "attention_mask": (torch.arange(length) >= starts).long()}


def main() -> None:
    rounds, wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 7, sys.argv[2:]
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    sizes = dict(SIZES, vocab_size=97, num_hidden_layers=12, max_position_embeddings=8192)
    config = LlamaConfig(**sizes, initializer_range=0.3)
    model = LlamaForCausalLM(config).eval()
    fixed = dict(do_sample=False, pad_token_id=0, eos_token_id=None)

    def decode(steps: int, **given: torch.Tensor) -> Callable[[], object]:
        return lambda: model.generate(**given, max_new_tokens=steps, min_new_tokens=steps, **fixed)

    def prefill(**given: torch.Tensor) -> Callable[[], object]:
        return lambda: model(**given, use_cache=False, logits_to_keep=1)

    cases = {
        "32 texts, 60 steps": decode(60, input_ids=tokens(32, 8)),
        "32 ragged texts, 60 steps": decode(60, **ragged(32, 16)),
        "1 text, 60 steps": decode(60, input_ids=tokens(1, 8)),
        "64 texts, 40 tokens": prefill(input_ids=tokens(64, 40)),
        "64 ragged texts, 40 tokens": prefill(**ragged(64, 40)),
        "1 text, 8,192 tokens": prefill(input_ids=tokens(1, 8192)),
    }
    print(f"{THREADS} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    print("| texts | plain s | recorded s | recorded / plain | rows |")
    print("| --- | --- | --- | --- | --- |")
    for name, work in cases.items():
        if wanted and name not in wanted:
            continue
        pairs, rows = [], 0
        for turn in range(rounds + 1):
            times = {}
            for record in (False, True) if turn % 2 == 0 else (True, False):
                start = time.perf_counter()
                with torch.no_grad():
                    if record:
                        with critbeta.hf.record(model) as recorder:
                            work()
                        rows = recorder.recorded
                    else:
                        work()
                times[record] = time.perf_counter() - start
            # The first round warms up.
            pairs += [(times[False], times[True])] if turn else []
        plain, recorded = (statistics.median(of) for of in zip(*pairs))
        ratios = sorted(recorded / plain for plain, recorded in pairs)
        shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        print(f"| {name} | {plain:.3f} | {recorded:.3f} | {shown} | {rows:,} |", flush=True)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"load at the end {os.getloadavg()[0]:.1f}, {most} MiB at most")


if __name__ == "__main__":
    main()
