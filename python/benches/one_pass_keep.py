"""What one pass of decode attention leaves unread of a model's values, and how often that is too much.

    python python/benches/one_pass_keep.py [examples/data/smollm2_gpl3.safetensors]

The file holds queries and keys of layers, as `critbeta.hf.record` saves them. Before the scores of a row are
known, its first and last 64 keys are scored, and the sum of their weights stands for Z. A key's value stays
unread if its mass against that, the largest of the rows that share it, is at most FACTOR eps / n. Their sum
is compared with eps afterwards, and a group that fails is read again. `best` is the most that any choice of
keys could leave unread. This needs numpy and safetensors.
"""

from __future__ import annotations

import sys

import numpy as np
from safetensors import safe_open

FACTORS = (1, 2, 4, 8, 16)
EPS = (1e-4, 1e-3, 2.0**-9, 1e-2)
SEEDS = 64
LEAST = 900  # keys of a row, at least


def masses(q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest mass of each key over the rows [heads, dim]: against Z, and against what seeds know."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    seeds = np.r_[0:SEEDS, len(k) - SEEDS : len(k)]
    known = np.maximum(weights[:, seeds].sum(1, keepdims=True), weights.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True)).max(0), (weights / known).max(0)


def main() -> None:
    if len(sys.argv) > 2:
        raise SystemExit("expected at most one file")
    path = sys.argv[1] if len(sys.argv) == 2 else "examples/data/smollm2_gpl3.safetensors"
    found: dict[float, list[list[float]]] = {eps: [] for eps in EPS}
    with safe_open(path, "np") as file:
        layers = sorted(name[:-2] for name in file.keys() if name.endswith(".q"))
        positions = file.get_tensor("positions")
        for layer in layers:
            q = file.get_tensor(f"{layer}.q").astype(np.float64)
            k = file.get_tensor(f"{layer}.k").astype(np.float64)
            group = len(q) // len(k)
            for row, position in enumerate(positions.tolist()):
                n = position + 1
                for head in range(len(k) if n >= LEAST else 0):
                    exact, known = masses(q[head * group : (head + 1) * group, row], k[head, :n])
                    for eps in EPS:
                        best = float((np.sort(exact).cumsum() <= eps).mean())
                        cells = [best]
                        for factor in FACTORS:
                            unread = known <= factor * eps / n
                            cells += [float(unread.mean()), float(known[unread].sum()) / eps]
                        found[eps].append(cells)
    print(f"{len(next(iter(found.values())))} groups of {group} heads with at least {LEAST} keys, of {path}")
    print("Mean share of the values that stays unread; groups whose sum exceeds eps; the largest sum over eps")
    print(f"| eps | best | {' | '.join(f'factor {factor}' for factor in FACTORS)} |")
    print(f"| --- | --- |{' --- |' * len(FACTORS)}")
    for eps, rows in found.items():
        of = np.array(rows)
        cells = [
            f"{of[:, i].mean():.2f}; {(of[:, i + 1] > 1).mean():.0%}; {of[:, i + 1].max():.2f}"
            for i in range(1, of.shape[1], 2)
        ]
        print(f"| {eps:.2g} | {of[:, 0].mean():.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
