"""What the functions of this package give back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _core

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


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

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_"):
            raise AttributeError(name)
        column = self._rows.column(name)
        if column is None:
            raise AttributeError(f"no column {name!r}, but {', '.join(self.names)}")
        column = np.asarray(column).reshape(self.shape)
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
        import pandas

        return pandas.DataFrame({name: getattr(self, name).ravel() for name in self.names})

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Writes the columns as the Parquet file that `critbeta diagnose --rows` writes: whole or not at all. Needs no other
        package. Raises OSError where `path` cannot be written."""
        self._rows.write_parquet(path)

    def to_calibration(self, path: str | os.PathLike[str], seed: int = 1) -> None:
        """Fits the length law c (log n)^xi to the critical betas of every layer and head, and writes c and xi as the JSON that
        `critbeta diagnose --calibration` writes and the rescaling `calibrated:FILE` reads: whole or not at all.

        seed: of the bootstrap behind the interval of xi. Raises OSError where `path` cannot be written, ValueError for rows
        measured with top_k, whose critical betas may be lower bounds."""
        self._rows.write_calibration(path, seed)


class SoftmaxStats(NamedTuple):
    """What is known of every row of a softmax: arrays of the leading shape; of a tensor tensors on its device."""

    beta: np.ndarray
    """The inverse temperature that the rescaling chose; nan where poisoned."""
    log_partition: np.ndarray
    """log Z(beta) relative to the maximum, nats: log-sum-exp = beta * max + log_partition. -inf for a row without scores."""
    n: np.ndarray
    """Visible keys."""
    max: np.ndarray
    """The largest score."""
    argmax: np.ndarray
    """The index of the first."""
    ties: np.ndarray
    """How many share it."""
    poisoned: np.ndarray
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
    """The JSON of `critbeta diagnose --json`: per head quantiles, shares, length law and verdict. None where a number is infinite or
    NaN; `inputs` is empty."""
    rows: Stats
    """Every row, of shape [heads, rows]."""
