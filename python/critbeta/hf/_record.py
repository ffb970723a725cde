"""A recorder of the scores that a model's attention sees."""

from __future__ import annotations

import threading
import warnings
import weakref

from torch import nn

from .._layers import in_words
from .._recorded import Recorded
from ._interface import Call, Session, in_backward, module_of
from ._modules import unwrapped
from ._named import NAME, await_model, stop_waiting
from ._parallel import first_head
from ._sample import Sampler
from ._scores import refuse_sinks
from ._texts import Part, parts
from ._visible import Visible, VisibleKeys


class Recorder(Recorded):
    """The rows that the attention of a model saw within the `with` block: see `record`."""

    _expected = "run the model within `with critbeta.hf.record(model) as rec:`"

    def __init__(self, model: nn.Module | None, rows: int, resolve: float, max_bytes: int) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}: expected at least 1")
        super().__init__(resolve, max_bytes)
        self.model = None if model is None else unwrapped(model)
        """The model; None until one runs, if `record` got none."""
        self._rows, self._texts = rows, 0
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
    def _made_by(self) -> str:
        return f"critbeta.hf.record({type(self.model).__name__})"

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
