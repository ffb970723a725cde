"""A summary as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


class Table:
    """A table with one line per layer and head, in the order of the rows. `print` shows it.

    | column | is |
    | --- | --- |
    | layer, head | the name of the layer, and the index of the head |
    | rows | recorded rows; the other columns leave out rows of one key and rows with a NaN |
    | n_min, n_max | the smallest and the largest number of visible keys, from 2 on |
    | critical_beta | the median; inf where half of the rows are tied |
    | operating_ratio | the median of 1 / Lambda: above 1 the model runs above critical |
    | tied | the share of rows in which two keys share the maximum |
    | alpha | the median accumulation exponent |
    | entropy | the median of entropy / log n at beta = 1: 1 is uniform |
    | xi | the exponent of the length law (log n)^xi of the median critical beta; nan where there is none |
    | verdict | the law in words |
    """

    NAMES = (
        *("layer", "head", "rows", "n_min", "n_max", "critical_beta"),
        *("operating_ratio", "tied", "alpha", "entropy", "xi", "verdict"),
    )

    def __init__(self, summary: dict[str, Any]) -> None:
        self.lines: list[dict[str, Any]] = [_line(head) for head in summary["heads"]]
        """One dictionary of column and value per layer and head."""

    def __len__(self) -> int:
        return len(self.lines)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns the lines as a DataFrame. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.lines, columns=self.NAMES)

    def __str__(self) -> str:
        cells = [list(self.NAMES), *([_cell(line[name]) for name in self.NAMES] for line in self.lines)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.NAMES))]
        sides = ["<" if name in ("layer", "verdict") else ">" for name in self.NAMES]
        lines = ([f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)] for row in cells)
        return "\n".join("  ".join(line).rstrip() for line in lines)

    __repr__ = __str__


def _line(head: dict[str, Any]) -> dict[str, Any]:
    law, n = head["length_law"], head["n"] or [0, 0]
    # JSON has no infinity: the median of tied rows is null there.
    critical = math.inf if head["critical_beta"]["q50"] is None else head["critical_beta"]["q50"]
    numbers = {
        "critical_beta": critical if n[1] else None,
        "operating_ratio": head["operating_ratio"]["q50"],
        "tied": head["share_tied"],
        "alpha": head["median_alpha"],
        "entropy": head["median_relative_entropy"],
        "xi": law["critical_beta"] and law["critical_beta"]["xi"],
    }
    numbers = {name: math.nan if value is None else float(value) for name, value in numbers.items()}
    where = {"layer": head["layer"], "head": head["head"], "rows": head["rows"], "n_min": n[0], "n_max": n[1]}
    return {**where, **numbers, "verdict": law["verdict"]}


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
