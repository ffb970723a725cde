"""The betas of the layers of a model for the tokens of a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from .. import _cuda
from .._core import Rescaling
from .._layers import are_same, calibrated, check_heads, own_names
from ._layers import Layer
from ._requests import Requests, measured


class _Law(NamedTuple):
    """The factor of all heads of some layers, by position."""

    table: torch.Tensor
    """beta, float32 [positions]."""


class _Powers(NamedTuple):
    """exp(a + xi ln ln n) for every head of some layers."""

    table: torch.Tensor
    """ln ln n, float32 [positions]."""
    a: torch.Tensor
    """float32 [heads of these layers]."""
    xi: torch.Tensor
    """float32 [heads of these layers]."""


class Betas:
    """The rule of a server for the layers that a process has, ready for any step.

    rescaling: the text of a rule ("qwen-logn:train=8192"), or "calibrated:FILE" with one law per layer and
        head. It is one rule for all requests: requests under other rules have other keys and values for the
        same tokens, and a server that shares prefix blocks would mix them.
    layers: the layers.
    length: the largest number of tokens of a sequence. Positions beyond it count as the last one.
    dtype, device: those of the queries.
    whole: whether these are all layers of the model. Otherwise a calibration may have others too, which other
        processes run.

    Raises ValueError, with the name of the layer, for a rule that cannot apply: a layer with a softcap,
    learned sinks or ALiBi, a calibration with other layers or heads, betas that `dtype` does not hold, a
    measured rule without a bound. Raises OSError for a calibration that cannot be read, and RuntimeError
    where rows are measured on a GPU and its kernels do not load.

    Source: docs/adr/0015-servers.md.
    """

    def __init__(
        self,
        rescaling: str,
        layers: Iterable[Layer],
        length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        whole: bool = True,
    ) -> None:
        if not isinstance(rescaling, str):
            expected = (
                "expected the text of one rule for all requests. Rules that differ by request would mix "
            )
            raise TypeError(f"rescaling is {type(rescaling).__name__}: {expected}in shared prefix blocks")
        if length < 1:
            raise ValueError(f"length {length}: expected at least 1")
        self.rescaling, self.length, self.device = rescaling, length, torch.device(device)
        self.layers = {layer.name: layer for layer in layers}
        self._most = torch.finfo(dtype).max
        rules, self.inconclusive = _rules_of(rescaling, self.layers, whole)
        if any(str(rule) != "identity" for of_layer in rules.values() for rule in of_layer):
            for layer in self.layers.values():
                layer.refuse_rule(rescaling)
        self.measured: dict[str, list[Rescaling]] = {}
        """The rules that are measured on each row, by layer."""
        self._groups: list[tuple[_Law | _Powers, int]] = []
        self._columns: dict[str, tuple[int, slice]] = {}
        """The group of a layer, and its columns there."""
        self._place(rules)
        if self.measured and self.device.type == "cuda":
            # A server that cannot measure does not start.
            _cuda.engine(self.device)

    def step(self, tokens: int) -> Step:
        """Returns room for the betas of up to `tokens` tokens: 1, until they are filled in."""
        return Step(self, tokens)

    def _place(self, rules: dict[str, list[Rescaling]]) -> None:
        shared: dict[tuple[str, int | None], int] = {}
        powers: dict[int | None, list[tuple[Layer, list[tuple[float, float]]]]] = {}
        for name, of_layer in rules.items():
            layer = self.layers[name]
            if any(rule.resolve is not None or rule.needs_entropy for rule in of_layer):
                self._check_measured(layer, of_layer)
                self.measured[name] = of_layer
            elif len(of_layer) == 1:
                self._place_law(layer, of_layer[0], shared)
            else:
                laws = [law for rule in of_layer if (law := rule.log_power) is not None]
                if len(laws) < len(of_layer):
                    raise ValueError(f"{self.rescaling}: {name}: expected calibrated laws of its heads")
                powers.setdefault(layer.window, []).append((layer, laws))
        for window, members in powers.items():
            self._place_powers(window, members)

    def _place_law(self, layer: Layer, rule: Rescaling, shared: dict[tuple[str, int | None], int]) -> None:
        if str(rule) == "identity":
            return
        key = str(rule), layer.window
        if key not in shared:
            n, positions = self._rows(layer.window)
            betas = rule.betas(n, positions)
            self._check(layer, betas[None])
            shared[key] = len(self._groups)
            self._groups.append((_Law(self._tensor(betas)), 1))
        self._columns[layer.name] = shared[key], slice(0, 1)

    def _place_powers(
        self, window: int | None, members: list[tuple[Layer, list[tuple[float, float]]]]
    ) -> None:
        n, _ = self._rows(window)
        lnln = np.log(np.log(np.maximum(n, 2)))
        end = 0
        for layer, laws in members:
            self._columns[layer.name] = len(self._groups), slice(end, end + len(laws))
            end += len(laws)
            a, xi = np.array(laws).T
            # A power is largest at one of the ends.
            with np.errstate(over="ignore"):
                self._check(layer, np.exp(a[:, None] + xi[:, None] * lnln[[0, -1]]))
        a, xi = np.array([law for _, laws in members for law in laws]).T
        self._groups.append((_Powers(self._tensor(lnln), self._tensor(a), self._tensor(xi)), end))

    def _rows(self, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(self.length, dtype=np.int64)
        return np.minimum(positions + 1, window or self.length), positions

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    def _check(self, layer: Layer, betas: np.ndarray) -> None:
        """Raises ValueError for a beta of `betas` [heads, positions] that is no factor."""
        bad = np.argwhere(~(betas <= self._most))
        if len(bad):
            head, at = bad[0]
            found = f"beta = {betas[head, at]} for head {layer.first + head}"
            expected = f"expected at most {self._most:.5g}, which the queries hold"
            raise ValueError(f"{self.rescaling}: {layer.name}: {found}, {expected}")

    def _check_measured(self, layer: Layer, rules: list[Rescaling]) -> None:
        for rule in rules:
            most = rule.beta(2, critical=float("inf"), entropy=0.0)
            if not most <= self._most:
                found = f"{rule} gives a row with a tied maximum beta = {most}, and a factor must be finite"
                raise ValueError(f"{self.rescaling}: {layer.name}: {found}: give it a cap, as in cap=8")


class Step:
    """The betas of the tokens of one step. A captured graph may read them: they stay where they are."""

    def __init__(self, betas: Betas, tokens: int) -> None:
        self.betas, self.tokens = betas, tokens
        self._filled = [torch.ones(tokens, columns, device=betas.device) for _, columns in betas._groups]
        most = max((betas.layers[name].heads for name in betas.measured), default=0)
        # Layers run one after another, so they share it.
        self._measured = torch.ones(tokens * most, device=betas.device)

    def fill(self, positions: torch.Tensor) -> Step:
        """Fills in the betas of tokens at `positions`, int [tokens] on the device, 0-based. It waits for
        nothing, so that a CUDA graph can capture it. Returns itself."""
        if self._filled:
            if len(positions) > self.tokens:
                found = f"positions of shape {tuple(positions.shape)}"
                raise ValueError(f"{found}: expected at most {self.tokens} tokens")
            # What pads a batch may have any position.
            at = positions.clamp(0, self.betas.length - 1)
            for (group, _), filled in zip(self.betas._groups, self._filled):
                rows = group.table.index_select(0, at)[:, None]
                if isinstance(group, _Powers):
                    rows = torch.addcmul(group.a, group.xi, rows).exp_()
                filled[: len(at)] = rows
        return self

    def of(self, layer: str) -> torch.Tensor | None:
        """Returns the betas of a layer, float32 [tokens, heads], or [tokens, 1] where its heads share one. It
        returns None where beta is 1, and where it is measured."""
        place = self.betas._columns.get(layer)
        return None if place is None else self._filled[place[0]][:, place[1]]

    def measure(
        self, layer: str, query: torch.Tensor, requests: Requests, k_pages: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `scale`, for a layer whose rules are measured. The arguments are those of `measured`. On a GPU
        the betas go to memory that this step owns, and nothing waits for them."""
        if layer not in self.betas.measured:
            raise ValueError(f"{self.betas.rescaling} is not measured on {layer}: expected a call of scale")
        of, tokens = self.betas.layers[layer], sum(requests.counts)
        if tokens > self.tokens or len(query) < tokens:
            found = f"query of shape {tuple(query.shape)} and {tokens} tokens of requests"
            raise ValueError(f"{found}: expected a query for each, and at most {self.tokens} tokens")
        out = self._measured[: tokens * of.heads].view(tokens, of.heads)
        beta = measured(self.betas.measured[layer], of, requests, query, k_pages, scale, out)
        scaled = query.clone()
        scaled[:tokens] = (query[:tokens] * beta[..., None]).to(query.dtype)
        return scaled

    def scale(self, layer: str, query: torch.Tensor) -> torch.Tensor:
        """Returns `query` [tokens, heads, head_dim] times beta, rounded once to its dtype. The given tensor
        keeps its values; where beta is 1 it is returned itself."""
        beta = self.of(layer)
        if beta is None:
            return query
        return (query * beta[: len(query), :, None]).to(query.dtype)


def _rules_of(
    rescaling: str, layers: dict[str, Layer], whole: bool
) -> tuple[dict[str, list[Rescaling]], int]:
    """Returns the rules of every layer, one or one for each of its heads in this process, and how many laws
    of the calibration are inconclusive."""
    calibration = calibrated(rescaling)
    if calibration is None:
        return {name: [Rescaling.parse(rescaling)] for name in layers}, 0
    by_name, inconclusive = calibration
    if not whole:
        by_name = {
            name: rules for name, rules in by_name.items() if any(are_same(name, own) for own in layers)
        }
    own = own_names(rescaling, by_name, layers)
    rules = {own[name]: of_layer for name, of_layer in by_name.items()}
    missing = [name for name in layers if name not in rules]
    if missing:
        raise ValueError(f"{rescaling}: does not cover {missing[0]}: calibrate the whole model")
    found = {}
    for name, of_layer in rules.items():
        layer = layers[name]
        check_heads(rescaling, name, of_layer, layer.all_heads)
        found[name] = [of_layer[head] for head in range(layer.first, layer.first + layer.heads)]
    return found, inconclusive
