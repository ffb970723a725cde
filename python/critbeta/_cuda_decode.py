"""The CUDA kernels on keys and values in pages: `critbeta.decode` of torch tensors on a GPU.

All launches are on torch's current stream, and nothing waits for the device. A CUDA graph can capture them:
lengths, page numbers, queries and pages are read when it is replayed.
"""

from __future__ import annotations

import math
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]

from . import _arrays, _cuda, _cuda_pages
from ._cuda_pages import Part, Rows
from ._pages import Arguments


def check(given: Arguments, out: Any = None) -> None:
    """Raises NotImplementedError for what a CPU computes and the kernels do not, and ValueError or TypeError
    for what nobody does."""
    q, k, v = given.q, given.k_pages, given.v_pages
    if k.dtype != v.dtype:
        raise TypeError(f"k_pages is {k.dtype} and v_pages is {v.dtype}: expected one dtype")
    if not 0 <= given.eps < 1:
        raise ValueError(f"eps {given.eps}: expected at least 0 and below 1")
    for name, values in (("v_radius", given.v_radius), ("centre", given.centre)):
        if values is not None:
            shape = tuple(values.shape)
            found = f"{name} of shape {shape}: expected None on a GPU, whose kernels know no bound"
            instead = "the output changes by at most `dropped` times the diameter of the row's values and 0"
            raise NotImplementedError(f"{found}; {instead}. Or pass CPU tensors")
    _cuda_pages.check(given, 0.0)
    if out is None or out.dtype in (torch.float32, q.dtype):
        return
    kind = NotImplementedError if out.dtype in _cuda.DTYPES else TypeError
    raise kind(f"out is {out.dtype}: expected torch.float32, or {q.dtype} as q. Or pass CPU tensors")


def decode(given: Arguments, out: Any, measured: bool) -> list[Any]:
    """Writes the output to `out`, and returns the columns of `DecodeStats` if `measured`, on the device."""
    _arrays.not_negated(out)
    _check_strides(out)
    rows, v = Rows.of(given), _cuda_pages.by_slots(given.v_pages, given.layout)
    # A launch sees only the heads that are its own.
    for name, tensor in (("q", given.q), ("k_pages", given.k_pages), ("v_pages", given.v_pages)):
        if _overlap(out, tensor):
            shape = tuple(tensor.shape)
            raise ValueError(f"out of shape {tuple(out.shape)} shares memory with {name} of shape {shape}")
    found = [_launch(rows, part, v, given.eps, out[:, part.heads], measured) for part in rows.parts()]
    broken = None if rows.starts is None else rows.broken()
    if broken is not None:
        out.masked_fill_(broken, math.nan)
    if not measured:
        return []
    columns = [_cuda_pages.joined(of_parts) for of_parts in zip(*found)]
    if broken is None:
        return columns
    return [column.masked_fill(broken, math.nan if column.is_floating_point() else 0) for column in columns]


def _launch(rows: Rows, part: Part, v: Any, eps: float, out: Any, measured: bool) -> list[Any]:
    """Writes the output of the heads of `part`, and returns the columns of their rows if `measured`."""
    # A report beside the output would take other kernels where beta is known before the scores: then the bits
    # of the output would depend on whether anybody asks for statistics.
    report = rows.reports(part) if measured and part.rule.resolve is not None else None
    skips = _skips(rows, part) if measured and eps > 0 else None
    if len(rows.q) > 0:
        to = out.data_ptr(), _cuda.DTYPES[out.dtype], _cuda_pages.strides(out)[:2]
        values = _cuda_pages.pages(v[:, :, part.kv_heads]), eps
        addresses = _cuda.address(report), _cuda.address(skips)
        rows.enqueue("launch_decode", part, values, values, to, part.rule, *addresses)
    return _columns(rows, part, report, skips) if measured else []


def _skips(rows: Rows, part: Part) -> Any:
    seqs, kv_heads = len(rows.sequences[0]), part.kv_heads.stop - part.kv_heads.start
    return torch.empty((seqs, kv_heads, _cuda.SKIP["bytes"] // 4), dtype=torch.int32, device=rows.q.device)


def _columns(rows: Rows, part: Part, report: Any, skips: Any) -> list[Any]:
    """Returns the columns of `DecodeStats`."""
    if report is None:
        _, report = rows.launch(part)
    critical = report
    if part.rule.resolve:
        # Beside an output the kernels measure nothing that its rule does not need.
        _, critical = rows.launch(part, _cuda_pages.IDENTITY, sums=False)
    beta, n = _cuda.betas(report), _cuda.integers(report, "n").long()
    ratios = _cuda.ratios(critical, "resolved", 0.0)
    top = _cuda.floats(report, "max").double()
    # This avoids 0 * inf.
    lse = torch.where((top == 0) | (beta == 0), 0.0, beta * top) + _cuda.doubles(report, "sum").log()
    lse = torch.where(n > 0, torch.where(beta.isnan(), math.nan, lse), -math.inf)
    dropped, kept = torch.zeros_like(lse), n
    if skips is not None:
        alive = (n > 0) & ~beta.isnan()
        masses, unread, keys = (_of_rows(rows, part, skips, name) for name in ("dropped", "unread", "keys"))
        dropped = torch.where(alive, masses.double() * 2.0**-32, 0.0)
        kept = torch.minimum(n, keys - unread)
    kept = torch.where(beta.isnan(), 0, kept)
    # Without radii nothing is known where something was dropped.
    bound = torch.zeros_like(lse).masked_fill((dropped > 0) | beta.isnan(), math.nan)
    return [column.view(-1, part.size) for column in (beta, ratios, lse, dropped, kept, bound)]


def _of_rows(rows: Rows, part: Part, skips: Any, name: str) -> Any:
    """Returns a number of the skip reports for each row, int64 [tokens x heads]."""
    # The numbers have 32 bits and no sign.
    numbers = skips[..., _cuda.SKIP[name] // 4].long() & 0xFFFF_FFFF
    if rows.starts is not None:
        tokens = torch.arange(len(rows.q), dtype=torch.int32, device=skips.device)
        of = torch.searchsorted(rows.starts[1:], tokens, right=True)
        # Tokens behind the last sequence have no keys.
        numbers = numbers[of.clamp(max=len(numbers) - 1)]
    return numbers.repeat_interleave(part.size // numbers.shape[1], 1).flatten()


def _check_strides(out: Any) -> None:
    """Raises ValueError for an output whose elements no kernel writes. A launch sees only its own heads."""
    axes = sorted((stride, size) for size, stride in zip(out.shape, out.stride()) if size > 1)
    end, apart = 1, True
    for stride, size in axes:
        apart, end = apart and stride >= end, end + (size - 1) * stride
    if not apart or (out.shape[2] > 1 and out.stride(2) != 1):
        found = f"out of shape {tuple(out.shape)} with strides {out.stride()}"
        raise ValueError(f"{found}: expected each element at a place of its own, those of a head 1 apart")


def _overlap(one: Any, other: Any) -> bool:
    """Says whether the memory from the first to the last element of each has a part in both."""
    if 0 in (one.numel(), other.numel()):
        return False
    (begin, end), (first, last) = _reach(one), _reach(other)
    return begin < last and first < end


def _reach(tensor: Any) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()
