"""Recording what a model's attention sees."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import threading
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .. import _arrays, _core
from .._results import Stats, path_text
from ._interface import Call, Session, in_backward
from ._keep import Store
from ._modules import in_words, unwrapped
from ._named import NAME, await_model, stop_waiting
from ._sample import Rows, Sampler
from ._scores import in_float32, refuse_sinks, scores
from ._table import Table
from ._visible import Visible, VisibleKeys


class Recorder:
    """What the attention of a model saw while this was entered: see `record`."""

    def __init__(self, model: nn.Module | None, rows: int, resolve: float, max_bytes: int) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}: expected at least 1")
        if not 0 <= resolve < float("inf"):
            raise ValueError(f"resolve is {resolve}: expected finite nats of at least 0")
        if not max_bytes >= 0:
            raise ValueError(f"max_bytes is {max_bytes}: expected at least 0")
        self.model = None if model is None else unwrapped(model)
        """None until one runs, where it was not given."""
        self.resolve = float(resolve)
        self._rows, self._texts = rows, 0
        self._parts: list[_core.Rows] = []
        self._joined: Stats | None = None
        self._store = Store(max_bytes)
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._entered = False
        if self.model is not None:
            # Refused here, not in the middle of a with statement.
            Session(self.model).close()

    def __enter__(self) -> Recorder:
        if self._entered:
            raise RuntimeError("this recorder is recording already: leave its with block first, or make another")
        if self.model is None:
            await_model(self._begin)
        else:
            self._begin(self.model)
        self._entered = True
        return self

    def _begin(self, model: nn.Module) -> None:
        self.model, self._session = model, Session(model, observe=self._observe)
        self._visible = VisibleKeys(self._session.forward)
        self._sampler = Sampler(self._session.forward, self._rows, self._texts)
        self._prefixes: weakref.WeakKeyDictionary[Visible, list[int | None]] = weakref.WeakKeyDictionary()
        self._silent = dict.fromkeys(self._session.layers)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        session, open_still = self._session, self._entered
        self.close()
        if kind is None and open_still and self.model is None:
            raise RuntimeError(f'no model that was loaded with attn_implementation="{NAME}" ran: load it so, or use record(model)')
        if kind is None and session is not None and session.ran and self._silent:
            self._tell_silent(session)

    def close(self) -> None:
        """Leaves the model, as the end of the `with` block does; nothing the second time."""
        stop_waiting(self._begin)
        self._entered = False
        session, self._session = self._session, None
        if session is not None:
            session.close()
            # Texts of the next block are others.
            self._texts = self._sampler.texts
            self._visible.clear()

    @property
    def recorded(self) -> int:
        """Rows of heads recorded so far."""
        return sum(len(part) for part in self._parts)

    def _tell_silent(self, session: Session) -> None:
        name = type(self.model).__name__
        if len(self._silent) == len(session.layers):
            raise RuntimeError(
                f"{name} ran, and none of its {len(session.layers)} attention layers called its "
                "attention through transformers' AttentionInterface: nothing is recorded. Where attn_implementation= makes the model "
                "compute attention itself, load it with another; a graph captured before (CUDA graphs, export) calls nothing"
            )
        silent = in_words(list(self._silent))
        warnings.warn(f"{name}: not recorded, because they did not run or compute attention themselves: {silent}", stacklevel=3)

    @torch.no_grad()
    def _observe(self, call: Call) -> None:
        # Where checkpointed layers run again for their gradients.
        if in_backward():
            return
        refuse_sinks(call.layer, call.kwargs)
        call = dataclasses.replace(call, query=call.query.detach(), key=call.key.detach())
        # Threads may run the model at once, each on a text of its own.
        with self._lock, in_float32(call):
            self._measure(call)

    def _measure(self, call: Call) -> None:
        self._silent.pop(call.layer, None)
        visible = self._visible.of(call)
        sampled = self._sampler.rows(visible)
        if visible not in self._prefixes:
            self._prefixes[visible] = [visible.prefix(rows.batch, rows.queries, rows.positions) for rows in sampled]
        inside = call.kwargs.get("softcap") is not None or call.kwargs.get("position_bias") is not None or visible.biased
        for rows, first in zip(sampled, self._prefixes[visible]):
            if first is None or inside:
                self._record_scores(call, visible, rows)
            else:
                self._record_pair(call, rows, first)
        self._joined = None

    def _record_pair(self, call: Call, rows: Rows, first: int) -> None:
        keys = first + int(rows.positions.max()) + 1
        queries, all_keys = call.query[rows.batch][:, rows.queries], call.key[rows.batch][:, first:keys]
        self._store.keep_pair(rows.text.number, call.layer, queries, all_keys, rows.positions, call.scaling)
        q, q_shape = _arrays.heads(queries.cpu(), "q")
        k, k_shape = _arrays.heads(all_keys.cpu(), "k")
        positions, shapes = rows.positions.cpu().numpy(), [list(q_shape), list(k_shape)]
        part = _core.record_pair(q, k, shapes, positions, call.scaling, call.layer, self.resolve, 1.0)
        self._parts.append(part)

    def _record_scores(self, call: Call, visible: Visible, rows: Rows) -> None:
        seen = visible.seen_by(rows.queries)
        columns = seen[min(rows.batch, len(seen) - 1)].flatten(0, 1).any(0).nonzero().flatten()
        first, keys = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
        tile = scores(call, visible, rows.batch, rows.queries, keys)[..., first:].contiguous().cpu()
        self._store.keep_scores(rows.text.number, call.layer, tile, rows.positions)
        heads, count, _ = tile.shape
        block, _ = _arrays.rows(tile, "scores")
        positions = rows.positions.cpu().repeat(heads).numpy()
        self._parts.append(_core.record_scores(block, None, positions, count, call.layer, self.resolve, 1.0, None))

    @property
    def rows(self) -> Stats:
        """Every row, of shape [rows], at beta = 1: layers in the order that they ran in. Raises RuntimeError where there is none."""
        if self._joined is None:
            if not self._parts:
                raise RuntimeError("nothing is recorded: run the model within `with critbeta.hf.record(model) as rec:`")
            self._parts = [_core.Rows.joined(self._parts)]
            self._joined = Stats(self._parts[0], (len(self._parts[0]),))
        return self._joined

    def summary(self, train_length: float = 8192.0, seed: int = 1) -> dict[str, Any]:
        """What `critbeta diagnose --json` says of the rows: per layer and head quantiles, shares, length law and verdict."""
        summary: dict[str, Any] = json.loads(self.rows._rows.summary(train_length, seed))
        return summary

    def table(self) -> Table:
        """One line per layer and head: medians, shares and the length law. It prints; `to_pandas()` makes it a DataFrame."""
        return Table(self.summary())

    def report(self, path: str | os.PathLike[str], train_length: float = 8192.0, seed: int = 1) -> None:
        """Writes the page of the rows, as `critbeta.report` does: with the gap counts of rows and what other rescalings would make of
        them, unless `max_bytes` left rows out. Raises OSError where `path` cannot be written."""
        path = path_text(path)
        command = f"critbeta.hf.record({type(self.model).__name__}).report({path!r})"
        if self._store.full:
            _core.report_rows(self.rows._rows, path, command, train_length, seed)
            return
        self.rows
        with tempfile.TemporaryDirectory(prefix="critbeta-") as folder:
            files = [str(file) for file in self._store.save(Path(folder) / "recorded.safetensors", self._name)]
            _core.report_files(files, path, command, self.resolve, 1.0, None, train_length, seed)

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes what `critbeta diagnose` reads, and returns the files: `path`, or where it takes several its stem with numbers, one
        for each text (and for each scale, and for layers of either kind). Text that goes on otherwise than it was kept, a beam
        or a cache that was cut back, is another text, and so is what stands behind a jump of position_ids. Layer names are those of the modules.

        Layers whose rows see all keys of their text up to their own are queries and keys (LAYER.q [heads, rows, head_dim], LAYER.k
        [kv_heads, keys, head_dim], LAYER.positions [rows]; metadata `scale`). Those with a softcap, a window that hides keys, or a bias,
        and encoders, are scores (LAYER [heads, rows, keys], -inf where masked; LAYER.positions).

        Raises RuntimeError where nothing is kept, OSError where a file cannot be written. Warns where `max_bytes` left rows out."""
        if not self._store.rows:
            raise RuntimeError(f"none of the {len(self.rows)} rows is kept, max_bytes is {self._store.max_bytes}: record with more")
        if self._store.full:
            kept, all_rows = self._store.rows, len(self.rows)
            told = f"{kept} of the {all_rows} recorded rows: max_bytes={self._store.max_bytes} left out the others"
            warnings.warn(f"{os.fspath(path)} holds {told}", stacklevel=2)
        return self._store.save(path, self._name)

    @property
    def _name(self) -> str:
        return getattr(self.model, "name_or_path", "") or type(self.model).__name__

    def __repr__(self) -> str:
        name = "no model yet" if self.model is None else type(self.model).__name__
        return f"<critbeta.hf.Recorder of {name}: {self.recorded} rows>"


def record(
    model: nn.Module | None = None, *, rows: int = 64, resolve: float = 0.0, max_bytes: int = 1 << 30
) -> Recorder:
    """Records what the attention of `model` sees:

        with critbeta.hf.record(model) as rec:
            model(**inputs)
        print(rec.table())
        rec.report("report.html")
        rec.save("qk.safetensors")      # critbeta diagnose qk.safetensors

    model: without one, where a pipeline or a harness builds it: the first that runs, in any thread, of those loaded with
        attn_implementation="critbeta" (sdpa by another name). Compiled ones must be given.
    rows: about how many query positions of every text are measured in a forward pass: three quarters of them evenly in log n from
        n = 8 on, and the last ones. Of decoding, one token at a time, all of the first `rows`, every second of as many more, every
        fourth, and so on. The same for all layers and heads.
    resolve: as in `critbeta.stats`.
    max_bytes: of queries, keys and scores that are kept on the CPU for `save` and `report`; beyond it only row records (about 200
        bytes a row and head) are.

    The model runs its own attention on what it would have run on, so its output has the same bits. Scores are those at beta = 1 that
    its softmax sees: queries and keys after rotary embedding and norms, the model's scale, softcap and mask, in float32 (under
    autocast: of queries and keys before it rounds them). n and positions are counted in a row's own text: padding, other texts of a packed batch, and keys beyond a window do not count. Under a rescaling
    (`rescale`) the scores are those before it. Layers that run again for checkpointed gradients are recorded once.

    Rows of queries and keys are what `critbeta.diagnose` says of the saved file, bit for bit; so are those of scores.

    Raises TypeError for what is no module; ValueError for a model without attention that goes through transformers' AttentionInterface,
    DataParallel, and, when it runs, learned sinks and masks of unknown kinds; RuntimeError at the end of the block if the model ran but
    none of its layers was met, or no model ran where none was given. Warns of single layers that were not. After an exception
    nothing stays at the model.

    Source: docs/adr/0010-hugging-face.md.
    """
    return Recorder(model, rows, resolve, max_bytes)
