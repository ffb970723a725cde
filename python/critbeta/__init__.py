"""Exact critical inverse temperature of attention rows: gap counts, rescaled softmax, length-law diagnosis.

A row of attention is a softmax over n scores. The gap of score j is D_j = max - s_j, and N(t) is the number
of gaps of at most t. The critical beta of the row is Lambda = sup over t > 0 of log N(t) / t. As n grows, the
softmax far below it does not separate the top keys; far above it one key takes all (arXiv:2605.12697).

Scores are the logits that the softmax sees at beta = 1: after the 1/sqrt(d) scale, softcap, positional terms
and mask. A score of -inf is masked, and n is the number of unmasked scores. A row without scores is all
zeros. A NaN or +inf score makes its own row NaN (`poisoned`) and no other.

Arrays have the shape [..., n], with any leading shape. They are NumPy's float32, float16 or float64,
ml_dtypes' bfloat16, or anything that shares CPU memory through DLPack, such as torch tensors of float32,
float16, bfloat16 or float64. No array is copied, except that

- float64 scores become float32 after the largest finite score of their row is subtracted (gaps keep 24 bits);
- rows that are not contiguous or not at one distance, as in a transposed array, are copied first.

`softmax`, `critical_beta` and `stats` also take torch tensors on a GPU (float32, float16, bfloat16). CUDA
kernels read them there, on torch's current stream. The first call of each kernel loads it, and takes seconds
where it must compile it. These kernels have only run on a simulator so far: nothing was measured on a GPU.

`decode` is attention itself: queries against keys and values in pages. `measure` gives its rows. On a GPU
both take torch tensors too.

On a CPU the work runs without the interpreter lock, on one thread per core (RAYON_NUM_THREADS, set before the
first call, changes that). No other thread may write to an array meanwhile.

Errors say what was found and what was expected: TypeError for a wrong type or dtype, ValueError for a
wrong shape, device, number, text or file content, OSError (or its subclass from the system) for a file that
cannot be read or written, RuntimeError from a GPU, NotImplementedError for forward mode, for `decode` with
a gradient and for what a CPU does and a GPU does not, and MemoryError.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from . import _arrays, _core, _decode, _host
from ._core import Family, Law, Rescaling, __version__
from ._decode import decode
from ._report import report
from ._results import DecodeStats, Diagnosis, GapCount, SoftmaxStats, Stats, path_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._arrays import ArrayLike

__all__ = [
    "DecodeStats",
    "Diagnosis",
    "Family",
    "GapCount",
    "Law",
    "Rescaling",
    "SoftmaxStats",
    "Stats",
    "__version__",
    "critical_beta",
    "decode",
    "diagnose",
    "families",
    "gap_count",
    "laws",
    "measure",
    "report",
    "softmax",
    "stats",
]

families: tuple[Family, ...] = tuple(_core.families())
"""Score families with known answers, at their default parameters: the tests of `critbeta families`."""

laws: tuple[Law, ...] = tuple(_core.laws())
"""The published length laws, with their conventions and sources."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _eager(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes torch.compile break its graph at `function`, which does not read tensors through torch."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():
            from . import _tensors

            return cast(_R, _tensors.uncompiled(function, args, kwargs))
        return function(*args, **kwargs)

    return call


measure = _eager(_decode.measure)


@_eager
def stats(
    scores: ArrayLike,
    lens: ArrayLike | None = None,
    resolve: float = 0.0,
    beta: float = 1.0,
    top_k: int | None = None,
) -> Stats:
    """Measures every row of `scores` [..., n] at inverse temperature `beta`.

    lens: integers that broadcast to the leading shape. Only the first lens[r] <= n scores of row r are read.
    resolve: r >= 0 of the resolved critical beta, nats. At 0.69 (log 2) no pair needs to be separated.
    beta: finite, >= 0, per unit of score; 1 is the model as it is.
    top_k: counts gaps among the k largest scores only, 1 to 2,048. Then `certified` marks exact rows.

    Warns where scores lie thousands below the rest of their row, as masks of -1e9 do. For a tensor on a GPU
    it waits for the device, and does not warn. Betas, counts and ranks there have the bits of the CPU
    path; sums are those of float32 weights.

    Source: arXiv:2605.12697; for Lambda(r) and the certificate docs/how-it-works.md of this project.
    """
    if _arrays.is_on_gpu(scores):
        from . import _tensors

        return _tensors.stats(scores, lens, resolve, beta, top_k)
    found = _host.stats(scores, lens, None, "scores", resolve, beta, top_k)
    note = found._rows.far_below()
    if note:
        warnings.warn(f"scores: {note}", stacklevel=3)
    return found


def critical_beta(scores: ArrayLike, resolve: float = 0.0) -> Any:
    """Returns Lambda(r) of every row of `scores` [..., n], float64 of the leading shape (a number for one
    row). It is the sup over t > 0 with log N(t) > r of (log N(t) - r) / t, for r = `resolve` >= 0 in nats:
    inf under unresolved ties, 0 for n < 2, nan where poisoned.

    For a tensor it returns a tensor on the same device, without a gradient. On a GPU it does not wait, and
    the logarithm of the device may differ in the last bits. Source: arXiv:2605.12697 (r = 0).
    """
    if _arrays.is_tensor(scores):
        from . import _tensors

        return _tensors.critical_beta(scores, resolve)
    return _host.critical_beta(scores, resolve)[()]


@_eager
def gap_count(row: ArrayLike) -> GapCount:
    """Returns the sorted gaps of one row [n] and the gap count N(t) at each of them. The critical beta of the
    row is the max of log(counts) / gaps over gaps > 0 (inf if counts[0] >= 2).

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
    """Returns the softmax of beta times every row of `scores` [..., n]; `rescaling` chooses beta. The
    relative error is at most (4 + z) 2^-23 for z = beta x gap, and one rounding more in a 16-bit `out`.
    On CUDA it is (16 + z) 2^-23 there before the rounding, and a probability below 2^-126 may be 0.

    rescaling: a `Rescaling` or its text: "identity" is plain, "critical:ratio=1" is each row's critical beta.
    out: float32, float16 or bfloat16, C-contiguous, of the shape of scores. It is written in place and
        returned. It may be scores itself, if the dtype is the same; otherwise the two must not share memory.
        Without out the result of an array is a new float32 array, and the result of a tensor is a new tensor
        of its dtype on its device (for float64 with the precision of float32).
    positions: 0-based query positions, integers that broadcast to the leading shape, for laws that depend on
        them. Without them each row stands at its last visible key; a GPU then reads all scores once more.
    lens: as in `stats`; the result is 0 behind the length of a row.
    return_stats: returns (probabilities, `SoftmaxStats`) if true.

    A row without scores is all 0, a poisoned row all NaN. At beta = inf tied maxima share the weight. On a
    CPU it warns as `stats` does under a law of n, or a calibrated one, where such scores count in n.

    For tensors it is differentiable in reverse mode with respect to scores, also under torch.compile (which
    takes rescaling only as text before torch 2.15). The gradient treats beta as a constant. That is exact
    under identity, fixed, calibrated, and every law of n or the position; `critical` and velickovic measure
    beta from the row, and the gradient leaves out how beta moves with the scores. It is 0 at masked scores,
    in rows without scores, and at beta = inf. With out there is no gradient. Forward mode (torch.func.jvp)
    raises NotImplementedError. On a GPU out is float32 or has the dtype of scores, and lens and positions are
    on the GPU too (or plain numbers). The launch cannot check them: it clamps a length to 0..=n.
    """
    if _arrays.is_tensor(scores) and (out is None or _arrays.is_tensor(out) or scores.is_cuda):
        from . import _tensors

        return _tensors.softmax(scores, rescaling, out, positions, lens, return_stats)
    found, columns = _host.softmax(scores, _host.rule(rescaling), positions, lens, out)
    return (found, columns) if return_stats else found


@_eager
def diagnose(
    scores: ArrayLike | str | os.PathLike[str] | None = None,
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
    """Says which length law the critical beta of each head follows, as `critbeta diagnose` does for files.

    It takes either `scores` [..., rows, n], where all leading dimensions are heads, or queries and keys after
    rotary embedding and norms: `q` [..., heads, rows, head_dim] and `k` [..., kv_heads, keys, head_dim].
    Query head h reads key head h / (heads / kv_heads). Only a block of their scores is in memory at a time.

    In place of an array, `scores` may be the path of anything that `critbeta diagnose` reads: .npy, .npz or
    .safetensors, of scores or of queries and keys, or a folder of shards. Then layers and positions come from
    the file, and `rows` has the shape [heads, rows] of its only tensor, or one dimension for several.

    positions: 0-based query positions. With q they are [rows], and row r sees keys 0..=positions[r]; without
        them the rows are the last ones. With scores they broadcast to the leading shape; without them each
        row stands at its last visible key.
    scale: the factor of the products of q and k, by default that in the file, else 1 / sqrt(head_dim).
    lens: the lengths of scores, as in `stats`.
    layer: the name of the layer in the summary and the rows.
    resolve, beta: as in `stats`.
    train_length: L of the published laws that depend on it, in keys, above 1.
    seed: the seed of the bootstrap and of the yardsticks.

    The summary has `notes` where the numbers are no scores, as probabilities or masks of finite numbers, or
    where heads may come last. Rows of one text are not independent: pool texts before you trust a narrow
    interval. Raises OSError and ValueError for files as `report` does. Source:
    docs/how-it-works.md.
    """
    if isinstance(scores, (str, os.PathLike)):
        given = {"q": q, "k": k, "positions": positions, "lens": lens}
        for name in [name for name, value in given.items() if value is not None]:
            raise TypeError(f"{name} is for arrays: a file holds its own")
        if layer != "attention":
            raise TypeError("layer is for arrays: layers have the names of their tensors in the file")
        file = path_text(scores)
        rows, summary, shape = _core.record_file(file, scale, resolve, beta, train_length, seed)
        return Diagnosis(json.loads(summary), Stats(rows, tuple(shape)))
    if (scores is None) == (q is None) or (q is None) != (k is None):
        raise TypeError("expected scores, or q and k")
    if scores is not None:
        if scale is not None:
            raise TypeError("scale is for q and k: scores are scaled already")
        found = _host.stats(scores, lens, positions, layer, resolve, beta, None)
        return Diagnosis(json.loads(found._rows.summary(train_length, seed)), found)
    if lens is not None:
        raise TypeError("lens are for scores: positions say how far the rows of q see")
    leads = [tuple(getattr(array, "shape", ())[:-3]) for array in (q, k)]
    if leads[0] != leads[1] and any(math.prod(lead) != 1 for lead in leads):
        raise ValueError(f"q has the leading shape {leads[0]}, and k {leads[1]}: expected the same texts")
    texts = math.prod(leads[0])
    q, q_shape = _arrays.heads(q, "q")
    k, k_shape = _arrays.heads(k, "k")
    positions = _arrays.per_row(positions, q_shape[1:2], "positions")
    shapes = [list(q_shape), list(k_shape)]
    rows = _core.record_pair(q, k, shapes, positions, scale, layer, resolve, beta, texts)
    return Diagnosis(json.loads(rows.summary(train_length, seed)), Stats(rows, q_shape[:2]))


# Type checkers must not see this, or they would accept any misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "hf":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # torch or transformers may be missing, and hasattr understands no exception but AttributeError.
        try:
            return importlib.import_module(".hf", __name__)
        except ImportError as error:
            raise AttributeError(f"module {__name__!r} has no attribute 'hf' here: {error}") from error
