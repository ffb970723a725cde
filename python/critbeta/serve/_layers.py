"""What a door knows about an attention layer of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """An attention layer as one process of a server has it.

    A server's door makes one for each layer when the model is loaded, from what its kernels are told.
    """

    name: str
    """The name of its module, as `critbeta.hf.record` has it: "model.layers.0.self_attn"."""
    heads: int
    """The number of query heads in this process."""
    first: int = 0
    """The number of the first of them among all heads of the layer: under tensor parallelism, rank * heads."""
    total: int | None = None
    """The number of heads in all processes; `heads` if not given."""
    window: int | None = None
    """How many keys a query sees at most, its own included; None without a sliding window."""
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    decoder: bool = True
    """Whether every query sees the keys up to its own, and no others."""
    chunks: bool = False
    """Whether a query sees no keys of earlier chunks of positions."""

    def __post_init__(self) -> None:
        if self.heads < 1 or not 0 <= self.first <= self.all_heads - self.heads:
            found = f"heads {self.first} to {self.first + self.heads - 1} of {self.all_heads}"
            raise ValueError(f"{self.name}: {found}: expected at least one head, and none beyond the last")
        if self.window is not None and self.window < 1:
            raise ValueError(f"{self.name}: window {self.window}: expected at least 1, the query's own key")

    @property
    def all_heads(self) -> int:
        return self.heads if self.total is None else self.total

    def refuse_rule(self, rescaling: str) -> None:
        """Raises ValueError where a factor on queries is not a factor on logits."""
        reason = self.unlike_products()
        if self.softcap:
            reason = f"has a softcap ({self.softcap:g}): a factor on its queries would go through tanh"
        if reason:
            raise ValueError(f"{rescaling}: cannot be applied to {self.name}, which {reason}")

    def unlike_products(self) -> str | None:
        """Says why the softmax of this layer does not see products of queries and keys alone."""
        if self.sinks:
            return "has learned sinks: its softmax sees a logit that belongs to no key"
        if self.alibi:
            return "has ALiBi: its softmax sees a bias that no factor on queries multiplies"
        if not self.decoder:
            return "is no decoder: n is not the position of a query"
        if self.chunks:
            return "attends within chunks: n is not the position of a query"
        return None
