"""The modules of a model that attention is met in."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable

from torch import nn
from transformers import PreTrainedModel


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules of `model` that look their attention up in the interface, by qualified name.

    Raises ValueError where there is none, and says which modules compute attention themselves.
    """
    # Layers that are compiled one by one have their names still.
    found = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules() if _uses_interface(type(module))}
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
