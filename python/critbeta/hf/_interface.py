"""Where attention is met: transformers' AttentionInterface, through which its models call their attention.

Importing this wraps what models find there: a module that is tapped is observed, or replaced; any other is passed through. Names
in configurations stay, because some twenty places of transformers compare them, and so do the masks.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

_TAP = "_critbeta"
_numbers = itertools.count(1)


@dataclass
class Call:
    """One call of a model's attention: what its module hands to the interface."""

    layer: str
    """Qualified name of the module."""
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


@dataclass
class _Tap:
    layer: str
    observers: list[Callable[[Call], None]] = field(default_factory=list)
    replacement: Callable[[Call], Any] | None = None

    def __deepcopy__(self, _: Any) -> _Tap:
        """A copy of a model is neither recorded nor rescaled: nobody could take that off again."""
        return _Tap(self.layer)


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
        begin = torch.compiler.disable(self._begin)  # type: ignore[no-untyped-call]
        self._hooks = [module.register_forward_pre_hook(begin, with_kwargs=True) for module in models or [model]]
        for name, module in self.layers.items():
            tap = module.__dict__.setdefault(_TAP, _Tap(name))
            if observe is not None:
                tap.observers.append(observe)
            if replace is not None:
                tap.replacement = replace
        self._open = True

    def __deepcopy__(self, _: Any) -> Session:
        """What the hooks of a copied model tell: nobody."""
        copied = object.__new__(Session)
        copied.forward, copied.ran, copied._open = Forward(), False, False
        return copied

    def close(self) -> None:
        """Takes the taps off; nothing the second time."""
        if not self._open:
            return
        self._open = False
        for hook in self._hooks:
            hook.remove()
        for module in self.layers.values():
            tap = module.__dict__.get(_TAP)
            if tap is None:
                continue
            if self._observe is not None:
                tap.observers.remove(self._observe)
            if self._replace is not None:
                tap.replacement = None
            if not tap.observers and tap.replacement is None:
                del module.__dict__[_TAP]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("attention_mask")
        if given is None and args:
            names = list(inspect.signature(module.forward).parameters)
            given = dict(zip(names, args)).get("attention_mask")
        # A mask of four dimensions is built already; it says itself who sees whom.
        self.forward.padding = given if isinstance(given, torch.Tensor) and given.ndim == 2 else None
        self.ran = True
        self.forward.number = next(_numbers)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules of `model` that look their attention up in the interface, by qualified name.

    Raises ValueError where there is none, and says which modules compute attention themselves.
    """
    found = {name: module for name, module in model.named_modules() if _uses_interface(type(module))}
    if found:
        return found
    others = sorted({type(module).__name__ for module in model.modules() if "Attention" in type(module).__name__})
    told = f"its {', '.join(others)} computes attention itself" if others else "it has no attention modules"
    raise ValueError(
        f"{type(model).__name__}: no module calls its attention through transformers' AttentionInterface, {told}. Expected a "
        "transformers model whose attention can be chosen by attn_implementation="
    )


def _uses_interface(kind: type[nn.Module]) -> bool:
    """Whether the source of a class, or of one that it is derived from, asks the interface for its attention."""
    if issubclass(kind, PreTrainedModel):
        return False
    return any(_asks(base) for base in kind.__mro__[: kind.__mro__.index(nn.Module)])


@functools.lru_cache(maxsize=None)
def _asks(kind: Hashable) -> bool:
    try:
        return ".get_interface(" in inspect.getsource(kind)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return False


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what DistributedDataParallel and torch.compile make of it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    if isinstance(model, nn.DataParallel):
        raise ValueError("DataParallel runs copies of its module in threads: pass its module, or use DistributedDataParallel")
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


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
    if not hasattr(module, _TAP):
        return function(module, query, key, value, attention_mask, **kwargs)
    tap = getattr(module, _TAP)
    return _run(tap, Call(tap.layer, implementation, function, module, query, key, value, attention_mask, kwargs))


def _run_tap(tap: _Tap, call: Call) -> Any:
    for observe in tap.observers:
        observe(call)
    return call.run() if tap.replacement is None else tap.replacement(call)


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


def heads_of(module: nn.Module) -> int | None:
    """Query heads of an attention module, where it or its configuration says."""
    for owner in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads"):
            heads = getattr(owner, name, None)
            if isinstance(heads, int):
                return heads
    return None


def in_words(names: list[str]) -> str:
    """Up to eight names, and how many more."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
