"""A diagnosis as one page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

from . import _core
from ._results import Diagnosis, Stats, path_text

_Path: TypeAlias = "str | os.PathLike[str]"


def report(
    rows: Stats | Diagnosis | _Path | Iterable[_Path],
    path: _Path,
    *,
    resolve: float | None = None,
    beta: float | None = None,
    top_k: int | None = None,
    train_length: float | None = None,
    seed: int | None = None,
) -> None:
    """Writes what is known of `rows` as one self-contained HTML page to `path`, whole or not at all: the findings in words, a
    map of layer x head, phase plots, length laws. The file needs no network and no script to be read.

    rows: `Stats` or a `Diagnosis`; or files: one of row records (.parquet, .csv, .jsonl, as `Stats.to_parquet` and
        `critbeta diagnose --rows` write them; .parquet compressed by snappy or not at all), or any number of attention (.npy
        scores [..., rows, n]; .safetensors with score tensors, or pairs NAME.q [heads, rows, head_dim] and NAME.k [kv_heads,
        keys, head_dim]), whose heads of one layer name are pooled. Only from attention files the page has the gap counts of
        rows, and what other rescalings would make of them.
    resolve, beta, top_k: of files. Of attention as in `stats`, by default 0, 1 and all. Row records say their own beta; resolve
        and top_k are needed where their columns show that there was one. `Stats` and `Diagnosis` know how they were measured.
    train_length, seed: as in `diagnose`; by default a diagnosis' own, else 8192 and 1.

    Raises OSError for a file that cannot be read or written, ValueError for one that is not what its extension promises,
    TypeError for settings of rows that have their own. Source: docs/how-it-works.md; the pages are those of `critbeta diagnose
    --html` and `report`.
    """
    path = path_text(path)
    given = {"resolve": resolve, "beta": beta, "top_k": top_k, "train_length": train_length, "seed": seed}
    told = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
    if isinstance(rows, (Stats, Diagnosis)):
        for name in ("resolve", "beta", "top_k"):
            if given[name] is not None:
                raise TypeError(f"{name} is for files: {type(rows).__name__} has the one that it was measured at")
        stats, summary = (rows.rows, rows.summary) if isinstance(rows, Diagnosis) else (rows, {})
        train_length = summary.get("train_length", 8192.0) if train_length is None else train_length
        seed = summary.get("seed", 1) if seed is None else seed
        command = f"critbeta.report(rows, {path!r}{told})"
        _core.report_rows(stats._rows, path, command, train_length, seed)
        return
    one = isinstance(rows, (str, os.PathLike))
    try:
        files = [os.fspath(file) for file in ([rows] if isinstance(rows, (str, os.PathLike)) else rows)]
    except TypeError:
        raise TypeError(f"rows is {type(rows).__name__}: expected Stats, a Diagnosis, or paths of files") from None
    command = f"critbeta.report({(files[0] if one else files)!r}, {path!r}{told})"
    train_length, seed = 8192.0 if train_length is None else train_length, 1 if seed is None else seed
    _core.report_files(files, path, command, resolve, beta, top_k, train_length, seed)
