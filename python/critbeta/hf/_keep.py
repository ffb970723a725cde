"""Queries, keys and scores that are kept in memory, and the files that they become."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@dataclass
class Pair:
    """Queries of a layer, [heads, rows, head_dim] each, and all their keys, [kv_heads, keys, head_dim]."""

    queries: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    known_keys: int = 0
    _keys: torch.Tensor | None = None

    @property
    def keys(self) -> torch.Tensor | None:
        return None if self._keys is None else self._keys[:, : self.known_keys]

    def begins(self, k: torch.Tensor) -> bool:
        """Says whether `k` begins with the known keys: not after a cache was cut back, or on another beam."""
        known = self.keys
        return known is None or torch.equal(_bits(known.to(k.device)), _bits(k[:, : self.known_keys]))

    def extend(self, k: torch.Tensor) -> None:
        """Adds the keys of `k` that are not known yet."""
        more = k.shape[1] - self.known_keys
        if more <= 0:
            return
        if self._keys is None:
            self._keys = _copied(k)
        else:
            if self._keys.shape[1] < k.shape[1]:
                # The room grows by half, so n decoding steps do not copy the text n times.
                room = torch.empty(k.shape[0], k.shape[1] * 3 // 2, k.shape[2], dtype=k.dtype)
                room[:, : self.known_keys] = self._keys[:, : self.known_keys]
                self._keys = room
            self._keys[:, self.known_keys : k.shape[1]] = k[:, self.known_keys :]
        self.known_keys = k.shape[1]


@dataclass
class Scores:
    """Scores of a layer, each [heads, rows, keys], -inf where masked."""

    scores: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)


class Store:
    """The queries, keys and scores of every text, up to `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.full = False
        """Whether `max_bytes` left something out."""
        self.rows = 0
        """The number of rows kept, of all heads."""
        self._pairs: dict[tuple[int, int, float], dict[str, Pair]] = {}
        self._takes: dict[tuple[int, str, float], int] = {}
        self._scores: dict[int, dict[str, Scores]] = {}

    def keep_pair(
        self, text: int, layer: str, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, scale: float
    ) -> None:
        """Keeps queries [heads, rows, head_dim] and all keys of the text so far, from any device."""
        take = self._takes.get((text, layer, scale), 0)
        pair = self._pairs.get((text, take, scale), {}).get(layer, Pair())
        if not pair.begins(k):
            take, pair = take + 1, Pair()
        if self._has_room(q, k[:, pair.known_keys :]):
            self._takes[text, layer, scale] = take
            self._pairs.setdefault((text, take, scale), {})[layer] = pair
            pair.extend(k)
            pair.queries.append(_copied(q))
            pair.positions.append(_copied(positions))
            self.rows += q.shape[0] * q.shape[1]

    def keep_scores(self, text: int, layer: str, scores: torch.Tensor, positions: torch.Tensor) -> None:
        """Keeps scores [heads, rows, keys] from the CPU."""
        if self._has_room(scores):
            kept = self._scores.setdefault(text, {}).setdefault(layer, Scores())
            kept.scores.append(scores)
            kept.positions.append(_copied(positions))
            self.rows += scores.shape[0] * scores.shape[1]

    def _has_room(self, *tensors: torch.Tensor) -> bool:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.full = self.full or self.bytes + size > self.max_bytes
        self.bytes += 0 if self.full else size
        return not self.full

    def save(self, path: str | os.PathLike[str], model: str) -> list[Path]:
        """Writes a file for each text, scale, and kind of tensors: to `path`, or to its stem with numbers.
        Files that an earlier call left there are removed, for a diagnosis would mix the two."""
        pairs, scores = self._pairs.items(), self._scores.items()
        files = [(text, {"scale": repr(scale)}, _pair_tensors(of)) for (text, _, scale), of in pairs]
        files += [(text, {}, _score_tensors(of)) for text, of in scores]
        files.sort(key=lambda file: file[0])
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a name that ends in .safetensors")
        width = len(str(len(files) - 1))
        written = []
        for number, (text, metadata, tensors) in enumerate(files):
            to = path if len(files) == 1 else path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}")
            _write(to, tensors, {**metadata, "model": model, "text": str(text), _MARK: path.name})
            written.append(to)
        for left in _saved_as(path):
            if left not in written:
                left.unlink()
        return written


# The metadata entry of every file here. It holds the name that `save` was called with.
_MARK = "critbeta.save"


def _saved_as(path: Path) -> list[Path]:
    """Returns the files that calls of `save` with this path have written, and no others: what has the name
    but not the mark is not ours."""
    name = re.compile(rf"{re.escape(path.stem)}(-\d+)?{re.escape(path.suffix)}")
    found = []
    for file in path.parent.iterdir():
        if name.fullmatch(file.name) and file.is_file() and not file.is_symlink():
            try:
                with safe_open(file, "pt") as tensors:
                    mark = (tensors.metadata() or {}).get(_MARK)
            except (OSError, SafetensorError):
                continue
            if mark == path.name:
                found.append(file)
    return found


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bits of a tensor: they compare equal where both are the same NaN."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy on the CPU, because the model may write to its cache."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _pair_tensors(layers: dict[str, Pair]) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, pair in layers.items():
        tensors[f"{layer}.q"] = torch.cat(pair.queries, 1)
        assert pair.keys is not None
        tensors[f"{layer}.k"] = pair.keys.contiguous()
        tensors[f"{layer}.positions"] = torch.cat(pair.positions)
    return tensors


def _score_tensors(layers: dict[str, Scores]) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, kept in layers.items():
        width, pad = max(part.shape[2] for part in kept.scores), torch.nn.functional.pad
        wide = [pad(part, (0, width - part.shape[2]), value=-torch.inf) for part in kept.scores]
        tensors[layer] = torch.cat(wide, 1)
        tensors[f"{layer}.positions"] = torch.cat(kept.positions)
    return tensors


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a file whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".critbeta-") as folder:
        whole = Path(folder) / path.name
        save_file(tensors, whole, metadata=metadata)
        os.replace(whole, path)
