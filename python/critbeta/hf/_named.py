"""`attn_implementation="critbeta"`: sdpa and its masks by a name that says which model is meant, where others build it.

    with critbeta.hf.record() as rec:
        pipeline("text-generation", name, model_kwargs={"attn_implementation": "critbeta"})("Once upon a time")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "critbeta"
AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)

_waiting: list[Callable[[PreTrainedModel], None]] = []


def await_model(begin: Callable[[PreTrainedModel], None]) -> None:
    """Hands `begin` the next model of that name that is called, once, before its forward pass; the outermost of nested ones."""
    if not _waiting:
        # Not a hook of all modules: those of a model that are set in it would miss this very call.
        PreTrainedModel.__call__ = _called  # type: ignore[method-assign]
    _waiting.append(begin)


def stop_waiting(begin: Callable[[PreTrainedModel], None]) -> None:
    """Forgets `begin`, if it waits."""
    if begin in _waiting:
        _waiting.remove(begin)
        if not _waiting:
            del PreTrainedModel.__call__


def _called(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    if model.config._attn_implementation == NAME and not torch.compiler.is_compiling():
        for begin in list(_waiting):
            stop_waiting(begin)
            begin(model)
    return nn.Module.__call__(model, *args, **kwargs)
