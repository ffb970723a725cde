"""Arrays of other libraries as NumPy's, and any leading shape as one block of rows."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeAlias

import numpy as np

# What is taken as an array: numpy.ndarray, anything with __dlpack__ (a torch CPU tensor), or what numpy.asarray takes.
ArrayLike: TypeAlias = Any

_SCORES = ("float32", "float16", "float64")
_CPU, _CUDA_HOST = 1, 3


def rows(array: ArrayLike, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """`array` [..., n] as a block [rows, n] for the core, and its leading shape. A copy only where NumPy cannot see its rows
    at one distance from each other, each contiguous."""
    array = scores(array, name)
    if array.ndim == 0:
        raise ValueError(f"{name} of shape (): expected [..., n], at least one dimension")
    lead, n = array.shape[:-1], array.shape[-1]
    block = array.reshape(math.prod(lead), n)
    apart = block.strides[0] // block.itemsize >= n and block.strides[0] % block.itemsize == 0
    if not block.flags.aligned or (n > 1 and block.strides[1] != block.itemsize) or (len(block) > 1 and not apart):
        block = block.copy()
    return block, lead


def heads(array: ArrayLike, name: str) -> tuple[np.ndarray, tuple[int, int, int]]:
    """`array` [..., heads, rows, head_dim] as a dense block [heads x rows, head_dim], and its shape with all leading dimensions
    as heads."""
    array = scores(array, name)
    if array.ndim < 3:
        raise ValueError(f"{name} of shape {array.shape}: expected [..., heads, rows, head_dim]")
    shape = (math.prod(array.shape[:-2]), array.shape[-2], array.shape[-1])
    return np.require(array.reshape(shape[0] * shape[1], shape[2]), requirements=["C", "A"]), shape


def scores(array: ArrayLike, name: str) -> np.ndarray:
    """`array` as NumPy's float64, float32 or float16, or the bits of bfloat16 as uint16."""
    found, is_bfloat16 = _numpy(array, name)
    if not is_bfloat16 and (found.dtype.name not in _SCORES or not found.dtype.isnative):
        told = f"{found.dtype!r} of shape {found.shape}"
        raise TypeError(f"{name} is {told}: expected float32, float16, bfloat16 or float64 in native byte order")
    return found


def target(out: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """`out` as a block [rows, n] that the core writes to."""
    if getattr(out, "requires_grad", False):
        raise ValueError("out requires gradients, and would be written to behind them: pass out.detach()")
    if is_tensor(out):
        not_negated(out)
    array, is_bfloat16 = _numpy(out, "out")
    if not isinstance(out, np.ndarray) and not hasattr(out, "__dlpack__"):
        raise TypeError(f"out is {type(out).__name__}: expected an array that can be written to")
    if array.shape != shape:
        raise ValueError(f"out of shape {array.shape}: expected {shape}, that of scores")
    if not is_bfloat16 and (array.dtype.name not in ("float32", "float16") or not array.dtype.isnative):
        raise TypeError(f"out is {array.dtype!r}: expected float32, float16 or bfloat16 in native byte order")
    if not array.flags.writeable:
        raise ValueError("out is read-only")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"out of shape {shape} with strides {array.strides} bytes: expected C-contiguous")
    return array.reshape(math.prod(shape[:-1]), shape[-1])


def per_row(values: ArrayLike, lead: tuple[int, ...], name: str) -> np.ndarray | None:
    """Integers that broadcast to the leading shape, one per row."""
    if values is None:
        return None
    array = integers(values, name)
    try:
        return np.broadcast_to(array, lead).ravel()
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape}: expected one per row, or what broadcasts to {lead}") from None


def integers(values: ArrayLike, name: str) -> np.ndarray:
    """`values` as int64."""
    array, is_bfloat16 = _numpy(values, name)
    if (is_bfloat16 or array.dtype.kind not in "iu") and array.size > 0:
        raise TypeError(f"{name} is {'bfloat16' if is_bfloat16 else repr(array.dtype)}: expected integers")
    if array.size > 0 and array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: {array.max()}, expected at most {np.iinfo(np.int64).max}")
    return array.astype(np.int64)


def is_tensor(array: ArrayLike) -> bool:
    """Whether it is torch's, which whoever made it has imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def dense(tensor: Any, name: str) -> None:
    """Errors: ValueError for a tensor of torch whose elements do not lie in memory by shape and strides."""
    if tensor.is_nested:
        raise ValueError(f"{name} is a nested tensor: expected a dense one, pass {name}.to_padded_tensor(-math.inf)")
    if str(tensor.layout) != "torch.strided":
        told = f"expected a dense tensor, pass {name}.to_dense()"
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} are {tensor.layout}: {told}")


def not_negated(out: Any) -> None:
    """Errors: ValueError for a tensor of torch that shows the memory behind it with the other sign: it would be written to a
    copy."""
    if out.is_neg():
        raise ValueError(f"out of shape {tuple(out.shape)} is a view of negated memory: pass out.resolve_neg()")


def _numpy(array: ArrayLike, name: str) -> tuple[np.ndarray, bool]:
    """`array` as NumPy's without a copy, and whether it is the bits of bfloat16, which NumPy has not."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask is not read: pass {name}.filled(value); a masked score is -inf")
    if not isinstance(array, np.ndarray):
        if hasattr(array, "__dlpack__"):
            return _shared(array, name)
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ValueError(f"{name} is {type(array).__name__}: expected an array: {error}") from error
    # The dtype of ml_dtypes.
    is_bfloat16 = array.dtype.name == "bfloat16"
    return (array.view(np.uint16) if is_bfloat16 else array), is_bfloat16


def _shared(array: ArrayLike, name: str) -> tuple[np.ndarray, bool]:
    """A view of the memory of a DLPack producer, and whether it is the bits of bfloat16. Negated memory is copied."""
    if is_tensor(array):
        dense(array, name)
        if array.device.type != "cpu":
            told = "expected data, on the CPU" if array.is_meta else f"expected the CPU, pass {name}.cpu()"
            raise ValueError(f"{name} of shape {tuple(array.shape)} is on {array.device}: {told}")
        array = array.detach().resolve_neg()
        if str(array.dtype) == "torch.bfloat16":
            return np.from_dlpack(array.view(sys.modules["torch"].int16)).view(np.uint16), True
    try:
        kind, index = array.__dlpack_device__()
        if kind in (_CPU, _CUDA_HOST):
            return np.from_dlpack(array), False
    except (BufferError, RuntimeError, TypeError) as error:
        told = f"{getattr(array, 'dtype', type(array).__name__)} of shape {tuple(getattr(array, 'shape', ()))}"
        raise TypeError(f"{name} is {told}: expected numbers that NumPy has, or bfloat16: {error}") from error
    raise ValueError(f"{name} is on DLPack device {int(kind)}:{index}: expected the CPU (1), pass {name}.cpu()")
