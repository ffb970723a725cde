"""`attn_implementation="critbeta"`: sdpa and its masks by a name that says which model is meant, where others build it.

    with critbeta.hf.record() as rec:
        pipeline("text-generation", name, model_kwargs={"attn_implementation": "critbeta"})("Once upon a time")
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
_waiting: list[Callable[[PreTrainedModel], None]] = []
_lock = threading.RLock()


def _sdpa(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # transformers does not load models with sinks under sdpa, which would leave them out.
    refuse_sinks(type(module).__name__, kwargs)
    return sdpa_attention_forward(module, *args, **kwargs)


AttentionInterface.register(NAME, _sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


def await_model(begin: Callable[[PreTrainedModel], None]) -> None:
    """Hands `begin` the next model of that name that any thread calls, once, before its forward pass: the outermost of nested ones."""
    with _lock:
        if not _waiting:
            # Not a hook of all modules: those of a model that are set in it would miss this very call.
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
        # Other threads wait until the model is tapped: they may run it too.
        with _lock:
            for begin in list(_waiting):
                try:
                    begin(_outermost(model))
                finally:
                    stop_waiting(begin)
    return nn.Module.__call__(model, *args, **kwargs)


def _outermost(model: PreTrainedModel) -> PreTrainedModel:
    """The model that `model` is called by: `generate` calls the encoder before it calls the model that both are of."""
    found, frame = model, sys._getframe(1).f_back
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, PreTrainedModel) and any(module is model for module in caller.modules()):
            found = caller
        frame = frame.f_back
    return found
