"""The torch operators of `critbeta.decode` and `critbeta.measure`. `critbeta.torch` registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from torch.autograd import forward_ad  # type: ignore[import-not-found, unused-ignore]

from . import _arrays, _cuda_decode, _cuda_pages, _pages
from ._pages import Arguments
from ._results import DecodeStats

_READ = (torch.float32, torch.float16, torch.bfloat16)
_STATS = [torch.int64 if name == "kept" else torch.float64 for name in DecodeStats._fields]
_SEQUENCES = "Tensor block_tables, Tensor? indices, Tensor lens, Tensor? q_lens"
_SCORES = "str layout, float? softcap, SymInt? window"
_DECODE = (
    f"Tensor q, Tensor k_pages, Tensor v_pages, {_SEQUENCES}, float? scale, str[] rescaling, float eps, "
    f"{_SCORES}, Tensor? v_radius, Tensor? centre"
)
_MEASURE = f"Tensor q, Tensor k_pages, {_SEQUENCES}, float? scale, str[] rescaling, {_SCORES}, float resolve"


def _check(
    q: Any,
    pages: dict[str, Any],
    integers: dict[str, Any],
    others: dict[str, Any],
    layout: str,
) -> None:
    """Raises every error that the shapes, dtypes and devices of the arguments show."""
    for name, tensor in ({"q": q} | pages | integers | others).items():
        if tensor is None:
            continue
        _arrays.dense(tensor, name)
        device = tensor.device
        if device != q.device or device.type not in ("cpu", "cuda", "meta"):
            found = f"{name} of shape {tuple(tensor.shape)} is on {device}, and q on {q.device}"
            raise ValueError(f"{found}: expected one device, the CPU or a GPU")
        if name in integers and (
            tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        ):
            raise TypeError(f"{name} is {tensor.dtype}: expected integers")
        if (name == "q" or name in pages) and tensor.dtype not in _READ:
            expected = "expected float32, float16 or bfloat16"
            raise TypeError(f"{name} of shape {tuple(tensor.shape)} is {tensor.dtype}: {expected}")
    _pages.check(q.shape, {name: tensor.shape for name, tensor in pages.items()}, layout)


def no_gradient(**tensors: Any) -> None:
    """Raises NotImplementedError for tensors that a derivative is wanted of."""
    for name, tensor in tensors.items():
        tangent = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call, unused-ignore]
        if tangent is not None or (tensor.requires_grad and torch.is_grad_enabled()):
            found = f"{name} of shape {tuple(tensor.shape)} requires a gradient"
            expected = f"call it under torch.no_grad(), or pass {name}.detach()"
            raise NotImplementedError(f"{found}, and critbeta.decode has none: {expected}")


def _arguments(given: tuple[Any, ...], out: Any = None) -> tuple[Arguments, tuple[int, int, int]]:
    """Checks the arguments of the operator `decode`, and returns them with the shape of the output."""
    q, k, v, tables, indices, lens, q_lens, _, rescaling, _, layout, *_, v_radius, centre = given
    integers = {"block_tables": tables, "indices": indices, "lens": lens, "q_lens": q_lens}
    others = {"out": out} if _arrays.is_on_gpu(q) else {"v_radius": v_radius, "centre": centre, "out": out}
    _check(q, {"k_pages": k, "v_pages": v}, integers, others, layout)
    _pages.rules(rescaling)
    arguments = Arguments(q, k, v, tables if indices is None else (tables, indices), lens, *given[6:])
    if _arrays.is_on_gpu(q):
        _cuda_decode.check(arguments, out)
    shape = (*q.shape[:2], v.shape[3])
    if out is not None and tuple(out.shape) != shape:
        expected = f"expected {shape}, the tokens and heads of q and the head_dim of v_pages"
        raise ValueError(f"out of shape {tuple(out.shape)}: {expected}")
    return arguments, shape


def _run(given: Arguments, out: Any, columns: int) -> list[Any]:
    """Writes to `out`, and returns the first `columns` of `DecodeStats` as tensors."""
    with torch.no_grad():
        no_gradient(q=given.q)
        if _arrays.is_on_gpu(given.q):
            return _cuda_decode.decode(given, out.detach(), columns > 0)
    _, found = _pages.decode(given, out.detach(), columns > 0)
    return [torch.from_numpy(column) for column in found.values()][:columns]


def _new(columns: int) -> Callable[..., Any]:
    def decode(*given: Any) -> Any:
        arguments, shape = _arguments(given)
        out = arguments.q.new_empty(shape)
        found = _run(arguments, out, columns)
        return (out, *found) if columns else out

    return decode


def _into(columns: int) -> Callable[..., Any]:
    def decode(*given: Any) -> Any:
        *others, out = given
        arguments, _ = _arguments(tuple(others), out)
        return tuple(_run(arguments, out, columns)) or None

    return decode


def _fake(columns: int) -> Callable[..., Any]:
    def fake(*given: Any) -> Any:
        (q, *_), shape = _arguments(given)
        found = [q.new_empty(shape[:2], dtype=dtype) for dtype in _STATS[:columns]]
        return (q.new_empty(shape), *found) if columns else q.new_empty(shape)

    return fake


def _fake_into(columns: int) -> Callable[..., Any]:
    def fake(*given: Any) -> Any:
        *others, out = given
        (q, *_), shape = _arguments(tuple(others), out)
        return tuple(q.new_empty(shape[:2], dtype=dtype) for dtype in _STATS[:columns]) or None

    return fake


def check_keys(given: Arguments, resolve: float, top_k: int | None = None) -> None:
    """Raises every error that the shapes, dtypes and devices of the arguments of `measure` show."""
    tables = given.block_tables if isinstance(given.block_tables, tuple) else (given.block_tables, None)
    integers = dict(zip(("block_tables", "indices"), tables)) | {"lens": given.lens, "q_lens": given.q_lens}
    _check(given.q, {"k_pages": given.k_pages}, integers, {}, given.layout)
    _pages.rules(given.rescaling)
    if _arrays.is_on_gpu(given.q):
        _cuda_pages.check(given, resolve, top_k)


def _of_keys(given: tuple[Any, ...]) -> tuple[Arguments, float]:
    """Checks the arguments of the operator `measure`, and returns them with the resolve."""
    q, k, tables, indices, lens, q_lens, scale, rescaling, layout, softcap, window, resolve = given
    tables = tables if indices is None else (tables, indices)
    of_scores = scale, rescaling, 0.0, layout, softcap, window
    arguments = Arguments(q, k, None, tables, lens, q_lens, *of_scores)
    check_keys(arguments, resolve)
    return arguments, resolve


def _measure(*given: Any) -> Any:
    arguments, resolve = _of_keys(given)
    if _arrays.is_on_gpu(arguments.q):
        return _cuda_pages.measure(arguments)
    rows = _pages.measure(arguments, resolve, top_k=None)
    return torch.from_numpy(rows.beta), torch.from_numpy(rows.critical_beta)


def _fake_measure(*given: Any) -> Any:
    (q, *_), _resolve = _of_keys(given)
    return tuple(q.new_empty(q.shape[:2], dtype=torch.float64) for _ in range(2))


_SIX = ", ".join(6 * ["Tensor"])
TABLE: dict[str, tuple[Callable[..., Any], str, Callable[..., Any]]] = {
    "decode": (_new(0), f"({_DECODE}) -> Tensor", _fake(0)),
    "decode_stats": (_new(6), f"({_DECODE}) -> (Tensor, {_SIX})", _fake(6)),
    "decode_out": (_into(0), f"({_DECODE}, Tensor(a!) out) -> ()", _fake_into(0)),
    "decode_stats_out": (_into(6), f"({_DECODE}, Tensor(a!) out) -> ({_SIX})", _fake_into(6)),
    "measure": (_measure, f"({_MEASURE}) -> (Tensor, Tensor)", _fake_measure),
}
