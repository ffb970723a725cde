"""Arrays of other libraries as NumPy arrays, and any leading shape as one block of rows."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeAlias

import numpy as np

# An array is a numpy.ndarray, anything with __dlpack__ (a torch CPU tensor), or whatever numpy.asarray takes.
ArrayLike: TypeAlias = Any

_SCORES = ("float32", "float16", "bfloat16", "float64")
_CPU, _CUDA_HOST = 1, 3


def rows(array: ArrayLike, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `array` [..., n] as a block [rows, n] for the core, and its leading shape.

    It copies only where the rows are not contiguous, or not all at one distance from each other."""
    array = scores(array, name)
    if array.ndim == 0:
        raise ValueError(f"{name} of shape (): expected [..., n], at least one dimension")
    lead, n = array.shape[:-1], array.shape[-1]
    block = array.reshape(math.prod(lead), n)
    row, size = block.strides[0], block.itemsize
    apart = len(block) < 2 or (row // size >= n and row % size == 0)
    if not (block.flags.aligned and apart and (n < 2 or block.strides[1] == size)):
        block = block.copy()
    return block, lead


def heads(array: ArrayLike, name: str) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Returns `array` [..., heads, rows, head_dim] as a dense block [heads x rows, head_dim], and its shape
    with all leading dimensions as heads."""
    array = scores(array, name)
    if array.ndim < 3:
        raise ValueError(f"{name} of shape {array.shape}: expected [..., heads, rows, head_dim]")
    shape = (math.prod(array.shape[:-2]), array.shape[-2], array.shape[-1])
    return np.require(array.reshape(shape[0] * shape[1], shape[2]), requirements=["C", "A"]), shape


def scores(array: ArrayLike, name: str, dtypes: tuple[str, ...] = _SCORES) -> np.ndarray:
    """Returns `array` as one of `dtypes`, or the bits of bfloat16 as uint16."""
    found, is_bfloat16 = _numpy(array, name)
    kind = "bfloat16" if is_bfloat16 else found.dtype.name
    if kind not in dtypes or not found.dtype.isnative:
        *others, last = dtypes
        expected = f"expected {', '.join(others)} or {last}" if others else f"expected {last}"
        kind = kind if is_bfloat16 else repr(found.dtype)
        raise TypeError(f"{name} is {kind} of shape {found.shape}: {expected} in native byte order")
    return found


def target(out: ArrayLike, shape: tuple[int, ...], expected: str | None = None) -> np.ndarray:
    """Returns `out` as a block [rows, n] that the core writes to."""
    if getattr(out, "requires_grad", False):
        raise ValueError("out requires gradients, and this write would bypass them: pass out.detach()")
    if is_tensor(out):
        not_negated(out)
    array, is_bfloat16 = _numpy(out, "out")
    if not isinstance(out, np.ndarray) and not hasattr(out, "__dlpack__"):
        raise TypeError(f"out is {type(out).__name__}: expected an array that can be written to")
    if array.shape != shape:
        expected = expected or f"{shape}, the shape of scores"
        raise ValueError(f"out of shape {array.shape}: expected {expected}")
    if not is_bfloat16 and (array.dtype.name not in ("float32", "float16") or not array.dtype.isnative):
        raise TypeError(f"out is {array.dtype!r}: expected float32, float16 or bfloat16 in native byte order")
    if not array.flags.writeable:
        raise ValueError("out is read-only")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"out of shape {shape} with strides {array.strides} bytes: expected C-contiguous")
    return array.reshape(math.prod(shape[:-1]), shape[-1])


def per_row(values: ArrayLike, lead: tuple[int, ...], name: str) -> np.ndarray | None:
    """Returns one integer per row, from integers that broadcast to the leading shape."""
    if values is None:
        return None
    array = integers(values, name)
    try:
        return np.broadcast_to(array, lead).ravel()
    except ValueError:
        expected = f"expected one per row, or a shape that broadcasts to {lead}"
        raise ValueError(f"{name} of shape {array.shape}: {expected}") from None


def integers(values: ArrayLike, name: str, dtype: type[np.signedinteger[Any]] = np.int64) -> np.ndarray:
    """Returns `values` as int64, or as they are if they are of `dtype`."""
    array, is_bfloat16 = _numpy(values, name)
    if (is_bfloat16 or array.dtype.kind not in "iu") and array.size > 0:
        raise TypeError(f"{name} is {'bfloat16' if is_bfloat16 else repr(array.dtype)}: expected integers")
    if array.size > 0 and array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: {array.max()}, expected at most {np.iinfo(np.int64).max}")
    return array if array.dtype == dtype else array.astype(np.int64)


def is_tensor(array: ArrayLike) -> bool:
    """Says whether `array` is a torch tensor. Then its maker has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def is_on_gpu(array: ArrayLike) -> bool:
    """Says whether `array` is a torch tensor on a GPU."""
    return is_tensor(array) and bool(array.is_cuda)


def dense(tensor: Any, name: str) -> None:
    """Raises ValueError for a torch tensor whose shape and strides do not place its elements in memory."""
    if tensor.is_nested:
        expected = f"expected a dense one, pass {name}.to_padded_tensor(-math.inf)"
        raise ValueError(f"{name} is a nested tensor: {expected}")
    if str(tensor.layout) != "torch.strided":
        expected = f"expected a dense tensor, pass {name}.to_dense()"
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} are {tensor.layout}: {expected}")


def without_numbers(tensor: Any) -> str | None:
    """Says what a torch tensor is that stands for numbers, but has none that could be read; else None."""
    functorch = sys.modules["torch"]._C._functorch
    if tensor.is_meta:
        return "on meta"
    if functorch.is_functorch_wrapped_tensor(tensor):
        return "traced by torch.vmap" if functorch.is_batchedtensor(tensor) else "traced by torch.func"
    kind = type(tensor).__name__
    return f"a {kind}, as under torch.export" if kind in ("FakeTensor", "FunctionalTensor") else None


def not_negated(out: Any) -> None:
    """Raises ValueError for a torch tensor that shows its memory with the other sign."""
    if out.is_neg():
        shape = tuple(out.shape)
        raise ValueError(f"out of shape {shape} is a view of negated memory: pass out.resolve_neg()")


def _numpy(array: ArrayLike, name: str) -> tuple[np.ndarray, bool]:
    """Returns `array` as a NumPy array without a copy, and whether it holds the bits of bfloat16."""
    if isinstance(array, np.ma.MaskedArray):
        expected = f"pass {name}.filled(value); a masked score is -inf"
        raise TypeError(f"{name} is a masked array, whose mask is not read: {expected}")
    if not isinstance(array, np.ndarray):
        if hasattr(array, "__dlpack__"):
            return _shared(array, name)
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ValueError(f"{name} is {type(array).__name__}: expected an array: {error}") from error
    # The dtype of ml_dtypes has this name.
    is_bfloat16 = array.dtype.name == "bfloat16"
    return (array.view(np.uint16) if is_bfloat16 else array), is_bfloat16


def _shared(array: ArrayLike, name: str) -> tuple[np.ndarray, bool]:
    """As `_numpy`, for a DLPack producer; negated memory is copied."""
    if is_tensor(array):
        dense(array, name)
        shape, is_abstract = tuple(array.shape), without_numbers(array)
        if is_abstract:
            others = "critbeta.softmax, critical_beta and decode are operators, which may be traced"
            raise ValueError(f"{name} of shape {shape} is {is_abstract}: expected data, on the CPU; {others}")
        if array.device.type != "cpu":
            expected = f"the CPU, pass {name}.cpu()"
            raise ValueError(f"{name} of shape {shape} is on {array.device}: expected {expected}")
        # Within a transform of torch.func any operation would wrap a tensor that it does not trace.
        array = array.detach() if array.requires_grad else array
        array = array.resolve_neg() if array.is_neg() else array
        if str(array.dtype) == "torch.bfloat16":
            return np.from_dlpack(array.view(sys.modules["torch"].int16)).view(np.uint16), True
    try:
        kind, index = array.__dlpack_device__()
        if kind in (_CPU, _CUDA_HOST):
            return np.from_dlpack(array), False
    except (AssertionError, BufferError, RuntimeError, TypeError) as error:
        # Under FakeTensorMode torch asserts that a tensor of numbers is none of its own.
        kind, shape = getattr(array, "dtype", type(array).__name__), tuple(getattr(array, "shape", ()))
        expected = "expected numbers of a dtype that NumPy has, or bfloat16"
        raise TypeError(f"{name} is {kind} of shape {shape}: {expected}: {error}") from error
    expected = f"expected the CPU (1), pass {name}.cpu()"
    raise ValueError(f"{name} is on DLPack device {int(kind)}:{index}: {expected}")
