"""What every recorder gives of the rows that it has."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from . import _core
from ._results import Stats, path_text
from ._table import Table


class Recorded:
    """The rows of a recording, as statistics, a table, a page, and files."""

    _expected: str
    """What to do where nothing is recorded."""

    def __init__(self, resolve: float, max_bytes: int) -> None:
        if not 0 <= resolve < float("inf"):
            raise ValueError(f"resolve is {resolve}: expected finite nats of at least 0")
        if not max_bytes >= 0:
            raise ValueError(f"max_bytes is {max_bytes}: expected at least 0")
        self.resolve = float(resolve)
        self._max_bytes = max_bytes
        self._recording = _core.Recording(self.resolve, int(min(max_bytes, 2**63 - 1)))
        self._split: str | None = None
        """A layer of which this process has some of the heads."""
        self._found: Stats | None = None

    @property
    def recorded(self) -> int:
        """The number of rows recorded so far, of all heads."""
        return self._recording.count()

    @property
    def rows(self) -> Stats:
        """Every row at beta = 1, of shape [rows], layer by layer. Raises RuntimeError if there is none."""
        if self.recorded == 0:
            raise RuntimeError(f"nothing is recorded: {self._expected}")
        if self._found is None or self._found.n.shape != (self.recorded,):
            rows = self._recording.rows()
            self._found = Stats(rows, (len(rows),))
        return self._found

    def summary(self, train_length: float = 8192.0, seed: int = 1) -> dict[str, Any]:
        """Returns the JSON of `critbeta diagnose --json`: quantiles, shares and length law of each head."""
        summary: dict[str, Any] = json.loads(self.rows._rows.summary(train_length, seed))
        return summary

    def table(self) -> Table:
        """Returns medians, shares and the length law of every head, to print or to turn into a DataFrame."""
        return Table(self.summary())

    def report(self, path: str | os.PathLike[str], train_length: float = 8192.0, seed: int = 1) -> None:
        """Writes the page of the rows, as `critbeta.report` does. It shows gap counts and the effect of other
        rescalings, unless `max_bytes` left rows out. Raises OSError where `path` cannot be written."""
        path = path_text(path)
        command = f"{self._made_by}.report({path!r})"
        if self._recording.kept()[1] or self._split is not None:
            _core.report_rows(self.rows._rows, path, command, train_length, seed)
            return
        self.rows
        from ._keep import save

        with tempfile.TemporaryDirectory(prefix="critbeta-") as folder:
            files = list(map(str, save(self._recording, Path(folder) / "recorded.safetensors", self._name)))
            _core.report_files(files, path, command, self.resolve, 1.0, None, train_length, seed)

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes files for `critbeta diagnose` and returns them: `path`, or its stem with numbers for several
        texts, scales, or kinds of layers (below). A beam, a cache that was cut back, and tokens behind a jump
        of position_ids are texts of their own. Layers have the names of their modules. Files that an earlier
        call wrote for the same `path` are replaced or removed; other files stay.

        A layer whose rows see all keys of their text up to their own becomes queries and keys (LAYER.q
        [heads, rows, head_dim], LAYER.k [kv_heads, keys, head_dim], LAYER.positions [rows]; metadata
        `scale`). Encoders, and layers with a softcap, a bias, or a window that hides keys, become scores
        (LAYER [heads, rows, keys], -inf where masked; LAYER.positions).

        Raises RuntimeError where nothing is kept and where tensor parallelism splits heads; OSError where a
        file cannot be written. Warns where `max_bytes` left rows out."""
        from ._keep import save

        if self._split is not None:
            found = f"this process has some of the heads of {self._split}, and files number heads from 0"
            raise RuntimeError(f"{found}: write the rows of every process by rec.rows.to_parquet(...)")
        (kept, full), most = self._recording.kept(), self._max_bytes
        if not kept:
            found = f"none of the {len(self.rows)} rows is kept"
            raise RuntimeError(f"{found}, max_bytes is {most}: record with more")
        if full:
            found = f"{kept} of the {len(self.rows)} recorded rows: max_bytes={most} left out the others"
            warnings.warn(f"{os.fspath(path)} holds {found}", stacklevel=2)
        return save(self._recording, path, self._name)

    @property
    def _made_by(self) -> str:
        """The call that made this recorder, for the page."""
        raise NotImplementedError

    @property
    def _name(self) -> str:
        """The name of the model, for files."""
        raise NotImplementedError
