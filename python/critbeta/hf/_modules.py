"""The modules of a model that compute attention."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Hashable

from torch import nn
from transformers import PreTrainedModel

# What torch.compile and FSDP put into the name of a module that they wrap by itself.
_WRAPPERS = re.compile(r"(?:^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")
# Code of remote models takes functions as items.
_LOOKUP = re.compile(r"\.get_interface\(|\bALL_ATTENTION_FUNCTIONS\[")


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules of `model` that get their attention from the interface, by qualified name.

    Raises ValueError where there is none, and names modules that compute attention themselves.
    """
    named = {_WRAPPERS.sub("", name).lstrip("."): module for name, module in model.named_modules()}
    found = {name: module for name, module in named.items() if _uses_interface(type(module))}
    if found:
        return found
    kinds = {type(module).__name__ for module in named.values()}
    others = ", ".join(sorted(kind for kind in kinds if "Attention" in kind))
    reason = f"its {others} computes attention itself" if others else "it has no attention modules"
    raise ValueError(
        f"{type(model).__name__}: no module calls its attention through transformers' AttentionInterface, "
        f"{reason}. Expected a transformers model whose attention can be chosen by attn_implementation="
    )


def _uses_interface(kind: type[nn.Module]) -> bool:
    """Says whether the source of a class, or of a class that it is derived from, calls the interface."""
    if issubclass(kind, PreTrainedModel):
        return False
    return any(_calls_interface(base) for base in kind.__mro__[: kind.__mro__.index(nn.Module)])


@functools.lru_cache(maxsize=None)
def _calls_interface(kind: Hashable) -> bool:
    try:
        return bool(_LOOKUP.search(inspect.getsource(kind)))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return False


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside the wrappers of DistributedDataParallel and torch.compile."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    if isinstance(model, nn.DataParallel):
        expected = "pass its module, or use DistributedDataParallel"
        raise ValueError(f"DataParallel runs copies of its module in threads: {expected}")
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def heads_of(module: nn.Module) -> int | None:
    """Returns the number of query heads of an attention module, if it or its configuration says."""
    for owner in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads"):
            heads = getattr(owner, name, None)
            if isinstance(heads, int):
                return heads
    return None
