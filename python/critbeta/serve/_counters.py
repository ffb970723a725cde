"""What a server's metrics endpoint shows of the rows that were recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .._results import Stats

# Four buckets an octave: a quantile of a histogram is within 9 % of the true one.
_RATIOS = 2.0 ** (np.arange(-16, 17) / 4)
_SHARES = np.arange(1, 21) / 20


@dataclass
class _Sketch:
    """A histogram, from which quantiles follow. Those of several processes add."""

    bounds: np.ndarray
    counts: np.ndarray = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.bounds) + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        places = np.searchsorted(self.bounds, values)
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.total += float(values.sum())

    def lines(self, name: str, labels: str) -> list[str]:
        cumulative = np.cumsum(self.counts)
        bounds = [f"{bound:.6g}" for bound in self.bounds] + ["+Inf"]
        found = [
            f'{name}_bucket{{{labels},le="{bound}"}} {count}' for bound, count in zip(bounds, cumulative)
        ]
        found.append(f"{name}_sum{{{labels}}} {self.total!r}")
        found.append(f"{name}_count{{{labels}}} {cumulative[-1]}")
        return found


@dataclass
class _Layer:
    rows: int = 0
    tied: int = 0
    poisoned: int = 0
    ratio: _Sketch = field(default_factory=lambda: _Sketch(_RATIOS))
    entropy: _Sketch = field(default_factory=lambda: _Sketch(_SHARES))


class Counters:
    """Counts of the rows of each layer, as Prometheus shows them."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def add(self, rows: Stats) -> None:
        """Counts rows. Those of one key say nothing, and are left out."""
        names, poisoned, n = rows.layer, rows.poisoned, rows.n
        tied, ratio = rows.ties > 1, rows.ratio
        entropy = rows.entropy / np.log(np.maximum(n, 2))
        for name in dict.fromkeys(names.tolist()):
            of = (names == name) & (n > 1)
            sound = of & ~poisoned
            layer = self._layers.setdefault(name, _Layer())
            layer.rows += int(of.sum())
            layer.poisoned += int((of & poisoned).sum())
            layer.tied += int((sound & tied).sum())
            layer.ratio.add(ratio[sound])
            layer.entropy.add(entropy[sound])

    def text(self, process: str) -> str:
        """Returns the counts in Prometheus' text form. `process` is the label of this process."""
        shown = [(f'{process},layer="{_escaped(name)}"', of) for name, of in self._layers.items()]
        lines = list[str]()
        for name, of_layer, meaning in (
            ("rows", "rows", "Recorded attention rows of at least two keys."),
            ("tied_rows", "tied", "Recorded rows whose maximum two keys share. Their operating ratio is 0."),
            ("poisoned_rows", "poisoned", "Recorded rows with a NaN or +inf score."),
        ):
            lines += [f"# HELP critbeta_{name}_total {meaning}", f"# TYPE critbeta_{name}_total counter"]
            for labels, of in shown:
                lines.append(f"critbeta_{name}_total{{{labels}}} {getattr(of, of_layer)}")
        for name, of_layer, meaning in (
            (
                "operating_ratio",
                "ratio",
                "1 / critical beta of a row: above 1 the model runs above critical.",
            ),
            ("relative_entropy", "entropy", "Entropy / log n of a row: 1 is uniform."),
        ):
            lines += [f"# HELP critbeta_{name} {meaning}", f"# TYPE critbeta_{name} histogram"]
            for labels, of in shown:
                lines += getattr(of, of_layer).lines(f"critbeta_{name}", labels)
        return "\n".join(lines) + "\n"


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
