"""A stand-in for a server: requests whose keys lie in pages, computed in chunks and in decoding steps."""

from __future__ import annotations

import numpy as np
import torch
from critbeta.serve import Requests

PAGE, KV_HEADS, D = 16, 2, 64
COLUMNS = ("n", "position", "head", "max", "ties", "critical_beta", "contact_rank", "entropy", "ratio")


class Server:
    """Requests of random queries and keys. What no request uses is NaN."""

    def __init__(self, lengths=(200, 75), heads=6, layers=2, dtype=torch.float32, seed=1, page=PAGE):
        torch.manual_seed(seed)
        self.page, self.scale = page, D**-0.5
        blocks = [-(-n // page) for n in lengths]
        ids = np.random.default_rng(seed).permutation(sum(blocks) + 3).astype(np.int32)
        self.tables = np.full((len(lengths), max(blocks) + 2), -1, np.int32)
        self.q = [[2 * torch.randn(n, heads, D).to(dtype) for n in lengths] for _ in range(layers)]
        self.k = [[torch.randn(n, KV_HEADS, D).to(dtype) for n in lengths] for _ in range(layers)]
        # As vLLM's CPU has them: [head_dim, page] within a page and head.
        self.pages = torch.full((layers, len(ids), KV_HEADS, D, page), torch.nan, dtype=dtype)
        end = 0
        for request, used in enumerate(blocks):
            self.tables[request, :used] = ids[end : end + used]
            end += used

    def step(self, chunks):
        """Returns the requests of a step that computes `chunks`: (request, first token, end) each."""
        for layer, keys in enumerate(self.k):
            for request, start, end in chunks:
                for at in range(start, end):
                    page = self.tables[request, at // self.page]
                    self.pages[layer, page, :, :, at % self.page] = keys[request][at]
        of = [request for request, _, _ in chunks]
        starts, counts = [chunk[1] for chunk in chunks], [chunk[2] - chunk[1] for chunk in chunks]
        return Requests(starts, counts, lambda: self.tables[of], self.page)

    def query(self, layer, chunks):
        return torch.cat([self.q[layer][request][start:end] for request, start, end in chunks])

    def keys(self, layer):
        """The pages of a layer, [pages, page, kv_heads, head_dim]."""
        return self.pages[layer].permute(0, 3, 1, 2)

    def run(self, recorder, steps, names=("layers.0.self_attn", "layers.1.self_attn")):
        for chunks in steps:
            taken = recorder.begin(self.step(chunks))
            if taken is not None:
                for layer, name in enumerate(names):
                    recorder.add(taken, name, self.query(layer, chunks), self.keys(layer), self.scale)


def table(rows):
    """Returns the rows by layer, head and position: the columns that a row has of its scores alone."""
    found = {}
    for at in range(len(rows)):
        key = rows.layer[at], int(rows.head[at]), int(rows.position[at])
        found.setdefault(key, []).append(tuple(float(getattr(rows, name)[at]) for name in COLUMNS))
    return {key: sorted(values) for key, values in found.items()}
