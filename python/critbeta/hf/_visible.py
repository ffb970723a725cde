"""The keys that a query sees under the mask of its attention, and its position in its own text."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ._interface import Call, Forward, in_backward


# What masks add to a hidden key: -inf, the lowest number of a dtype (or nearly that, after something was
# added to it), -1e9, -1e4. bfloat16 has no -10000, but -9984.
_HIDDEN = -9900.0
# A model has few kinds of layers (with or without a window, cross-attention), and a step few forward passes.
_KNOWN = 8


class Visible:
    """The keys that the rows of one attention call see, and the positions of the rows.

    Raises ValueError for a mask of a kind that `Call.mask` does not describe.
    """

    def __init__(
        self,
        call: Call,
        padding: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        past: int | None = None,
    ) -> None:
        self.batch, _, self.rows, _ = call.query.shape
        self.keys = call.key.shape[2]
        self.causal = _is_causal(call)
        """Whether a row sees no key after its own."""
        self._device = call.query.device
        self._mask: torch.Tensor | None = None
        self._keys_seen = self.keys
        # Row r sees key j as if it stood at key r + offset.
        self._offset: int | torch.Tensor = 0
        self._window = None
        self._padding: torch.Tensor | None = None
        # The text of each row and of each key of a packed batch: int64 [batch or 1, rows or keys].
        self._segments: tuple[torch.Tensor, torch.Tensor] | None = None
        refuse_keys_elsewhere(call)
        self.requests = self._packed(call, "cu_seq_lens_q", self.rows)
        """The request of each row, where several share a row of the batch: int64 [rows], or None."""
        if "flash" in call.implementation:
            self._read_flash(call)
        elif call.mask is None:
            self._read_nothing(call)
        else:
            self._read_mask(call)
        padding = self._usable(call, padding)
        self.real = self._real_rows(call, padding)
        """Whether each query belongs to a text, where that is known: bool [batch or 1, rows]."""
        # Cross-attention sees keys of another text. Its queries keep the positions of the attention before.
        known = positions if not self.causal else None
        self.positions = self._positions(call, padding, past) if known is None else known.to(self._device)
        """The 0-based position of every query in its own text, int64 [batch or 1, rows]."""
        additive = self._mask is not None and self._mask.dtype != torch.bool
        self.biased = additive and bool(self._by_rows(self._is_biased).any())
        """Whether an additive mask changes scores that it leaves visible."""

    def _read_nothing(self, call: Call) -> None:
        # sdpa is causal from the upper left, and a single row sees all keys; eager attention is not causal.
        if call.implementation == "eager":
            self.causal = False
        elif self.causal and self.rows == 1:
            self._offset = self.keys - 1
        elif self.causal:
            self._keys_seen = min(self.keys, self.rows)

    def _read_flash(self, call: Call) -> None:
        self._offset, self._window = self.keys - self.rows, call.kwargs.get("sliding_window")
        if isinstance(call.mask, torch.Tensor):
            if call.mask.ndim != 2:
                found = f"a mask of shape {list(call.mask.shape)}"
                raise ValueError(f"{call.layer}: {found}, expected [batch, keys] for flash")
            self._padding = call.mask[:, -self.keys :].bool()
            return
        of_keys, ids = self._packed(call, "cu_seq_lens_k", self.keys), _position_ids(call)
        if self.requests is not None and of_keys is not None:
            ends = [call.kwargs[f"cu_seq_lens_{name}"][1:].to(self._device).long() for name in "kq"]
            # Padding behind the last request sees nothing: its number is that of no key.
            self._segments = self.requests[None], torch.where(of_keys < 0, -2, of_keys)[None]
            self._offset = (ends[0] - ends[1])[self.requests.clamp(min=0)]
        elif ids is not None and self.rows == self.keys:
            starts = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1] + 1, (1, 0)).cumsum(-1)
            self._segments = starts, starts

    def _packed(self, call: Call, name: str, count: int) -> torch.Tensor | None:
        """Returns the number of the request that each row or key belongs to, -1 behind the last one."""
        ends = call.kwargs.get(name)
        if not isinstance(ends, torch.Tensor) or ends.ndim != 1 or self.batch != 1:
            return None
        ends, at = ends[1:].to(self._device).long(), torch.arange(count, device=self._device)
        request = torch.bucketize(at, ends, right=True)
        return torch.where(request < len(ends), request, -1)

    def _read_mask(self, call: Call) -> None:
        mask = call.mask
        if not isinstance(mask, torch.Tensor):
            found = f"a mask of type {type(mask).__name__} under {call.implementation!r}, expected a tensor"
            expected = 'load the model with attn_implementation="sdpa" or "eager"'
            raise ValueError(f"{call.layer}: {found}: {expected}")
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))[..., : self.keys]
        heads = call.query.shape[1]
        wanted = [self.batch, heads, self.rows, self.keys]
        if mask.dtype != torch.bool and not mask.is_floating_point():
            expected = "expected bool, or floating-point numbers to add to the scores"
            raise ValueError(f"{call.layer}: a mask of {mask.dtype}, {expected}")
        if mask.dtype == torch.bool and call.implementation == "eager":
            found = "a boolean mask, which eager attention adds to the scores as 0 and 1: it hides no key"
            expected = "give 0 and -inf, or load the model with attn_implementation=\"sdpa\""
            raise ValueError(f"{call.layer}: {found}. {expected.capitalize()}")
        if mask.ndim != 4 or any(size not in (1, most) for size, most in zip(mask.shape, wanted)):
            expected = f"expected a shape that broadcasts to {wanted}"
            raise ValueError(f"{call.layer}: a mask of shape {list(call.mask.shape)}, {expected}")
        whole = mask.shape[2] == 1 and self.rows > 1
        self._mask = mask.expand(-1, -1, self.rows, self.keys)
        # Some encoders do not say that they are none of the causal kind, but their masks do.
        if self.causal and (whole or self.rows == self.keys):
            some = torch.linspace(0, self.rows - 1, min(self.rows, 64), device=self._device).long()
            later = torch.arange(self.keys, device=self._device) > some[:, None]
            self.causal = not (whole or bool((_unmasked(self._mask[:, :, some]) & later).any()))

    def _at(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the key that each row would stand at."""
        return rows + (self._offset if isinstance(self._offset, int) else self._offset[rows])

    @property
    def is_plain(self) -> bool:
        """Whether every row sees all keys from the first to some last one, whatever its text."""
        return all(limit is None for limit in (self._mask, self._padding, self._segments, self._window))

    @property
    def mask_heads(self) -> int:
        """The heads that have masks of their own: all, or 1."""
        return 1 if self._mask is None else self._mask.shape[1]

    def end(self, rows: torch.Tensor) -> int:
        """Returns a number of keys, counted from the first, that holds all keys that `rows` see."""
        if self._mask is None and self.causal and len(rows):
            return min(self._keys_seen, int(self._at(rows).max()) + 1)
        return self._keys_seen

    def seen_by(self, rows: torch.Tensor, texts: torch.Tensor | None = None) -> torch.Tensor:
        """Says which keys `rows`, indices int64 [rows], see: bool [batch or 1, heads or 1, rows, keys]. Of
        `texts`, indices int64 [texts], each has rows of its own, int64 [texts, rows]; then the result is
        [texts, heads or 1, rows, keys]."""
        if self._mask is not None:
            return _unmasked(_rows_of(self._mask, rows, texts))
        keys = torch.arange(self.keys, device=self._device)
        at = self._at(rows)[..., None]
        seen = (keys < self._keys_seen).expand(*rows.shape, -1)
        if self.causal:
            seen = seen & (keys <= at)
        if self._window is not None:
            seen = seen & (keys > at - self._window) & (keys < at + self._window)
        seen = seen[None, None] if texts is None else seen[:, None]
        if self._padding is not None:
            seen = seen & _of(self._padding, texts)[:, None, None]
        if self._segments is not None:
            own, of_keys = (_of(segments, texts) for segments in self._segments)
            of_rows = own[:, rows] if texts is None else own.expand(len(rows), -1).gather(1, rows)
            seen = seen & (of_rows[..., None] == of_keys[:, None])[:, None]
        return seen

    def bias_of(self, rows: torch.Tensor, texts: torch.Tensor | None = None) -> torch.Tensor | None:
        """Returns what the mask adds to the scores of `rows`, in the shape of `seen_by`."""
        if not self.biased or self._mask is None:
            return None
        return _rows_of(self._mask, rows, texts)

    def counts(self) -> torch.Tensor:
        """Returns the number of visible keys of every row: int64 [batch or 1, heads or 1, rows]."""
        if self.is_plain:
            at = self._at(torch.arange(self.rows, device=self._device)) + 1
            seen = at.clamp(max=self._keys_seen) if self.causal else torch.full_like(at, self.keys)
            return seen[None, None]
        return self._by_rows(lambda rows: self.seen_by(rows).sum(-1))

    def _by_rows(self, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Calls `of` on some rows at a time, so that an int64 tensor [rows, keys] takes at most 128 MB."""
        apart = math.prod(self._mask.shape[:2]) if self._mask is not None else self.batch
        step = max(1, (1 << 24) // max(1, self.keys * apart))
        rows = torch.arange(self.rows, device=self._device)
        return torch.cat([of(some) for some in torch.split(rows, step)], -1)

    def _is_biased(self, rows: torch.Tensor) -> torch.Tensor:
        assert self._mask is not None
        of_rows = self._mask[:, :, rows]
        return (_unmasked(of_rows) & (of_rows != 0)).any(-1)

    def _usable(self, call: Call, padding: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the caller's mask, bool, if its columns are the queries of this call and the tokens before
        them. They are not if a model makes its rows from something else, such as sound."""
        if padding is None or padding.shape[0] not in (1, self.batch):
            return None
        columns = padding.shape[-1]
        with_past = columns > self.rows and (self.causal or columns == self.keys)
        return padding.to(self._device) != 0 if columns == self.rows or with_past else None

    def _real_rows(self, call: Call, padding: torch.Tensor | None) -> torch.Tensor | None:
        if padding is not None:
            return padding[:, -self.rows :]
        if self._mask is not None and not self.causal and self.rows == self.keys:
            # An encoder's mask that hides a key from its own row hides it from all rows.
            return _unmasked(self._mask.diagonal(dim1=-2, dim2=-1)).any(1)
        return None

    def _positions(self, call: Call, padding: torch.Tensor | None, past: int | None) -> torch.Tensor:
        ids = _position_ids(call)
        if padding is not None:
            columns = torch.arange(padding.shape[-1] - self.rows, padding.shape[-1], device=self._device)
            own = (padding.cumsum(-1)[:, columns] - 1).clamp(min=0)
            if ids is None:
                return own
            # Position ids that only count columns count padding as text.
            counted = (ids == columns).all(-1, keepdim=True)
            return torch.where(counted, own, ids)
        if ids is not None:
            return ids
        # The keys of a window are not all that the cache has seen.
        if past is not None and self.keys <= past + self.rows:
            return (torch.arange(self.rows, device=self._device) + past)[None]
        if not self.causal and self.real is not None:
            return (self.real.cumsum(-1) - 1).clamp(min=0)
        if self._mask is None or not self.causal:
            return self._at(torch.arange(self.rows, device=self._device))[None]
        keys = torch.arange(self.keys, device=self._device)
        last = self._by_rows(lambda rows: torch.where(self.seen_by(rows)[:, 0], keys, 0).amax(-1))
        if self.rows < self.keys:
            return last
        # A text begins at the first key that any of its rows sees: before that there is padding.
        first = self._by_rows(lambda rows: torch.where(self.seen_by(rows)[:, 0], keys, self.keys).amin(-1))
        return (last - first.amin(-1, keepdim=True)).clamp(min=0)


class VisibleKeys:
    """The visible keys of the layers of a forward pass. Layers under the same mask share them."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._known: list[tuple[list[Any], tuple[Any, ...], Visible]] = []

    def of(self, call: Call) -> Visible:
        """Returns the visible keys of the rows of `call`."""
        tensors, settings = [call.mask, call.kwargs.get("position_ids")], self._settings(call)
        # A checkpointed layer runs again with the mask of its own pass. `Forward` may know a later one.
        again = in_backward()
        for references, known, visible in self._known:
            pairs = zip(references, tensors)
            same = (given is None if was is None else was() is given for was, given in pairs)
            if known[again:] == settings[again:] and all(same):
                return visible
        if again and call.mask is not None:
            raise RuntimeError(
                f"{call.layer} runs again for a gradient, and its forward pass is no longer known: at most "
                f"{_KNOWN} masks are kept, run backward() before more passes, or do not checkpoint gradients"
            )
        forward, shape = self._forward, call.query.shape[:3:2]
        of_pass = () if again else (forward.padding, forward.positions.get(shape), forward.past)
        found = Visible(call, *of_pass)
        if not again:
            forward.positions.setdefault(shape, found.positions)
        references = [None if tensor is None else weakref.ref(tensor) for tensor in tensors]
        self._known = [(references, settings, found), *self._known[: _KNOWN - 1]]
        return found

    def clear(self) -> None:
        """Forgets all masks."""
        self._known.clear()

    def _settings(self, call: Call) -> tuple[Any, ...]:
        # A mask keeps its values within a forward pass. The next pass may write others into its tensor.
        shapes = call.query.shape[:3], call.key.shape[2], call.query.device
        window = call.kwargs.get("sliding_window")
        return self._forward.number, call.implementation, window, _is_causal(call), *shapes


def refuse_keys_elsewhere(call: Call) -> None:
    """Raises ValueError where the keys of a call are not all that its rows see: paged attention may take
    others from a cache, or find them by a table of blocks."""
    given, keys = call.kwargs, call.key.shape[2]
    ends = given.get("cu_seq_lens_k")
    reason = None
    if given.get("cache") is not None and ("read_index" in given or "paged" in call.implementation):
        reason = "it puts the keys into the paged cache itself, so those of earlier tokens are not there yet"
    elif given.get("block_table") is not None:
        reason = "it finds keys by a table of blocks"
    elif isinstance(ends, torch.Tensor) and ends.numel() and int(ends[-1]) > keys:
        reason = f"its requests have {int(ends[-1])} keys, and {keys} are given"
    elif "paged" in call.implementation and call.mask is None:
        reason = "without a mask it does not say which keys are whose"
    if reason:
        expected = "use generate(), or transformers 5.24 with attn_implementation=\"sdpa\""
        raise ValueError(f"{call.layer}: under {call.implementation!r} {reason}: {expected}")


def _is_causal(call: Call) -> bool:
    given = call.kwargs.get("is_causal")
    return bool(given if given is not None else getattr(call.module, "is_causal", True))


def _position_ids(call: Call) -> torch.Tensor | None:
    ids: Any = call.kwargs.get("position_ids")
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return None
    # In OPT the position of padding is -1. Continuous batching gives int32.
    fits = ids.shape[-1] == call.query.shape[2]
    return ids.to(call.query.device, torch.int64).clamp(min=0) if fits else None


def _of(tensor: torch.Tensor, texts: torch.Tensor | None) -> torch.Tensor:
    return tensor if texts is None or len(tensor) == 1 else tensor[texts]


def _rows_of(mask: torch.Tensor, rows: torch.Tensor, texts: torch.Tensor | None) -> torch.Tensor:
    if texts is None:
        return mask[:, :, rows]
    of = texts[:, None] if len(mask) > 1 else torch.zeros_like(texts)[:, None]
    return mask[of, :, rows].transpose(1, 2)


def _unmasked(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask > _HIDDEN
