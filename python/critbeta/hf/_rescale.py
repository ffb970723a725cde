"""A model at another inverse temperature."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import _host, _tensors
from .._core import Rescaling
from .._layers import calibrated, check_heads, own_names
from ._decode import Runs, decoded, is_step, runs_of
from ._interface import Call, Session, in_backward, module_of
from ._modules import heads_of
from ._named import NAME
from ._parallel import first_head
from ._scores import in_float32, refuse_sinks, scores
from ._visible import Visible, VisibleKeys

_TILE_BYTES = 64 << 20
_IDENTITY = Rescaling.parse("identity")
_HEED_SCALE = ("sdpa", NAME, "flash_attention_2", "flash_attention_3")


class Rescaled:
    """A model under a rescaling, until `remove()` or the end of a `with` block."""

    def __init__(
        self, model: nn.Module, rescaling: str | Rescaling, decode: str | None = None, eps: float = 0.0
    ) -> None:
        if decode not in (None, "critbeta"):
            raise ValueError(f"decode {decode!r}: expected None or 'critbeta'")
        if not 0.0 <= eps < 1.0:
            raise ValueError(f"eps {eps}: expected at least 0 and below 1")
        if decode is None and eps > 0.0:
            raise ValueError(f"eps {eps} is for decode='critbeta': other attention reads all values")
        calibration = calibrated(rescaling) if isinstance(rescaling, str) else None
        self.model = model
        self.rescaling = str(rescaling)
        """The text of the rescaling."""
        self._decode, self._eps = decode is not None, eps
        self._session = Session(model, replace=self._attention)
        self._visible = VisibleKeys(self._session.forward)
        self._known_betas: weakref.WeakKeyDictionary[Visible, dict[tuple[str, ...], torch.Tensor]]
        self._known_betas = weakref.WeakKeyDictionary()
        self._known_runs: weakref.WeakKeyDictionary[Visible, Runs | None] = weakref.WeakKeyDictionary()
        try:
            self._rules = self._rules_of(rescaling, calibration)
        except BaseException:
            self._session.close()
            raise

    def remove(self) -> None:
        """Gives the model its own attention back. A second call does nothing."""
        self._session.close()
        self._visible.clear()

    def __enter__(self) -> Rescaled:
        if not self._session.is_open:
            raise RuntimeError("this rescaling was removed: call rescale(model, ...) again")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.remove()
        if kind is None:
            self._session.raise_error()

    def __repr__(self) -> str:
        return f"<critbeta.hf.Rescaled {self.rescaling!r}, {len(self._rules)} layers>"

    def _rules_of(
        self,
        rescaling: str | Rescaling,
        calibration: tuple[dict[str, dict[int, Rescaling]], int] | None,
    ) -> dict[str, list[Rescaling]]:
        """Returns the rules of every layer: one, or one per head."""
        layers = self._session.layers
        if calibration is None:
            rule = _host.rule(rescaling)
            return {name: [rule] for name in layers}
        by_name, inconclusive = calibration
        own = own_names(self.rescaling, by_name, layers, module_of)
        rules = {own[name]: of_layer for name, of_layer in by_name.items()}
        for layer, of_layer in rules.items():
            check_heads(self.rescaling, layer, of_layer, heads_of(layers[module_of(layer)]))
        if inconclusive:
            laws = sum(map(len, rules.values()))
            found = f"{inconclusive} of the {laws} laws of this calibration are inconclusive"
            warnings.warn(f"{self.rescaling}: {found}", stacklevel=4)
        return {layer: [of_layer[head] for head in sorted(of_layer)] for layer, of_layer in rules.items()}

    def _rules_at(self, layer: str) -> list[Rescaling]:
        """Returns the rules of a layer that runs."""
        module = module_of(layer)
        repeated = any(name.startswith(f"{module}#") for name in self._rules)
        if repeated and in_backward():
            reason = "which of its layers it is, is known in the forward pass only"
            raise RuntimeError(f"{module} runs again for a gradient: {reason}. Do not checkpoint gradients")
        rules = self._rules.get(layer if repeated else module)
        if rules is None:
            expected = "calibrate the model on texts that make it run"
            raise ValueError(f"{self.rescaling}: does not cover {layer}, which runs: {expected}")
        return rules

    def _attention(self, call: Call) -> Any:
        rules = self._rules_at(call.layer)
        runs = self._runs(call)
        plain = all(str(rule) == "identity" for rule in rules)
        if plain and runs is None:
            return call.run()
        heads, first = call.query.shape[1], first_head(call) if len(rules) > 1 else None
        rules = rules if first is None else rules[first : first + heads]
        if len(rules) not in (1, heads):
            expected = f"expected the {len(rules)} of the calibration"
            raise ValueError(f"{self.rescaling}: {call.layer} has {heads} heads, {expected}")
        refuse_sinks(call.layer, call.kwargs)
        visible = self._visible.of(call)
        measured = any(rule.resolve is not None or rule.needs_entropy for rule in rules)
        if runs is not None and (plain or measured):
            return decoded(call, runs, call.query, call.scaling, rules, self._eps)
        # Scaled queries would not scale a softcap, a bias, or a mask that adds to scores.
        if measured or call.changes_products or visible.biased:
            with in_float32(call):
                return _tiled(call, visible, rules)
        beta = self._betas(visible, call, rules)
        one = float(beta.flatten()[0]) if bool((beta == beta.flatten()[0]).all()) else None
        wide = torch.promote_types(call.query.dtype, torch.float32)
        if runs is not None:
            query = call.query if one is not None else call.query.to(wide) * beta.to(wide)
            scale = call.scaling * (1.0 if one is None else one)
            return decoded(call, runs, query, scale, [_IDENTITY], self._eps)
        if one == 1:
            return call.run()
        # Other functions may ignore their scale, as Llama 4's vision model does; sdpa makes NaN from scale 0.
        if one and call.implementation in _HEED_SCALE:
            return call.run(scaling=call.scaling * one)
        # The product is rounded once, to any dtype.
        return call.run(query=(call.query.to(wide) * beta.to(wide)).to(call.query.dtype))

    def _runs(self, call: Call) -> Runs | None:
        """Returns the keys that a decoding step sees, or None for a call that critbeta.decode does not run."""
        if not self._decode or not is_step(call):
            return None
        visible = self._visible.of(call)
        if visible not in self._known_runs:
            self._known_runs[visible] = runs_of(visible)
        return self._known_runs[visible]

    def _betas(self, visible: Visible, call: Call, rules: list[Rescaling]) -> torch.Tensor:
        known = self._known_betas.setdefault(visible, {})
        key = tuple(str(rule) for rule in rules)
        if key not in known:
            known[key] = _betas(visible, rules, call.query.dtype, f"{self.rescaling}: {call.layer}")
        return known[key]


def _betas(visible: Visible, rules: list[Rescaling], dtype: torch.dtype, place: str) -> torch.Tensor:
    """Returns the betas of `rules` (one rule, or one per head): float64 [batch or 1, heads or 1, rows, 1]."""
    counts, positions = visible.counts().cpu().numpy(), visible.positions[:, None].cpu().numpy()
    counts, positions = np.broadcast_arrays(counts, positions)
    by_head = []
    for head, rule in enumerate(rules):
        # A single mask and a single rule hold for all heads.
        at = head if counts.shape[1] > 1 else 0
        of_head = slice(None) if len(rules) == 1 else slice(at, at + 1)
        n, where = (np.ascontiguousarray(rows[:, of_head]) for rows in (counts, positions))
        betas = rule.betas(n.ravel(), where.ravel()).reshape(n.shape)
        # A row of at most one key has the same weights at any beta. It takes that of another row, so that one
        # beta for all rows stays one number.
        by_head.append(np.where(n > 1, betas, betas[n > 1].min() if (n > 1).any() else 1.0))
    betas, most = np.concatenate(by_head, axis=1), torch.finfo(dtype).max
    bad = np.argwhere(~(betas <= most))
    if len(bad):
        text, head, row = bad[0]
        found = f"beta = {betas[text, head, row]} for row {row} of head {head}"
        raise ValueError(f"{place}: {found}, expected at most {most:.5g}, which {dtype} holds")
    return torch.from_numpy(betas[..., None]).to(visible.positions.device)


def _tiled(call: Call, visible: Visible, rules: list[Rescaling]) -> tuple[torch.Tensor, None]:
    """Returns rescaled attention [batch, rows, heads, head_dim], computed a tile of rows x keys at a time."""
    batch, heads, rows, _ = call.query.shape
    kv_heads, keys, value_dim = call.value.shape[1:]
    dropout = float(call.kwargs.get("dropout") or 0.0)
    step = max(1, _TILE_BYTES // (4 * heads * max(keys, 1)))
    out = []
    for text in range(batch):
        value = call.value[text].float()
        positions = visible.positions[min(text, len(visible.positions) - 1)]
        of_text = []
        for at in torch.split(torch.arange(rows, device=call.query.device), step):
            end = visible.end(at)
            weights = _weights(scores(call, visible, text, at, end), rules, positions[at])
            weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
            mixed = torch.matmul(weights.reshape(kv_heads, -1, end), value[:, :end])
            mixed = mixed.view(heads, len(at), value_dim).transpose(0, 1)
            of_text.append(mixed.to(call.query.dtype))
        out.append(torch.cat(of_text))
    return torch.stack(out), None


def _weights(tile: torch.Tensor, rules: list[Rescaling], positions: torch.Tensor) -> torch.Tensor:
    """Returns the rescaled softmax of scores [heads, rows, keys], in place where no gradient is needed."""
    pairs = list(zip(torch.split(tile, len(tile) // len(rules)), rules))
    if tile.requires_grad:
        return torch.cat([_tensors.softmax(part, rule, positions=positions) for part, rule in pairs])
    for part, rule in pairs:
        _tensors.softmax(part, rule, out=part, positions=positions)
    return tile


def rescale(
    model: nn.Module, rescaling: str | Rescaling, *, decode: str | None = None, eps: float = 0.0
) -> Rescaled:
    """Runs `model` at another inverse temperature: `rescaling` chooses the beta of every row of scores.

    rescaling: a `critbeta.Rescaling` or its text, such as "qwen-logn:train=8192", "fixed:1.1",
        "critical:resolve=0.69,cap=8", or "calibrated:cal.json,anchor=8192" with one law per layer and head,
        from `Stats.to_calibration` or `critbeta diagnose --calibration`.

    Returns a handle. Its `remove()`, or the end of a `with` block, gives the model its own attention back. A
    deepcopy of the model has its own attention from the start. Only the attention of `model` itself is
    rescaled: for a model that also reads images, pass its text model.

    A length law multiplies the queries (or the scale of sdpa and flash attention, where beta is one number
    for all rows), and the model's own attention runs as before: fused kernels, caches, gradients. n is the
    number of keys that a row sees under the mask of its layer; padding, other texts of a packed batch, and
    keys beyond a window do not count. A position is that of the query in its own text, with any padding and
    any cache; in cross-attention it is that of the attention before it. Every layer is rescaled, even if the
    law was published for some layers only. Scaled queries are rounded once to their dtype (in bfloat16 by up
    to 2^-9, like any operation in bfloat16). A row of at most one key, whose weights are the same at any
    beta, takes the smallest beta of the others. "identity", and a law where it is 1, change no bit.

    Some rules run here instead, for studies: rules that are measured on each row (critical, velickovic), and
    every rule where a softcap or an additive mask stands between the products and the softmax. They use
    float32 scores in tiles of at most 64 MB, and return no attention weights. There beta multiplies the whole
    logit with softcap and bias. It is a constant to gradients, which keep all tiles.

    decode: "critbeta" runs decoding steps through `critbeta.decode`, on the cache as it lies: 1 to 8 tokens
        a text with keys of earlier tokens, each of which sees one run of keys (padding on the left, a window
        or a static cache are fine). Attention with gradients, dropout, sinks, a bias, or a softcap under a
        length law runs as before, and so does the prompt. head_dim is a multiple of 8 from 64 to 256, and
        the model is on the CPU in float32, float16 or bfloat16. Scaled queries stay in float32.
    eps: the share of each row's weights whose values may stay unread in these steps, 0 <= eps < 1.

    Raises ValueError for a rescaling that does not parse, for a calibration with other layers or heads than
    the model's, for a model that does not call attention through transformers' AttentionInterface or is
    rescaled already, and, when it runs, for learned sinks; OSError for a file that cannot be read. Warns
    about laws that their calibration calls inconclusive.

    Source: docs/how-it-works.md, "Choosing beta"; the laws: `critbeta.laws`.
    """
    return Rescaled(model, rescaling, decode, eps)
