"""A recorder of the rows that a server computes."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import util
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from .. import _core
from .._bytes import bytes_of, dtype_name
from .._layers import in_words
from .._recorded import Recorded
from .._results import Stats
from ._counters import Counters
from ._layers import Layer
from ._requests import Requests

LOG = logging.getLogger("critbeta.serve")
# Shorter rows say nothing about a length law.
_SHORTEST = 8
# Rows that wait to be counted where no more are kept.
_WAITING = 100_000


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _guarded(function: _Function) -> _Function:
    """Runs a method of a recorder unless an error has ended it, and ends it where there is one."""

    @functools.wraps(function)
    def guarded(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs) if self.error is None else None
        except Exception as error:
            self.end(error)
            return None

    return guarded  # type: ignore[return-value]


class _Part(NamedTuple):
    """The rows of one request that a step records."""

    request: int
    text: int
    tokens: torch.Tensor
    """Their places in the batch, int64 [rows]."""
    positions: np.ndarray
    """int64 [rows], ascending."""


class Taken(NamedTuple):
    """What a step records: pass it to `Recorder.add` for each layer."""

    requests: Requests
    parts: list[_Part]


class Recorder(Recorded):
    """Records attention rows of a server while it runs.

    Rows are chosen by their position alone: `per_octave` of them between n and 2 n, evenly in log n, from 8
    keys on. So a request is recorded at the same lengths in a prompt, in chunks of one, and in decoding, and
    a step at other lengths costs nothing. All layers and heads record the same rows.

    layers: the layers of this process. Those whose softmax sees more than products (learned sinks, ALiBi) and
        those that are no decoder are not recorded, which a warning says.
    length: the largest number of tokens of a sequence.
    folder: where to write `metrics-NAME.prom` (`metrics`) every `every` seconds, and
        `rows-TIME-PID-NAME.parquet` (`critbeta report`, `critbeta.report`) when a quarter of it is new or ten
        times that long has passed, and both at the end of the process; None writes nothing. With `max_bytes`
        above 0, the end also writes `qk-TIME-PID-NAME.safetensors` (`critbeta diagnose`).
    name: the name of this process in these files, such as its rank.
    max_rows: the most rows that are kept. Equal rows, as copies of a prompt have, are one. Rows beyond it are
        counted only.
    max_bytes, resolve: as in `critbeta.hf.record`.

    An error while recording ends it, with one warning; no request fails. Raises ValueError for settings that
    make no sense, and OSError for a folder that cannot be made.
    """

    _expected = "rows are recorded from n = 8 on, at some lengths only"

    def __init__(
        self,
        layers: Iterable[Layer],
        length: int,
        *,
        folder: str | os.PathLike[str] | None = None,
        name: str = "r0",
        model: str = "model",
        per_octave: int = 4,
        max_rows: int = 1_000_000,
        max_bytes: int = 0,
        resolve: float = 0.0,
        every: float = 60.0,
    ) -> None:
        super().__init__(resolve, max_bytes)
        if per_octave < 1 or max_rows < 1:
            found = f"per_octave is {per_octave} and max_rows {max_rows}"
            raise ValueError(f"{found}: expected at least 1")
        self.layers: dict[str, Layer] = {}
        self._refused = set[str]()
        self.cover(*layers)
        self._model, self._process, self._every, self._max_rows = model, name, every, max_rows
        self._grid = np.zeros(length + 1, bool)
        octaves = np.arange(np.log2(max(length, _SHORTEST) / _SHORTEST) * per_octave + 1)
        lengths = (_SHORTEST * 2 ** (octaves / per_octave)).round().astype(np.int64)
        self._grid[lengths[lengths <= length]] = True
        self._texts, self._ends = 0, dict[tuple[int, int], int]()
        self._counters, self._counted, self._given = Counters(), 0, 0
        self._beyond: _core.Recording | None = None
        self._written, self._when = 0, 0.0
        # The model's thread takes the first one for every call, so rows are counted under the other.
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self.error: Exception | None = None
        """What ended the recording, if anything did."""
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{name}"
            self._rows_file = self._folder / f"rows-{stamp}.parquet"
            self._keys_file = self._folder / f"qk-{stamp}.safetensors"
            self._metrics_file = self._folder / f"metrics-{name}.prom"
            self._closing = threading.Event()
            threading.Thread(target=self._write_often, name="critbeta", daemon=True).start()
            # The end of a process of multiprocessing calls this, and not what atexit knows.
            self._end = util.Finalize(None, self._at_end, exitpriority=10)

    def cover(self, *layers: Layer) -> None:
        """Adds layers. Those whose softmax sees more than products are left out."""
        reasons: dict[str, list[str]] = {}
        for layer in layers:
            self.layers[layer.name] = layer
            if layer.heads < layer.all_heads:
                self._split = layer.name
            reason = layer.unlike_products()
            if reason:
                reasons.setdefault(reason, []).append(layer.name)
        for reason, names in reasons.items():
            self.leave_out(names, reason)

    def leave_out(self, names: list[str], reason: str) -> None:
        """Records no rows of these layers, and says why in a warning: each of them `reason`."""
        LOG.warning("not recorded: %s: each %s", in_words(names), reason)
        self._refused.update(names)

    def end(self, error: Exception) -> None:
        """Ends the recording because of an error, with one warning. What was recorded is still written."""
        if self.error is None:
            self.error = error
            LOG.warning("recording has ended: %s: %s", type(error).__name__, error, exc_info=error)

    @_guarded
    def begin(self, requests: Requests) -> Taken | None:
        """Returns what a step records, or None. Call it for every step, in order."""
        parts, first = list[_Part](), 0
        for request, (start, count) in enumerate(zip(requests.starts, requests.counts)):
            text = self._text_of(requests, request, start, start + count) if self._max_bytes else -1
            if count == 1:
                taken = np.zeros(int(start + 1 < len(self._grid) and self._grid[start + 1]), np.int64)
            else:
                taken = np.flatnonzero(self._grid[start + 1 : start + count + 1])
            if len(taken):
                if text < 0:
                    text, self._texts = self._texts, self._texts + 1
                parts.append(_Part(request, text, torch.from_numpy(taken + first), taken + start))
            first += count
        return Taken(requests, parts) if parts else None

    @_guarded
    def add(
        self,
        taken: Taken,
        layer: str,
        query: torch.Tensor,
        k_pages: torch.Tensor | Callable[[], torch.Tensor],
        scale: float,
    ) -> None:
        """Records the rows of a layer.

        query: [tokens, heads, head_dim] before any rescaling, after rotary embedding and norms.
        k_pages: [pages, page, kv_heads, head_dim] with any strides, in which the keys of the step are
            already; or what returns them, whose errors count as those of the recording.
        scale: the factor of the products.
        """
        if layer in self._refused:
            return
        pages = k_pages if isinstance(k_pages, torch.Tensor) else k_pages()
        for part in taken.parts:
            self._add(self.layers[layer], taken.requests, part, query, pages, scale)

    def metrics(self) -> str:
        """Returns rows, tied rows, and histograms of the operating ratio and the entropy of each layer, in
        the text form of Prometheus. Histograms of several processes add."""
        with self._counting:
            try:
                self._count()
            except Exception as error:
                self.end(error)
            process = f'process="{self._process}"'
            up = "# HELP critbeta_recording Whether this process records.\n# TYPE critbeta_recording gauge\n"
            is_up = f"critbeta_recording{{{process}}} {int(self.error is None)}"
            return f"{up}{is_up}\n{self._counters.text(process)}"

    def flush(self) -> None:
        """Writes the files of the folder."""
        self._write(always=True)

    def close(self) -> None:
        """Writes the files of the folder a last time. A second call does nothing."""
        if self._folder is not None:
            self._end()

    def _text_of(self, requests: Requests, request: int, start: int, end: int) -> int:
        """Returns the number of the text that goes on here. It is known by the page of its last key."""

        def place(position: int) -> tuple[int, int]:
            return int(requests.ids(request, position, position + 1)[0]), position

        text = self._ends.pop(place(start - 1), None) if start else None
        if text is None:
            text, self._texts = self._texts, self._texts + 1
        if end > 0:
            self._ends[place(end - 1)] = text
        # Texts that ended stay here, until there are too many.
        while len(self._ends) > 4096:
            self._ends.pop(next(iter(self._ends)))
        return text

    def _add(
        self,
        layer: Layer,
        requests: Requests,
        part: _Part,
        query: torch.Tensor,
        k_pages: torch.Tensor,
        scale: float,
    ) -> None:
        positions, end = part.positions, int(part.positions[-1]) + 1
        q = query[part.tokens.to(query.device)]
        hides = layer.window is not None and end > layer.window
        first = max(0, int(positions[0]) + 1 - (layer.window or end)) if hides else 0
        ids = torch.from_numpy(requests.ids(part.request, first, end).astype(np.int64)).to(k_pages.device)
        if k_pages.shape[1] != requests.page:
            found = f"{layer.name}: k_pages of shape {tuple(k_pages.shape)}"
            raise ValueError(f"{found}: expected pages of {requests.page} keys")
        skip = first % requests.page
        keys = k_pages[ids].permute(2, 0, 1, 3).flatten(1, 2)[:, skip : skip + end - first]
        columns = len(positions), 0, 0
        if hides or layer.softcap:
            texts = _core.Texts([(part.text, 0, *columns, end - first)], positions)
            tile = _scores(layer, q, keys, first, positions, scale)[None].cpu().numpy()
            self._keep(layer, texts, None, tile)
        else:
            texts = _core.Texts([(part.text, 0, *columns, None)], positions)
            kinds = dtype_name(q, "query"), dtype_name(keys, "key")
            products = *kinds, bytes_of(q), bytes_of(keys[None]), scale
            self._keep(layer, texts, products, None)
        with self._lock:
            self._given += len(positions) * layer.heads
            full = self._given >= (self._max_rows if self._beyond is None else _WAITING)
        if full:
            self._limit()

    def _limit(self) -> None:
        """Sees to it that no more rows are kept than asked for."""
        with self._counting:
            self._count()
        with self._lock:
            if self._beyond is not None:
                return
            # Equal rows were left out.
            self._given = self._recording.count()
            if self._given < self._max_rows:
                return
            self._beyond, self._given = _core.Recording(self.resolve, 0), 0
        LOG.warning("%d different rows are recorded: further ones are only counted", self._max_rows)

    def _keep(self, layer: Layer, texts: _core.Texts, products: Any, tile: Any) -> None:
        """Gives rows to the recording, or once enough are kept to one that only counts them."""
        with self._lock:
            to = self._recording if self._beyond is None else self._beyond
            to.add(layer.name, texts, products, tile, layer.first)

    def _count(self) -> None:
        """Counts the rows since the last call. The caller holds the lock of counting."""
        with self._lock:
            beyond = self._beyond
            if beyond is not None:
                self._beyond, self._given = _core.Recording(self.resolve, 0), 0
        kept = self._recording.rows(self._counted)
        self._counted += len(kept)
        for rows in (kept,) if beyond is None else (kept, beyond.rows()):
            if len(rows):
                self._counters.add(Stats(rows, (len(rows),)))

    def _write_often(self) -> None:
        self._write(always=False)
        while not self._closing.wait(self._every):
            self._write(always=False)

    def _write(self, always: bool) -> None:
        if self._folder is None:
            return
        try:
            _replace(self._metrics_file, self.metrics())
            # The file of rows is written anew each time, so it should have grown.
            late = time.monotonic() > self._when + 10 * self._every
            if self._counted > (self._written if always or late else 1.25 * self._written):
                rows = self._recording.rows()
                rows.write_parquet(self._rows_file)
                self._written, self._when = len(rows), time.monotonic()
        except Exception as error:
            self.end(error)

    def _at_end(self) -> None:
        self._closing.set()
        self._write(always=True)
        try:
            if self._max_bytes and self._split is None and self._recording.kept()[0]:
                self.save(self._keys_file)
        except Exception as error:
            LOG.warning("queries and keys are not written: %s: %s", type(error).__name__, error)

    @property
    def _made_by(self) -> str:
        return "critbeta.serve.Recorder"

    @property
    def _name(self) -> str:
        return self._model


def _scores(
    layer: Layer, q: torch.Tensor, keys: torch.Tensor, first: int, positions: np.ndarray, scale: float
) -> torch.Tensor:
    """Returns the scores of queries [rows, heads, head_dim] with keys [kv_heads, keys, head_dim], of which
    the first one is number `first`: float32 [heads, rows, keys], -inf where a row does not see one."""
    rows, heads, head_dim = q.shape
    of_heads = q.transpose(0, 1).float().reshape(len(keys), -1, head_dim)
    found = torch.matmul(of_heads, keys.float().transpose(1, 2)).view(heads, rows, -1) * scale
    if layer.softcap:
        found = torch.tanh(found / layer.softcap) * layer.softcap
    own = torch.from_numpy(positions).to(q.device)[:, None]
    key = torch.arange(first, first + keys.shape[1], device=q.device)
    hidden = (key > own) | (key <= own - (layer.window or 1 << 62))
    return found.masked_fill(hidden, -torch.inf)


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".critbeta-") as folder:
        whole = Path(folder) / path.name
        whole.write_text(text, encoding="utf-8")
        os.replace(whole, path)
