"""The requests of a step, as every server has them: tokens in a row, and keys in pages."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .. import _arrays, _cuda_pages, _decode
from .._core import Rescaling
from .._pages import Arguments
from ._layers import Layer

# What `critbeta.measure` takes of one sequence.
_TOKENS = 8
# Bytes of scores that a launch works on at once: SCORE_BYTES of src/cuda/attention/measure.rs.
_SCORE_BYTES = 32 << 20


class OnDevice(NamedTuple):
    """What a server holds of the requests of a step in the memory of a GPU."""

    tables: torch.Tensor
    """The pages of each request in order, int32 [requests, pages]."""
    lens: torch.Tensor
    """The number of keys of each request, those of this step included: int32 [requests]."""


class Run(NamedTuple):
    """Neighbouring sequences that one call measures on a GPU."""

    parts: slice
    tokens: slice
    each: int | None
    """Their query tokens, where all have the same number."""
    most: int
    """No sequence has more keys."""


class Requests:
    """The requests of a step.

    starts: the position of the first token of each request in this step.
    counts: how many tokens of each request the step computes. They follow each other in the batch.
    tables: returns the pages of each request in order, int32 [requests, pages] in host memory. Those behind
        its last key may hold anything. It is called only where keys are read.
    page: the keys of a page.
    on_device: on a GPU, what it holds of them. Rules are then measured there, without a wait; `starts` only
        bounds the lengths, and may be too large.
    """

    def __init__(
        self,
        starts: Sequence[int],
        counts: Sequence[int],
        tables: Callable[[], np.ndarray],
        page: int,
        on_device: OnDevice | None = None,
    ) -> None:
        if len(starts) != len(counts) or page < 1:
            found = f"{len(starts)} starts, {len(counts)} counts, pages of {page} keys"
            raise ValueError(f"{found}: expected one start and count for each request, and a key or more")
        self.starts, self.counts, self.page, self.on_device = starts, counts, page, on_device
        self._read_tables = tables
        self._runs: dict[tuple[int, int | None], list[Run]] = {}

    @functools.cached_property
    def tables(self) -> np.ndarray:
        """The pages of each request, int32 [requests, pages]."""
        return self._read_tables()

    def ids(self, request: int, first: int, end: int) -> np.ndarray:
        """Returns the pages that hold the keys `first` to `end` - 1 of a request, int32."""
        found: np.ndarray = self.tables[request, first // self.page : -(-end // self.page)]
        return found

    @functools.cached_property
    def parts(self) -> list[tuple[int, int, int]]:
        """Sequences of few query tokens each: the request, its tokens before them, and how many they are."""
        return [
            (request, at, min(_TOKENS, count - at))
            for request, count in enumerate(self.counts)
            for at in range(0, count, _TOKENS)
        ]

    def runs(self, heads: int, window: int | None) -> list[Run]:
        """Returns `parts` as runs for a layer of so many query heads.

        A launch whose scores do not fit at once goes over its sequences part by part. Where they differ in
        their query tokens, every part starts CTAs for all of them. So sequences that differ share a run only
        while their scores fit.
        """
        key = heads, window
        if key not in self._runs:
            runs: list[Run] = []
            part = token = 0
            for each, group in itertools.groupby(self.parts, key=lambda of: of[2]):
                lengths = [self.starts[request] + at + count for request, at, count in group]
                end, last, most = part + len(lengths), token + len(lengths) * each, max(lengths)
                run = Run(slice(part, end), slice(token, last), each, most)
                if runs and _fits(both := _joined(runs[-1], run), heads, window):
                    runs[-1] = both
                else:
                    runs.append(run)
                part, token = end, last
            self._runs[key] = runs
        return self._runs[key]

    @functools.cached_property
    def parts_on_device(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Page numbers, lengths and numbers of query tokens of `parts`, in the memory of a GPU."""
        if self.on_device is None:
            raise ValueError("the queries are on a GPU and the requests are not: expected on_device")
        (tables, lens), counts = self.on_device, [count for _, _, count in self.parts]

        def there(words: list[int]) -> torch.Tensor:
            return torch.tensor(words, dtype=torch.int32).to(tables.device, non_blocking=True)

        if [request for request, _, _ in self.parts] != list(range(len(tables))):
            index = there([request for request, _, _ in self.parts])
            later = there([self.counts[request] - at - count for request, at, count in self.parts])
            tables, lens = tables.index_select(0, index), lens.index_select(0, index) - later
        # One token a sequence, as in decoding, needs no numbers.
        return tables, lens, None if set(counts) <= {1} else there(counts)


def _joined(one: Run, other: Run) -> Run:
    parts, tokens = (
        slice(a.start, b.stop) for a, b in ((one.parts, other.parts), (one.tokens, other.tokens))
    )
    return Run(parts, tokens, None, max(one.most, other.most))


def _fits(run: Run, heads: int, window: int | None) -> bool:
    keys = min(run.most, window or run.most)
    tokens: int = run.tokens.stop - run.tokens.start
    return tokens * heads * keys * 4 <= _SCORE_BYTES


def measured(
    rules: list[Rescaling],
    layer: Layer,
    requests: Requests,
    query: torch.Tensor,
    k_pages: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the betas that `rules` (one, or one per head) measure on the rows of all tokens of a step:
    [tokens, heads], float64 on a CPU. On a GPU they are float32, in `out` if it is given, and nothing waits.
    A CUDA graph can capture that where every request has one token.

    query: [tokens, heads, head_dim].
    k_pages: [pages, page, kv_heads, head_dim] with any strides, in which the keys of the step are already. On
        a GPU it has the dtype of the queries.
    out: float32 [at least as many tokens, heads], contiguous.
    """
    tokens = sum(requests.counts)
    if _arrays.is_on_gpu(query):
        tables, lens, counts = requests.parts_on_device
        if out is None:
            out = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        for run in requests.runs(query.shape[1], layer.window):
            ragged = None if run.each or counts is None else counts[run.parts]
            words = tables[run.parts], lens[run.parts], ragged
            given = Arguments(query[run.tokens], k_pages, None, *words, scale, rules, window=layer.window)
            _cuda_pages.betas(given, run.most, out[run.tokens], run.each or 1)
        return out[:tokens]
    of = [request for request, _, _ in requests.parts]
    ends = [requests.starts[request] + at + count for request, at, count in requests.parts]
    found = _decode.measure(
        query[:tokens],
        k_pages,
        np.ascontiguousarray(requests.tables[of]),
        np.array(ends, np.int32),
        q_lens=np.array([count for _, _, count in requests.parts], np.int32),
        scale=scale,
        rescaling=rules,
        window=layer.window,
    )
    return torch.from_numpy(np.ascontiguousarray(found.beta))
