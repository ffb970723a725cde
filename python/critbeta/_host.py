"""The functions on this CPU, for arrays and tensors alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _arrays, _core
from ._arrays import ArrayLike
from ._results import SoftmaxStats, Stats


def rule(rescaling: str | _core.Rescaling) -> _core.Rescaling:
    """Returns the rescaling that a text stands for, or the given one."""
    found = _core.Rescaling.parse(rescaling) if isinstance(rescaling, str) else rescaling
    if not isinstance(found, _core.Rescaling):
        raise TypeError(f"rescaling is {type(found).__name__}: expected critbeta.Rescaling or its text")
    return found


def softmax(
    scores: ArrayLike, rule: _core.Rescaling, positions: ArrayLike, lens: ArrayLike, out: ArrayLike | None
) -> tuple[ArrayLike, SoftmaxStats]:
    """Writes the softmax of `scores` [..., n] to `out` or a new float32 array, and returns it with the
    statistics of its rows as NumPy arrays."""
    block, lead = _arrays.rows(scores, "scores")
    shape = (*lead, block.shape[1])
    out = np.empty(shape, np.float32) if out is None else out
    target = _arrays.target(out, shape)
    lens, positions = _arrays.per_row(lens, lead, "lens"), _arrays.per_row(positions, lead, "positions")
    read, written = block.ctypes.data, target.ctypes.data
    if not np.may_share_memory(block, target):
        columns = _core.softmax(block, lens, rule, positions, target)
    elif (read, block.dtype, block.strides) == (written, target.dtype, target.strides):
        columns = _core.softmax_in_place(target, lens, rule, positions)
    else:
        expected = "expected scores itself, or other memory"
        raise ValueError(f"out shares memory with scores of shape {shape}: {expected}")
    return out, SoftmaxStats(**{name: column.reshape(lead) for name, column in columns.items()})


def critical_beta(scores: ArrayLike, resolve: float) -> Any:
    """Returns Lambda(resolve) of every row of `scores`, float64 of its leading shape."""
    block, lead = _arrays.rows(scores, "scores")
    return _core.critical_beta(block, resolve).reshape(lead)


def stats(
    scores: ArrayLike,
    lens: ArrayLike | None,
    positions: ArrayLike | None,
    layer: str,
    resolve: float,
    beta: float,
    top_k: int | None,
) -> Stats:
    """Measures every row of `scores` [..., n]. All leading dimensions but the last are heads."""
    block, lead = _arrays.rows(scores, "scores")
    lens, positions = _arrays.per_row(lens, lead, "lens"), _arrays.per_row(positions, lead, "positions")
    rows = _core.record_scores(block, lens, positions, lead[-1] if lead else 1, layer, resolve, beta, top_k)
    return Stats(rows, lead)
