"""torch operators. Importing this registers them; `critbeta.softmax` and `critbeta.critical_beta` do when a tensor first comes.

| torch.ops.critbeta | gives |
| --- | --- |
| softmax(scores, rescaling, positions, lens) | probabilities, and beta of every row |
| softmax_stats(scores, rescaling, positions, lens) | probabilities, and the seven columns of `critbeta.SoftmaxStats` |
| softmax_out(scores, rescaling, positions, lens, out) | nothing: writes to out, which may be scores |
| softmax_stats_out(scores, rescaling, positions, lens, out) | the seven columns, and writes to out |
| critical_beta(scores, resolve) | Lambda(resolve) of every row, float64 |

scores [..., n] are float32, float16, bfloat16, or on the CPU float64; rescaling is text; positions and lens are integers on the
device of scores that broadcast to the leading shape, or None. Every operator has a fake kernel, so torch.compile and
torch.export go through it; those that write to no argument have a batching rule for torch.vmap. The first two are
differentiable with respect to scores in reverse mode, beta being taken as a constant; their other results and those of
critical_beta are constants. Forward mode is a NotImplementedError in `critbeta.softmax`, and here of dual tensors; under
torch.func.jvp an operator called here cannot see the tangent and drops it.

Errors: as in `critbeta`; an operator called on what it cannot read says so in a fake kernel too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from torch.autograd import forward_ad  # type: ignore[import-not-found, unused-ignore]

from . import _arrays, _core, _cuda, _host

__all__: list[str] = []

_READ = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATS = (torch.float64, torch.float64, torch.int64, torch.float64, torch.int64, torch.int64, torch.bool)
_ARGUMENTS = "Tensor scores, str rescaling, Tensor? positions=None, Tensor? lens=None"
_OUT_ARGUMENTS = "Tensor scores, str rescaling, Tensor? positions, Tensor? lens, Tensor(a!) out"
_SEVEN = ", ".join(7 * ["Tensor"])


def check(scores: Any, positions: Any, lens: Any, out: Any = None) -> None:
    """Errors: whatever of the arguments can be told from their shapes, dtypes and devices alone."""
    _arrays.dense(scores, "scores")
    shape, device = tuple(scores.shape), scores.device
    if not shape:
        raise ValueError("scores of shape (): expected [..., n], at least one dimension")
    if scores.dtype not in _READ:
        raise TypeError(f"scores of shape {shape} are {scores.dtype}: expected float32, float16, bfloat16 or float64")
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"scores of shape {shape} are on {device}: expected cpu or cuda, pass scores.cpu()")
    if device.type == "cuda" and scores.dtype == torch.float64:
        told = "the kernels read float32, float16 and bfloat16, pass scores.float(), or scores.cpu()"
        raise ValueError(f"scores of shape {shape} are float64 on {device}: {told}")
    for name, values in (("positions", positions), ("lens", lens)):
        if values is None:
            continue
        if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
            raise TypeError(f"{name} is {values.dtype}: expected integers")
        if values.device != device:
            raise ValueError(f"{name} is on {values.device}, scores of shape {shape} on {device}: expected one device")
        lead, given = shape[:-1], tuple(values.shape)
        fits = len(given) <= len(lead) and all(a in (1, b) for a, b in zip(given[::-1], lead[::-1]))
        if not fits:
            raise ValueError(f"{name} of shape {given}: expected one per row, or what broadcasts to {lead}")
    if out is not None:
        if out.device != device:
            raise ValueError(f"out is on {out.device}, scores of shape {shape} on {device}: expected one device")
        if tuple(out.shape) != shape:
            raise ValueError(f"out of shape {tuple(out.shape)}: expected {shape}, that of scores")


def no_forward_mode(scores: Any) -> None:
    """Errors: NotImplementedError for scores with a tangent. Operators of torch.library have no forward derivative: dispatched,
    they would drop the tangent without a word, as a derivative of 0."""
    tangent = forward_ad.unpack_dual(scores).tangent  # type: ignore[no-untyped-call, unused-ignore]
    if tangent is not None:
        told = "has no forward-mode derivative: use reverse mode (backward, torch.autograd.grad), or pass scores.detach()"
        raise NotImplementedError(f"critbeta.softmax of scores of shape {tuple(scores.shape)} {told}")


def is_launched(scores: Any) -> bool:
    """Whether a kernel is launched over them: there is nothing to launch over no scores at all."""
    return bool(scores.device.type == "cuda" and scores.numel() > 0)


def on_host(given: Any) -> Any:
    return given.cpu() if isinstance(given, torch.Tensor) else given


def _run(scores: Any, rescaling: str, positions: Any, lens: Any, out: Any, columns: int) -> list[Any]:
    """Writes probabilities to `out`, and gives the first `columns` of `SoftmaxStats` as tensors."""
    no_forward_mode(scores)
    rule = _core.Rescaling.parse(rescaling)
    scores, out = scores.detach(), out.detach()
    if is_launched(scores):
        return _cuda.softmax(scores, rule, positions, lens, out, columns)
    _, found = _host.softmax(*(on_host(given) for given in (scores, rule, positions, lens, out)))
    return [torch.from_numpy(column).to(scores.device) for column in found[:columns]]


def _new(scores: Any, rescaling: str, positions: Any, lens: Any, columns: int) -> tuple[Any, ...]:
    check(scores, positions, lens)
    is_wide = scores.dtype == torch.float64
    out = torch.empty(scores.shape, dtype=torch.float32 if is_wide else scores.dtype, device=scores.device)
    found = _run(scores, rescaling, positions, lens, out, columns)
    return (out.double() if is_wide else out, *found)


def _softmax_new(scores: Any, rescaling: str, positions: Any = None, lens: Any = None) -> tuple[Any, ...]:
    return _new(scores, rescaling, positions, lens, 1)


def _softmax_stats(scores: Any, rescaling: str, positions: Any = None, lens: Any = None) -> tuple[Any, ...]:
    return _new(scores, rescaling, positions, lens, 7)


def _softmax_out(scores: Any, rescaling: str, positions: Any, lens: Any, out: Any) -> None:
    check(scores, positions, lens, out)
    _run(scores, rescaling, positions, lens, out, 0)


def _softmax_stats_out(scores: Any, rescaling: str, positions: Any, lens: Any, out: Any) -> tuple[Any, ...]:
    check(scores, positions, lens, out)
    return tuple(_run(scores, rescaling, positions, lens, out, 7))


def _critical_beta(scores: Any, resolve: float = 0.0) -> Any:
    check(scores, None, None)
    scores = scores.detach()
    if is_launched(scores):
        return _cuda.critical_beta(scores, resolve)
    return torch.from_numpy(_host.critical_beta(on_host(scores), resolve)).to(scores.device)


def _fake(columns: int) -> Callable[..., tuple[Any, ...]]:
    def fake(scores: Any, rescaling: str, positions: Any = None, lens: Any = None) -> tuple[Any, ...]:
        check(scores, positions, lens)
        _core.Rescaling.parse(rescaling)
        columns_of = [scores.new_empty(scores.shape[:-1], dtype=dtype) for dtype in _STATS[:columns]]
        return (scores.new_empty(scores.shape), *columns_of)

    return fake


def _fake_out(columns: int) -> Callable[..., tuple[Any, ...] | None]:
    def fake(scores: Any, rescaling: str, positions: Any, lens: Any, out: Any) -> tuple[Any, ...] | None:
        check(scores, positions, lens, out)
        return _fake(columns)(scores, rescaling, positions, lens)[1:] or None

    return fake


def _fake_critical_beta(scores: Any, resolve: float = 0.0) -> Any:
    check(scores, None, None)
    return scores.new_empty(scores.shape[:-1], dtype=torch.float64)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[0], output[1])


def _gradient(ctx: Any, grad: Any, *_of_constants: Any) -> tuple[Any, ...]:
    """d/ds of softmax(beta s) with beta a constant: beta p (g - sum(p g)). 0 where p is 0: at masked scores and in rows without
    any. At beta = inf the softmax is constant but where the largest scores change places: 0 too. NaN in poisoned rows."""
    probabilities, beta = ctx.saved_tensors
    wide = torch.promote_types(probabilities.dtype, torch.float32)
    p, g = probabilities.to(wide), grad.to(wide)
    beta = torch.where(beta.isinf(), 0.0, beta).clamp(max=torch.finfo(wide).max).to(wide).unsqueeze(-1)
    found = beta * (p * (g - (p * g).sum(-1, keepdim=True)))
    return torch.where(p == 0, 0.0, found).to(probabilities.dtype), None, None, None


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output)


def _no_gradient(ctx: Any, grad: Any) -> tuple[None, None]:
    return None, None


def _batched(op: Any, results: int) -> Callable[..., Any]:
    """The batching rule of an operator on rows: another leading dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], scores: Any, *others: Any) -> Any:
        scores = scores.expand(info.batch_size, *scores.shape) if in_dims[0] is None else scores.movedim(in_dims[0], 0)

        def first(values: Any, dim: int | None) -> Any:
            if dim is None:
                return values
            values = values.movedim(dim, 0)
            ones = [1] * (scores.dim() - 1 - values.dim())
            return values.reshape(info.batch_size, *ones, *values.shape[1:])

        found = op(scores, *map(first, others, in_dims[1:]))
        return found, (0 if results == 1 else (0,) * results)

    return rule


def _operator(
    name: str, function: Callable[..., Any], schema: str, fake: Callable[..., Any], writes: tuple[str, ...] = ()
) -> Any:
    op = torch.library.custom_op(f"critbeta::{name}", function, mutates_args=writes, schema=schema)
    op.register_fake(fake)
    return op


OPERATORS: dict[str, Any] = {
    "softmax": _operator("softmax", _softmax_new, f"({_ARGUMENTS}) -> (Tensor, Tensor)", _fake(1)),
    "softmax_stats": _operator("softmax_stats", _softmax_stats, f"({_ARGUMENTS}) -> (Tensor, {_SEVEN})", _fake(7)),
    "softmax_out": _operator("softmax_out", _softmax_out, f"({_OUT_ARGUMENTS}) -> ()", _fake_out(0), ("out",)),
    "softmax_stats_out": _operator(
        "softmax_stats_out", _softmax_stats_out, f"({_OUT_ARGUMENTS}) -> ({_SEVEN})", _fake_out(7), ("out",)
    ),
    "critical_beta": _operator(
        "critical_beta", _critical_beta, "(Tensor scores, float resolve=0.0) -> Tensor", _fake_critical_beta
    ),
}
for _name, _results in (("softmax", 2), ("softmax_stats", 8), ("critical_beta", 1)):
    OPERATORS[_name].register_vmap(_batched(OPERATORS[_name], _results))
for _name in ("softmax", "softmax_stats"):
    OPERATORS[_name].register_autograd(_gradient, setup_context=_keep)
OPERATORS["critical_beta"].register_autograd(_no_gradient, setup_context=_keep_nothing)
