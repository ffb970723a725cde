"""torch operators. An import of this module registers them, and so does the first tensor that
`critbeta.softmax`, `critical_beta` or `decode` gets.

| torch.ops.critbeta | returns |
| --- | --- |
| softmax(scores, rescaling, positions, lens) | probabilities, and beta of every row |
| softmax_stats(scores, rescaling, positions, lens) | probabilities, and the seven columns of `SoftmaxStats` |
| softmax_out(scores, rescaling, positions, lens, out) | nothing: it writes to out, which may be scores |
| softmax_stats_out(scores, rescaling, positions, lens, out) | the seven columns, and writes to out |
| critical_beta(scores, resolve) | Lambda(resolve) of every row, float64 |
| decode(q, k_pages, v_pages, TABLES, scale, rescaling, eps, SCORES, v_radius, centre) | the output |
| decode_stats(...), decode_stats_out(..., out) | the same, and the six columns of `DecodeStats` |
| decode_out(..., out) | nothing: it writes to out |
| measure(q, k_pages, TABLES, scale, rescaling, SCORES, resolve) | beta and critical beta, float64 |

scores [..., n] are float32, float16, bfloat16, or on the CPU float64. rescaling is text. positions and lens
are None, or integers on the device of scores that broadcast to the leading shape. Every operator has a fake
kernel, so torch.compile and torch.export accept it. Operators that write to no argument have a batching rule
for torch.vmap. The first two are differentiable in reverse mode with respect to scores; beta is a constant
there, and so are all other results. Forward mode raises NotImplementedError in `critbeta.softmax`, and in
these operators for dual tensors. Under torch.func.jvp these operators cannot see the tangent, and drop it.
Under torch.func.grad torch refuses them; `critbeta.softmax` works there.

TABLES are block_tables, indices, lens, q_lens, and SCORES are layout, softcap, window. With indices,
block_tables are indptr. rescaling is a list of texts there, and the arguments are those of `critbeta.decode`.
These operators have no gradient and no batching rule. On a GPU they wait for nothing and take block_tables
[seqs, blocks]; what only the device holds is not checked, so a row with a wrong length or page is NaN, and
all rows are where q_lens cannot be. Tokens behind the last sequence
are rows without keys. A CUDA graph needs block_tables, lens and q_lens of int32, and reads them at each
replay.

Errors: as in `critbeta`; fake kernels raise them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from torch.autograd import forward_ad  # type: ignore[import-not-found, unused-ignore]

from . import _arrays, _core, _cuda, _host, _paged

__all__: list[str] = []

_READ = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATS = (torch.float64, torch.float64, torch.int64, torch.float64, torch.int64, torch.int64, torch.bool)
_ARGUMENTS = "Tensor scores, str rescaling, Tensor? positions=None, Tensor? lens=None"
_OUT_ARGUMENTS = "Tensor scores, str rescaling, Tensor? positions, Tensor? lens, Tensor(a!) out"
_SEVEN = ", ".join(7 * ["Tensor"])


def check(scores: Any, positions: Any, lens: Any, out: Any = None) -> None:
    """Raises every error that the shapes, dtypes and devices of the arguments show."""
    _arrays.dense(scores, "scores")
    shape, device = tuple(scores.shape), scores.device
    if not shape:
        raise ValueError("scores of shape (): expected [..., n], at least one dimension")
    if scores.dtype not in _READ:
        expected = "expected float32, float16, bfloat16 or float64"
        raise TypeError(f"scores of shape {shape} are {scores.dtype}: {expected}")
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"scores of shape {shape} are on {device}: expected cpu or cuda, pass scores.cpu()")
    if device.type == "cuda" and scores.dtype == torch.float64:
        expected = "the kernels read float32, float16 and bfloat16, pass scores.float(), or scores.cpu()"
        raise ValueError(f"scores of shape {shape} are float64 on {device}: {expected}")
    place = f"scores of shape {shape} on {device}: expected one device"
    for name, values in (("positions", positions), ("lens", lens)):
        if values is None:
            continue
        if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
            raise TypeError(f"{name} is {values.dtype}: expected integers")
        if values.device != device:
            raise ValueError(f"{name} is on {values.device}, {place}")
        lead, given = shape[:-1], tuple(values.shape)
        if len(given) > len(lead) or any(a not in (1, b) for a, b in zip(given[::-1], lead[::-1])):
            expected = f"expected one per row, or a shape that broadcasts to {lead}"
            raise ValueError(f"{name} of shape {given}: {expected}")
    if out is not None:
        if out.device != device:
            raise ValueError(f"out is on {out.device}, {place}")
        if tuple(out.shape) != shape:
            raise ValueError(f"out of shape {tuple(out.shape)}: expected {shape}, the shape of scores")


def no_forward_mode(scores: Any, of: str = "softmax") -> None:
    """Raises NotImplementedError for scores with a tangent. Operators of torch.library have no forward
    derivative: they would silently drop the tangent, as if the derivative were 0."""
    tangent = forward_ad.unpack_dual(scores).tangent  # type: ignore[no-untyped-call, unused-ignore]
    if tangent is not None:
        refuse_forward_mode(scores.shape, of)


def refuse_forward_mode(shape: Any, of: str = "softmax") -> None:
    """Raises NotImplementedError."""
    expected = "use reverse mode (backward, torch.autograd.grad, torch.func.grad), or pass scores.detach()"
    scores = f"scores of shape {tuple(shape)}" if len(shape) else "scores"
    raise NotImplementedError(f"critbeta.{of} of {scores} has no forward-mode derivative: {expected}")


def is_launched(scores: Any) -> bool:
    """Says whether a kernel runs on `scores`: they are on a GPU, and there are any."""
    return bool(scores.device.type == "cuda" and scores.numel() > 0)


def on_host(given: Any) -> Any:
    """Returns a tensor on the CPU, and anything else as it is."""
    return given.cpu() if isinstance(given, torch.Tensor) else given


def _run(scores: Any, rescaling: str, positions: Any, lens: Any, out: Any, columns: int) -> list[Any]:
    """Writes probabilities to `out`, and returns the first `columns` of `SoftmaxStats` as tensors."""
    no_forward_mode(scores)
    rule = _core.Rescaling.parse(rescaling)
    scores, out = scores.detach(), out.detach()
    if is_launched(scores):
        return _cuda.softmax(scores, rule, positions, lens, out, columns)
    _, found = _host.softmax(*(on_host(given) for given in (scores, rule, positions, lens, out)))
    return [torch.from_numpy(column).to(scores.device) for column in found[:columns]]


def _new(columns: int) -> Callable[..., tuple[Any, ...]]:
    def softmax(scores: Any, rescaling: str, positions: Any = None, lens: Any = None) -> tuple[Any, ...]:
        check(scores, positions, lens)
        is_wide = scores.dtype == torch.float64
        dtype = torch.float32 if is_wide else scores.dtype
        out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
        found = _run(scores, rescaling, positions, lens, out, columns)
        return (out.double() if is_wide else out, *found)

    return softmax


def _into(columns: int) -> Callable[..., tuple[Any, ...] | None]:
    def softmax(scores: Any, rescaling: str, positions: Any, lens: Any, out: Any) -> tuple[Any, ...] | None:
        check(scores, positions, lens, out)
        return tuple(_run(scores, rescaling, positions, lens, out, columns)) or None

    return softmax


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


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[0], output[1])


def gradient(ctx: Any, grad: Any, *_of_constants: Any) -> tuple[Any, ...]:
    """Returns d/ds of softmax(beta s) for a constant beta: beta p (g - sum(p g)). It is 0 where p is 0, at
    masked scores and in rows without scores. It is also 0 at beta = inf, where the softmax is constant except
    where the largest scores change places. It is NaN in poisoned rows."""
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
    """Returns the batching rule of an operator on rows: the batch is another leading dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], scores: Any, *others: Any) -> Any:
        size, dim = info.batch_size, in_dims[0]
        scores = scores.expand(size, *scores.shape) if dim is None else scores.movedim(dim, 0)

        def first(values: Any, dim: int | None) -> Any:
            if dim is None:
                return values
            values = values.movedim(dim, 0)
            ones = [1] * (scores.dim() - 1 - values.dim())
            return values.reshape(size, *ones, *values.shape[1:])

        found = op(scores, *map(first, others, in_dims[1:]))
        return found, (0 if results == 1 else (0,) * results)

    return rule


_TABLE: dict[str, tuple[Callable[..., Any], str, Callable[..., Any]]] = {
    "softmax": (_new(1), f"({_ARGUMENTS}) -> (Tensor, Tensor)", _fake(1)),
    "softmax_stats": (_new(7), f"({_ARGUMENTS}) -> (Tensor, {_SEVEN})", _fake(7)),
    "softmax_out": (_into(0), f"({_OUT_ARGUMENTS}) -> ()", _fake_out(0)),
    "softmax_stats_out": (_into(7), f"({_OUT_ARGUMENTS}) -> ({_SEVEN})", _fake_out(7)),
    "critical_beta": (_critical_beta, "(Tensor scores, float resolve=0.0) -> Tensor", _fake_critical_beta),
    **_paged.TABLE,
}


def _registered() -> dict[str, Any]:
    operators: dict[str, Any] = {}
    for name, (function, schema, fake_kernel) in _TABLE.items():
        writes = ("out",) if name.endswith("_out") else ()
        full_name = f"critbeta::{name}"
        operators[name] = torch.library.custom_op(full_name, function, mutates_args=writes, schema=schema)
        operators[name].register_fake(fake_kernel)
    for name, results in (("softmax", 2), ("softmax_stats", 8), ("critical_beta", 1)):
        operators[name].register_vmap(_batched(operators[name], results))
    for name in ("softmax", "softmax_stats"):
        operators[name].register_autograd(gradient, setup_context=keep)
    operators["critical_beta"].register_autograd(_no_gradient, setup_context=_keep_nothing)
    return operators


# A process has each operator once. If this package is imported a second time, it takes those of the first:
# torch would replace them, and drop both with the copy of the package that ends first.
OPERATORS: dict[str, Any] = getattr(torch, "_critbeta_operators", None) or _registered()
setattr(torch, "_critbeta_operators", OPERATORS)
