"""The rows of all texts of a forward pass, as the core takes them: one call a layer, not a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Union

import numpy as np
import torch

from .. import _core
from .._bytes import bytes_of, dtype_name
from ._interface import Call
from ._sample import Rows
from ._scores import in_float32, tile
from ._visible import Visible

# Scores of a layer that exist at a time, unless one text has more.
_TILE_BYTES = 64 << 20

# Text, index in the batch, rows, the first row, and the keys: from one on, or columns of a tile.
_Place = tuple[int, int, int, int, int, Union[int, None]]


class Seen(NamedTuple):
    """The keys that the rows of each text see, int64 [texts]."""

    prefix: np.ndarray
    """The first key, if each row sees all keys from that one to its own; otherwise -1."""
    first: np.ndarray
    """The first key that any of the rows sees in any head."""
    end: np.ndarray
    """The key after the last one."""


class Part:
    """Texts whose rows go to the core in one call: all of a forward pass, unless their scores are many."""

    def __init__(self, visible: Visible, rows: list[Rows], seen: Seen) -> None:
        self._visible, self._device = visible, visible.positions.device
        self._queries: Any = None
        self._tile: tuple[range, torch.Tensor, range] | None = None
        products = np.flatnonzero(seen.prefix >= 0).tolist()
        others = np.flatnonzero(seen.prefix < 0).tolist()
        places: dict[int, _Place] = {}
        if products:
            places.update(self._place_products([rows[text] for text in products], products, seen))
        if others:
            places.update(self._place_scores([rows[text] for text in others], others, seen))
        positions = np.concatenate([of.positions for of in rows])
        self.texts = _core.Texts([places[text] for text in range(len(rows))], positions)

    def _place_products(self, rows: list[Rows], texts: list[int], seen: Seen) -> Iterator[tuple[int, _Place]]:
        batch, counts = [of.batch for of in rows], [len(of.queries) for of in rows]
        self._batch, first = slice(min(batch), max(batch) + 1), seen.prefix[texts].tolist()
        self._keys = max(key + int(of.positions[-1]) + 1 for key, of in zip(first, rows))
        if self._visible.rows == 1 and batch == list(range(self._batch.start, self._batch.stop)):
            # Every text has one query. So they need no copy.
            self._queries = self._batch, 0
        else:
            index = np.repeat(batch, counts), np.concatenate([of.queries for of in rows])
            self._queries = tuple(torch.from_numpy(each).to(self._device) for each in index)
        at = 0
        for text, of, count, key in zip(texts, rows, counts, first):
            yield text, (of.text, of.batch - self._batch.start, count, at, key, None)
            at += count

    def _place_scores(self, rows: list[Rows], texts: list[int], seen: Seen) -> Iterator[tuple[int, _Place]]:
        batch = range(min(of.batch for of in rows), max(of.batch for of in rows) + 1)
        keys = range(int(seen.first[texts].min()), int(seen.end[texts].max()))
        # An index of the batch with fewer rows than others repeats its first query.
        filled, most = [0] * len(batch), _most(rows)
        queries = np.zeros((len(batch), most), np.int64)
        for text, of in zip(texts, rows):
            row, count = of.batch - batch.start, len(of.queries)
            queries[row, filled[row] : filled[row] + count] = of.queries
            first, end = int(seen.first[text]) - keys.start, int(seen.end[text]) - keys.start
            yield text, (of.text, row, count, filled[row], first, end)
            filled[row] += count
        self._tile = batch, torch.from_numpy(queries).to(self._device), keys

    def products(self, call: Call) -> tuple[str, str, np.ndarray, np.ndarray, float] | None:
        """Returns queries [rows, heads, bytes] and keys [batch, kv_heads, keys, bytes] with their types and
        scale, if any rows see all keys of their text up to their own."""
        if self._queries is None:
            return None
        # Checkpointed layers count the tensors that are saved for gradients: there must be none here.
        q, k = call.query.detach().transpose(1, 2)[self._queries], call.key.detach()
        if k.shape[0] != self._batch.stop - self._batch.start or k.shape[2] != self._keys:
            k = k[self._batch, :, : self._keys]
        return dtype_name(q, "query"), dtype_name(k, "key"), bytes_of(q), bytes_of(k), call.scaling

    def scores(self, call: Call) -> np.ndarray | None:
        """Returns the scores of the other rows: float32 [batch, heads, rows, keys]."""
        if self._tile is None:
            return None
        texts, rows, keys = self._tile
        with torch.no_grad(), in_float32(call):
            return tile(call, self._visible, texts, rows, keys).contiguous().cpu().numpy()


@torch.no_grad()
def parts(visible: Visible, rows: list[Rows], changed: bool, heads: int) -> list[Part]:
    """Returns the parts of a forward pass for layers with `heads` heads. `changed` says whether scores are
    more than products of queries and keys."""
    if not rows:
        return []
    seen = _seen(visible, rows)
    if changed:
        seen.prefix.fill(-1)
    return [Part(visible, rows[of], Seen(*(each[of] for each in seen))) for of in _groups(rows, seen, heads)]


def _groups(rows: list[Rows], seen: Seen, heads: int) -> list[slice]:
    """Returns runs of texts whose scores take at most `_TILE_BYTES`, or single texts."""

    def size(texts: list[int]) -> int:
        height = rows[texts[-1]].batch + 1 - rows[texts[0]].batch
        width = int(seen.end[texts].max() - seen.first[texts].min())
        return 4 * heads * height * _most([rows[text] for text in texts]) * width

    others = np.flatnonzero(seen.prefix < 0).tolist()
    if not others or size(others) <= _TILE_BYTES:
        return [slice(0, len(rows))]
    begins, group = [0], list[int]()
    for text in others:
        group.append(text)
        if len(group) > 1 and size(group) > _TILE_BYTES:
            begins.append(text)
            group = [text]
    return [slice(begin, end) for begin, end in zip(begins, [*begins[1:], len(rows)])]


def _most(rows: list[Rows]) -> int:
    """The most rows of an index of the batch."""
    counts: dict[int, int] = {}
    for of in rows:
        counts[of.batch] = counts.get(of.batch, 0) + len(of.queries)
    return max(counts.values())


def _seen(visible: Visible, rows: list[Rows]) -> Seen:
    counts = np.array([len(of.queries) for of in rows])
    # A text with fewer rows than others repeats its last one.
    index = np.minimum(np.arange(counts.max()), counts[:, None] - 1) + (counts.cumsum() - counts)[:, None]
    queries = np.concatenate([of.queries for of in rows])[index]
    positions = np.concatenate([of.positions for of in rows])[index]
    if visible.is_plain:
        # This is the case of every decoding step without padding, and it asks for no mask.
        counts = visible.counts()[0, 0].cpu().numpy()[queries]
        whole, ends = (counts == positions + 1).all(1), counts.max(1)
        return Seen(np.where(whole, 0, -1), np.zeros_like(ends), np.maximum(ends, 1))
    batch = np.array([of.batch for of in rows])
    step = max(1, (1 << 24) // max(1, visible.mask_heads * queries.shape[1] * visible.keys))
    found = []
    for of in (slice(begin, begin + step) for begin in range(0, len(rows), step)):
        given = (torch.from_numpy(each[of]).to(visible.positions.device) for each in (queries, batch))
        seen = visible.seen_by(*given).cpu().numpy()
        count = seen.sum(-1)
        # Rows that see no key have no first one, and no last one.
        first = np.where(count > 0, seen.argmax(-1), visible.keys)
        end = np.where(count > 0, visible.keys - seen[..., ::-1].argmax(-1), 0)
        whole = (end - first == count) & (count == positions[of, None] + 1) & (first == first[:, :1, :1])
        prefix = np.where(whole.all((1, 2)) & (seen.shape[1] == 1), first[:, 0, 0], -1)
        first, end = first.min((1, 2)), end.max((1, 2))
        # A text that sees no key at all has one column.
        found.append((prefix, np.where(end > 0, first, 0), np.maximum(end, 1)))
    return Seen(*(np.concatenate(each) for each in zip(*found)))
