"""Exact critical inverse temperature of attention rows: gap counts, rescaled softmax, length-law diagnosis.

A row of attention is a softmax over n scores. With D_j = max - s_j its gaps and N(t) how many of them are at most t, its critical
beta is Lambda = sup over t > 0 of log N(t) / t: far below it the top keys are not told apart as n grows, far above it one key
takes all (arXiv:2605.12697).

Scores are the logits that the softmax sees at beta = 1: after the 1/sqrt(d) scale, softcap, positional terms and mask. A score of
-inf is masked; n is the number of unmasked scores. A row without scores is all zeros; a NaN or +inf score makes its own row NaN
(`poisoned`) and no other.

Arrays have any leading shape, [..., n]. They are NumPy's float32, float16 or float64, ml_dtypes' bfloat16, or whatever shares CPU
memory through DLPack, such as torch tensors of float32, float16, bfloat16 or float64. None is copied, but:

- float64 scores become float32 once the largest finite score of their row is taken off, so that gaps keep 24 bits;
- rows that are not contiguous, or not at one distance from each other (a transposed array, a broadcast one), are copied first.

torch tensors on a GPU (float32, float16, bfloat16) are read where they are, by CUDA kernels on torch's current stream: `softmax`,
`critical_beta` and `stats` take them. The first call loads the kernels, which takes seconds where they are not cached.

On a CPU work is done without the interpreter lock, on one thread per core (`RAYON_NUM_THREADS` before the first call changes
that). An array must not be written to by other threads meanwhile.

Errors: TypeError for a wrong type or dtype, ValueError for a wrong shape, device, number, text or content of a file, OSError
for a file that cannot be read or written (of the system's own subclass), RuntimeError where a GPU refuses, each with what was
found and what was expected; NotImplementedError for forward-mode derivatives; MemoryError.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from . import _arrays, _core, _host
from ._core import Family, Law, Rescaling, __version__
from ._report import report
from ._results import Diagnosis, GapCount, SoftmaxStats, Stats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._arrays import ArrayLike

__all__ = [
    "Diagnosis",
    "Family",
    "GapCount",
    "Law",
    "Rescaling",
    "SoftmaxStats",
    "Stats",
    "__version__",
    "critical_beta",
    "diagnose",
    "families",
    "gap_count",
    "laws",
    "report",
    "softmax",
    "stats",
]

families: tuple[Family, ...] = tuple(_core.families())
"""Score families with known answers, each at its default parameter: what `critbeta families` measures itself against."""

laws: tuple[Law, ...] = tuple(_core.laws())
"""The published length laws, with their conventions and sources."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _eager(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, where torch.compile breaks its graph and runs it as it stands: it reads tensors by other means than torch's."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():
            from . import _tensors

            return cast(_R, _tensors.uncompiled(function, args, kwargs))
        return function(*args, **kwargs)

    return call


@_eager
def stats(
    scores: ArrayLike,
    lens: ArrayLike | None = None,
    resolve: float = 0.0,
    beta: float = 1.0,
    top_k: int | None = None,
) -> Stats:
    """Everything about every row of `scores` [..., n] at inverse temperature `beta`.

    lens: integers that broadcast to the leading shape; row r has lens[r] <= n scores, what lies behind them is never read.
    resolve: r >= 0 of the resolved critical beta, nats; 0.69 (log 2) asks to separate no pair.
    beta: finite, >= 0, per unit of score; 1 is the model as it is.
    top_k: count gaps among the k largest scores only, 1 to 2,048; then `certified` says which rows that is exact for.

    Of a tensor on a GPU it waits for the device; betas, counts and ranks are the CPU path's bit for bit, sums those of float32
    weights.

    Source: arXiv:2605.12697, definitions; Lambda(r) and the certificate are this project's (docs/how-it-works.md).
    """
    if _arrays.is_tensor(scores) and scores.is_cuda:
        from . import _tensors

        return _tensors.stats(scores, lens, resolve, beta, top_k)
    return _host.stats(scores, lens, None, "scores", resolve, beta, top_k)


def critical_beta(scores: ArrayLike, resolve: float = 0.0) -> Any:
    """Lambda(r) of every row of `scores` [..., n], float64 of the leading shape (a number for one row): the sup over t > 0 with
    log N(t) > r of (log N(t) - r) / t, r = `resolve` >= 0 in nats. inf under unresolved ties, 0 for n < 2, nan where poisoned.
    Of a tensor a tensor on its device, without a gradient; on a GPU nothing waits, and the device's logarithm may differ in the
    last bits.

    Source: arXiv:2605.12697 (r = 0).
    """
    if _arrays.is_tensor(scores):
        from . import _tensors

        return _tensors.critical_beta(scores, resolve)
    return _host.critical_beta(scores, resolve)[()]


@_eager
def gap_count(row: ArrayLike) -> GapCount:
    """The sorted gaps of one row [n] and the gap count N(t) at each: what its critical beta is the largest slope of,
    max of log(counts) / gaps over gaps > 0 (inf if counts[0] >= 2).

    Raises ValueError for a row with a NaN or +inf score. Source: arXiv:2605.12697.
    """
    block, lead = _arrays.rows(row, "row")
    if lead:
        raise ValueError(f"row of shape {lead + block.shape[1:]}: expected one row, [n]")
    return GapCount(*_core.gap_count(block))


@overload
def softmax(
    scores: np.ndarray,
    rescaling: str | Rescaling = ...,
    out: None = None,
    positions: ArrayLike | None = None,
    lens: ArrayLike | None = None,
    return_stats: Literal[False] = False,
) -> NDArray[np.float32]: ...
@overload
def softmax(
    scores: ArrayLike,
    rescaling: str | Rescaling = ...,
    out: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    lens: ArrayLike | None = None,
    *,
    return_stats: Literal[True],
) -> tuple[Any, SoftmaxStats]: ...
@overload
def softmax(
    scores: ArrayLike,
    rescaling: str | Rescaling = ...,
    out: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    lens: ArrayLike | None = None,
    return_stats: bool = False,
) -> Any: ...
def softmax(
    scores: ArrayLike,
    rescaling: str | Rescaling = "critical:ratio=1",
    out: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    lens: ArrayLike | None = None,
    return_stats: bool = False,
) -> Any:
    """The softmax of beta times every row of `scores` [..., n], beta chosen by `rescaling`: probabilities of the same shape, each
    within (4 + z) 2^-23 relative of the float64 value, z = beta x gap, and one rounding more in a 16-bit `out`.

    rescaling: a `Rescaling` or its text; "identity" is the plain softmax. "critical:ratio=1" runs every row at its own
        critical beta.
    out: float32, float16 or bfloat16, C-contiguous, of the shape of scores; written in place and returned as it was given. It
        may be scores itself, of the same dtype, and otherwise must not share memory with it. Without it the result is new
        memory: of an array float32, whatever dtype it has; of a tensor a tensor of its dtype on its device (of float64 with the
        precision of float32).
    positions: 0-based query positions, integers that broadcast to the leading shape, which some laws depend on; without
        them each row stands at its last visible key.
    lens: as in `stats`; the result is 0 behind a row's length.
    return_stats: also return `SoftmaxStats`, as (probabilities, stats).

    Of tensors it is differentiable with respect to scores in reverse mode, under torch.compile too (before torch 2.15 that takes
    rescaling as text only), beta being a constant: exactly so under identity, fixed, calibrated and every law of n or the
    position; `critical` and velickovic measure beta of the row, and how beta moves with the scores is left out. The gradient is
    0 at masked scores, in rows without any, and at beta = inf. In out it has none. Forward mode (torch.func.jvp) raises
    NotImplementedError.
    On a GPU out is float32 or of the dtype of scores, lens and positions are on it too (or numbers), and
    since nobody can look at them before the launch a length is taken as one of 0 to n.

    A row without scores is all 0; a poisoned one all NaN; at beta = inf tied maxima share the weight.
    """
    if _arrays.is_tensor(scores) and (out is None or _arrays.is_tensor(out) or scores.is_cuda):
        from . import _tensors

        return _tensors.softmax(scores, rescaling, out, positions, lens, return_stats)
    found, told = _host.softmax(scores, _host.rule(rescaling), positions, lens, out)
    return (found, told) if return_stats else found


@_eager
def diagnose(
    scores: ArrayLike | None = None,
    *,
    q: ArrayLike | None = None,
    k: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    scale: float | None = None,
    lens: ArrayLike | None = None,
    layer: str = "attention",
    resolve: float = 0.0,
    beta: float = 1.0,
    train_length: float = 8192.0,
    seed: int = 1,
) -> Diagnosis:
    """Which length law the critical beta of each head follows: what `critbeta diagnose` says of files, of arrays.

    Either `scores` [..., rows, n], all leading dimensions being heads, or queries and keys after rotary embedding and norms,
    `q` [..., heads, rows, head_dim] and `k` [..., kv_heads, keys, head_dim] (query head h reads key head h / (heads / kv_heads)),
    whose scores are computed a block at a time, never as a matrix.

    positions: 0-based query positions. Of q: [rows], row r sees keys 0..=positions[r]; without them the rows are the last
        ones. Of scores: integers that broadcast to the leading shape; without them the last visible keys.
    scale: what the products of q and k are multiplied by; 1 / sqrt(head_dim) if not given.
    lens: of scores, as in `stats`.
    layer: the name that the summary and the rows carry.
    resolve, beta: as in `stats`.
    train_length: L of the published laws that depend on it, in keys, above 1.
    seed: of the bootstrap and of the yardsticks.

    Rows of one text are not independent: pool several before believing a narrow interval. Source: docs/how-it-works.md.
    """
    if (scores is None) == (q is None) or (q is None) != (k is None):
        raise TypeError("expected scores, or q and k")
    if scores is not None:
        if scale is not None:
            raise TypeError("scale is for q and k: scores are scaled already")
        found = _host.stats(scores, lens, positions, layer, resolve, beta, None)
        return Diagnosis(json.loads(found._rows.summary(train_length, seed)), found)
    if lens is not None:
        raise TypeError("lens are of scores: positions say how far the rows of q see")
    q, q_shape = _arrays.heads(q, "q")
    k, k_shape = _arrays.heads(k, "k")
    positions = _arrays.per_row(positions, q_shape[1:2], "positions")
    shapes = [list(q_shape), list(k_shape)]
    rows = _core.record_pair(q, k, shapes, positions, scale, layer, resolve, beta)
    return Diagnosis(json.loads(rows.summary(train_length, seed)), Stats(rows, q_shape[:2]))


# Hidden from type checkers, which would take any misspelt name for one that is here; they know hf by `import critbeta.hf`.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "hf":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # It imports torch and transformers, which need not be there: what asks by hasattr is not told by another exception.
        try:
            return importlib.import_module(".hf", __name__)
        except ImportError as error:
            raise AttributeError(f"module {__name__!r} has no attribute 'hf' here: {error}") from error
