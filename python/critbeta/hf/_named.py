"""`attn_implementation="critbeta"`: sdpa and its masks under a name that marks a model which others build.

    with critbeta.hf.record() as rec:
        named = {"attn_implementation": "critbeta"}
        pipeline("text-generation", name, model_kwargs=named)("Once upon a time")
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ._scores import refuse_sinks

NAME = "critbeta"
# They are the same for every copy of this package, which all wait in one place.
_shared: tuple[list[Callable[[PreTrainedModel], None]], Any]
_shared = torch.__dict__.setdefault("_critbeta_waiting", ([], threading.RLock()))
_waiting, _lock = _shared


def _sdpa(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # sdpa would leave sinks out, so transformers does not load such models under that name.
    refuse_sinks(type(module).__name__, kwargs)
    return sdpa_attention_forward(module, *args, **kwargs)


AttentionInterface.register(NAME, _sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


def await_model(begin: Callable[[PreTrainedModel], None]) -> None:
    """Calls `begin` once with the next model of that name that any thread calls, before its forward pass. Of
    nested models it gets the outermost."""
    with _lock:
        if not _waiting:
            # A hook of all modules would not do: hooks that it sets on the model would miss this very call.
            PreTrainedModel.__call__ = _called  # type: ignore[method-assign]
        _waiting.append(begin)


def stop_waiting(begin: Callable[[PreTrainedModel], None]) -> None:
    """Forgets `begin`, if it waits."""
    with _lock:
        if begin in _waiting:
            _waiting.remove(begin)
            if not _waiting:
                del PreTrainedModel.__call__


def _called(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    if model.config._attn_implementation == NAME and not torch.compiler.is_compiling():
        # Other threads wait until the model is tapped, because they may run it too.
        with _lock:
            for begin in list(_waiting):
                try:
                    begin(_outermost(model))
                finally:
                    stop_waiting(begin)
    return nn.Module.__call__(model, *args, **kwargs)


def _outermost(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the outermost model that calls `model`: `generate` calls an encoder before the whole model."""
    found, frame = model, sys._getframe(1).f_back
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, PreTrainedModel) and any(module is model for module in caller.modules()):
            found = caller
        frame = frame.f_back
    return found
