"""Decoding steps of a model: few queries against a cache of keys and values, through `critbeta.decode`."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from .. import _core, _pages
from .._pages import Arguments
from ._interface import Call
from ._visible import Visible

_MOST_ROWS = 8
_SINKS = ("s_aux", "sinks")


class Run(NamedTuple):
    """The keys that the rows of a text see: one run each, which ends one key later for each row."""

    start: int
    end: int
    window: int | None
    """The length of every run, where runs begin one key later for each row too."""


Runs: TypeAlias = list[Run]


def is_step(call: Call) -> bool:
    """Says whether `call` is a decoding step that `critbeta.decode` can run, as far as its mask allows."""
    given, rows = call.kwargs, call.query.shape[2]
    differentiable = any(tensor.requires_grad for tensor in (call.query, call.key, call.value))
    return not (
        rows > _MOST_ROWS
        or call.key.shape[2] <= rows
        or (torch.is_grad_enabled() and differentiable)
        or given.get("dropout")
        or given.get("position_bias") is not None
        or any(given.get(name) is not None for name in _SINKS)
    )


def runs_of(visible: Visible) -> Runs | None:
    """Returns the run of each text of the batch (one if all see the same keys), or None where rows do not see
    such runs."""
    if visible.requests is not None or visible.biased or visible.mask_heads > 1:
        return None
    seen = visible.seen_by(torch.arange(visible.rows, device=visible.positions.device))[:, 0]
    keys = seen.shape[-1]
    first, count = seen.int().argmax(-1), seen.sum(-1)
    last = keys - 1 - seen.flip(-1).int().argmax(-1)
    found = {
        text: _run_of(*facts) for text, facts in enumerate(zip(first.tolist(), last.tolist(), count.tolist()))
    }
    runs = [run for run in found.values() if run is not None]
    if len(runs) < len(found):
        return None
    return runs[:1] if all(run == runs[0] for run in runs) else runs


def _run_of(first: list[int], last: list[int], count: list[int]) -> Run | None:
    whole = all(b - a + 1 == n > 0 for a, b, n in zip(first, last, count))
    if not whole or last != list(range(last[0], last[0] + len(last))):
        return None
    if first == [first[0]] * len(first):
        return Run(first[0], last[-1] + 1, None)
    slides = first == list(range(first[0], first[0] + len(first)))
    return Run(first[0], last[-1] + 1, count[0]) if slides else None


def decoded(
    call: Call, runs: Runs, query: torch.Tensor, scale: float, rules: list[_core.Rescaling], eps: float
) -> tuple[torch.Tensor, None]:
    """Returns the attention of `query` in the shape [batch, rows, heads, head_dim]. The keys and values of a
    text are one page, without a copy."""
    batch, heads, rows, _ = query.shape
    step = batch if len(runs) == 1 else 1
    tokens, softcap = query.transpose(1, 2), call.kwargs.get("softcap")
    out = query.new_empty((batch, rows, heads, call.value.shape[3]), dtype=call.query.dtype)
    for text, run in zip(range(0, batch, step), runs):
        texts, keys = slice(text, text + step), slice(run.start, run.end)
        q = tokens[texts].reshape(step * rows, heads, -1)
        k, v = call.key[texts, :, keys], call.value[texts, :, keys]
        tables = np.arange(step, dtype=np.int32)[:, None]
        lens, q_lens = (np.full(step, count, np.int32) for count in (run.end - run.start, rows))
        given = Arguments(q, k, v, tables, lens, q_lens, scale, rules, eps, "HND", softcap, run.window)
        try:
            _pages.decode(given, out[texts].view(step * rows, heads, -1), False)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise type(error)(f"{call.layer}: {error}") from error
    return out, None
