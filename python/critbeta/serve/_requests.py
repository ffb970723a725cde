"""The requests of a step, as every server has them: tokens in a row, and keys in pages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .. import _decode
from .._core import Rescaling
from ._layers import Layer

# What `critbeta.measure` takes of one sequence.
_TOKENS = 8


class Requests:
    """The requests of a step.

    starts: the position of the first token of each request in this step.
    counts: how many tokens of each request the step computes. They follow each other in the batch.
    tables: returns the pages of each request in order, int32 [requests, pages] in host memory. Those behind
        its last key may hold anything. It is called only where keys are read.
    page: the keys of a page.
    """

    def __init__(
        self, starts: Sequence[int], counts: Sequence[int], tables: Callable[[], np.ndarray], page: int
    ) -> None:
        if len(starts) != len(counts) or page < 1:
            found = f"{len(starts)} starts, {len(counts)} counts, pages of {page} keys"
            raise ValueError(f"{found}: expected one start and count for each request, and a key or more")
        self.starts, self.counts, self.page = starts, counts, page
        self._read_tables = tables

    @functools.cached_property
    def tables(self) -> np.ndarray:
        """The pages of each request, int32 [requests, pages]."""
        return self._read_tables()

    def ids(self, request: int, first: int, end: int) -> np.ndarray:
        """Returns the pages that hold the keys `first` to `end` - 1 of a request, int32."""
        found: np.ndarray = self.tables[request, first // self.page : -(-end // self.page)]
        return found


def measured(
    rules: list[Rescaling],
    layer: Layer,
    requests: Requests,
    query: torch.Tensor,
    k_pages: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Returns the betas that `rules` (one, or one per head) measure on the rows of all tokens of a step:
    float64 [tokens, heads].

    query: [tokens, heads, head_dim] on the CPU.
    k_pages: [pages, page, kv_heads, head_dim] with any strides, in which the keys of the step are already.
    """
    of, ends, counts = [], [], []
    for request, (start, count) in enumerate(zip(requests.starts, requests.counts)):
        for at in range(0, count, _TOKENS):
            part = min(_TOKENS, count - at)
            of.append(request)
            ends.append(start + at + part)
            counts.append(part)
    tokens = sum(counts)
    found = _decode.measure(
        query[:tokens],
        k_pages,
        np.ascontiguousarray(requests.tables[of]),
        np.array(ends, np.int32),
        q_lens=np.array(counts, np.int32),
        scale=scale,
        rescaling=rules,
        window=layer.window,
    )
    return torch.from_numpy(np.ascontiguousarray(found.beta))
