"""`critbeta.softmax`, `critical_beta`, `stats`, `decode` and `measure` of torch tensors."""

from __future__ import annotations

from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]

from . import _arrays, _core, _cuda, _cuda_pages, _host, _paged, _pages
from . import torch as operators
from ._pages import Arguments
from ._results import DecodeStats, SoftmaxStats, Stats


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _text(rescaling: _core.Rescaling) -> str:
    return str(rescaling)


class _Softmax(torch.autograd.Function):
    """The operator for the transforms of torch.func, which do not take the gradient of an operator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Any, rescaling: str, positions: Any, lens: Any) -> Any:
        return operators.OPERATORS["softmax_stats"](scores, rescaling, positions, lens)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        operators.keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return operators.gradient(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        operators.refuse_forward_mode(torch.Size())


def _is_transformed() -> bool:
    """Says whether a transform of torch.func runs, and no compiler that would see through it."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call, unused-ignore]
    reason="critbeta.stats, gap_count, diagnose and report read numbers and return NumPy columns: call them "
    "outside of torch.export and fullgraph=True. critbeta.softmax and critical_beta are operators"
)
def uncompiled(function: Any, args: Any, kwargs: Any) -> Any:
    """Calls `function` where no compiler sees it."""
    return function(*args, **kwargs)


def softmax(
    scores: Any,
    rescaling: str | _core.Rescaling,
    out: Any = None,
    positions: Any = None,
    lens: Any = None,
    return_stats: bool = False,
) -> Any:
    """Does the work of `critbeta.softmax` for a tensor."""
    if not isinstance(rescaling, str):
        rescaling = _text(_host.rule(rescaling))
    _arrays.dense(scores, "scores")
    operators.no_forward_mode(scores)
    positions, lens = _per_row(positions, scores, "positions"), _per_row(lens, scores, "lens")
    given = scores, rescaling, positions, lens
    if out is None and _is_transformed():
        probabilities, *columns = _Softmax.apply(*given)
        return (probabilities, SoftmaxStats(*columns)) if return_stats else probabilities
    if out is None:
        if not return_stats:
            return operators.OPERATORS["softmax"](*given)[0]
        probabilities, *columns = operators.OPERATORS["softmax_stats"](*given)
        return probabilities, SoftmaxStats(*columns)
    if not isinstance(out, torch.Tensor):
        found = f"out is {type(out).__name__}, scores a tensor on {scores.device}"
        raise TypeError(f"{found}: expected a tensor there")
    _arrays.dense(out, "out")
    if not torch.compiler.is_compiling():
        _arrays.not_negated(out)
    if torch.is_grad_enabled() and (scores.requires_grad or out.requires_grad):
        found = f"out of shape {tuple(out.shape)} does not support automatic differentiation"
        raise RuntimeError(f"{found}: expected no requires_grad, pass scores.detach(), or leave out away")
    if not return_stats:
        operators.OPERATORS["softmax_out"](*given, out)
        return out
    return out, SoftmaxStats(*operators.OPERATORS["softmax_stats_out"](*given, out))


def critical_beta(scores: Any, resolve: float = 0.0) -> Any:
    """Does the work of `critbeta.critical_beta` for a tensor."""
    _arrays.dense(scores, "scores")
    operators.no_forward_mode(scores, "critical_beta")
    # It is a constant to every derivative. The transforms of torch.func do not take that of an operator.
    return operators.OPERATORS["critical_beta"](scores.detach() if _is_transformed() else scores, resolve)


def stats(scores: Any, lens: Any, resolve: float, beta: float, top_k: int | None) -> Stats:
    """Does the work of `critbeta.stats` for a CUDA tensor."""
    lens = _per_row(lens, scores, "lens")
    operators.check(scores, None, lens)
    scores = scores.detach()
    if operators.is_launched(scores):
        return _cuda.stats(scores, lens, resolve, beta, top_k)
    scores, lens = operators.on_host(scores), operators.on_host(lens)
    return _host.stats(scores, lens, None, "scores", resolve, beta, top_k)


def measure(given: Arguments, resolve: float, top_k: int | None) -> Stats:
    """Does the work of `critbeta.measure` for a CUDA tensor."""
    tables, indices, lens, q_lens = _sequences(given, "k_pages")
    tables = tables if indices is None else (tables, indices)
    given = given._replace(block_tables=tables, lens=lens, q_lens=q_lens)
    for name, tensor in (("q", given.q), ("k_pages", given.k_pages)):
        is_abstract = _arrays.without_numbers(tensor)
        if is_abstract:
            expected = "expected data; torch.ops.critbeta.measure may be traced"
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} is {is_abstract}: {expected}")
    _paged.check_keys(given, resolve, top_k)
    return _cuda_pages.stats(given, resolve)


def _sequences(given: Arguments, *pages: str) -> list[Any]:
    """Returns block tables (or indptr), indices, lens and q_lens as tensors. Raises TypeError for pages that
    are none."""
    q, tables = given.q, given.block_tables
    for name in pages:
        found = getattr(given, name)
        if not isinstance(found, torch.Tensor):
            found = f"{name} is {type(found).__name__}, q a tensor on {q.device}"
            raise TypeError(f"{found}: expected a tensor there")
    pair = tables if isinstance(tables, tuple) else (tables, None)
    if len(pair) != 2:
        _pages.refuse_tables(len(pair))
    names = ("block_tables", "indices", "lens", "q_lens")
    return [_per_row(value, q, name) for value, name in zip((*pair, given.lens, given.q_lens), names)]


def decode(given: Arguments, out: Any, return_stats: bool) -> Any:
    """Does the work of `critbeta.decode` for a tensor."""
    q, rules, words = given.q, given.rescaling, _sequences(given, "k_pages", "v_pages")
    _paged.no_gradient(q=q, k_pages=given.k_pages, v_pages=given.v_pages)
    of_heads: Any = rules if isinstance(rules, (list, tuple)) else [rules]
    texts = [rule if isinstance(rule, str) else _text(_host.rule(rule)) for rule in of_heads]
    radii = [value if value is None else torch.as_tensor(value) for value in (given.v_radius, given.centre)]
    options = texts, given.eps, given.layout, given.softcap, given.window
    arguments = q, given.k_pages, given.v_pages, *words, given.scale, *options, *radii
    if out is None:
        if not return_stats:
            return operators.OPERATORS["decode"](*arguments)
        found, *columns = operators.OPERATORS["decode_stats"](*arguments)
        return found, DecodeStats(*columns)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out is {type(out).__name__}, q a tensor on {q.device}: expected a tensor there")
    _arrays.dense(out, "out")
    if not torch.compiler.is_compiling():
        _arrays.not_negated(out)
    _paged.no_gradient(out=out)
    if not return_stats:
        operators.OPERATORS["decode_out"](*arguments, out)
        return out
    return out, DecodeStats(*operators.OPERATORS["decode_stats_out"](*arguments, out))


def _per_row(values: Any, scores: Any, name: str) -> Any:
    """Returns integers of any kind as a tensor on the device of `scores`. A tensor stays where it is."""
    if values is None or isinstance(values, torch.Tensor):
        return values
    # Compiled code may call nothing but torch.
    found = torch.as_tensor(values if torch.compiler.is_compiling() else _arrays.integers(values, name))
    # The copy does not wait: torch has read the numbers from the host when the call returns.
    return found.to(scores.device, non_blocking=True)
