"""The softmax on this CPU, of arrays and tensors alike."""

from __future__ import annotations

import numpy as np

from . import _arrays, _core
from ._arrays import ArrayLike
from ._results import SoftmaxStats


def into(
    scores: ArrayLike, rule: _core.Rescaling, positions: ArrayLike, lens: ArrayLike, out: ArrayLike | None
) -> tuple[ArrayLike, SoftmaxStats]:
    """Writes the softmax of `scores` [..., n] to `out`, or a new float32 array; and what is known of its rows as NumPy arrays."""
    block, lead = _arrays.rows(scores, "scores")
    shape = (*lead, block.shape[1])
    out = np.empty(shape, np.float32) if out is None else out
    target = _arrays.target(out, shape)
    lens, positions = _arrays.per_row(lens, lead, "lens"), _arrays.per_row(positions, lead, "positions")
    if not np.may_share_memory(block, target):
        columns = _core.softmax(block, lens, rule, positions, target)
    elif (block.ctypes.data, block.dtype, block.strides) == (target.ctypes.data, target.dtype, target.strides):
        columns = _core.softmax_in_place(target, lens, rule, positions)
    else:
        raise ValueError(f"out shares memory with scores of shape {shape}: expected scores itself, or other memory")
    return out, SoftmaxStats(**{name: column.reshape(lead) for name, column in columns.items()})
