"""What a server is told by its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ._layers import Layer
from ._record import Recorder

_FILE = "CRITBETA_CONFIG"
_RESCALE, _RECORD = "CRITBETA_RESCALE", "CRITBETA_RECORD"


@dataclass(frozen=True)
class Settings:
    """What the doors of servers do. Without a rule and a folder they do nothing.

    | field | environment | means |
    | --- | --- | --- |
    | rescale | CRITBETA_RESCALE | a rule, as text: "qwen-logn:train=8192", "calibrated:cal.json" |
    | record | CRITBETA_RECORD | a folder for the rows that are recorded; it is made |
    | per_octave | | recorded rows of a request between n and 2 n |
    | max_rows | | rows of all heads that a process keeps; beyond it counters go on |
    | max_bytes | | bytes of queries and keys that a process keeps for its file |
    | resolve | | as in `critbeta.stats` |
    | every | | seconds between two writes of the files |
    | backend | | in vLLM on a GPU: FLASH_ATTN, TRITON_ATTN or FLASHINFER |

    CRITBETA_CONFIG names a JSON file with any of these fields. A variable goes before the file.
    """

    rescale: str | None = None
    record: str | None = None
    per_octave: int = 4
    max_rows: int = 1_000_000
    max_bytes: int = 0
    resolve: float = 0.0
    every: float = 60.0
    backend: str = "FLASH_ATTN"

    def __post_init__(self) -> None:
        for name, least in {"per_octave": 1, "max_rows": 1, "max_bytes": 0, "resolve": 0, "every": 1}.items():
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise ValueError(f"{name} is {value}: expected at least {least}")

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a rule nor a folder."""
        return self.rescale is None and self.record is None

    def recorder(self, layers: Iterable[Layer], length: int, name: str, model: str) -> Recorder:
        """Returns a recorder with these settings. The arguments, and what it raises, are those of `Recorder`."""
        return Recorder(
            layers,
            length,
            folder=self.record,
            name=name,
            model=model,
            per_octave=self.per_octave,
            max_rows=self.max_rows,
            max_bytes=self.max_bytes,
            resolve=self.resolve,
            every=self.every,
        )

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
        """Returns the settings of the environment.

        Raises OSError for a file that cannot be read, and ValueError or TypeError for one that is no JSON
        object of these fields."""
        given = _file(environment[_FILE]) if environment.get(_FILE) else {}
        for name, variable in {"rescale": _RESCALE, "record": _RECORD}.items():
            if environment.get(variable):
                given[name] = environment[variable]
        return Settings(**given)


def _file(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise ValueError(f"{_FILE}={path}: expected JSON: {error}") from None
    known = {field.name: field.type for field in fields(Settings)}
    if not isinstance(found, dict):
        raise TypeError(f"{_FILE}={path}: found {type(found).__name__}, expected an object of settings")
    for name, value in found.items():
        if name not in known:
            raise ValueError(f"{_FILE}={path}: {name!r} is no setting: expected {', '.join(known)}")
        kinds: tuple[type, ...] = {"int": (int,), "float": (int, float)}.get(str(known[name]), (str,))
        if isinstance(value, bool) or not isinstance(value, kinds):
            # Rules that differ by request would come as a list or an object.
            more = ": one rule for all requests, which may share prefix blocks" if name == "rescale" else ""
            found_kind, kind = type(value).__name__, " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{_FILE}={path}: {name} is {found_kind}, expected {kind}{more}")
    return found
