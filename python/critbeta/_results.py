"""What the functions of this package give back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from . import _core

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


# numpy.ndarray, or of a tensor torch.Tensor.
_Column: TypeAlias = Any


def path_text(path: str | os.PathLike[str]) -> str:
    """Errors: TypeError for what is no path, or one of bytes."""
    found = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(found, str):
        raise TypeError(f"path is {type(path).__name__}: expected text or os.PathLike of text")
    return found


class Stats:
    """What is known of every row, as columns: NumPy arrays of the rows' leading shape, named as in the files of
    `critbeta diagnose --rows`.

    | column | is |
    | --- | --- |
    | layer, head, row | where the row stands; head counts all leading dimensions but the last |
    | position | 0-based position of the query: as given, else the last visible key |
    | n | visible keys |
    | max, argmax, ties | the largest score, the index of the first, how many share it |
    | critical_beta | Lambda; inf under ties, 0 for n < 2, nan where poisoned |
    | contact_gap, contact_rank | the largest gap that attains it, and how many scores lie within: its witness |
    | alpha | log contact rank / log n |
    | resolved_beta | Lambda(r), the supremum over t with log N(t) > r of (log N(t) - r) / t |
    | beta, ratio | the inverse temperature that the row is run at, and beta / Lambda |
    | log_partition | log Z(beta) relative to the maximum, nats |
    | entropy | of the weights at beta, nats |
    | top_two, max_weight | largest less second largest weight, and the largest |
    | poisoned | whether a NaN or +inf score makes the row meaningless |
    | certified, resolved_certified | only with top_k: whether the counted scores prove the betas exact |

    Of a row without scores all numbers from n to max_weight are 0, beta and log_partition too: it is not run, and files keep it
    so.
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
        """The leading shape: that of every column."""

    # Hidden from type checkers, which would take any misspelt name for a column.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> np.ndarray:
            if name.startswith("_"):
                raise AttributeError(name)
            column = self._rows.column(name)
            if column is None:
                raise AttributeError(f"no column {name!r}, but {', '.join(self.names)}")
            # Text comes as a list; without rows it would pass for numbers.
            column = np.asarray(column, dtype=str if isinstance(column, list) else None).reshape(self.shape)
            # From here on it is found without asking.
            setattr(self, name, column)
            return column

    @property
    def names(self) -> list[str]:
        """The columns there are, in order."""
        return self._rows.names

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def __len__(self) -> int:
        """Rows, over all leading dimensions."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<critbeta.Stats of {len(self)} rows, shape {self.shape}: {', '.join(self.names)}>"

    def __reduce__(self) -> str:
        raise TypeError("Stats is not pickled: take its columns, or to_parquet")

    def to_pandas(self) -> pandas.DataFrame:
        """The columns as a DataFrame, one line per row. Raises ImportError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(f"Stats.to_pandas needs pandas: pip install pandas ({error})") from error
        return pandas.DataFrame({name: getattr(self, name).ravel() for name in self.names})

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Writes the columns as the Parquet file that `critbeta diagnose --rows` writes: whole or not at all. Needs no other
        package. Raises OSError where `path` cannot be written."""
        self._rows.write_parquet(path_text(path))

    def to_calibration(self, path: str | os.PathLike[str], seed: int = 1) -> None:
        """Fits the length law c (log n)^xi to the critical betas of every layer and head, and writes c and xi as the JSON that
        `critbeta diagnose --calibration` writes and the rescaling `calibrated:FILE` reads: whole or not at all.

        seed: of the bootstrap behind the interval of xi. Raises OSError where `path` cannot be written, ValueError for rows
        measured with top_k, whose critical betas may be lower bounds."""
        self._rows.write_calibration(path_text(path), seed)


class SoftmaxStats(NamedTuple):
    """What is known of every row of a softmax: arrays of the leading shape; of a tensor tensors on its device."""

    beta: _Column
    """The inverse temperature that the rescaling chose; nan where poisoned."""
    log_partition: _Column
    """log Z(beta) relative to the maximum, nats: log-sum-exp = beta * max + log_partition. -inf for a row without scores."""
    n: _Column
    """Visible keys."""
    max: _Column
    """The largest score."""
    argmax: _Column
    """The index of the first."""
    ties: _Column
    """How many share it."""
    poisoned: _Column
    """Whether a NaN or +inf score makes the row NaN."""


class GapCount(NamedTuple):
    """The gap count of one row: N(t) at every gap."""

    gaps: np.ndarray
    """max - score of every unmasked score, ascending, float64: one float32 subtraction each."""
    counts: np.ndarray
    """How many gaps are at most that one: in a tied block the largest rank."""


class Diagnosis(NamedTuple):
    """What `diagnose` says."""

    summary: dict[str, Any]
    """The JSON of `critbeta diagnose --json`: per head quantiles, shares, length law and verdict. None where a number is
    infinite or NaN; `inputs` is empty."""
    rows: Stats
    """Every row, of shape [heads, rows]."""
