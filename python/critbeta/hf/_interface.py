"""Where attention is met: transformers' AttentionInterface, through which its models call their attention.

Importing this wraps what models find there: a module that is tapped is observed, or replaced; any other is passed through. Names
in configurations stay, because some twenty places of transformers compare them, and so do the masks.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from ._modules import attention_modules, in_words, unwrapped

_TAP = "_critbeta"
_UNPICKLED = "a model that is recorded or rescaled is not pickled: leave the with block, or remove() the rescaling first"
_numbers = itertools.count(1)


@dataclass
class Call:
    """One call of a model's attention: what its module hands to the interface."""

    implementation: str
    """Name in the interface, "eager" for the model's own."""
    function: Callable[..., Any]
    module: nn.Module
    query: torch.Tensor
    """[batch, heads, rows, head_dim], after rotary embedding and norms."""
    key: torch.Tensor
    """[batch, kv_heads, keys, head_dim], of the cache too."""
    value: torch.Tensor
    mask: Any
    """As `implementation` takes it: additive or boolean [batch, 1, rows, keys], [batch, keys] (flash), or None."""
    kwargs: dict[str, Any]
    layer: str = ""
    """Qualified name of the module in the model that it is observed or replaced in."""

    @property
    def scaling(self) -> float:
        """What the products of queries and keys are multiplied by."""
        given = self.kwargs.get("scaling")
        return float(given) if given is not None else float(self.query.shape[-1]) ** -0.5

    def run(self, **changed: Any) -> Any:
        """The model's own attention; `changed` in place of what it would have been called with."""
        query = changed.pop("query", self.query)
        kwargs = {**self.kwargs, **changed}
        return self.function(self.module, query, self.key, self.value, self.mask, **kwargs)


class Forward(threading.local):
    """What the forward pass that this thread runs was called with that its attention is not told."""

    padding: torch.Tensor | None = None
    """The caller's mask [batch, tokens seen so far], nonzero where there is a token."""
    number: int = 0
    """Which one it is, those of a model within another too; 0 in a thread that began none."""

    def __init__(self) -> None:
        self.positions: dict[tuple[int, ...], torch.Tensor] = {}
        """By batch and rows, where the queries of its first attention stand in their texts."""


@dataclass
class _Tap:
    """Who observes a module, and what replaces its attention, each with the name that it knows the module by."""

    observers: list[tuple[str, Callable[[Call], None]]] = field(default_factory=list)
    replacement: tuple[str, Callable[[Call], Any]] | None = None

    def __deepcopy__(self, _: Any) -> None:
        """A copy of a model is neither recorded nor rescaled: nobody could take that off again."""

    def __reduce__(self) -> str:
        raise TypeError(_UNPICKLED)


class Hook:
    """A hook of a model that is in use."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call: Callable[..., None] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __deepcopy__(self, _: Any) -> Callable[..., None]:
        """A copied model tells nobody."""
        return _nothing

    def __reduce__(self) -> str:
        raise TypeError(_UNPICKLED)


def _nothing(*args: Any) -> None:
    pass


class Session:
    """All attention of a model, tapped until `close`: `observe` sees every call before it is run, `replace` runs it.

    Raises TypeError for what is no module, ValueError for a model without attention that goes through the interface, for
    DataParallel, and for a second `replace`.
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
        """Whether a forward pass was begun, by any thread."""
        self._observe, self._replace = observe, replace
        if replace is not None:
            taken = [name for name, module in self.layers.items() if getattr(module.__dict__.get(_TAP), "replacement", None)]
            if taken:
                raise ValueError(f"rescaled already: {in_words(taken)}. Remove that rescaling first")
        models: list[nn.Module] = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
        self._hooks = [module.register_forward_pre_hook(Hook(self._begin), with_kwargs=True) for module in models or [model]]
        for name, module in self.layers.items():
            tap = module.__dict__[_TAP] = module.__dict__.get(_TAP) or _Tap()
            if observe is not None:
                tap.observers.append((name, observe))
            if replace is not None:
                tap.replacement = name, replace
        self.is_open = True

    def close(self) -> None:
        """Takes the taps off; nothing the second time."""
        if not self.is_open:
            return
        self.is_open = False
        for hook in self._hooks:
            hook.remove()
        for name, module in self.layers.items():
            tap = module.__dict__.get(_TAP)
            if tap is None:
                continue
            if self._observe is not None:
                tap.observers.remove((name, self._observe))
            if self._replace is not None:
                tap.replacement = None
            if not tap.observers and tap.replacement is None:
                del module.__dict__[_TAP]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("attention_mask")
        if given is None and args:
            names = list(inspect.signature(module.forward).parameters)
            given = dict(zip(names, args)).get("attention_mask")
        self.ran = True
        # A mask of four dimensions is built already; it says itself who sees whom.
        self.forward.padding = given if isinstance(given, torch.Tensor) and given.ndim == 2 else None
        self.forward.number, self.forward.positions = next(_numbers), {}


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
    # An attribute, because what torch.compile traces is traced again once a module has one or has it no more.
    tap = getattr(module, _TAP, None)
    if tap is None:
        return function(module, query, key, value, attention_mask, **kwargs)
    return _run(tap, Call(implementation, function, module, query, key, value, attention_mask, kwargs))


def _run_tap(tap: _Tap, call: Call) -> Any:
    for call.layer, observe in tap.observers:
        observe(call)
    if tap.replacement is None:
        return call.run()
    call.layer, replace = tap.replacement
    return replace(call)


# What is called here does not go into graphs; the model's own attention breaks out of one with it.
_run: Callable[[_Tap, Call], Any] = torch.compiler.disable(_run_tap)  # type: ignore[no-untyped-call]
_get_interface = AttentionInterface.get_interface


def _wrapped_get_interface(self: AttentionInterface, attn_implementation: str, default: Callable[..., Any]) -> Any:
    function = _get_interface(self, attn_implementation, default)
    return functools.partial(_attention, attn_implementation, function)


def _install() -> None:
    AttentionInterface.get_interface = _wrapped_get_interface  # type: ignore[method-assign]
    # Graphs that were compiled before call what they were traced with.
    torch.compiler.reset()


_install()


def in_backward() -> bool:
    """Whether a layer runs again because its gradients are checkpointed."""
    return bool(torch._C._current_graph_task_id() != -1)
