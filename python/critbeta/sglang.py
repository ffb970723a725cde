"""critbeta inside SGLang: rules and recording for its own attention kernels.

SGLang finds `register` by the entry point group `sglang.srt.plugins`. What it does is told by the
environment: see `critbeta.serve.Settings`. Without CRITBETA_RESCALE and CRITBETA_CONFIG it does nothing.
Recording is asked for by SGLang's own option, and needs its CUDA graphs off:

    CRITBETA_RESCALE=qwen-logn:train=32768 python -m sglang.launch_server --model-path MODEL
    python -m sglang.launch_server --model-path MODEL --disable-cuda-graph --forward-hooks \\
        '[{"name": "critbeta", "target_modules": ["model.layers.*.self_attn.attn"],
           "hook_factory": "critbeta.sglang:recorder", "config": {"record": "records"}}]'

Source: docs/adr/0015-servers.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._servers import SGLANG

# SGLang goes on without a plugin that cannot be imported. So nothing is imported here that may be missing.
if TYPE_CHECKING:
    from .serve import Betas, Layer, Recorder, Requests, Settings, Step

LOG = logging.getLogger("critbeta.sglang")
# What is noted on a batch.
_BATCH, _RECORD = "_critbeta", "_critbeta_record"


def register() -> None:
    """Registers the hooks of a rule, if the environment has one. SGLang calls it in each of its processes.

    Raises SystemExit for an SGLang that lacks what this needs, for a text that is no rule, and for the
    errors of `critbeta.serve.Settings.from_environment`: SGLang logs any other exception of a plugin, and
    would go on without the rule."""
    try:
        _register()
    except Exception as error:
        raise SystemExit(f"error: {error}") from error


def _register() -> None:
    from .serve import Settings

    settings = Settings.from_environment()
    if settings.record is not None:
        reason = "SGLang records by its option --forward-hooks, see critbeta.sglang"
        LOG.warning("record=%s is left alone: %s", settings.record, reason)
    if settings.rescale is None:
        return
    hooks, layers = SGLANG.part("srt.plugins.hook_registry", "HookRegistry"), _checked()
    door, target = Door(settings.rescale), f"{layers.__name__}.RadixAttention"
    hooks.HookRegistry.register(f"{target}.__init__", door.made, hooks.HookType.AFTER)
    hooks.HookRegistry.register(f"{target}.forward", door.before, hooks.HookType.BEFORE)


def recorder(config: dict[str, Any]) -> Callable[[Any, Any, Any], None]:
    """Returns a forward hook that records: the factory for --forward-hooks.

    config: fields of `critbeta.serve.Settings`; record is the folder.
    """
    from .serve import Settings

    settings = Settings.from_fields(config, "config of --forward-hooks")
    if settings.record is None:
        raise ValueError("critbeta.sglang: config has no record: expected the folder for the rows")
    _checked()
    return _Recording(settings).hook


def _checked() -> Any:
    """Returns the module of SGLang's attention layer, whose forward takes what is expected."""
    layers = SGLANG.part("srt.layers.radix_attention", "RadixAttention")
    SGLANG.check(layers.RadixAttention.forward, ("q", "k", "v", "forward_batch"))
    return layers


def _layer(module: Any, name: str) -> Layer:
    from .serve import Layer

    ranks = SGLANG.part("srt.layers.dp_attention", "get_attention_tp_rank", "get_attention_tp_size")
    rank, size, heads = ranks.get_attention_tp_rank(), ranks.get_attention_tp_size(), module.tp_q_head_num
    # SGLang's window does not count a query's own key, and -1 is none.
    window = module.sliding_window_size
    decoder = not module.is_cross_attention and getattr(module.attn_type, "value", "decoder") == "decoder"
    return Layer(
        name,
        heads,
        rank * heads,
        size * heads,
        window=window + 1 if window > 0 else None,
        softcap=module.logit_cap or None,
        decoder=decoder,
    )


def _length() -> int:
    """Returns the largest number of tokens of a sequence: the columns of SGLang's table of requests."""
    length: int = _pools().req_to_token_pool.req_to_token.shape[1]
    return length


def _pools() -> Any:
    """Returns what has the pools of the batch that runs: the backend of its attention."""
    return SGLANG.part("srt.model_executor.forward_context", "get_attn_backend").get_attn_backend()


class Door:
    """The rule of the models in this process: a speculative draft is one of its own."""

    def __init__(self, rescaling: str) -> None:
        self.rescaling = rescaling
        self._models: list[_Model] = []
        # A rule that is none, or a file that cannot be read, is refused before a model is loaded.
        from ._layers import calibrated

        if calibrated(rescaling) is None:
            from ._core import Rescaling

            rule = Rescaling.parse(rescaling)
            if rule.resolve is not None or rule.needs_entropy:
                reason = "SGLang has the key of a token in its cache only after attention"
                raise NotImplementedError(
                    f"critbeta.sglang: {rescaling} is measured on each row, and {reason}"
                )

    def made(self, result: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        """Follows RadixAttention.__init__: notes the layer, or refuses it."""
        name = (kwargs.get("prefix") or f"model.layers.{module.layer_id}.self_attn.attn").removesuffix(
            ".attn"
        )
        layer = _layer(module, name)
        if self.rescaling != "identity":
            layer.refuse_rule(self.rescaling)
        # Layers are made in order, and the numbers of another model begin anew.
        if not self._models or module.layer_id in self._models[-1].layers:
            self._models.append(_Model(self.rescaling))
        self._models[-1].layers[module.layer_id] = layer
        module.critbeta = self._models[-1]

    def before(
        self, module: Any, q: Any, k: Any, v: Any, forward_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Goes before RadixAttention.forward: returns its arguments with a scaled copy of the queries."""
        layer = module.critbeta.layers[module.layer_id]
        for name in ("sinks", "q_rope"):
            if kwargs.get(name) is not None:
                found = f"{self.rescaling}: cannot be applied to {layer.name}, which has"
                raise ValueError(
                    f"{found} {'learned sinks' if name == 'sinks' else 'latent attention'} ({name})"
                )
        step = module.critbeta.step(module.layer_id, q, forward_batch)
        scaled = step.scale(layer.name, q.view(-1, layer.heads, module.qk_head_dim)).view_as(q)
        return (module, scaled, k, v, forward_batch, *args), kwargs


class _Model:
    """The layers of a model by their number, and their betas."""

    def __init__(self, rescaling: str) -> None:
        self.layers: dict[int, Layer] = {}
        self._rescaling, self._mark = rescaling, f"{_BATCH}_{id(self)}"
        self._betas: Betas | None = None

    def step(self, layer: int, q: Any, batch: Any) -> Step:
        """Returns the betas of a batch."""
        found: Step | None = getattr(batch, self._mark, None)
        if found is None or layer == min(self.layers):
            # The first layer of a step fills in the betas of all of them, and a graph captures that too.
            found = self._of(q, batch).step(len(batch.positions)).fill(batch.positions)
            setattr(batch, self._mark, found)
        return found

    def _of(self, q: Any, batch: Any) -> Betas:
        if self._betas is None:
            from .serve import Betas

            stages = SGLANG.part("srt.distributed", "get_pp_group").get_pp_group().world_size
            given = {"dtype": q.dtype, "device": q.device, "whole": stages == 1}
            self._betas = Betas(self._rescaling, self.layers.values(), _length(), **given)
        return self._betas


class _Recording:
    """The recorder of a model, and its hook. One hook serves all layers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._recorder: Recorder | None = None
        self._layers: dict[int, Layer] = {}
        self._batches: dict[int, Any] = {}
        """The batch that each layer was called with last, by its number."""
        self._failed = False

    def hook(self, module: Any, inputs: Any, output: Any) -> None:
        """Follows RadixAttention: records the rows of a layer. Its queries are those before any rule."""
        if self._failed:
            return
        # No request fails because of a recording.
        try:
            number = module.layer_id
            if number not in self._batches:
                # A forward hook of SGLang does not see arguments by name, such as the batch of some models.
                self._batches[number] = inputs[3] if len(inputs) > 3 else None
                module.register_forward_pre_hook(self._before, with_kwargs=True)
            batch = self._batches[number]
            if batch is not None:
                self._recorder = self._recorder or self._begin()
                self._record(self._recorder, module, inputs[0], batch)
        except Exception as error:
            self._failed = True
            if self._recorder is not None:
                self._recorder.end(error)
            else:
                LOG.warning("recording has not begun: %s: %s", type(error).__name__, error, exc_info=True)

    def _before(self, module: Any, inputs: Any, kwargs: Any) -> None:
        self._batches[module.layer_id] = inputs[3] if len(inputs) > 3 else kwargs.get("forward_batch")

    def _begin(self) -> Recorder:
        import os

        from torch import distributed

        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        # Replicas have the same ranks.
        return self._settings.recorder([], _length(), f"r{rank}-{os.getpid()}", "model")

    def _record(self, recorder: Recorder, module: Any, query: Any, batch: Any) -> None:
        number, pools = module.layer_id, _pools()
        layer = self._layers.get(number)
        if layer is None:
            layer = self._layers[number] = _layer(module, f"model.layers.{number}.self_attn")
            recorder.cover(layer)
            if layer.window and hasattr(pools.token_to_kv_pool, "translate_loc_from_full_to_swa"):
                recorder.leave_out([layer.name], "has a pool of its own for the keys of its window")
        # Two batches may take turns from layer to layer.
        last, taken = getattr(batch, _RECORD, (number, None))
        if number <= last:
            requests = _requests(batch, pools)
            taken = None if requests is None else recorder.begin(requests)
        setattr(batch, _RECORD, (number, taken))
        if taken is not None:
            # A token is a page.
            keys = lambda: pools.token_to_kv_pool.get_key_buffer(number)[:, None]  # noqa: E731
            shaped = query.view(-1, layer.heads, module.qk_head_dim)
            recorder.add(taken, layer.name, shaped, keys, module.scaling)


def _requests(batch: Any, pools: Any) -> Requests | None:
    from .serve import Requests

    mode = batch.forward_mode
    if mode.is_decode():
        starts = [end - 1 for end in batch.seq_lens.tolist()]
        counts = [1] * len(starts)
    elif mode.is_extend() and not mode.is_target_verify():
        starts, counts = list(batch.extend_prefix_lens_cpu), list(batch.extend_seq_lens_cpu)
    else:
        # Drafts are not tokens yet.
        return None
    most = max((start + count for start, count in zip(starts, counts)), default=0)

    def tables() -> Any:
        return pools.req_to_token_pool.req_to_token[batch.req_pool_indices, :most].cpu().numpy()

    return Requests(starts, counts, tables, 1)
