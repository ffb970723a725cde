"""Torch tensors as the core takes what it keeps: a name of a dtype, and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

_NAMES = {torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def dtype_name(tensor: torch.Tensor, name: str) -> str:
    """Returns what the core calls the dtype of a tensor. Raises TypeError for one that is not recorded."""
    found = _NAMES.get(tensor.dtype)
    if found is None:
        expected = "expected float32, float16, bfloat16 or float64"
        raise TypeError(f"the {name} is {tensor.dtype} of shape {tuple(tensor.shape)}: {expected}")
    return found


def bytes_of(tensor: torch.Tensor) -> Any:
    """Returns the elements of a tensor as bytes: uint8 of its shape, with a longer last axis."""
    if tensor.device.type != "cpu" or tensor.is_neg() or tensor.stride(-1) != 1:
        tensor = tensor.cpu().resolve_neg().contiguous()
    # NumPy has no bfloat16.
    known = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return known.numpy().view(np.uint8)
