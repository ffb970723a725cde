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
_LIMITS = {
    "per_octave": (1, 1e6),
    "max_rows": (1, 1e12),
    "max_bytes": (0, 1e18),
    "resolve": (0, 1e3),
    "every": (1, 1e6),
}


@dataclass(frozen=True)
class Settings:
    """What the doors of servers do. Without a rule and a folder they do nothing.

    | field | environment | means |
    | --- | --- | --- |
    | rescale | CRITBETA_RESCALE | a rule, as text: "qwen-logn:train=8192", "calibrated:cal.json" |
    | record | CRITBETA_RECORD | a folder for the rows that are recorded; it is made |
    | per_octave | | recorded rows of a request between n and 2 n |
    | max_rows | | different rows of all heads that a process keeps; beyond it counters go on |
    | max_bytes | | bytes of queries and keys that a process keeps for its file |
    | resolve | | as in `critbeta.stats` |
    | every | | seconds between two writes of the metrics; rows are written less often |
    | backend | | in vLLM on a GPU: what CRITBETA stands for, FLASH_ATTN, TRITON_ATTN or FLASHINFER |

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
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}: expected {least} to {most:g}")
        if self.record == "":
            raise ValueError('record is "": expected the name of a folder')

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
        given, path = dict[str, Any](), environment.get(_FILE)
        if path:
            with open(path, encoding="utf-8") as file:
                try:
                    given = json.load(file)
                except ValueError as error:
                    raise ValueError(f"{_FILE}={path}: expected JSON: {error}") from None
            Settings.from_fields(given, f"{_FILE}={path}")
        for name, variable in {"rescale": _RESCALE, "record": _RECORD}.items():
            if environment.get(variable):
                given[name] = environment[variable]
        return Settings.from_fields(given, "the environment")

    @staticmethod
    def from_fields(given: Any, place: str) -> Settings:
        """Returns the settings in a dictionary. Raises ValueError or TypeError, which name the `place`, for
        anything that is no setting."""
        if not isinstance(given, dict):
            raise TypeError(f"{place}: found {type(given).__name__}, expected an object of settings")
        known = {field.name: field.type for field in fields(Settings)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{place}: {name!r} is no setting: expected {', '.join(known)}")
            kinds: tuple[type, ...] = {"int": (int,), "float": (int, float)}.get(str(known[name]), (str,))
            if isinstance(value, bool) or not isinstance(value, kinds):
                # Rules that differ by request would come as a list or an object.
                more = (
                    ": one rule for all requests, which may share prefix blocks" if name == "rescale" else ""
                )
                found, kind = type(value).__name__, " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{place}: {name} is {found}, expected {kind}{more}")
        try:
            return Settings(**given)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
