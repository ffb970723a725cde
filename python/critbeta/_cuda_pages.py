"""The CUDA kernels on keys in pages: `critbeta.measure` of torch tensors on a GPU.

All launches are on torch's current stream. Only `stats` waits for the device, because it returns NumPy
columns. A CUDA graph can capture the others: lengths, page numbers and queries are read when it is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

from . import _core, _cuda, _pages
from ._pages import Arguments
from ._results import Stats

# The most query tokens of a sequence, and keys of a row.
_TOKENS, _KEYS = 8, 1 << 24
IDENTITY = _core.Rescaling.parse("identity")


def check(given: Arguments, resolve: float, top_k: int | None = None) -> None:
    """Raises NotImplementedError for what a CPU measures and the kernels do not, and ValueError for what
    nobody does."""
    q, k, found = given.q, given.k_pages, None
    if not (math.isfinite(resolve) and resolve >= 0):
        raise ValueError(f"resolve is {resolve}: expected a finite number, at least 0")
    if q.shape[1] == 0:
        raise ValueError(f"q of shape {tuple(q.shape)}: expected at least one head")
    if q.dtype != k.dtype:
        found = f"q is {q.dtype} and k_pages is {k.dtype}: expected one dtype, pass q.to({k.dtype})"
    elif isinstance(given.block_tables, tuple):
        indptr, indices = (tuple(of.shape) for of in given.block_tables)
        found = (
            f"block_tables are (indptr, indices) of shapes {indptr} and {indices}: expected [seqs, blocks]"
        )
    elif top_k is not None:
        found = f"top_k is {top_k}: expected None, which counts all scores"
    if found:
        raise NotImplementedError(f"{found}; the kernels for GPUs have nothing else. Or pass CPU tensors")


def measure(given: Arguments) -> tuple[Any, Any]:
    """Returns beta and critical beta of every row, float64 [tokens, heads] on the device."""
    rows, found = Rows.of(given), []
    for part in rows.parts():
        own = part.rule.resolve
        _, report = rows.launch(part, both=bool(own), sums=False)
        ratios = _cuda.ratios(report, "critical" if own else "resolved", 0.0)
        # As in the columns of the CPU, a row without keys is not run.
        beta = torch.where(_cuda.integers(report, "n") > 0, _cuda.betas(report), 0.0)
        found.append([column.view(len(rows.q), part.size) for column in (beta, ratios)])
    beta, critical = (rows.checked(joined(columns)) for columns in zip(*found))
    return beta, critical


def betas(given: Arguments, max_len: int, out: Any, each: int = 1) -> None:
    """Writes the beta of every row to `out`, float32 [tokens, heads], contiguous.

    max_len: the most keys that a sequence has, now and in every replay of a graph that captures this. A
        sequence with more gets NaN.
    each: the query tokens of every sequence, where `given` has no q_lens.
    """
    rows = Rows.of(given, max_len, each)
    for part in rows.parts():
        if part.size == out.shape[1]:
            rows.launch(part, betas=out, reports=False)
        else:
            out[:, part.heads] = rows.launch(part, reports=False)[0]


def stats(given: Arguments, resolve: float) -> Stats:
    """Does the work of `critbeta.measure`, and waits for the device."""
    rows = Rows.of(given)
    lens = given.lens.cpu().numpy().astype(np.int64)
    counts = np.ones_like(lens) if given.q_lens is None else given.q_lens.cpu().numpy().astype(np.int64)
    _check_lengths(rows, lens, counts)
    rows = rows._replace(max_len=max(1, int(lens.max(initial=0))))
    (tokens, heads, _), size = given.q.shape, _cuda.REPORT["bytes"]
    each = [_report(rows, part, resolve).view(tokens, part.size, size) for part in rows.parts()]
    report = joined(each).reshape(tokens * heads, size).cpu().numpy()
    token = np.concatenate([np.arange(count) for count in counts]) if tokens else np.zeros(0, np.int64)
    positions = np.maximum(np.repeat(lens - counts, counts) + token, 0)
    return Stats(_core.rows_of_pages(report, positions, heads, rows.rules, resolve), (tokens, heads))


class Part(NamedTuple):
    """Query heads that one launch measures, and the key heads that they read."""

    rule: _core.Rescaling
    heads: slice
    kv_heads: slice

    @property
    def size(self) -> int:
        return int(self.heads.stop - self.heads.start)


class Rows(NamedTuple):
    """What all launches of a call share."""

    q: Any
    k: Any
    """[pages, page, kv_heads, head_dim]"""
    sequences: tuple[Any, Any]
    """Page numbers [seqs, blocks] and lengths [seqs], int32."""
    starts: Any
    """Where the query tokens of each sequence begin, int32 [seqs + 1], or None."""
    query_len: int
    """The most query tokens of a sequence; without `starts` those of each."""
    max_len: int
    scores: tuple[float | None, float | None, int | None]
    rules: list[_core.Rescaling]

    @staticmethod
    def of(given: Arguments, max_len: int | None = None, each: int = 1) -> Rows:
        q, k = given.q.detach().resolve_neg(), by_slots(given.k_pages, given.layout)
        vector = 16 // q.element_size()
        # Queries are few, so those that no kernel reads are copied. Pages never are.
        if q.stride(2) != 1 or any(stride % vector for stride in strides(q)[:2]) or q.data_ptr() % 16:
            q = q.clone(memory_format=torch.contiguous_format)
        tables, lens = _int32(given.block_tables, "block_tables", 2), _int32(given.lens, "lens", 1)
        seqs, blocks = tables.shape
        if (blocks > 1 and tables.stride(1) != 1) or (seqs > 1 and tables.stride(0) < blocks):
            tables = tables.contiguous()
        starts, query_len = None, each
        if given.q_lens is not None:
            counts = _int32(given.q_lens, "q_lens", 1)
            starts = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
            query_len = min(_TOKENS, len(q))
        for name, found in (("lens", given.lens), ("q_lens", given.q_lens)):
            if found is not None and len(found) != seqs:
                expected = f"expected one number for each of {seqs} sequences"
                raise ValueError(f"{name} of shape {tuple(found.shape)}: {expected}")
        if starts is None and len(q) != seqs * each:
            found = f"q of {len(q)} tokens: expected {'one' if each == 1 else each}"
            raise ValueError(f"{found} for each of {seqs} sequences, or q_lens")
        room = min(blocks * k.shape[1], _KEYS)
        max_len = room if max_len is None else min(max_len, room)
        scores = given.scale, given.softcap, given.window
        rules = _rules(given)
        return Rows(q, k, (tables, lens.contiguous()), starts, query_len, max_len, scores, rules)

    def broken(self) -> Any:
        """Says on the device whether it holds numbers of query tokens that are none."""
        counts = self.starts.diff()
        return ((counts < 0) | (counts > _TOKENS)).any() | (self.starts[-1] > len(self.q))

    def checked(self, column: Any) -> Any:
        """Returns a column, NaN where the numbers of query tokens are none."""
        return column if self.starts is None else torch.where(self.broken(), math.nan, column)

    def parts(self) -> list[Part]:
        """Returns a launch for all heads, or for neighbouring heads of one rule: those of whole groups, or
        some of one group. The kernels give a launch one rule."""
        heads, group = self.q.shape[1], self.q.shape[1] // self.k.shape[2]
        rules = self.rules * (heads if len(self.rules) == 1 else 1)
        parts, begin = [], 0
        while begin < heads:
            end = next((h for h in range(begin, heads) if rules[h] != rules[begin]), heads)
            if begin % group or end - begin < group:
                end = min(end, (begin // group + 1) * group)
            else:
                end -= end % group
            of_keys = slice(begin // group, -(-end // group))
            parts.append(Part(rules[begin], slice(begin, end), of_keys))
            begin = end
        return parts

    def launch(
        self,
        part: Part,
        rule: _core.Rescaling | None = None,
        resolve: float | None = None,
        both: bool = False,
        sums: bool = True,
        reports: bool = True,
        betas: Any = None,
    ) -> tuple[Any, Any]:
        """Launches over the heads of `part`, and returns betas, float32 [tokens, heads], and reports, uint8
        [tokens x heads, bytes], or None. The other arguments are those of `Engine.launch_measure`."""
        rows, report = len(self.q) * part.size, self.reports(part) if reports else None
        if betas is None:
            betas = torch.empty((len(self.q), part.size), dtype=torch.float32, device=self.q.device)
        if rows > 0:
            rule, address = rule or part.rule, _cuda.address(report)
            self.enqueue("launch_measure", part, None, rule, betas.data_ptr(), address, resolve, both, sums)
        return betas, report

    def reports(self, part: Part) -> Any:
        """Returns memory for a report on each row of `part`, uint8 [tokens x heads, bytes]."""
        rows = len(self.q) * part.size
        return torch.empty((rows, _cuda.REPORT["bytes"]), dtype=torch.uint8, device=self.q.device)

    def enqueue(self, name: str, part: Part, values: Any, *others: Any) -> None:
        """Calls a launch of the engine on the rows of `part`, of which there are some."""
        q, k, (tables, lens) = self.q[:, part.heads], self.k[:, :, part.kv_heads], self.sequences
        (tokens, heads, _), device, blocks = q.shape, q.device, tables.shape[1]
        shape = [tokens, heads, self.query_len]
        of_queries = q.data_ptr(), shape, strides(q)[:2], _cuda.address(self.starts)
        table = tables.data_ptr(), [len(tables), blocks, max(blocks, strides(tables)[0])], lens.data_ptr()
        where = of_queries, pages(k), (*table, self.max_len), self.scores
        kernels, on = _cuda.engine(device), _cuda.stream(device)
        workspace = _cuda.workspace(device, on, *kernels.pages_workspace_bytes(*where, values))
        _cuda.enqueue(getattr(kernels, name), on, *where, workspace, *others)


def _report(rows: Rows, part: Part, resolve: float) -> Any:
    """Returns the reports of a part with Lambda, and with Lambda(resolve) in place of that of its rule."""
    own = part.rule.resolve
    wanted = (resolve or None) if own is None else None
    _, report = rows.launch(part, resolve=wanted, both=(resolve if own is None else own) > 0)
    if own is None or own == resolve:
        return report
    critical, resolved = (_cuda.REPORT[name] for name in ("critical", "resolved"))
    if resolve == 0:
        report[:, resolved : resolved + 8] = report[:, critical : critical + 8]
        return report
    # A launch measures at one resolve, and the rule has its own.
    _, other = rows.launch(part, IDENTITY, resolve, both=True, sums=False)
    for field in (critical, resolved):
        report[:, field : field + 8] = other[:, field : field + 8]
    return report


def _rules(given: Arguments) -> list[_core.Rescaling]:
    rules, heads = _pages.rules(given.rescaling), given.q.shape[1]
    if len(rules) not in (1, heads):
        expected = f"expected one for all, or one for each of {heads} query heads"
        raise ValueError(f"{len(rules)} rescalings: {expected}")
    return rules


def _int32(values: Any, name: str, dims: int) -> Any:
    """Returns integers as int32. What int32 does not hold becomes something that the kernels refuse too."""
    if values.dim() != dims:
        expected = "one number per sequence" if dims == 1 else "[seqs, blocks]"
        raise ValueError(f"{name} of shape {tuple(values.shape)}: expected {expected}")
    if values.dtype == torch.int32:
        return values
    if _cuda.is_capturing(values.device):
        raise ValueError(f"{name} is {values.dtype}: a CUDA graph that is captured needs int32")
    return values.long().clamp(-(1 << 31), (1 << 31) - 1).int()


def by_slots(tensor: Any, layout: str) -> Any:
    """Returns a view of pages [pages, page, kv_heads, head_dim]."""
    tensor = tensor.detach().resolve_neg()
    return tensor.transpose(1, 2) if layout == "HND" else tensor


def pages(tensor: Any) -> tuple[int, str, list[int], list[int]]:
    """Returns pages as a launch takes them."""
    return tensor.data_ptr(), _cuda.DTYPES[tensor.dtype], list(tensor.shape), strides(tensor)


def strides(tensor: Any) -> list[int]:
    """Returns the strides. That of a single element has no meaning, and torch may hold any number there."""
    apart = [stride if size > 1 else 0 for size, stride in zip(tensor.shape[:-1], tensor.stride())]
    return [*apart, tensor.stride(-1)]


def joined(columns: Sequence[Any]) -> Any:
    """Returns what launches over neighbouring heads found, [tokens, heads, ...]."""
    return columns[0] if len(columns) == 1 else torch.cat(list(columns), 1)


def _check_lengths(rows: Rows, lens: np.ndarray, counts: np.ndarray) -> None:
    """Raises ValueError for lengths that the CPU path refuses too."""
    for name, values, most in (("lens", lens, rows.max_len), ("q_lens", counts, _TOKENS)):
        bad = np.flatnonzero((values < 0) | (values > most))
        if len(bad):
            raise ValueError(f"{name}: {values[bad[0]]} of sequence {bad[0]}, expected 0 to {most}")
    if counts.sum() != len(rows.q):
        raise ValueError(f"q of {len(rows.q)} tokens: the sequences have {counts.sum()} in all")
