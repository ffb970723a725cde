# A `_Block` is [rows, n] of float64, float32, float16, or uint16 with the bits of bfloat16. `_Target` is a
# block without float64, C-contiguous and writeable. `_Indices` are int64, one per row.
from os import PathLike
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Block: TypeAlias = NDArray[Any]
_Target: TypeAlias = NDArray[Any]
_Indices: TypeAlias = NDArray[np.int64]
# The memory of a pool as one row, then sizes and strides of page, slot, kv head and element.
_Pool: TypeAlias = tuple[_Block, list[int], list[int]]
# Queries [tokens x heads, head_dim], their shape, and how many each sequence has.
_Queries: TypeAlias = tuple[_Block, list[int], NDArray[np.int32] | None]
_Tables: TypeAlias = NDArray[np.int32] | tuple[NDArray[np.int32], NDArray[np.int32]]
# Scale, rescalings, softcap, window.
_Rules: TypeAlias = tuple[float | None, list[Rescaling], float | None, int | None]
# What launches over pages take, as `python/src/cuda.rs` says.
_DeviceQueries: TypeAlias = tuple[int, list[int], list[int], int | None]
_DevicePages: TypeAlias = tuple[int, str, list[int], list[int]]
_DeviceSequences: TypeAlias = tuple[int, list[int], int, int]
_DeviceScores: TypeAlias = tuple[float | None, float | None, int | None]
_DeviceValues: TypeAlias = tuple[_DevicePages, float]

__all__ = [
    "COLUMNS",
    "Engine",
    "Family",
    "Law",
    "Recording",
    "Rescaling",
    "Rows",
    "Texts",
    "__version__",
    "critical_beta",
    "decode",
    "families",
    "gap_count",
    "head_rescalings",
    "laws",
    "measure",
    "record_file",
    "record_pair",
    "record_scores",
    "report_files",
    "report_layout",
    "report_rows",
    "report_table",
    "rows_of_pages",
    "rows_of_reports",
    "skip_layout",
    "softmax",
    "softmax_in_place",
]

__version__: str
COLUMNS: list[str]

@final
class Rescaling:
    @staticmethod
    def parse(spec: str) -> Rescaling: ...
    def beta(
        self, n: int, position: int | None = None, critical: float = ..., entropy: float = ...
    ) -> float: ...
    def betas(self, n: _Indices, positions: _Indices) -> NDArray[np.float64]: ...
    @property
    def resolve(self) -> float | None: ...
    @property
    def needs_entropy(self) -> bool: ...
    @property
    def log_power(self) -> tuple[float, float] | None: ...

@final
class Law:
    @staticmethod
    def named(name: str) -> Law: ...
    @property
    def name(self) -> str: ...
    @property
    def formula(self) -> str: ...
    @property
    def granularity(self) -> str: ...
    @property
    def convention(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def parameters(self) -> list[dict[str, Any]]: ...

@final
class Family:
    @staticmethod
    def parse(text: str) -> Family: ...
    @property
    def name(self) -> str: ...
    @property
    def growth(self) -> dict[str, float | None] | None: ...
    def draw(self, n: int, seed: int = 1) -> NDArray[np.float32]: ...

@final
class Rows:
    def __len__(self) -> int: ...
    @property
    def names(self) -> list[str]: ...
    def column(self, name: str) -> NDArray[Any] | list[str] | None: ...
    def far_below(self) -> str | None: ...
    def summary(self, train_length: float, seed: int) -> str: ...
    def write_parquet(self, path: str | PathLike[str]) -> None: ...
    def write_calibration(self, path: str | PathLike[str], seed: int) -> None: ...

@final
class Texts:
    # Text, index in the batch, rows, the first row, and the keys: from one on, or columns of a tile.
    def __new__(
        cls, places: list[tuple[int, int, int, int, int, int | None]], positions: NDArray[np.int64]
    ) -> Texts: ...

@final
class Recording:
    def __new__(cls, resolve: float, max_bytes: int) -> Recording: ...
    def add(
        self,
        layer: str,
        texts: Texts,
        products: tuple[str, str, NDArray[np.uint8], NDArray[np.uint8], float] | None,
        tile: NDArray[np.float32] | None,
        first_head: int = 0,
    ) -> None: ...
    def count(self) -> int: ...
    def rows(self, first: int = 0) -> Rows: ...
    def kept(self) -> tuple[int, bool]: ...
    def file_count(self) -> int: ...
    def file(self, index: int) -> tuple[int, float | None, list[tuple[str, str, list[int], NDArray[np.uint8]]]]: ...

@final
class Engine:
    @staticmethod
    def cuda(ordinal: int) -> Engine: ...
    @staticmethod
    def simulated(arch: str) -> Engine: ...
    @property
    def description(self) -> str: ...
    def workspace_bytes(self, rows: int, cols: int, dtype: str, has_out: bool) -> int: ...
    def predictions(
        self, rows: int, cols: int, dtype: str, has_out: bool
    ) -> list[tuple[str, float, float, float]]: ...
    def decode_predictions(
        self, shape: list[int], dtype: str, eps: float, keep: float
    ) -> list[float] | None: ...
    def launch(
        self,
        stream: int,
        scores: tuple[int, str],
        shape: list[int],
        lens: int | None,
        positions: int | None,
        rescaling: Rescaling,
        out: tuple[int, str, int] | None,
        report: int | None,
        workspace: list[int] | None,
        resolve: float,
        top_k: int | None,
        sums: bool,
        both: bool,
    ) -> None: ...
    def pages_workspace_bytes(
        self,
        queries: _DeviceQueries,
        keys: _DevicePages,
        sequences: _DeviceSequences,
        scores: _DeviceScores,
        values: _DeviceValues | None,
    ) -> list[int]: ...
    def launch_measure(
        self,
        stream: int,
        queries: _DeviceQueries,
        keys: _DevicePages,
        sequences: _DeviceSequences,
        scores: _DeviceScores,
        workspace: list[int],
        rescaling: Rescaling,
        betas: int,
        report: int | None,
        resolve: float | None,
        both: bool,
        sums: bool,
    ) -> None: ...
    def launch_decode(
        self,
        stream: int,
        queries: _DeviceQueries,
        keys: _DevicePages,
        sequences: _DeviceSequences,
        scores: _DeviceScores,
        workspace: list[int],
        values: _DeviceValues,
        out: tuple[int, str, list[int]],
        rescaling: Rescaling,
        report: int | None,
        skips: int | None,
    ) -> None: ...

def families() -> list[Family]: ...
def head_rescalings(spec: str) -> tuple[list[tuple[str, int, Rescaling]], int] | None: ...
def laws() -> list[Law]: ...
def critical_beta(scores: _Block, resolve: float) -> NDArray[np.float64]: ...
def decode(
    queries: _Queries,
    keys: _Pool,
    values: _Pool,
    tables: _Tables,
    lens: NDArray[np.int32],
    rules: _Rules,
    skip: tuple[float, NDArray[np.float32] | None, NDArray[np.float32] | None],
    out: _Target,
    measured: bool,
) -> dict[str, NDArray[Any]]: ...
def measure(
    queries: _Queries,
    keys: _Pool,
    tables: _Tables,
    lens: NDArray[np.int32],
    rules: _Rules,
    resolve: float,
    top_k: int | None,
) -> Rows: ...
def gap_count(scores: _Block) -> tuple[NDArray[np.float64], NDArray[np.int64]]: ...
def softmax(
    scores: _Block, lens: _Indices | None, rescaling: Rescaling, positions: _Indices | None, out: _Target
) -> dict[str, NDArray[Any]]: ...
def softmax_in_place(
    scores: _Target, lens: _Indices | None, rescaling: Rescaling, positions: _Indices | None
) -> dict[str, NDArray[Any]]: ...
def report_rows(
    rows: Rows, path: str | PathLike[str], command: str, train_length: float, seed: int
) -> None: ...
def report_files(
    files: list[str],
    path: str | PathLike[str],
    command: str,
    resolve: float | None,
    beta: float | None,
    top_k: int | None,
    train_length: float,
    seed: int,
) -> None: ...
def report_table(
    columns: list[tuple[str, list[Any]]],
    path: str | PathLike[str],
    command: str,
    resolve: float | None,
    top_k: int | None,
    train_length: float,
    seed: int,
) -> None: ...
def record_file(
    file: str, scale: float | None, resolve: float, beta: float, train_length: float, seed: int
) -> tuple[Rows, str, list[int]]: ...
def record_pair(
    q: _Block,
    k: _Block,
    shapes: list[list[int]],
    positions: _Indices | None,
    scale: float | None,
    layer: str,
    resolve: float,
    beta: float,
    texts: int = 1,
) -> Rows: ...
def record_scores(
    scores: _Block,
    lens: _Indices | None,
    positions: _Indices | None,
    rows_per_head: int,
    layer: str,
    resolve: float,
    beta: float,
    top_k: int | None,
) -> Rows: ...
def report_layout() -> list[tuple[str, int]]: ...
def skip_layout() -> list[tuple[str, int]]: ...
def rows_of_pages(
    reports: NDArray[np.uint8], positions: _Indices, heads: int, rules: list[Rescaling], resolve: float
) -> Rows: ...
def rows_of_reports(
    reports: NDArray[np.uint8], positions: _Indices, rows_per_head: int, resolve: float, beta: float,
    top_k: int | None,
) -> Rows: ...
