"""critbeta inside vLLM: rules and recording for its own attention kernels.

vLLM finds `register` by the entry point group `vllm.general_plugins`. What it does is told by the
environment: see `critbeta.serve.Settings`. Without CRITBETA_RESCALE, CRITBETA_RECORD and CRITBETA_CONFIG it
does nothing.

    CRITBETA_RESCALE=qwen-logn:train=32768 vllm serve MODEL --attention-backend CRITBETA    # on a GPU
    CRITBETA_RECORD=records vllm serve MODEL                                                # on a CPU

The backend is a subclass of one that vLLM has: that of the CPU, or on a GPU the one of the setting
`backend`. It multiplies queries by beta before that one sees them, so kernels, graphs, prefix caching and
chunked prefill stay as they are. Source: docs/adr/0015-servers.md.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from typing import TYPE_CHECKING, Any

# vLLM goes on without a plugin that cannot be imported. So nothing is imported here that may be missing.
if TYPE_CHECKING:
    import torch

    from .serve import Betas, Layer, Recorder, Requests, Settings, Step, Taken

LOG = logging.getLogger("critbeta.vllm")
NAME = "CRITBETA"
TESTED = "0.32.0"
_BACKENDS = {
    "FLASH_ATTN": ("flash_attn", "FlashAttention"),
    "TRITON_ATTN": ("triton_attn", "TritonAttention"),
    "FLASHINFER": ("flashinfer", "FlashInfer"),
    "CPU_ATTN": ("cpu_attn", "CPUAttention"),
}
# The folders whose metrics are shown.
_SHOWN = set[str]()
# Backends that a CPU would choose, and that would leave a rule out without a word.
_REFUSED = ("CPU_MLA", "AMX_MLA")
_FORWARD = ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output")
_COMMON = (
    *("positions", "num_reqs", "num_actual_tokens", "query_start_loc_cpu", "seq_lens", "block_table_tensor"),
    *("seq_lens_cpu_upper_bound", "dcp_local_seq_lens"),
)


def register() -> None:
    """Registers the backend, if the environment asks for anything. vLLM calls it in each of its processes.

    Raises RuntimeError for a vLLM that lacks what this needs, ValueError for a text that is no rule, and the
    errors of `critbeta.serve.Settings.from_environment`: then the server does not start."""
    from .serve import Settings

    settings = Settings.from_environment()
    if settings.is_empty:
        return
    if settings.rescale is not None:
        # A rule that is none, or a file that cannot be read, is refused before a model is loaded.
        from ._layers import calibrated

        calibrated(settings.rescale)
    registry = _part("v1.attention.backends.registry", "register_backend", "AttentionBackendEnum")
    members, platform = registry.AttentionBackendEnum, _part("platforms", "current_platform").current_platform
    if settings.record:
        _show_metrics(settings.record)
    if platform.is_cpu():
        # A CPU takes no other name.
        registry.register_backend(members.CPU_ATTN, f"{__name__}.CPU_ATTN")
        for name in _REFUSED:
            if name in members.__members__:
                registry.register_backend(members[name], f"{__name__}.{name}")
        return
    if settings.backend not in _BACKENDS or settings.backend == "CPU_ATTN":
        known = ", ".join(name for name in _BACKENDS if name != "CPU_ATTN")
        raise ValueError(f"critbeta.vllm: backend {settings.backend!r}: expected one of {known}")
    if NAME not in members.__members__:
        registry.register_backend(NAME, f"{__name__}.{settings.backend}")
        LOG.warning("registered on %s: it takes --attention-backend %s", settings.backend, NAME)


def __getattr__(name: str) -> Any:
    # vLLM looks a backend up by its name here, when a model is loaded.
    if name in _BACKENDS:
        found = globals()[name] = _backend(name)
        return found
    if name in _REFUSED:
        reason = "its keys are latent, and critbeta has no door to them"
        raise NotImplementedError(f"critbeta.vllm: {name}: {reason}. Unset CRITBETA_*")
    raise AttributeError(name)


def _part(module: str, *names: str) -> Any:
    """Returns a module of vLLM that has `names`. Raises RuntimeError where it has moved."""
    path = f"vllm.{module}"
    try:
        found = importlib.import_module(path)
    except ImportError as error:
        raise _moved(path, str(error)) from error
    for name in names:
        if not hasattr(found, name):
            raise _moved(f"{path}.{name}", "it is not there")
    return found


def _moved(what: str, detail: str) -> RuntimeError:
    import vllm  # type: ignore[import-not-found, unused-ignore]

    version = getattr(vllm, "__version__", "of an unknown version")
    known = f"critbeta.vllm was tested with vLLM {TESTED}, and this is {version}"
    return RuntimeError(f"{known}: {what}: {detail}. Install vllm=={TESTED}, or unset CRITBETA_*")


def _check(function: Any, names: tuple[str, ...]) -> None:
    """Raises RuntimeError unless a method of vLLM takes `names` first, after self."""
    found = tuple(inspect.signature(function).parameters)[1 : 1 + len(names)]
    if found != names:
        where = f"{function.__module__}.{function.__qualname__}"
        raise _moved(where, f"takes ({', '.join(found)}, ...), expected ({', '.join(names)}, ...)")


def _backend(name: str) -> Any:
    """Returns a subclass of the backend `name` of vLLM."""
    module, prefix = _BACKENDS[name]
    parts = [
        f"{prefix}Backend",
        f"{prefix}MetadataBuilder",
        f"{prefix}{'Backend' if 'CPU' in prefix else ''}Impl",
    ]
    of = _part(f"v1.attention.backends.{module}", *parts)
    backend, builder, impl = (getattr(of, part) for part in parts)
    _check(builder.__init__, ("kv_cache_spec", "layer_names", "vllm_config", "device"))
    _check(builder.build, ("common_prefix_len", "common_attn_metadata", "fast_build"))
    _check(impl.forward, _FORWARD)
    base = _part("v1.attention.backend", "CommonAttentionMetadata", "AttentionCGSupport")
    fields = base.CommonAttentionMetadata.__dataclass_fields__
    for field in _COMMON:
        if field not in fields:
            raise _moved(f"CommonAttentionMetadata.{field}", "it is not there")

    class Builder(builder):  # type: ignore[misc, valid-type]
        def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)
            self.critbeta_door = Door.of(vllm_config, device)
            self.critbeta_step: Step | None = None
            self.critbeta_page = kv_cache_spec.block_size

        def build(self, common_prefix_len: Any, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            metadata.critbeta = self.critbeta_door.build(self, common_attn_metadata)
            return metadata

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
            # A graph replays kernels and no Python: what is measured on the host would be left out.
            if Door.of(vllm_config, vllm_config.device_config.device).needs_host:
                return base.AttentionCGSupport.NEVER
            return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    class Impl(impl):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Queries are quantised after they are scaled.
            self.supports_quant_query_input = False

        def forward(
            self,
            layer: Any,
            query: Any,
            key: Any,
            value: Any,
            kv_cache: Any,
            attn_metadata: Any,
            output: Any,
            output_scale: Any = None,
            output_block_scale: Any = None,
        ) -> Any:
            # There is no metadata while vLLM looks how much memory a step takes.
            state: _State | None = getattr(attn_metadata, "critbeta", None)
            scaled = query if state is None else state.scaled(layer, query, kv_cache)
            rest = attn_metadata, output, output_scale, output_block_scale
            found = super().forward(layer, scaled, key, value, kv_cache, *rest)
            if state is not None and state.taken is not None:
                state.record(layer, query, kv_cache)
            return found

    methods = {
        "get_name": staticmethod(lambda: name if name == "CPU_ATTN" else NAME),
        "get_impl_cls": staticmethod(lambda: Impl),
        "get_builder_cls": staticmethod(lambda: Builder),
        "__module__": __name__,
        "__qualname__": name,
    }
    return type(name, (backend,), methods)


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
        from .serve import Settings

        settings, parallel = Settings.from_environment(), vllm_config.parallel_config
        config = _part("config", "get_layers_from_vllm_config")
        attention = _part("model_executor.layers.attention", "Attention").Attention
        distributed = _part("distributed", "get_tensor_model_parallel_rank")
        self._rank, self._ranks = distributed.get_tensor_model_parallel_rank(), parallel.tensor_parallel_size
        found = config.get_layers_from_vllm_config(vllm_config, attention)
        self.layers = [_layer(module, self._rank, self._ranks) for module in found.values()]
        self.device, self._whole = device, parallel.pipeline_parallel_size == 1
        self.length, self._dtype = vllm_config.model_config.max_model_len, vllm_config.model_config.dtype
        graphs = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        self.tokens = max(vllm_config.scheduler_config.max_num_batched_tokens, graphs)
        self.betas: Betas | None = None
        self.recorder: Recorder | None = None
        if settings.rescale is not None:
            self.rescale(settings.rescale)
        if settings.record is not None:
            self.record(settings, vllm_config.model_config.model, parallel)

    def rescale(self, rescaling: str) -> None:
        """Sets the rule for the steps to come. Raises the errors of `critbeta.serve.Betas`."""
        from .serve import Betas

        kinds = {"dtype": self._dtype, "device": self.device}
        betas = Betas(rescaling, self.layers, self.length, whole=self._whole, **kinds)
        if betas.measured and str(self.device) != "cpu":
            found = f"{rescaling} is measured on each row, and its kernel for GPUs is not there yet"
            raise NotImplementedError(f"critbeta.vllm: {found}: expected a length law or a calibration")
        if betas.inconclusive:
            LOG.warning("%s: %d of its laws are inconclusive", rescaling, betas.inconclusive)
        self.betas = betas

    def record(self, settings: Settings, model: str, parallel: Any) -> None:
        """Begins to record."""
        if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
            LOG.warning("not recorded: context parallelism splits the keys of a row over processes")
            return
        self.recorder = settings.recorder(self.layers, self.length, f"r{parallel.rank}", model)

    @property
    def needs_host(self) -> bool:
        """Whether steps measure rows in this process, and not in a kernel."""
        return self.recorder is not None or bool(self.betas and self.betas.measured)

    def build(self, builder: Any, common: Any) -> _State | None:
        """Returns what the layers of a step need."""
        betas, step = self.betas, None
        if betas is not None:
            step = builder.critbeta_step
            if step is None or step.betas is not betas:
                step = builder.critbeta_step = betas.step(self.tokens)
            if common.positions is None:
                raise _moved("CommonAttentionMetadata.positions", "it is None")
            step.fill(common.positions[: self.tokens])
        requests = _requests(common, builder.critbeta_page) if self.needs_host else None
        taken = self.recorder.begin(requests) if self.recorder is not None and requests else None
        if step is None and taken is None:
            return None
        return _State(self, step, taken, requests)


class _State:
    """What the layers of one step need."""

    def __init__(self, door: Door, step: Step | None, taken: Taken | None, requests: Requests | None) -> None:
        self._door, self._step, self.taken, self._requests = door, step, taken, requests

    def scaled(self, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor) -> torch.Tensor:
        """Returns `query` [tokens, heads, head_dim] under the rule."""
        if self._step is None:
            return query
        name, betas = _name(layer), self._step.betas
        rules = betas.measured.get(name)
        if rules is None or self._requests is None:
            return self._step.scale(name, query)
        from .serve import measured

        pages = _keys(layer, kv_cache)
        beta = measured(rules, betas.layers[name], self._requests, query, pages, layer.impl.scale)
        scaled = query.clone()
        scaled[: len(beta)] = (query[: len(beta)] * beta[..., None]).to(query.dtype)
        return scaled

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
    from .serve import Layer

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
        decoder=module.attn_type == "decoder",
    )


def _requests(common: Any, page: int) -> Requests:
    from .serve import Requests

    ends = common.seq_lens if common.seq_lens.device.type == "cpu" else common.seq_lens_cpu_upper_bound
    if ends is None:
        raise _moved("CommonAttentionMetadata.seq_lens_cpu_upper_bound", "it is None")
    counts = common.query_start_loc_cpu.diff()[: common.num_reqs]
    starts = (ends[: common.num_reqs] - counts).tolist()
    return Requests(starts, counts.tolist(), lambda: common.block_table_tensor.cpu().numpy(), page)


def _keys(layer: Any, kv_cache: torch.Tensor) -> torch.Tensor:
    """Returns the pages of keys as [pages, page, kv_heads, head_dim], without a copy."""
    pages, heads, page, _ = kv_cache.shape
    if kv_cache.dtype.itemsize < 2:
        raise ValueError(
            f"{layer.layer_name}: its keys are {kv_cache.dtype}: expected a cache of 16 or 32 bits"
        )
    isa = getattr(layer, "isa", None)
    if isa is None:
        return kv_cache.transpose(1, 2)[..., : layer.head_size]
    if isa != "vec":
        # Other instruction sets pack keys in ways of their own.
        raise ValueError(f"{layer.layer_name}: its keys are packed for {isa!r}: expected 'vec'")
    # Of each page and head, keys come first, [head_dim, page], and then values.
    return kv_cache.view(pages, heads, 2, layer.head_size, page)[:, :, 0].permute(0, 3, 1, 2)


def _show_metrics(folder: str) -> None:
    """Has vLLM's own endpoint show what the processes of a server write to `folder`."""
    try:
        from prometheus_client import REGISTRY  # type: ignore[import-not-found, unused-ignore]
        from prometheus_client.parser import (  # type: ignore[import-not-found, unused-ignore]
            text_string_to_metric_families,
        )
    except ImportError:
        return
    from pathlib import Path

    class Files:
        def collect(self) -> Any:
            texts = [file.read_text(encoding="utf-8") for file in sorted(Path(folder).glob("metrics-*.prom"))]
            yield from _merged(text_string_to_metric_families(text) for text in texts)

        def describe(self) -> Any:
            return []

    if folder not in _SHOWN:
        _SHOWN.add(folder)
        REGISTRY.register(Files())


def _merged(texts: Any) -> Any:
    """Returns the families of several texts, each once."""
    found: dict[str, Any] = {}
    for families in texts:
        for family in families:
            found.setdefault(family.name, family)
            if found[family.name] is not family:
                found[family.name].samples += family.samples
    return found.values()
