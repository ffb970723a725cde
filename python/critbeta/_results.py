"""The results that the functions of this package return."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from . import _core

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


# A numpy.ndarray; for tensors a torch.Tensor.
_Column: TypeAlias = Any


def path_text(path: str | os.PathLike[str]) -> str:
    """Returns a path as text. Raises TypeError for anything else, and for a path of bytes."""
    found = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(found, str):
        raise TypeError(f"path is {type(path).__name__}: expected text or os.PathLike of text")
    return found


class Stats:
    """The statistics of every row, as columns: NumPy arrays of the leading shape of the rows. They have the
    names of the columns that `critbeta diagnose --rows` writes.

    | column | is |
    | --- | --- |
    | layer, head, row | where the row stands; head counts all leading dimensions but the last |
    | position | 0-based position of the query: the given one, else the last visible key |
    | n | the number of visible keys |
    | max, argmax, ties | the largest score, its first index, and how many scores equal it |
    | critical_beta | Lambda; inf under ties, 0 for n < 2, nan where poisoned |
    | contact_gap, contact_rank | its witness: the largest gap that attains it, and its score count |
    | alpha | log contact rank / log n |
    | resolved_beta | Lambda(r), the supremum over t with log N(t) > r of (log N(t) - r) / t |
    | beta, ratio | the inverse temperature that the row runs at, and beta / Lambda |
    | log_partition | log Z(beta) relative to the maximum, nats |
    | entropy | the entropy of the weights at beta, nats |
    | top_two, max_weight | the largest weight less the second largest, and the largest |
    | poisoned | whether a NaN or +inf score makes the row meaningless |
    | certified, resolved_certified | only with top_k: whether the counted scores prove the betas exact |

    A row without scores is not run: all its numbers from n to max_weight are 0, also in files.
    """

    layer: np.ndarray
    head: np.ndarray
    row: np.ndarray
    position: np.ndarray
    n: np.ndarray
    max: np.ndarray
    argmax: np.ndarray
    ties: np.ndarray
    critical_beta: np.ndarray
    contact_gap: np.ndarray
    contact_rank: np.ndarray
    alpha: np.ndarray
    resolved_beta: np.ndarray
    beta: np.ndarray
    ratio: np.ndarray
    log_partition: np.ndarray
    entropy: np.ndarray
    top_two: np.ndarray
    max_weight: np.ndarray
    poisoned: np.ndarray
    certified: np.ndarray
    resolved_certified: np.ndarray

    def __init__(self, rows: _core.Rows, shape: tuple[int, ...]) -> None:
        self._rows = rows
        self.shape = shape
        """The leading shape, which every column has."""

    # Type checkers must not see this: they would accept any misspelt name as a column.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> np.ndarray:
            if name.startswith("_"):
                raise AttributeError(name)
            column = self._rows.column(name)
            if column is None:
                raise AttributeError(f"no column {name!r}, but {', '.join(self.names)}")
            # Text comes as a list. An empty list would become numbers.
            column = np.asarray(column, dtype=str if isinstance(column, list) else None).reshape(self.shape)
            # The attribute makes the next access skip this function.
            setattr(self, name, column)
            return column

    @property
    def names(self) -> list[str]:
        """The names of all columns, in order."""
        return self._rows.names

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def __len__(self) -> int:
        """Returns the number of rows over all leading dimensions."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<critbeta.Stats of {len(self)} rows, shape {self.shape}: {', '.join(self.names)}>"

    def __reduce__(self) -> str:
        raise TypeError("Stats cannot be pickled: use its columns, or to_parquet")

    def to_pandas(self) -> pandas.DataFrame:
        """Returns the columns as a DataFrame, one line per row. Raises ImportError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(f"Stats.to_pandas needs pandas: pip install pandas ({error})") from error
        return pandas.DataFrame({name: getattr(self, name).ravel() for name in self.names})

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Writes the columns to a Parquet file as `critbeta diagnose --rows` does, whole or not at all.
        Raises OSError where `path` cannot be written."""
        self._rows.write_parquet(path_text(path))

    def to_calibration(self, path: str | os.PathLike[str], seed: int = 1) -> None:
        """Fits the length law c (log n)^xi to the critical betas of every layer and head, and writes c and xi
        as JSON, whole or not at all. `critbeta diagnose --calibration` writes the same file, and the
        rescaling `calibrated:FILE` reads it.

        seed: the seed of the bootstrap for the interval of xi. Raises OSError where `path` cannot be written,
        ValueError for rows measured with top_k, whose critical betas may be lower bounds."""
        self._rows.write_calibration(path_text(path), seed)


class SoftmaxStats(NamedTuple):
    """The statistics of every row of a softmax: arrays of the leading shape, or tensors on its device."""

    beta: _Column
    """The inverse temperature that the rescaling chose; nan where poisoned."""
    log_partition: _Column
    """log Z(beta) relative to the maximum, nats: log-sum-exp - beta * max. A row without scores has -inf."""
    n: _Column
    """The number of visible keys."""
    max: _Column
    """The largest score."""
    argmax: _Column
    """The first index of the largest score."""
    ties: _Column
    """How many scores equal the largest."""
    poisoned: _Column
    """Whether a NaN or +inf score makes the row NaN."""


class DecodeStats(NamedTuple):
    """What is known about every row of `decode`: arrays of shape [tokens, heads], or tensors."""

    beta: _Column
    """The inverse temperature that the rescaling chose; nan where poisoned."""
    critical_beta: _Column
    """Lambda of the row's scores; inf under ties, 0 for n < 2, nan where poisoned."""
    lse: _Column
    """log of the sum of exp(beta * score) over all keys of the row, read or not, nats. It merges parts of a
    sequence. A row without keys has -inf."""
    dropped: _Column
    """The share of the weights whose values stayed unread, a multiple of 2^-32. The true share is at most
    this and 2^-18 of it. It is at most eps. On a GPU all rows of a key head that a sequence has share one
    number, which is at least the share of each."""
    kept: _Column
    """How many of the row's keys had their values read. On a GPU it is the least of the row's keys and of the
    values that any row of its key head read: no fewer than the row's own."""
    bound: _Column
    """At least what the unread values change in the output, in the norm of `v_radius`. The rounding of sums
    in float32 and of the output to its dtype comes on top. Without `v_radius` it is 0 where nothing was
    dropped, and nan elsewhere; there the change is at most `dropped` times the diameter of the row's values
    and the centre (or 0)."""


class GapCount(NamedTuple):
    """The gap count of one row: N(t) at every gap."""

    gaps: np.ndarray
    """max - score of every unmasked score, ascending, float64; each is one float32 subtraction."""
    counts: np.ndarray
    """How many gaps are at most this one. Equal gaps all have the largest rank among them."""


class Diagnosis(NamedTuple):
    """The result of `diagnose`."""

    summary: dict[str, Any]
    """The JSON of `critbeta diagnose --json`: quantiles, shares, length law and verdict of every head. A
    number that is infinite or NaN is None; `inputs` is empty."""
    rows: Stats
    """The statistics of every row, of shape [heads, rows]."""
