"""A diagnosis as one page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from . import _core
from ._results import Diagnosis, Stats, path_text

_Path: TypeAlias = "str | os.PathLike[str]"


def report(
    rows: Stats | Diagnosis | _Path | Iterable[_Path] | Any,
    path: _Path,
    *,
    resolve: float | None = None,
    beta: float | None = None,
    top_k: int | None = None,
    train_length: float | None = None,
    seed: int | None = None,
) -> None:
    """Writes one self-contained HTML page about `rows` to `path`, whole or not at all. It holds the findings
    in words, a map of layer x head, phase plots and length laws. A reader needs neither network nor scripts.

    rows: `Stats` or a `Diagnosis`; a DataFrame of pandas or Polars with the columns of row records (an Arrow
        table too); or files. The files are one file of row records (.parquet, .csv or .jsonl, as
        `Stats.to_parquet` and `critbeta diagnose --rows` write them, also after pandas or Polars), or any
        number of attention files (.npy scores [..., rows, n]; .safetensors or .npz with score tensors, or
        pairs NAME.q [heads, rows, head_dim] and NAME.k [kv_heads, keys, head_dim]; folders of shards). Heads
        of one layer name are pooled over files. Only attention files show gap counts and other rescalings.
    resolve, beta, top_k: settings of files. For attention they are as in `stats`, by default 0, 1 and all.
        Row records, also in a DataFrame, hold their own beta, and need resolve and top_k where their columns
        show that one was set.
        `Stats` and a `Diagnosis` know how they were measured.
    train_length, seed: as in `diagnose`; by default those of the diagnosis, else 8192 and 1.

    Raises OSError for a file that cannot be read or written, ValueError for one whose content does not fit
    its extension, TypeError for settings of rows that have their own. Source: docs/how-it-works.md; the
    pages are those of `critbeta diagnose --html` and `critbeta report`.
    """
    path = path_text(path)
    given = {"resolve": resolve, "beta": beta, "top_k": top_k, "train_length": train_length, "seed": seed}
    settings = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
    if isinstance(rows, (Stats, Diagnosis)):
        for name in ("resolve", "beta", "top_k"):
            if given[name] is not None:
                kind = type(rows).__name__
                raise TypeError(f"{name} is for files: {kind} has the one that it was measured at")
        stats, summary = (rows.rows, rows.summary) if isinstance(rows, Diagnosis) else (rows, {})
        train_length = summary.get("train_length", 8192.0) if train_length is None else train_length
        seed = summary.get("seed", 1) if seed is None else seed
        command = f"critbeta.report(rows, {path!r}{settings})"
        _core.report_rows(stats._rows, path, command, train_length, seed)
        return
    train_length, seed = 8192.0 if train_length is None else train_length, 1 if seed is None else seed
    columns = _columns(rows)
    if columns is not None:
        if beta is not None:
            raise TypeError("row records carry their own beta, so beta must not be given")
        command = f"critbeta.report(rows, {path!r}{settings})"
        _core.report_table(columns, path, command, resolve, top_k, train_length, seed)
        return
    one = isinstance(rows, (str, os.PathLike))
    try:
        if isinstance(rows, Mapping):
            raise TypeError
        files = [os.fspath(file) for file in ([rows] if isinstance(rows, (str, os.PathLike)) else rows)]
    except TypeError:
        expected = "expected Stats, a Diagnosis, a DataFrame of row records, or paths of files"
        raise TypeError(f"rows is {type(rows).__name__}: {expected}") from None
    command = f"critbeta.report({(files[0] if one else files)!r}, {path!r}{settings})"
    _core.report_files(files, path, command, resolve, beta, top_k, train_length, seed)


def _columns(rows: Any) -> list[tuple[str, list[Any]]] | None:
    """Returns the columns of a table by name, or None for what is no table. Neither pandas nor Polars is
    imported: a table has names, and each of its columns can be made a list."""
    if hasattr(rows, "collect"):
        raise TypeError(f"rows is {type(rows).__name__}: expected a DataFrame, pass rows.collect()")
    # An Arrow table calls the arrays themselves `columns`.
    names = getattr(rows, "column_names", getattr(rows, "columns", None))
    if names is None or not hasattr(rows, "__getitem__"):
        return None
    index = [name for name in getattr(getattr(rows, "index", None), "names", []) if name not in names]
    index = [name for name in index if name in _core.COLUMNS]
    if index:
        raise ValueError(f"rows: {index[0]} is an index: expected a column, pass rows.reset_index()")
    columns = []
    for name in names:
        if name in _core.COLUMNS:
            column = rows[name]
            to_list = getattr(column, "to_list", getattr(column, "to_pylist", None))
            if to_list is None:
                raise ValueError(f"rows: column {name} is there twice")
            columns.append((name, to_list()))
    return columns
