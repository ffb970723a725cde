"""Rows that are bit-equal to one that was measured count once. A layer may call its attention twice, and
beams, copies of a prompt and texts with a common beginning repeat rows. Counted again they would look like
independent rows, and intervals would come out too narrow."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


class Repeats:
    """The rows that were measured, as digests of 16 bytes."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def new_in_pair(
        self, place: str, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Returns the indices of the new ones of the rows q [heads, rows, head_dim]. Row r sees the keys
        k [kv_heads, keys, head_dim] from the first to positions[r]. `place` names the layer and the scale.
        All tensors are on the CPU."""
        keys, queries = _rows_of_bits(k), _rows_of_bits(q)
        seen_by, done, new = hashlib.blake2b(place.encode(), digest_size=16), 0, []
        # The keys of a longer row begin with those of a shorter one.
        for row, end in sorted(enumerate((positions + 1).tolist()), key=lambda pair: pair[1]):
            seen_by.update(_buffer(keys[done:end].reshape(-1)))
            done, of_row = end, seen_by.copy()
            of_row.update(_buffer(queries[row]))
            if self._is_new(of_row.digest()):
                new.append(row)
        return torch.tensor(sorted(new), dtype=torch.int64)

    def new_in_scores(self, place: str, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Returns the indices of the new ones of the rows scores [heads, rows, keys], on the CPU. How many
        masked keys lie around those that a row sees does not matter."""
        new, seen = [], (scores != -torch.inf).any(0)
        for row, position in enumerate(positions.tolist()):
            columns = seen[row].nonzero().flatten().tolist() or [0]
            of_keys = scores[:, row : row + 1, columns[0] : columns[-1] + 1]
            of_row = hashlib.blake2b(f"{place} {position}".encode(), digest_size=16)
            of_row.update(_buffer(_rows_of_bits(of_keys)[0]))
            if self._is_new(of_row.digest()):
                new.append(row)
        return torch.tensor(new, dtype=torch.int64)

    def _is_new(self, digest: bytes) -> bool:
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) > before


def _rows_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of a tensor [heads, rows, n] by row: uint8 [rows, bytes]."""
    by_row = tensor.detach().transpose(0, 1).contiguous()
    return by_row.reshape(len(by_row), -1).view(torch.uint8)


def _buffer(of_bytes: torch.Tensor) -> Any:
    return of_bytes.numpy()
