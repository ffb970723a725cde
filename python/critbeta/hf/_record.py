"""A recorder of the scores that a model's attention sees."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

from torch import nn

from .. import _core
from .._results import Stats, path_text
from ._interface import Call, Session, in_backward, module_of
from ._keep import save
from ._modules import in_words, unwrapped
from ._named import NAME, await_model, stop_waiting
from ._parallel import first_head
from ._sample import Sampler
from ._scores import refuse_sinks
from ._table import Table
from ._texts import Part, parts
from ._visible import Visible, VisibleKeys


class Recorder:
    """The rows that the attention of a model saw within the `with` block: see `record`."""

    def __init__(self, model: nn.Module | None, rows: int, resolve: float, max_bytes: int) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}: expected at least 1")
        if not 0 <= resolve < float("inf"):
            raise ValueError(f"resolve is {resolve}: expected finite nats of at least 0")
        if not max_bytes >= 0:
            raise ValueError(f"max_bytes is {max_bytes}: expected at least 0")
        self.model = None if model is None else unwrapped(model)
        """The model; None until one runs, if `record` got none."""
        self.resolve = float(resolve)
        self._rows, self._texts = rows, 0
        self._split: str | None = None
        self._recording = _core.Recording(self.resolve, int(min(max_bytes, 2**63 - 1)))
        self._max_bytes = max_bytes
        self._found: Stats | None = None
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._entered = False
        if self.model is not None:
            # A model that cannot be recorded is refused here, before the with statement.
            Session(self.model).close()

    def __enter__(self) -> Recorder:
        if self._entered:
            raise RuntimeError("this recorder is recording already: leave its with block, or use another")
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
        self._parts: weakref.WeakKeyDictionary[Visible, dict[bool, list[Part]]] = weakref.WeakKeyDictionary()
        self._silent = dict.fromkeys(self._session.layers)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        session, was_open = self._session, self._entered
        self.close()
        if kind is None and session is not None:
            session.raise_error()
        if kind is None and was_open and self.model is None:
            found = f'no model that was loaded with attn_implementation="{NAME}" ran'
            raise RuntimeError(f"{found}: load it that way, or use record(model)")
        if kind is None and session is not None and session.ran and self._silent:
            self._report_silent(session)

    def close(self) -> None:
        """Leaves the model, as the end of the `with` block does. A second call does nothing."""
        stop_waiting(self._begin)
        self._entered = False
        session, self._session = self._session, None
        if session is not None:
            session.close()
            # The next block records other texts.
            self._texts = self._sampler.texts
            self._visible.clear()
            # Nothing is measured in the background after the block.
            self._recording.count()

    @property
    def recorded(self) -> int:
        """The number of rows recorded so far, of all heads."""
        return self._recording.count()

    def _report_silent(self, session: Session) -> None:
        name = type(self.model).__name__
        if len(self._silent) == len(session.layers):
            raise RuntimeError(
                f"{name} ran, and none of its {len(session.layers)} attention layers called its attention "
                "through transformers' AttentionInterface: nothing is recorded. Load the model with another "
                "attn_implementation= if this one makes it compute attention itself; a graph captured before "
                "(CUDA graphs, export) calls nothing"
            )
        reason = "because they did not run or compute attention themselves"
        warnings.warn(f"{name}: not recorded, {reason}: {in_words(list(self._silent))}", stacklevel=3)

    def _observe(self, call: Call) -> None:
        # A checkpointed layer runs again here, for its gradient.
        if in_backward():
            return
        refuse_sinks(call.layer, call.kwargs)
        # Several threads may run the model at once, each on its own text.
        with self._lock:
            self._measure(call)

    def _measure(self, call: Call) -> None:
        self._silent.pop(module_of(call.layer), None)
        visible = self._visible.of(call)
        known, changed = self._parts.get(visible), visible.biased or call.changes_products
        if known is None:
            known = self._parts[visible] = {}
        if changed not in known:
            known[changed] = parts(visible, self._sampler.rows(visible), changed, call.query.shape[1])
        first = first_head(call)
        if first is not None:
            self._split = call.layer
        for part in known[changed]:
            self._recording.add(call.layer, part.texts, part.products(call), part.scores(call), first or 0)

    @property
    def rows(self) -> Stats:
        """Every row at beta = 1, of shape [rows], layer by layer. Raises RuntimeError if there is none."""
        if self.recorded == 0:
            expected = "run the model within `with critbeta.hf.record(model) as rec:`"
            raise RuntimeError(f"nothing is recorded: {expected}")
        if self._found is None or self._found.n.shape != (self.recorded,):
            rows = self._recording.rows()
            self._found = Stats(rows, (len(rows),))
        return self._found

    def summary(self, train_length: float = 8192.0, seed: int = 1) -> dict[str, Any]:
        """Returns the JSON of `critbeta diagnose --json`: quantiles, shares and length law of each head."""
        summary: dict[str, Any] = json.loads(self.rows._rows.summary(train_length, seed))
        return summary

    def table(self) -> Table:
        """Returns medians, shares and the length law of every head, to print or to turn into a DataFrame."""
        return Table(self.summary())

    def report(self, path: str | os.PathLike[str], train_length: float = 8192.0, seed: int = 1) -> None:
        """Writes the page of the rows, as `critbeta.report` does. It shows gap counts and the effect of other
        rescalings, unless `max_bytes` left rows out. Raises OSError where `path` cannot be written."""
        path = path_text(path)
        command = f"critbeta.hf.record({type(self.model).__name__}).report({path!r})"
        if self._recording.kept()[1] or self._split is not None:
            _core.report_rows(self.rows._rows, path, command, train_length, seed)
            return
        self.rows
        with tempfile.TemporaryDirectory(prefix="critbeta-") as folder:
            files = list(map(str, save(self._recording, Path(folder) / "recorded.safetensors", self._name)))
            _core.report_files(files, path, command, self.resolve, 1.0, None, train_length, seed)

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes files for `critbeta diagnose` and returns them: `path`, or its stem with numbers for several
        texts, scales, or kinds of layers (below). A beam, a cache that was cut back, and tokens behind a jump
        of position_ids are texts of their own. Layers have the names of their modules. Files that an earlier
        call wrote for the same `path` are replaced or removed; other files stay.

        A layer whose rows see all keys of their text up to their own becomes queries and keys (LAYER.q
        [heads, rows, head_dim], LAYER.k [kv_heads, keys, head_dim], LAYER.positions [rows]; metadata
        `scale`). Encoders, and layers with a softcap, a bias, or a window that hides keys, become scores
        (LAYER [heads, rows, keys], -inf where masked; LAYER.positions).

        Raises RuntimeError where nothing is kept and where tensor parallelism splits heads; OSError where a
        file cannot be written. Warns where `max_bytes` left rows out."""
        if self._split is not None:
            found = f"this process has some of the heads of {self._split}, and files number heads from 0"
            raise RuntimeError(f"{found}: write the rows of every process by rec.rows.to_parquet(...)")
        (kept, full), most = self._recording.kept(), self._max_bytes
        if not kept:
            found = f"none of the {len(self.rows)} rows is kept"
            raise RuntimeError(f"{found}, max_bytes is {most}: record with more")
        if full:
            found = f"{kept} of the {len(self.rows)} recorded rows: max_bytes={most} left out the others"
            warnings.warn(f"{os.fspath(path)} holds {found}", stacklevel=2)
        return save(self._recording, path, self._name)

    @property
    def _name(self) -> str:
        return getattr(self.model, "name_or_path", "") or type(self.model).__name__

    def __repr__(self) -> str:
        name = "no model yet" if self.model is None else type(self.model).__name__
        return f"<critbeta.hf.Recorder of {name}: {self.recorded} rows>"


def record(
    model: nn.Module | None = None, *, rows: int = 64, resolve: float = 0.0, max_bytes: int = 1 << 30
) -> Recorder:
    """Records the scores that the attention of `model` sees:

        with critbeta.hf.record(model) as rec:
            model(**inputs)
        print(rec.table())
        rec.report("report.html")
        rec.save("qk.safetensors")      # critbeta diagnose qk.safetensors

    model: None records the first model that runs, in any thread, of those loaded with
        attn_implementation="critbeta" (another name of sdpa). This is for a model that a pipeline or a
        harness builds. A compiled model must be given.
    rows: about how many query positions of every text a forward pass measures: three quarters of them evenly
        in log n from n = 8 on, and the last ones. In decoding, one token at a time, it measures all of the
        first `rows`, then every second one until as many more are taken, then every fourth, and so on. All
        layers and heads have the same rows, but for repeated ones.
    resolve: as in `critbeta.stats`.
    max_bytes: the most bytes of queries, keys and scores to keep on the CPU for `save` and `report`. Beyond
        it only row records (about 200 bytes a row and head) are kept.

    The model runs its own attention on its own arguments, so its output has the same bits. The scores are
    those that its softmax sees at beta = 1: queries and keys after rotary embedding and norms, with the
    model's scale, softcap and mask, in float32 (under autocast from queries and keys before they are
    rounded). n and positions count within the text of a row: padding, other texts of a packed batch, and keys
    beyond a window do not count. Under `rescale` the scores are those before it. A layer that runs again for
    a checkpointed gradient is recorded once. So are bit-equal rows at one position, which copies of a text,
    beams, and texts with a common beginning have.

    The rows are bit for bit those that `critbeta.diagnose` finds in the saved file.

    Raises TypeError for anything but a module; ValueError for DataParallel, for a model that does not call
    attention through transformers' AttentionInterface, and, when it runs, for learned sinks and masks of
    unknown kinds; RuntimeError at the end of the block if the model ran and none of its layers was recorded,
    or if none was given and none ran. Warns about single layers that were not recorded. After an exception
    nothing of this stays in the model.

    Source: docs/adr/0010-hugging-face.md.
    """
    return Recorder(model, rows, resolve, max_bytes)
