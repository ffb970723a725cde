"""The rule and the recorder of a model that vLLM runs."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .. import _arrays
from .._servers import VLLM
from ..serve import Betas, Layer, OnDevice, Recorder, Requests, Settings, Step, Taken

LOG = logging.getLogger("critbeta.vllm")
_SPLIT = "context parallelism splits the keys of a row over processes"


class Door:
    """The rule and the recorder of a model in this process."""

    _known: list[tuple[Any, Door]] = []

    @staticmethod
    def of(vllm_config: Any, device: Any) -> Door:
        """Returns the door of a model, which is made when its caches are."""
        for config, door in Door._known:
            if config is vllm_config:
                return door
        door = Door(vllm_config, device)
        Door._known.append((vllm_config, door))
        return door

    def __init__(self, vllm_config: Any, device: Any) -> None:
        settings, parallel = Settings.from_environment(), vllm_config.parallel_config
        config = VLLM.part("config", "get_layers_from_vllm_config")
        attention = VLLM.part("model_executor.layers.attention", "Attention").Attention
        distributed = VLLM.part("distributed", "get_tensor_model_parallel_rank")
        rank, ranks = distributed.get_tensor_model_parallel_rank(), parallel.tensor_parallel_size
        self._modules = config.get_layers_from_vllm_config(vllm_config, attention)
        self.layers = [_layer(module, rank, ranks) for module in self._modules.values()]
        self.device, self._whole = device, parallel.pipeline_parallel_size == 1
        ways = parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size
        self._splits_keys = max(ways) > 1
        self._fast_prefill = vllm_config.cache_config.kv_sharing_fast_prefill
        self.length, self._dtype = vllm_config.model_config.max_model_len, vllm_config.model_config.dtype
        graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        self.tokens = max(vllm_config.scheduler_config.max_num_batched_tokens, graphs)
        self.betas: Betas | None = None
        self.recorder: Recorder | None = None
        # The last step that was recorded, the builders that know it, and what it takes.
        self._last: tuple[Any, set[int], Taken | None] = (None, set(), None)
        if settings.rescale is not None:
            self.rescale(settings.rescale)
        if settings.record is not None:
            self._begin(settings, vllm_config)

    def rescale(self, rescaling: str) -> None:
        """Sets the rule for the steps to come. Raises the errors of `critbeta.serve.Betas`."""
        kinds = {"dtype": self._dtype, "device": self.device}
        betas = Betas(rescaling, self.layers, self.length, whole=self._whole, **kinds)
        for name, module in self._modules.items() if rescaling != "identity" else ():
            reason = _unscaled(module)
            if self._fast_prefill:
                reason = "leaves out queries of a prompt (kv_sharing_fast_prefill)"
            if reason:
                raise ValueError(f"{rescaling}: cannot be applied to {name}, which {reason}")
        if betas.measured and self._splits_keys:
            raise ValueError(f"{rescaling}: cannot be measured where {_SPLIT}")
        if betas.measured and betas.device.type not in ("cpu", "cuda"):
            found = f"{rescaling} is measured on each row, and there is no kernel for {self.device}"
            raise NotImplementedError(f"critbeta.vllm: {found}: expected a length law or a calibration")
        if betas.inconclusive:
            LOG.warning("%s: %d of its laws are inconclusive", rescaling, betas.inconclusive)
        self.betas = betas

    def _begin(self, settings: Settings, vllm_config: Any) -> None:
        """Begins to record, where rows are what they seem."""
        parallel, reason = vllm_config.parallel_config, None
        if self._splits_keys:
            reason = _SPLIT
        elif vllm_config.speculative_config is not None:
            reason = "speculative decoding computes tokens that are not kept"
        if reason:
            LOG.warning("not recorded: %s", reason)
            return
        name = f"dp{parallel.data_parallel_index}-r{parallel.rank}"
        self.recorder = settings.recorder(self.layers, self.length, name, vllm_config.model_config.model)
        names = [_name(module) for module in self._modules.values() if not hasattr(module.impl, "critbeta")]
        if names:
            self.recorder.leave_out(names, "has a backend that critbeta.vllm has no door to")

    def check_keys(self, layer_names: list[str]) -> None:
        """Looks whether the keys of layers can be read. They are known when the builder of a step is made.

        Raises ValueError with the layer where a measured rule cannot."""
        packed: dict[str, list[str]] = {}
        measured = {} if self.betas is None else self.betas.measured
        for name in layer_names:
            module = self._modules.get(name)
            if module is None:
                continue
            reason = _unread(module)
            if reason:
                packed.setdefault(reason, []).append(_name(module))
            if self.betas is not None and _name(module) in measured:
                if self.betas.device.type == "cuda":
                    reason = reason or _unmeasured(module, self._dtype)
                if reason:
                    found = f"{self.betas.rescaling}: cannot be measured on {_name(module)}"
                    raise ValueError(f"{found}, which {reason}")
        for reason, names in packed.items():
            if self.recorder is not None:
                self.recorder.leave_out(names, reason)

    @property
    def needs_host(self) -> bool:
        """Whether steps need Python: they record, or launch what measures rows."""
        return self.recorder is not None or bool(self.betas and self.betas.measured)

    def build(self, builder: Any, common: Any) -> State | None:
        """Returns what the layers of a step need."""
        betas, step = self.betas, None
        if betas is not None:
            step = builder.critbeta_step
            if step is None or step.betas is not betas:
                step = builder.critbeta_step = betas.step(self.tokens)
            step.fill(_positions(common)[: self.tokens])
        requests = _requests(common, builder.critbeta_page) if self.needs_host else None
        taken = self._taken(builder, requests) if requests is not None else None
        if step is None and taken is None:
            return None
        return State(self, step, taken, requests)

    def _taken(self, builder: Any, requests: Requests) -> Taken | None:
        """Returns what a step records. Its groups of layers have a builder each."""
        if self.recorder is None:
            return None
        key, (last, builders, taken) = (requests.starts, requests.counts), self._last
        if key != last or id(builder) in builders:
            taken, builders = self.recorder.begin(requests), set()
        self._last = key, builders | {id(builder)}, taken
        return None if taken is None else Taken(requests, taken.parts)


class State:
    """What the layers of one step need."""

    def __init__(self, door: Door, step: Step | None, taken: Taken | None, requests: Requests | None) -> None:
        self._door, self._step, self.taken, self._requests = door, step, taken, requests

    def scaled(self, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor) -> torch.Tensor:
        """Returns `query` [tokens, heads, head_dim] under the rule."""
        if self._step is None:
            return query
        name = _name(layer)
        if name not in self._step.betas.measured or self._requests is None:
            return self._step.scale(name, query)
        pages = _keys(layer, kv_cache)
        return self._step.measure(name, query, self._requests, pages, layer.impl.scale)

    def record(self, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor) -> None:
        """Records the rows of a layer that has run."""
        recorder = self._door.recorder
        if recorder is not None and self.taken is not None and recorder.error is None:
            recorder.add(self.taken, _name(layer), query, lambda: _keys(layer, kv_cache), layer.impl.scale)


def _name(layer: Any) -> str:
    # `Attention` is a part of the module that hf.record names.
    name: str = layer.layer_name
    return name.removesuffix(".attn")


def _layer(module: Any, rank: int, ranks: int) -> Layer:
    impl, heads = module.impl, module.num_heads
    return Layer(
        _name(module),
        heads,
        rank * heads,
        ranks * heads,
        window=module.sliding_window,
        softcap=getattr(impl, "logits_soft_cap", None) or None,
        sinks=module.has_sink,
        alibi=getattr(impl, "alibi_slopes", None) is not None,
        # Images of some models see what follows them.
        decoder=module.attn_type == "decoder" and not module.use_mm_prefix,
        chunks=getattr(module, "attention_chunk_size", None) is not None,
    )


def _unscaled(module: Any) -> str | None:
    """Says why a factor on queries does not reach the kernel of a layer."""
    if not hasattr(module.impl, "critbeta"):
        return f"has the backend {type(module.impl).__name__}, and critbeta.vllm no door to it"
    if module.kv_cache_torch_dtype.itemsize < 2:
        return (
            f"has a cache of {module.kv_cache_dtype}: its queries are quantised before they could be scaled"
        )
    return None


def _unread(module: Any) -> str | None:
    """Says why the keys of a layer cannot be read from its pages."""
    if module.kv_cache_torch_dtype.itemsize < 2:
        return f"has a cache of {module.kv_cache_dtype}: expected 16 or 32 bits"
    isa = getattr(module, "isa", None)
    # Other instruction sets pack keys in ways of their own.
    return None if isa in (None, "vec") else f"has its keys packed for {isa!r}: expected 'vec'"


def _unmeasured(module: Any, dtype: torch.dtype) -> str | None:
    """Says why the kernels of a GPU cannot measure the rows of a layer in front of its own kernel."""
    if module.kv_cache_torch_dtype != dtype:
        return f"has a cache of {module.kv_cache_torch_dtype}: expected the {dtype} of its queries"
    backend = getattr(module, "attn_backend", None)
    if getattr(backend, "forward_includes_kv_cache_update", True):
        return "writes the keys of a step within its own kernel: they are read before it"
    return None


def _positions(common: Any) -> torch.Tensor:
    """Returns the positions of the tokens of a step, without waiting for the device."""
    if common.positions is not None:
        found: torch.Tensor = common.positions
        return found
    # Parts of a batch, and the drafts of a speculator, come without.
    begins, tokens = common.query_start_loc[: common.num_reqs + 1], common.num_actual_tokens
    counts = begins.diff()
    first = (common.seq_lens[: common.num_reqs] - counts - begins[:-1]).long()
    at = torch.arange(tokens, device=first.device)
    # What fills up a batch belongs to the last request.
    of = torch.searchsorted(begins[1:].contiguous(), at, right=True).clamp(max=common.num_reqs - 1)
    positions: torch.Tensor = first[of] + at
    return positions


def _requests(common: Any, page: int) -> Requests:
    ends = common.seq_lens if common.seq_lens.device.type == "cpu" else common.seq_lens_cpu_upper_bound
    if ends is None:
        raise VLLM.moved("CommonAttentionMetadata.seq_lens_cpu_upper_bound", "it is None")
    counts = common.query_start_loc_cpu.diff()[: common.num_reqs]
    starts = (ends[: common.num_reqs] - counts).tolist()
    on_device = None
    tables = common.block_table_tensor
    if _arrays.is_on_gpu(tables):
        on_device = OnDevice(tables[: common.num_reqs], common.seq_lens[: common.num_reqs])
    return Requests(starts, counts.tolist(), lambda: tables.cpu().numpy(), page, on_device)


def _keys(layer: Any, kv_cache: torch.Tensor) -> torch.Tensor:
    """Returns the pages of keys as [pages, page, kv_heads, head_dim], without a copy."""
    pages, heads, page, _ = kv_cache.shape
    if getattr(layer, "isa", None) is None:
        return kv_cache.transpose(1, 2)[..., : layer.head_size]
    # Of each page and head, keys come first, [head_dim, page], and then values.
    return kv_cache.view(pages, heads, 2, layer.head_size, page)[:, :, 0].permute(0, 3, 1, 2)
