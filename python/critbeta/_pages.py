"""Attention of query tokens over pages of keys and values, on this CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from . import _arrays, _core, _host
from ._arrays import ArrayLike
from ._results import Stats

Rules: TypeAlias = str | _core.Rescaling | Sequence[str | _core.Rescaling]
# Block tables [seqs, blocks], or the pair (indptr, indices).
Tables: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike]

_QUERIES = "[tokens, heads, head_dim]"
_PAGES = {"NHD": "[pages, page, kv_heads, head_dim]", "HND": "[pages, kv_heads, page, head_dim]"}
_DTYPES = ("float32", "float16", "bfloat16")
_INT32 = np.iinfo(np.int32)
_LONGEST = 1 << 62


class Arguments(NamedTuple):
    """The arguments of `critbeta.decode`. Those of `measure` have no values."""

    q: ArrayLike
    k_pages: ArrayLike
    v_pages: ArrayLike
    block_tables: Tables
    lens: ArrayLike
    q_lens: ArrayLike = None
    scale: float | None = None
    rescaling: Rules = "identity"
    eps: float = 0.0
    layout: str = "NHD"
    softcap: float | None = None
    window: int | None = None
    v_radius: ArrayLike = None
    centre: ArrayLike = None


def check(q: Sequence[int], pages: dict[str, Sequence[int]], layout: str) -> None:
    """Raises ValueError for a layout that is none, and for shapes that do not fit together."""
    if layout not in _PAGES:
        expected = " or ".join(f"{name!r} for pages of {axes}" for name, axes in _PAGES.items())
        raise ValueError(f"layout {layout!r}: expected {expected}")
    if len(q) != 3:
        raise ValueError(f"q of shape {tuple(q)}: expected {_QUERIES}")
    for name, shape in pages.items():
        if len(shape) != 4:
            raise ValueError(
                f"{name} of shape {tuple(shape)}: expected {_PAGES[layout]} for layout {layout!r}"
            )
    k, *others = pages.values()
    kv_heads = k[1 if layout == "HND" else 2]
    fault = None
    if q[2] != k[3]:
        fault = f"expected one head_dim, found {q[2]} and {k[3]}"
    elif kv_heads == 0 or q[1] % kv_heads != 0:
        fault = f"expected {kv_heads} kv_heads to divide {q[1]} heads"
    if fault:
        raise ValueError(
            f"q of shape {tuple(q)} and k_pages of shape {tuple(k)} in layout {layout!r}: {fault}"
        )
    for v in others:
        if tuple(v[:3]) != tuple(k[:3]):
            found = f"k_pages of shape {tuple(k)} and v_pages of shape {tuple(v)}"
            raise ValueError(f"{found}: expected the same pages, slots and kv_heads")


def number(value: Any, name: str) -> Any:
    """Returns a number or None as torch takes it. Raises TypeError for anything else."""
    if isinstance(value, np.number):
        return value.item()
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {type(value).__name__}: expected a number")
    return value


def whole(value: Any, name: str) -> Any:
    """As `number`, for an integer. No sequence is longer than the largest."""
    value = number(value, name)
    if isinstance(value, float):
        raise TypeError(f"{name} is {value}: expected an integer")
    return value if value is None else min(value, _LONGEST)


def rules(rescaling: Rules) -> list[_core.Rescaling]:
    """Returns one rule, or one per query head."""
    if isinstance(rescaling, (str, _core.Rescaling)):
        return [_host.rule(rescaling)]
    if not isinstance(rescaling, (list, tuple)):
        expected = "expected critbeta.Rescaling, its text, or a list of one per query head"
        raise TypeError(f"rescaling is {type(rescaling).__name__}: {expected}")
    return [_host.rule(of_head) for of_head in rescaling]


def decode(
    given: Arguments, out: ArrayLike | None, measured: bool
) -> tuple[ArrayLike, dict[str, np.ndarray]]:
    """Writes the output to `out` or a new array of the dtype of `q`, and returns it with what is known about
    each row: the columns of `DecodeStats`, the critical beta only if `measured`."""
    q, k, v = (_floats(getattr(given, name), name) for name in ("q", "k_pages", "v_pages"))
    check(q.shape, {"k_pages": k.shape, "v_pages": v.shape}, given.layout)
    if k.dtype != v.dtype:
        raise TypeError(f"k_pages is {_name(k)} and v_pages is {_name(v)}: expected one dtype")
    kv_heads = k.shape[1 if given.layout == "HND" else 2]
    radius = _vector(given.v_radius, "v_radius", (k.shape[0], kv_heads))
    centre = _vector(given.centre, "centre", (kv_heads, v.shape[3]))
    shape = (*q.shape[:2], v.shape[3])
    if out is None:
        out = np.empty(shape, given.q.dtype if isinstance(given.q, np.ndarray) else q.dtype)
    target = _arrays.target(out, shape, f"{shape}, the tokens and heads of q and the head_dim of v_pages")
    read = {"q": q, "k_pages": k, "v_pages": v, "v_radius": radius, "centre": centre}
    for name, array in read.items():
        if array is not None and np.may_share_memory(array, target):
            raise ValueError(f"out of shape {shape} shares memory with {name} of shape {array.shape}")
    queries, keys, tables, lens, scores = _shared(given, q, k)
    values, skip = _pool(v, "v_pages", given.layout), (given.eps, radius, centre)
    columns = _core.decode(queries, keys, values, tables, lens, scores, skip, target, measured)
    return out, {name: column.reshape(shape[:2]) for name, column in columns.items()}


def measure(given: Arguments, resolve: float, top_k: int | None) -> Stats:
    """Measures the row of every query token and head."""
    q, k = _floats(given.q, "q"), _floats(given.k_pages, "k_pages")
    check(q.shape, {"k_pages": k.shape}, given.layout)
    return Stats(_core.measure(*_shared(given, q, k), resolve, top_k), q.shape[:2])


def _shared(given: Arguments, q: np.ndarray, k: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
    """Returns what both functions of the core take first: queries, keys, tables, lengths, rules."""
    rows = np.require(q.reshape(q.shape[0] * q.shape[1], q.shape[2]), requirements=["C", "A"])
    queries = rows, list(q.shape), None if given.q_lens is None else _int32(given.q_lens, "q_lens", 1)
    tables, lens = _tables(given.block_tables), _int32(given.lens, "lens", 1)
    scores = given.scale, rules(given.rescaling), given.softcap, given.window
    return queries, _pool(k, "k_pages", given.layout), tables, lens, scores


def _floats(array: ArrayLike, name: str, dtypes: tuple[str, ...] = _DTYPES) -> np.ndarray:
    """Returns `array` without a copy, the bits of bfloat16 as uint16."""
    if _arrays.is_on_gpu(array):
        found = f"{name} of shape {tuple(array.shape)} is on {array.device}"
        raise ValueError(f"{found}: expected one device, pass q and all others there as tensors")
    return _arrays.scores(array, name, dtypes)


def _name(array: np.ndarray) -> str:
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def _pool(pages: np.ndarray, name: str, layout: str) -> tuple[np.ndarray, list[int], list[int]]:
    """Returns the memory of pages as one row, their sizes [pages, page, kv_heads, head_dim], and the strides
    of these four in elements."""
    size = pages.itemsize
    if any(stride < 0 or stride % size for stride in pages.strides) or not pages.flags.aligned:
        expected = f"expected whole elements of {size} bytes, in ascending order"
        raise ValueError(f"{name} of shape {pages.shape} with strides {pages.strides} bytes: {expected}")
    if layout == "HND":
        pages = pages.swapaxes(1, 2)
    # The stride of a single element has no meaning.
    strides = [0 if n < 2 else stride // size for n, stride in zip(pages.shape, pages.strides)]
    reach = 1 + sum((n - 1) * stride for n, stride in zip(pages.shape, strides))
    reach = 0 if 0 in pages.shape else reach
    # Between two elements of the pages lies memory of the same allocation, and nothing reads it.
    row = np.lib.stride_tricks.as_strided(pages, (1, reach), (reach * size, size), writeable=False)
    return row, list(pages.shape), strides


def refuse_tables(found: int) -> NoReturn:
    """Raises ValueError for a tuple that is no pair."""
    expected = "expected (indptr, indices), or an array [seqs, blocks]"
    raise ValueError(f"block_tables is a tuple of {found}: {expected}")


def _tables(block_tables: Tables) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    if not isinstance(block_tables, tuple):
        return _int32(block_tables, "block_tables", 2)
    if len(block_tables) != 2:
        refuse_tables(len(block_tables))
    indptr, indices = block_tables
    return _int32(indptr, "indptr", 1), _int32(indices, "indices", 1)


def _int32(values: ArrayLike, name: str, ndim: int) -> np.ndarray:
    """Returns integers of `ndim` dimensions as contiguous int32."""
    wide = _arrays.integers(values, name, np.int32)
    if wide.ndim != ndim:
        axes = "one number per sequence" if ndim == 1 else "[seqs, blocks], or (indptr, indices)"
        axes = "one dimension" if name in ("indptr", "indices") else axes
        raise ValueError(f"{name} of shape {wide.shape}: expected {axes}")
    narrow = np.ascontiguousarray(wide, np.int32)
    if wide.dtype != np.int32 and not np.array_equal(narrow, wide):
        at = tuple(int(index) for index in np.argwhere(narrow != wide)[0])
        raise ValueError(f"{name}: {wide[at]} at {list(at)}, expected {_INT32.min} to {_INT32.max}")
    return narrow


def _vector(values: ArrayLike | None, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns float32 of `shape` as one dimension."""
    if values is None:
        return None
    array = _floats(values, name, ("float32",))
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape}: expected {shape}")
    return np.ascontiguousarray(array).reshape(math.prod(shape))
