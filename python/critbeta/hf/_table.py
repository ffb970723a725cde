"""A summary as lines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped, unused-ignore]


class Table:
    """One line per layer and head, in the order of the rows. It prints.

    | column | is |
    | --- | --- |
    | layer, head | where |
    | rows | how many were recorded: those of one key, and those made meaningless by a NaN, are in no other column |
    | n_min, n_max | the least and the most visible keys, from 2 on |
    | critical_beta | median; inf where half of the rows are tied |
    | operating_ratio | median of 1 / Lambda: above 1 the model runs above critical |
    | tied | share of rows whose maximum is shared |
    | alpha | median accumulation exponent |
    | entropy | median of entropy / log n at beta = 1: 1 is uniform |
    | xi | exponent of the length law (log n)^xi of the median critical beta; nan where there is none |
    | verdict | which law that is, in words |
    """

    NAMES = (
        *("layer", "head", "rows", "n_min", "n_max", "critical_beta", "operating_ratio", "tied", "alpha", "entropy", "xi", "verdict"),
    )

    def __init__(self, summary: dict[str, Any]) -> None:
        self.lines: list[dict[str, Any]] = [_line(head) for head in summary["heads"]]
        """Column to value, one of each layer and head."""

    def __len__(self) -> int:
        return len(self.lines)

    def to_pandas(self) -> pandas.DataFrame:
        """The lines as a DataFrame. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.lines, columns=self.NAMES)

    def __str__(self) -> str:
        cells = [list(self.NAMES), *([_cell(line[name]) for name in self.NAMES] for line in self.lines)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.NAMES))]
        left = {self.NAMES.index("layer"), self.NAMES.index("verdict")}
        return "\n".join(
            "  ".join(cell.ljust(widths[at]) if at in left else cell.rjust(widths[at]) for at, cell in enumerate(row)).rstrip()
            for row in cells
        )

    __repr__ = __str__


def _line(head: dict[str, Any]) -> dict[str, Any]:
    law, n = head["length_law"], head["n"] or [0, 0]
    # JSON has no infinity: the median of tied rows is null.
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
