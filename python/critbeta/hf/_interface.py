"""transformers' AttentionInterface, through which its models call their attention.

While a model is recorded or rescaled, the functions that models find there are wrapped. The wrapper observes
or replaces the attention of a tapped module, and passes every other call through. Otherwise the interface is
as transformers made it. The names in configurations stay, because some twenty places in transformers compare
them; so do the masks.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils.generic import GeneralInterface

from .._arrays import without_numbers
from .._layers import in_words
from ._modules import attention_modules, unwrapped

_TAP = "_critbeta"
_UNPICKLED = (
    "a model that is recorded or rescaled is not pickled: leave the with block, or remove() the rescaling"
)
_numbers = itertools.count(1)
_log = logging.getLogger("critbeta.hf")


@dataclass
class Call:
    """One call of a model's attention, with the arguments that its module hands to the interface."""

    implementation: str
    """The name of this attention in the interface; "eager" is the model's own."""
    function: Callable[..., Any]
    module: nn.Module
    query: torch.Tensor
    """[batch, heads, rows, head_dim], after rotary embedding and norms."""
    key: torch.Tensor
    """[batch, kv_heads, keys, head_dim], with the keys in the cache."""
    value: torch.Tensor
    mask: Any
    """Additive or boolean [batch, 1, rows, keys]; for flash attention [batch, keys]; or None."""
    kwargs: dict[str, Any]
    layer: str = ""
    """The qualified name of the module in the model that is observed or rescaled."""

    @property
    def scaling(self) -> float:
        """The factor of the products of queries and keys."""
        given = self.kwargs.get("scaling")
        return float(given) if given is not None else float(self.query.shape[-1]) ** -0.5

    @property
    def changes_products(self) -> bool:
        """Whether a softcap or a position bias stands between the products and the softmax."""
        return any(self.kwargs.get(name) is not None for name in ("softcap", "position_bias"))

    def run(self, **changed: Any) -> Any:
        """Calls the model's own attention, with `changed` in place of its arguments."""
        query = changed.pop("query", self.query)
        kwargs = {**self.kwargs, **changed}
        return self.function(self.module, query, self.key, self.value, self.mask, **kwargs)


class Forward(threading.local):
    """The facts about the forward pass of this thread that its attention does not get."""

    padding: torch.Tensor | None = None
    """The caller's mask [batch, tokens seen so far], nonzero where there is a token."""
    past: int | None = None
    """The number of tokens in the cache that the caller gave, if it gave one."""
    number: int = 0
    """Counts forward passes, also those of a model within another; 0 in a thread that began none."""

    def __init__(self) -> None:
        self.around: list[tuple[torch.Tensor | None, int | None]] = []
        """The padding and the past of the models around the one that runs, the outermost first."""
        self.positions: dict[tuple[int, ...], torch.Tensor] = {}
        """By batch and rows: the positions of the queries of its first attention in their texts."""
        self.runs: dict[str, int] = {}
        """How often each attention module has run."""
        self.reached: set[str] = set()
        """The attention modules whose run has called the interface."""

    def layer(self, name: str) -> str:
        """Returns the name of the layer that a module is now: a module that runs several times in a forward
        pass is several layers, NAME, NAME#1, NAME#2."""
        number = self.runs.get(name, 1) - 1 if self.number else 0
        return f"{name}#{number}" if number > 0 else name


@dataclass
class _Tap:
    """The observers and the replacement of a module's attention, each with its own name for the module."""

    observers: list[tuple[str, Forward, Callable[[Call], None]]] = field(default_factory=list)
    replacement: tuple[str, Forward, Callable[[Call], Any]] | None = None

    def __deepcopy__(self, _: Any) -> None:
        """A copy of a model is neither recorded nor rescaled, because nobody could end that."""

    def __reduce__(self) -> str:
        raise TypeError(_UNPICKLED)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    reason = (
        "critbeta.hf records or rescales this model, which needs data: leave the with block (or remove() the "
        "rescaling) before torch.export, or compile without fullgraph=True"
    )
    disable: Any = torch.compiler.disable
    return cast("Callable[..., Any]", disable(function, reason=reason))


class Hook:
    """A hook of a model, which stays behind when the model is copied."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call: Callable[..., None] = _uncompiled(call)

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __deepcopy__(self, _: Any) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> str:
        raise TypeError(_UNPICKLED)


def _nothing(*args: Any) -> None:
    pass


@functools.lru_cache(maxsize=None)
def _tapped(kind: Any) -> Any:
    """Returns a class that does what `kind` does. Graphs that were compiled for `kind` do not hold for it, so
    torch.compile traces a tapped module by itself, and finds its old graphs when the tap is gone."""

    def reduced(self: nn.Module, protocol: Any) -> Any:
        made: Any = kind.__reduce_ex__(self, protocol)
        function, args, *rest = made
        return function, tuple(kind if arg is tapped else arg for arg in args), *rest

    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    tapped = type(kind.__name__, (kind,), {**own, "__reduce_ex__": reduced, _TAP: None})
    return tapped


class Session:
    """Taps all attention of a model until `close`: `observe` sees every call first, then `replace` runs it.

    Raises TypeError for anything but a module, ValueError for a model that does not call attention through
    the interface, for DataParallel, and for a second `replace`.
    """

    def __init__(
        self,
        model: nn.Module,
        observe: Callable[[Call], None] | None = None,
        replace: Callable[[Call], Any] | None = None,
    ) -> None:
        model = unwrapped(model)
        self.layers = attention_modules(model)
        """The modules by qualified name, in the model's order."""
        self.forward = Forward()
        self.ran = False
        """Whether any thread has begun a forward pass."""
        self.error: Exception | None = None
        """The first error of ours in a thread that did not open this session, and may keep it to itself."""
        self._thread = threading.get_ident()
        observe, replace = observe and self._watched(observe), replace and self._watched(replace)
        self._observe, self._replace = observe, replace
        if replace is not None:
            taps = {name: module.__dict__.get(_TAP) for name, module in self.layers.items()}
            taken = [name for name, tap in taps.items() if tap and tap.replacement]
            if taken:
                raise ValueError(f"rescaled already: {in_words(taken)}. Remove that rescaling first")
        models: list[nn.Module] = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        begin = Hook(self._begin)
        # Wrappers may call the forward of a model, and no hook: the outermost module begins a pass as well.
        begins = dict.fromkeys([model, *models])
        self._hooks = [part.register_forward_pre_hook(begin, with_kwargs=True) for part in begins]
        leave = Hook(lambda *_: self._leave())
        self._hooks += [part.register_forward_hook(leave, always_call=True) for part in begins]
        for name, module in self.layers.items():
            tap = module.__dict__.get(_TAP)
            if tap is None:
                tap = module.__dict__[_TAP] = _Tap()
                kind: Any = type(module)
                module.__class__ = _tapped(kind)
            if observe is not None:
                tap.observers.append((name, self.forward, observe))
            if replace is not None:
                tap.replacement = name, self.forward, replace
            run = Hook(functools.partial(self._run, name))
            self._hooks.append(module.register_forward_pre_hook(run))
            if replace is not None:
                end = Hook(functools.partial(self._end, name))
                self._hooks.append(module.register_forward_hook(end))
        _Lookups.open()
        self.is_open = True

    def _watched(self, function: Callable[[Call], Any]) -> Callable[[Call], Any]:
        def watched(call: Call) -> Any:
            try:
                return function(call)
            except Exception as error:
                if threading.get_ident() != self._thread and self.error is None:
                    self.error = error
                    _log.error("%s: %s", type(error).__name__, error)
                raise

        return watched

    def raise_error(self) -> None:
        """Raises RuntimeError if another thread met an error of ours."""
        if self.error is not None:
            found = "attention failed in a thread that did not begin this"
            raise RuntimeError(f"{found}: {type(self.error).__name__}: {self.error}") from self.error

    def close(self) -> None:
        """Removes the taps. A second call does nothing."""
        if not self.is_open:
            return
        self.is_open = False
        _Lookups.close()
        for hook in self._hooks:
            hook.remove()
        for name, module in self.layers.items():
            tap = module.__dict__.get(_TAP)
            if tap is None:
                continue
            if self._observe is not None:
                tap.observers.remove((name, self.forward, self._observe))
            if self._replace is not None:
                tap.replacement = None
            if not tap.observers and tap.replacement is None:
                del module.__dict__[_TAP]
                tapped: Any = type(module)
                if _TAP in vars(tapped):
                    module.__class__ = tapped.__bases__[0]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
        given, forward, self.ran = kwargs.get("attention_mask"), self.forward, True
        forward.around.append((forward.padding, forward.past))
        # A model may make the masks of a model within it, from the padding that it got.
        padding = forward.padding if given is not None and len(forward.around) > 1 else None
        # A mask of four dimensions already says which query sees which key.
        forward.padding = given if isinstance(given, torch.Tensor) and given.ndim == 2 else padding
        forward.past = _tokens_in(kwargs.get("past_key_values", kwargs.get("cache")))
        forward.number, forward.positions, forward.runs = next(_numbers), {}, {}

    def _leave(self) -> None:
        if self.forward.around:
            self.forward.padding, self.forward.past = self.forward.around.pop()

    def _run(self, name: str, *_: Any) -> None:
        self.forward.reached.discard(name)
        if not in_backward():
            self.forward.runs[name] = self.forward.runs.get(name, 0) + 1

    def _end(self, name: str, *_: Any) -> None:
        if name not in self.forward.reached:
            raise RuntimeError(
                f"{name} ran without transformers' AttentionInterface, so it was not rescaled. Load the model "
                'with attn_implementation="sdpa"'
            )


def _tokens_in(cache: Any) -> int | None:
    try:
        return int(cache.get_seq_length())
    except (AttributeError, TypeError, ValueError, NotImplementedError, IndexError):
        return None


def _attention(
    implementation: str,
    function: Callable[..., Any],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    **kwargs: Any,
) -> Any:
    tap = getattr(module, _TAP, None)
    if tap is None:
        return function(module, query, key, value, attention_mask, **kwargs)
    return _run(tap, Call(implementation, function, module, query, key, value, attention_mask, kwargs))


class _Inside(threading.local):
    """The modules whose attention runs in this thread. A function may call another one of the interface."""

    def __init__(self) -> None:
        self.modules: set[int] = set()


_inside = _Inside()


def _run_tap(tap: _Tap, call: Call) -> Any:
    module = id(call.module)
    if module in _inside.modules:
        return call.run()
    _inside.modules.add(module)
    try:
        for name, forward, observe in tap.observers:
            call.layer = forward.layer(name)
            refuse_abstract(call, "record")
            observe(call)
        if tap.replacement is None:
            return call.run()
        name, forward, replace = tap.replacement
        forward.reached.add(name)
        call.layer = forward.layer(name)
        refuse_abstract(call, "rescale")
        return replace(call)
    finally:
        _inside.modules.discard(module)


def refuse_abstract(call: Call, use: str) -> None:
    """Raises ValueError for tensors without numbers: masks and positions must be read, and rows measured."""
    for name, tensor in (("queries", call.query), ("mask", call.mask)):
        found = without_numbers(tensor) if isinstance(tensor, torch.Tensor) else None
        if found:
            expected = f"critbeta.hf.{use} needs a model that runs on data. Leave its with block (or remove() "
            expected += "the rescaling) before torch.export and torch.func, and take gradients by backward()"
            raise ValueError(f"{call.layer}: {name} of shape {list(tensor.shape)}: {found}. {expected}")


# The taps do not go into compiled graphs. The model's own attention leaves the graph with them.
_run: Callable[[_Tap, Call], Any] = _uncompiled(_run_tap)


class _Lookups:
    """The two lookups of the interface, which are wrapped while a session is open.

    Their state is on the interface itself, so this package may be imported twice: each lookup is wrapped
    once, and the last session that closes puts it back.
    """

    _STATE = "_critbeta"
    _lock = threading.RLock()

    @classmethod
    def open(cls) -> None:
        with cls._lock:
            found = AttentionInterface.__dict__.get(cls._STATE)
            if found is not None:
                found["sessions"] += 1
                return
            lookup = AttentionInterface.get_interface
            setattr(AttentionInterface, cls._STATE, {"sessions": 1, "lookup": lookup})

            def get_interface(self: AttentionInterface, name: str, default: Callable[..., Any]) -> Any:
                # What is registered comes from __getitem__. "eager" is not: it is the model's own function.
                function = lookup(self, name, default)
                return functools.partial(_attention, name, function) if function is default else function

            def get_item(self: AttentionInterface, name: str) -> Any:
                function = GeneralInterface.__getitem__(self, name)  # type: ignore[no-untyped-call]
                return functools.partial(_attention, name, function)

            AttentionInterface.get_interface = get_interface  # type: ignore[method-assign, assignment]
            AttentionInterface.__getitem__ = get_item  # type: ignore[method-assign, assignment]

    @classmethod
    def close(cls) -> None:
        with cls._lock:
            found = AttentionInterface.__dict__[cls._STATE]
            found["sessions"] -= 1
            if found["sessions"] == 0:
                AttentionInterface.get_interface = found["lookup"]  # type: ignore[method-assign]
                del AttentionInterface.__getitem__
                delattr(AttentionInterface, cls._STATE)


def module_of(layer: str) -> str:
    """Returns the name of the module of a layer that `Forward.layer` named."""
    return layer.partition("#")[0]


def in_backward() -> bool:
    """Says whether a layer runs again for a checkpointed gradient."""
    return bool(torch._C._current_graph_task_id() != -1)
