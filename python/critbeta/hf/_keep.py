"""Queries, keys and scores that are kept for a file, and the files."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass
class Pair:
    """Queries of a layer and all keys that they may see: [heads, rows, head_dim] each, [kv_heads, keys, head_dim]."""

    queries: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    known_keys: int = 0
    _keys: torch.Tensor | None = None

    @property
    def keys(self) -> torch.Tensor | None:
        return None if self._keys is None else self._keys[:, : self.known_keys]

    def begins(self, k: torch.Tensor) -> bool:
        """Whether the keys known so far are the first of `k`: a cache may have been cut back, or taken from another beam."""
        return self.keys is None or torch.equal(_bits(self.keys.to(k.device)), _bits(k[:, : self.known_keys]))

    def extend(self, k: torch.Tensor) -> None:
        """Takes the keys of `k` that are not known yet."""
        more = k.shape[1] - self.known_keys
        if more <= 0:
            return
        if self._keys is None:
            self._keys = _copied(k)
        else:
            if self._keys.shape[1] < k.shape[1]:
                # By halves more, so that a text of n decoding steps is not copied n times.
                room = torch.empty(k.shape[0], k.shape[1] * 3 // 2, k.shape[2], dtype=k.dtype)
                room[:, : self.known_keys] = self._keys[:, : self.known_keys]
                self._keys = room
            self._keys[:, self.known_keys : k.shape[1]] = k[:, self.known_keys :]
        self.known_keys = k.shape[1]


@dataclass
class Scores:
    """Scores of a layer, [heads, rows, keys] each, -inf where masked."""

    scores: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)


class Store:
    """What is kept of every text, up to `max_bytes`; from then on nothing more."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.full = False
        """Whether something was left out."""
        self.rows = 0
        """Rows of heads that are kept."""
        self._pairs: dict[tuple[int, int, float], dict[str, Pair]] = {}
        self._takes: dict[tuple[int, str, float], int] = {}
        self._scores: dict[int, dict[str, Scores]] = {}

    def keep_pair(
        self, text: int, layer: str, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, scale: float
    ) -> None:
        """Queries [heads, rows, head_dim] and all keys of the text so far, on whatever device."""
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
        """Scores [heads, rows, keys], on the CPU."""
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
        """Writes one file for each text, scale, and kind of tensors: `path` if that is one, else its stem with numbers."""
        files = [(text, {"scale": repr(scale)}, _pair_tensors(layers)) for (text, _, scale), layers in self._pairs.items()]
        files += [(text, {}, _score_tensors(layers)) for text, layers in self._scores.items()]
        files.sort(key=lambda file: file[0])
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a name that ends in .safetensors")
        width = len(str(len(files) - 1))
        written = []
        for number, (text, metadata, tensors) in enumerate(files):
            to = path if len(files) == 1 else path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}")
            _write(to, tensors, {**metadata, "model": model, "text": str(text)})
            written.append(to)
        return written


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN is what it was."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in memory of its own: a cache may be written to."""
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
        width = max(part.shape[2] for part in kept.scores)
        wide = [torch.nn.functional.pad(part, (0, width - part.shape[2]), value=-torch.inf) for part in kept.scores]
        tensors[layer] = torch.cat(wide, 1)
        tensors[f"{layer}.positions"] = torch.cat(kept.positions)
    return tensors


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".critbeta-") as folder:
        whole = Path(folder) / path.name
        save_file(tensors, whole, metadata=metadata)
        os.replace(whole, path)
