"""Rows of attention, summed up per layer and head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._results import Stats

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


class Table:
    """One line per layer and head, in the order of the rows: attributes are columns, NumPy arrays, or a list of names.

    | column | is |
    | --- | --- |
    | layer, head | where |
    | rows | how many were measured; poisoned ones (NaN or +inf) are left out of what follows |
    | n_min, n_max | the least and the most visible keys |
    | critical_beta | median; inf where half of the rows are tied |
    | operating_ratio | median of 1 / Lambda; above 1 the model runs above critical |
    | above_critical | share of rows with an operating ratio above 1 |
    | tied | share of rows whose maximum is shared |
    | alpha | median accumulation exponent |
    | entropy | median of entropy / log n at beta = 1; 1 is uniform |
    """

    NAMES = (
        "layer", "head", "rows", "n_min", "n_max", "critical_beta", "operating_ratio", "above_critical", "tied", "alpha", "entropy"
    )  # fmt: skip

    def __init__(self, rows: Stats) -> None:
        layers = np.asarray(rows.layer)
        names, first, of = np.unique(layers, return_index=True, return_inverse=True)
        heads = int(rows.head.max()) + 1
        # In the order of rows, not of names.
        rank = np.empty(len(names), np.int64)
        rank[np.argsort(first)] = np.arange(len(names))
        key = rank[of] * heads + rows.head
        order = np.argsort(key, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(rows.n > 1, rows.entropy / np.log(np.maximum(rows.n, 2)), np.nan)
        lines = [self._line(rows, relative, group, str(layers[group[0]])) for group in groups]
        self.lines: list[dict[str, Any]] = lines
        """Name to value, one of each layer and head."""

    @staticmethod
    def _line(rows: Stats, relative: np.ndarray, group: np.ndarray, layer: str) -> dict[str, Any]:
        sound = group[~rows.poisoned[group] & (rows.n[group] > 1)]

        def median(values: np.ndarray) -> float:
            # The lower of two: the mean of a number and infinity is none.
            return float(np.quantile(values, 0.5, method="lower")) if len(values) else np.nan

        def share(flags: np.ndarray) -> float:
            return float(flags.mean()) if len(flags) else np.nan

        return {
            "layer": layer,
            "head": int(rows.head[group[0]]),
            "rows": len(group),
            "n_min": int(rows.n[group].min()),
            "n_max": int(rows.n[group].max()),
            "critical_beta": median(rows.critical_beta[sound]),
            "operating_ratio": median(rows.ratio[sound]),
            "above_critical": share(rows.ratio[sound] > 1),
            "tied": share(rows.ties[sound] > 1),
            "alpha": median(rows.alpha[sound]),
            "entropy": median(relative[sound]),
        }

    def __getattr__(self, name: str) -> Any:
        if name not in self.NAMES:
            raise AttributeError(f"no column {name!r}, but {', '.join(self.NAMES)}")
        column = [line[name] for line in self.lines]
        return column if name == "layer" else np.array(column)

    def __len__(self) -> int:
        return len(self.lines)

    def to_pandas(self) -> pandas.DataFrame:
        """The lines as a DataFrame. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.lines, columns=self.NAMES)

    def __str__(self) -> str:
        cells = [list(self.NAMES), *([_cell(line[name]) for name in self.NAMES] for line in self.lines)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.NAMES))]
        lines = (
            "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths)))
            for row in cells
        )
        return "\n".join(lines)

    __repr__ = __str__


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
