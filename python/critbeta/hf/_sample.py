"""Which rows of a forward pass are measured: some of each text of a batch."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from ._interface import Forward
from ._visible import Visible

# Shorter rows say nothing of a length law.
_SHORTEST = 8


@dataclass(eq=False)
class Text:
    """One text that the model reads: over several forward passes, if it has a cache."""

    number: int
    """From 0, in the order that they begin in."""
    end: int = 0
    """The position that its next row has."""
    stride: int = 1
    taken: int = 0
    steps: int = field(default=0)

    def takes_step(self, rows: int) -> bool:
        """Whether the row of this decoding step is taken: all of the first `rows`, every second of as many more, every fourth, ..."""
        takes = self.steps % self.stride == 0
        self.steps += 1
        self.taken += takes
        if self.taken == rows:
            self.stride, self.taken = 2 * self.stride, 0
        return takes


class Rows(NamedTuple):
    """Rows of one text that are measured in a forward pass."""

    text: Text
    batch: int
    """Which text of the batch."""
    queries: torch.Tensor
    """Indices of the queries, int64 [rows]."""
    positions: torch.Tensor
    """0-based in the text, int64 [rows]."""


class _Reading(threading.local):
    """What a thread reads."""

    def __init__(self) -> None:
        self.texts: dict[int, Text] = {}
        """The last of each place in a batch."""
        self.chosen: tuple[object, list[Rows]] = (None, [])
        """The rows of its forward pass."""


class Sampler:
    """Chooses about `rows` rows of every text and forward pass."""

    def __init__(self, forward: Forward, rows: int, texts: int = 0) -> None:
        self._forward, self._rows = forward, rows
        self._reading = _Reading()
        self.texts = texts
        """The number of the next text that begins."""

    def rows(self, visible: Visible) -> list[Rows]:
        """The rows of this forward pass: the same for every layer."""
        key = self._forward.number, visible.batch, visible.rows
        if self._reading.chosen[0] != key:
            self._reading.chosen = key, self._choose(visible)
        return self._reading.chosen[1]

    def _choose(self, visible: Visible) -> list[Rows]:
        positions = visible.positions.expand(visible.batch, -1).cpu().numpy()
        real = np.ones(positions.shape, bool) if visible.real is None else visible.real.cpu().numpy()
        # Masks that are built before the model is called do not come with the caller's padding: its rows see nothing.
        real = real & (visible.counts() > 0).any(1).expand(visible.batch, -1).cpu().numpy()
        chosen = []
        for batch in range(visible.batch):
            index = np.flatnonzero(real[batch])
            at = positions[batch, index]
            for part in np.split(np.arange(len(index)), np.flatnonzero(np.diff(at) != 1) + 1):
                if len(part) == 0:
                    continue
                text = self._text(batch, int(at[part[0]]))
                text.end = int(at[part[-1]]) + 1
                if len(part) > 1 or at[part[0]] == 0:
                    part = part[spread(int(at[part[0]]) + 1, int(at[part[-1]]) + 1, self._rows)]
                elif not text.takes_step(self._rows):
                    continue
                device = visible.positions.device
                rows, where = (torch.from_numpy(array[part]).to(device) for array in (index, at))
                chosen.append(Rows(text, batch, rows, where))
        return chosen

    def _text(self, batch: int, position: int) -> Text:
        known = self._reading.texts.get(batch)
        # A text goes on where it ended: one cache may be read on from twice, or be cut back.
        if known is None or position != known.end:
            known = self._reading.texts[batch] = Text(self.texts)
            self.texts += 1
        return known


def spread(first: int, last: int, rows: int) -> np.ndarray:
    """Indices of at most `rows` of the lengths first..=last: three quarters of them evenly in log n, from 8 on, and the last ones."""
    if last - first < rows:
        return np.arange(last - first + 1)
    ends = max(1, rows // 4)
    begin = _SHORTEST if first < _SHORTEST < last - ends else first
    even = np.geomspace(begin, last - ends, rows - ends).round().astype(np.int64)
    return np.unique(np.concatenate([even, np.arange(last - ends + 1, last + 1)])) - first
