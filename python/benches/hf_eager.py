"""The weights that the eager attention of a model returns, and the rows of a record beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hf_tiny import LENGTH
from transformers import AttentionInterface, PreTrainedModel


# Below the smallest normal float32 a weight counts as 0: processors differ in what they make of it.
TINY = float(np.finfo(np.float32).tiny)


class Eager:
    """The weights of every call of attention, and what to compute in its place."""

    def __init__(self, model: PreTrainedModel, beta: Any = None) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.encoders = {
            name for name, module in model.named_modules() if not getattr(module, "is_causal", True)
        }
        self.calls: list[tuple[str, torch.Tensor | None]] = []
        self.blind: list[np.ndarray | None] = []
        """Which rows of a call see no key, by its mask: [batch or 1, rows]."""
        self.beta, self.unusual = beta, False

    @contextmanager
    def watching(self) -> Iterator[Eager]:
        lookup = AttentionInterface.get_interface

        def get_interface(interface: Any, name: str, default: Any) -> Any:
            function = lookup(interface, name, default)
            return lambda *args, **kwargs: self.run(function, *args, **kwargs)

        AttentionInterface.get_interface = get_interface  # type: ignore[method-assign, assignment]
        try:
            yield self
        finally:
            AttentionInterface.get_interface = lookup  # type: ignore[method-assign]

    def run(
        self, function: Any, module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> Any:
        out, weights = function(module, query, key, value, *args, **kwargs)
        shaped = isinstance(weights, torch.Tensor) and weights.ndim == 4
        self.calls.append((self.names.get(id(module), "?"), weights.detach() if shaped else None))
        self.blind.append(without_keys(args[0] if args else kwargs.get("attention_mask")))
        if self.beta is None:
            return out, weights
        if not shaped or weights.shape[:3] != query.shape[:3]:
            self.unusual = True
            return out, weights
        many = value.repeat_interleave(weights.shape[1] // value.shape[1], 1).double()
        plain = (weights.double() @ many).transpose(1, 2)
        if plain.numel() != out.numel() or (plain.reshape(out.shape) - out).abs().max() > 1e-3:
            self.unusual = True
            return out, weights
        wide = weights.double()
        powers = torch.where(wide > TINY, wide ** self.beta((wide > TINY).sum(-1, keepdim=True)), 0.0)
        again = (powers / powers.sum(-1, keepdim=True).clamp(min=1e-300)) @ many
        return again.transpose(1, 2).reshape(out.shape).to(out.dtype).contiguous(), weights


def without_keys(mask: Any) -> np.ndarray | None:
    """Returns which rows a mask leaves no key: [batch or 1, rows]."""
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        return None
    sees = mask.any(-1) if mask.dtype == torch.bool else mask.amax(-1) > -1000
    return (~sees).all(1).numpy()


def rows_of(weights: torch.Tensor) -> np.ndarray:
    """Returns n, entropy and largest weight of every row: [batch, heads, rows, 3]."""
    wide = weights.double()
    entropy = -torch.xlogy(wide, wide).sum(-1)
    return torch.stack([(wide > TINY).sum(-1).double(), entropy, wide.amax(-1)], -1).numpy()


def differences(rec: Any, eager: Eager, real: Any, past: int, positions: bool) -> list[str]:
    """Compares the recorded rows with those of eager attention, module by module."""
    found, calls, encoders = [], {}, eager.encoders
    for (name, weights), blind in zip(eager.calls, eager.blind):
        calls.setdefault(name, []).append((weights, blind))
    rows = rec.rows
    modules = np.array([layer.partition("#")[0] for layer in rows.layer.tolist()])
    for name, all_weights in calls.items():
        if any(weights is None for weights, _ in all_weights):
            continue
        of = modules == name
        if not of.any():
            found.append(f"{name}: no row is recorded")
            continue
        kept = np.stack(
            [
                getattr(rows, column)[of].astype(float)
                for column in ("n", "entropy", "max_weight", "position")
            ],
            -1,
        )
        expected, must = [], []
        for weights, blind in all_weights:
            table = rows_of(weights)
            batch, heads, count, _ = table.shape
            of_text = fitted(real, batch, count)
            is_real = np.ones((batch, count), bool) if of_text is None else of_text.numpy()
            # A row of an encoder that does not see itself is padding.
            sees = (
                weights.diagonal(dim1=-2, dim2=-1).amax(1) > 0
                if weights.shape[2] == weights.shape[3]
                else None
            )
            # So is one whose mask hides all keys: eager attention gives it the same weight everywhere.
            padding = np.zeros((batch, count), bool) | (False if blind is None else blind)
            if sees is not None and name in encoders:
                padding = padding | ~sees.numpy()
            at = (is_real & ~padding).cumsum(-1) - 1 + (past if count == LENGTH - past else 0)
            for text, head, row in np.ndindex(batch, heads, count):
                expected.append((head, *table[text, head, row], at[text, row]))
                must.append(
                    bool(is_real[text, row] and not padding[text, row]) and table[text, head, row, 0] > 0
                )
        wanted = np.array(expected, float)
        if not positions:
            kept[:, 3], wanted[:, 4] = 0, 0
        found += _unmatched(name, rows.head[of], kept, wanted, np.array(must))
    return found


def _unmatched(
    name: str, heads: np.ndarray, kept: np.ndarray, expected: np.ndarray, must: np.ndarray
) -> list[str]:
    found = []
    for head in np.unique(expected[:, 0]):
        of, ours = expected[:, 0] == head, kept[heads == head]
        theirs, needed = expected[of][:, 1:], must[of]
        if len(ours) == 0:
            found.append(f"{name}: head {int(head)} is not recorded")
            continue
        close = np.abs(ours[:, None] - theirs[None]) <= np.array([0, 2e-3, 1e-3, 0])
        without_position = close[..., :3].all(-1)
        for what, fits in (("row", without_position), ("position", close.all(-1))):
            extra, lost = ~fits.any(1), needed & ~fits.any(0)
            if extra.any() or lost.any():
                example = ours[extra][:1].round(4).tolist() or theirs[lost][:1].round(4).tolist()
                found.append(
                    f"{name}: head {int(head)}: {what}: {int(extra.sum())} of {len(ours)} recorded rows are none of "
                    f"eager attention's, {int(lost.sum())} of {int(needed.sum())} are missing, such as {example}"
                )
                return found
    return found


def outputs(found: Any) -> list[torch.Tensor]:
    """Returns the floating-point tensors of a model's output, none of its cache and its attentions."""
    names = (
        [name for name in found.keys() if not re.search("past|cache|attention", name)]
        if hasattr(found, "keys")
        else []
    )
    parts = (
        [found[name] for name in names] if names else found if isinstance(found, (tuple, list)) else [found]
    )
    return [part for part in parts if isinstance(part, torch.Tensor) and part.is_floating_point()][:2]


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.shape == b.shape and torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5)))


def fitted(real: Any, batch: int, count: int) -> Any:
    """Returns which of `count` rows are text, where `real` says it of the tokens: a model may add rows behind
    them. None if that is not known."""
    if real is None or real.shape[0] != batch or not real.shape[1] <= count <= real.shape[1] + 1:
        return None
    return torch.cat([real, torch.ones(batch, count - real.shape[1], dtype=torch.bool)], 1)


def far(wanted: list[torch.Tensor], ours: list[torch.Tensor], real: Any, most: float) -> float:
    """Returns how far two outputs are apart, in standard deviations, if more than `most`, and 0 otherwise."""
    for a, b in zip(wanted, ours):
        of_text = fitted(real, *a.shape[:2]) if a.ndim > 2 else None
        if of_text is not None:
            a, b = a[of_text], b[of_text]
        if a.numel() and a.isfinite().all():
            apart = float((a - b).abs().max()) / (float(a.std(unbiased=False)) + 1e-6)
            if not apart <= most:
                return apart
    return 0.0
