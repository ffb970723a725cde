"""Attention scores as the softmax sees them at beta = 1, for some rows of one text of a batch."""

from __future__ import annotations

import math
from typing import Any

import torch

from ._interface import Call
from ._visible import Visible

# exp(-_NO_WEIGHT) is the smallest normal float32. Whether a smaller weight is 0 depends on the modes of the
# processor and on the library.
_NO_WEIGHT = 126 * math.log(2)


def scores(call: Call, visible: Visible, text: int, rows: torch.Tensor, keys: int) -> torch.Tensor:
    """Returns the scores of `rows`, indices int64 [rows], of text number `text` in the batch with its first
    `keys` keys: float32 [heads, rows, keys], as `tile` does for several texts."""
    return tile(call, visible, range(text, text + 1), rows[None], range(keys))[0]


def tile(call: Call, visible: Visible, texts: range, rows: torch.Tensor, keys: range) -> torch.Tensor:
    """Returns the scores of `rows`, indices int64 [texts, rows], of `texts` of the batch with `keys`: float32
    [texts, heads, rows, keys], after scale, softcap, position bias and additive mask, and -inf for keys that
    a row does not see. Each is a float32 dot product of a query and a key of any dtype.
    """
    kv_heads, head_dim = call.key.shape[1], call.query.shape[3]
    of = torch.arange(texts.start, texts.stop, device=rows.device)
    query = call.query.transpose(1, 2)[of[:, None], rows].transpose(1, 2).float()
    key = call.key[texts.start : texts.stop, :, keys.start : keys.stop].float()
    shape = (*query.shape[:3], len(keys))
    found = torch.matmul(query.reshape(len(texts), kv_heads, -1, head_dim), key.transpose(2, 3)).view(shape)
    found = found * call.scaling
    softcap = call.kwargs.get("softcap")
    if softcap is not None:
        found = torch.tanh(found / softcap) * softcap
    position_bias = call.kwargs.get("position_bias")
    if position_bias is not None:
        of_rows = position_bias[:, :, -visible.rows :].transpose(1, 2)
        found = found + of_rows[of[:, None] if len(of_rows) > 1 else 0 * of[:, None], rows].transpose(1, 2)[
            ..., keys.start : keys.stop
        ].float()
    bias = visible.bias_of(rows, of)
    hidden = ~visible.seen_by(rows, of)[..., keys.start : keys.stop]
    if bias is None:
        return found.masked_fill(hidden, -torch.inf)
    # Its value at a masked key does not matter.
    added = bias[..., keys.start : keys.stop].float()
    found = (found + added).masked_fill(hidden, -torch.inf)
    # Some models mask with -100: what the mask takes to a weight of 0 is hidden by it.
    weightless = found.logsumexp(-1, keepdim=True) - found > _NO_WEIGHT
    return found.masked_fill((added < 0) & weightless, -torch.inf)


def in_float32(call: Call) -> torch.autocast:
    """Returns a context in which products have the dtype of their factors, also under autocast."""
    return torch.autocast(call.query.device.type, enabled=False)


def refuse_sinks(layer: str, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for attention with a learned sink, which is a logit without a key."""
    given = [name for name in ("s_aux", "sinks") if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            f"{layer} has learned sinks ({given[0]}): its softmax sees a logit that belongs to no key, which "
            "neither counts of keys nor length laws describe"
        )
