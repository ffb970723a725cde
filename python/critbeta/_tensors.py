"""`critbeta.softmax`, `critical_beta` and `stats` of torch tensors."""

from __future__ import annotations

from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]

from . import _arrays, _core, _cuda, _host
from . import torch as operators
from ._results import SoftmaxStats, Stats


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _text(rescaling: _core.Rescaling) -> str:
    return str(rescaling)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def uncompiled(function: Any, args: Any, kwargs: Any) -> Any:
    """What `function` gives, seen by no compiler."""
    return function(*args, **kwargs)


def softmax(
    scores: Any,
    rescaling: str | _core.Rescaling,
    out: Any = None,
    positions: Any = None,
    lens: Any = None,
    return_stats: bool = False,
) -> Any:
    """`critbeta.softmax` of a tensor."""
    if not isinstance(rescaling, str):
        rescaling = _text(_host.rule(rescaling))
    _arrays.dense(scores, "scores")
    operators.no_forward_mode(scores)
    positions, lens = _per_row(positions, scores, "positions"), _per_row(lens, scores, "lens")
    if out is None:
        if not return_stats:
            return operators.OPERATORS["softmax"](scores, rescaling, positions, lens)[0]
        probabilities, *columns = operators.OPERATORS["softmax_stats"](scores, rescaling, positions, lens)
        return probabilities, SoftmaxStats(*columns)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out is {type(out).__name__}, scores a tensor on {scores.device}: expected a tensor there")
    _arrays.dense(out, "out")
    if not torch.compiler.is_compiling():
        _arrays.not_negated(out)
    if torch.is_grad_enabled() and (scores.requires_grad or out.requires_grad):
        told = "expected no requires_grad, pass scores.detach(), or leave out away"
        raise RuntimeError(f"out of shape {tuple(out.shape)} does not support automatic differentiation: {told}")
    if not return_stats:
        operators.OPERATORS["softmax_out"](scores, rescaling, positions, lens, out)
        return out
    return out, SoftmaxStats(*operators.OPERATORS["softmax_stats_out"](scores, rescaling, positions, lens, out))


def critical_beta(scores: Any, resolve: float = 0.0) -> Any:
    """`critbeta.critical_beta` of a tensor."""
    _arrays.dense(scores, "scores")
    return operators.OPERATORS["critical_beta"](scores, resolve)


def stats(scores: Any, lens: Any, resolve: float, beta: float, top_k: int | None) -> Stats:
    """`critbeta.stats` of a CUDA tensor."""
    lens = _per_row(lens, scores, "lens")
    operators.check(scores, None, lens)
    scores = scores.detach()
    if operators.is_launched(scores):
        return _cuda.stats(scores, lens, resolve, beta, top_k)
    return _host.stats(operators.on_host(scores), operators.on_host(lens), None, "scores", resolve, beta, top_k)


def _per_row(values: Any, scores: Any, name: str) -> Any:
    """Integers of any kind as a tensor on the device of `scores`; a tensor stays where it is."""
    if values is None or isinstance(values, torch.Tensor):
        return values
    # What is compiled is torch's alone.
    found = torch.as_tensor(values if torch.compiler.is_compiling() else _arrays.integers(values, name))
    # Not waiting: numbers are gone from the host when the call returns.
    return found.to(scores.device, non_blocking=True)
