"""The choice of the rows of a forward pass that are measured: some of each text of a batch."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ._interface import Forward
from ._visible import Visible

# Shorter rows say nothing about a length law.
_SHORTEST = 8
# The requests of continuous batching that may go on.
_REQUESTS = 1023


@dataclass(eq=False)
class Text:
    """One text that the model reads, over several forward passes if it has a cache."""

    number: int
    """Texts are numbered from 0, in the order in which they begin."""
    end: int = 0
    """The position of its next row."""
    stride: int = 1
    taken: int = 0
    steps: int = field(default=0)

    def takes_step(self, rows: int) -> bool:
        """Says whether to take the row of this decoding step: all of the first `rows`, then every second one
        until as many more are taken, then every fourth, and so on."""
        takes = self.steps % self.stride == 0
        self.steps += 1
        self.taken += takes
        if self.taken == rows:
            self.stride, self.taken = 2 * self.stride, 0
        return takes


class Rows(NamedTuple):
    """The rows of one text that a forward pass measures."""

    text: int
    """The number of the text."""
    batch: int
    """The index of the text in the batch."""
    queries: np.ndarray
    """The indices of the queries, int64 [rows]."""
    positions: np.ndarray
    """Their 0-based positions in the text, int64 [rows]."""


class _Reading(threading.local):
    """The texts that a thread reads."""

    def __init__(self) -> None:
        self.texts: dict[int, list[Text]] = {}
        """The last text at each index of a batch, or the last ones where requests share it."""
        self.chosen: tuple[object, list[Rows], Visible | None] = (None, [], None)
        """The rows of the forward pass, and the layer that chose them."""


class Sampler:
    """Chooses about `rows` rows of every text and forward pass."""

    def __init__(self, forward: Forward, rows: int, texts: int = 0) -> None:
        self._forward, self._rows = forward, rows
        self._reading = _Reading()
        self.texts = texts
        """The number of the next text."""

    def rows(self, visible: Visible) -> list[Rows]:
        """Returns the rows of this forward pass, the same for every layer."""
        key = self._forward.number, visible.batch, visible.rows
        if self._reading.chosen[0] != key:
            self._reading.chosen = key, self._choose(visible), visible
        _, chosen, by = self._reading.chosen
        if visible.real is None or visible is by:
            return chosen
        # Layers that divide a text into other blocks have padding elsewhere.
        real, kept = visible.real.cpu().numpy(), list[Rows]()
        for of in chosen:
            own = real[min(of.batch, len(real) - 1), of.queries]
            kept.append(of._replace(queries=of.queries[own], positions=of.positions[own]))
        return [of for of in kept if len(of.queries)]

    def _choose(self, visible: Visible) -> list[Rows]:
        positions = visible.positions.expand(visible.batch, -1).cpu().numpy()
        real = np.ones(positions.shape, bool) if visible.real is None else visible.real.cpu().numpy()
        # Under a mask that was built before the call the caller's padding is unknown; its rows see no key.
        real = real & (visible.counts() > 0).any(1).expand(visible.batch, -1).cpu().numpy()
        batch, index = np.nonzero(real)
        at = positions[batch, index]
        breaks = (np.diff(batch) != 0) | (np.diff(at) != 1)
        if visible.requests is not None:
            breaks |= np.diff(visible.requests.cpu().numpy()[index]) != 0
        ends, chosen, read = np.flatnonzero(breaks) + 1, list[Rows](), set[Text]()
        for first, end in zip([0, *ends.tolist()], [*ends.tolist(), len(at)]):
            if first == end:
                continue
            of, begin = int(batch[first]), int(at[first])
            text = self._text(of, begin, read, visible.requests is not None)
            read.add(text)
            text.end = begin + end - first
            if end - first > 1 or begin == 0:
                taken = first + spread(begin + 1, text.end, self._rows)
                chosen.append(Rows(text.number, of, index[taken], at[taken]))
            elif text.takes_step(self._rows):
                chosen.append(Rows(text.number, of, index[first:end], at[first:end]))
        return chosen

    def _text(self, batch: int, position: int, read: set[Text], shared: bool) -> Text:
        known = self._reading.texts.setdefault(batch, [])
        # Any row but the next begins another text: a cache may be cut back, or used twice.
        for text in known:
            if text.end == position and text not in read:
                return text
        text = Text(self.texts)
        self.texts += 1
        known[:] = [*known[-_REQUESTS:], text] if shared else [text]
        return text


def spread(first: int, last: int, rows: int) -> np.ndarray:
    """Returns indices of at most `rows` of the lengths first..=last: three quarters of them evenly in log n
    from n = 8 on, and the last ones."""
    if last - first < rows:
        return np.arange(last - first + 1)
    ends = max(1, rows // 4)
    begin = _SHORTEST if first < _SHORTEST < last - ends else first
    even = np.geomspace(begin, last - ends, rows - ends).round().astype(np.int64)
    return np.unique(np.concatenate([even, np.arange(last - ends + 1, last + 1)])) - first
