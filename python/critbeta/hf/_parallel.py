"""The heads of a layer that this process holds, where tensor parallelism splits them over several."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from ._interface import Call
from ._modules import heads_of

# Projections that make queries, alone or with keys and values: q_proj, q_b_proj, query, qkv_proj, Wqkv.
_QUERY = re.compile(r"(^|[._])(w?q|query|w?qkv|q_?gate)([._]|$)|query_key_value|c_attn", re.IGNORECASE)
_EXPECTED = "expected a plan that shards the rows of its query projection evenly (colwise)"


def first_head(call: Call) -> int | None:
    """Returns the number of the first query head of a call among all heads of its layer, or None where the
    process has them all.

    Raises ValueError where the layer has more heads than the call, and its parameters do not say which ones
    these are.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() == 1:
        return None
    heads, total = call.query.shape[1], heads_of(call.module)
    # A plan may gather the projections: then each process has all heads.
    if heads == total:
        return None
    found = {first for first in _firsts(call.module, heads, total) if first is not None}
    if len(found) == 1 and -1 not in found:
        return found.pop()
    # Other models have layers with fewer heads than their configuration says, in every process.
    parts = total // heads if total is not None and total % heads == 0 else 0
    if found or parts > 1 and torch.distributed.get_world_size() % parts == 0:
        of = "its" if total is None else f"the {total}"
        raise ValueError(
            f"{call.layer} computes {heads} of {of} heads in this process, and its parameters do not say "
            f"which ones: {_EXPECTED}, or one that gathers its output"
        )
    return None


def _firsts(module: nn.Module, heads: int, total: int | None) -> list[int | None]:
    """Returns what each query projection that is sharded says; None for one that says nothing."""
    found: list[int | None] = []
    for name, parameter in module.named_parameters():
        of_query = _QUERY.search(name) is not None and "norm" not in name
        mesh = getattr(parameter, "device_mesh", None)
        if of_query and mesh is not None:
            found.append(_of_shard(parameter, heads, total))
    for name, part in module.named_modules():
        # Versions before DTensor kept local tensors, and their plan beside them.
        plan, mesh = getattr(part, "_hf_tp_plan", None), getattr(part, "_hf_device_mesh", None)
        if mesh is None or not _QUERY.search(name) or "colwise" not in str(plan):
            continue
        if not any(hasattr(parameter, "device_mesh") for parameter in part.parameters()):
            found.append(mesh.get_local_rank() * heads if heads * mesh.size() == total else -1)
    return found


def _of_shard(parameter: Any, heads: int, total: int | None) -> int | None:
    """Returns the first head that a shard of a projection, a DTensor [heads x rows, ...], holds. It returns
    None for a tensor that is whole, and -1 for one that is split in another way."""
    rows_at = max(0, parameter.ndim - 2)
    shards = [(at, placement) for at, placement in enumerate(parameter.placements) if _is_shard(placement)]
    if not shards:
        return None
    if len(shards) > 1 or shards[0][1].dim % parameter.ndim != rows_at:
        return -1
    at, _ = shards[0]
    mesh, rows = parameter.device_mesh, parameter.shape[rows_at]
    size, rank = mesh.size(at), mesh.get_local_rank(at)
    if rows % (heads * size) or total not in (None, heads * size):
        return -1
    return int(rank * heads)


def _is_shard(placement: Any) -> bool:
    # A strided shard takes a part of each of several packed projections; only some versions call it a shard.
    return bool(placement.is_shard()) or type(placement).__name__ == "_StridedShard"
