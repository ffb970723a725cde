"""critbeta inside vLLM: rules and recording for its own attention kernels.

vLLM finds `register` by the entry point group `vllm.general_plugins`. What it does is told by the
environment: see `critbeta.serve.Settings`. Without CRITBETA_RESCALE, CRITBETA_RECORD and CRITBETA_CONFIG it
does nothing.

    CRITBETA_RESCALE=qwen-logn:train=32768 CRITBETA_RECORD=records vllm serve MODEL

The backends of vLLM (that of CPUs, and FLASH_ATTN, TRITON_ATTN and FLASHINFER on GPUs) are overridden by
subclasses, and CRITBETA names one of them. They multiply queries by beta before vLLM's own kernel sees them,
so kernels, graphs, prefix caching and chunked prefill stay as they are. Source: docs/adr/0015-servers.md.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from .._servers import VLLM
from ._metrics import show_metrics

# vLLM goes on without a plugin that cannot be imported. So nothing is imported here that may be missing.
if TYPE_CHECKING:
    from ..serve import Step
    from ._door import State

LOG = logging.getLogger("critbeta.vllm")
NAME = "CRITBETA"
_BACKENDS = {
    "FLASH_ATTN": ("flash_attn", "FlashAttention"),
    "TRITON_ATTN": ("triton_attn", "TritonAttention"),
    "FLASHINFER": ("flashinfer", "FlashInfer"),
    "CPU_ATTN": ("cpu_attn", "CPUAttention"),
}
# What is no attention, or none of a text model's.
_OTHERS = ("NO_ATTENTION", "TORCH_SDPA", "CUSTOM", NAME)
_FORWARD = ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output")
_COMMON = (
    *("positions", "num_reqs", "num_actual_tokens", "query_start_loc_cpu", "seq_lens", "block_table_tensor"),
    *("seq_lens_cpu_upper_bound", "dcp_local_seq_lens"),
)


def register() -> None:
    """Registers the backends, if the environment asks for anything. vLLM calls it in each of its processes.

    Raises RuntimeError for a vLLM that lacks what this needs, ValueError for a text that is no rule, and the
    errors of `critbeta.serve.Settings.from_environment`: then the server does not start."""
    from ..serve import Settings

    settings = Settings.from_environment()
    if settings.is_empty:
        return
    if settings.rescale is not None:
        # A rule that is none, or a file that cannot be read, is refused before a model is loaded.
        from .._layers import calibrated

        calibrated(settings.rescale)
    registry = VLLM.part("v1.attention.backends.registry", "register_backend", "AttentionBackendEnum")
    members, platform = (
        registry.AttentionBackendEnum,
        VLLM.part("platforms", "current_platform").current_platform,
    )
    on_gpu = [name for name in _BACKENDS if name != "CPU_ATTN"]
    if settings.backend not in on_gpu:
        found = f"critbeta.vllm: backend {settings.backend!r}"
        raise ValueError(f"{found}: expected one of {', '.join(on_gpu)}")
    ours = ["CPU_ATTN"] if platform.is_cpu() else on_gpu
    # What moved in vLLM is said now.
    getattr(sys.modules[__name__], ours[0] if platform.is_cpu() else settings.backend)
    if settings.record:
        show_metrics(settings.record, settings.every)
    if NAME not in members.__members__ and not platform.is_cpu():
        registry.register_backend(NAME, f"{__name__}.{NAME}")
    for name, member in members.__members__.items():
        if name not in _OTHERS:
            # Another backend would leave a rule out without a word.
            registry.register_backend(member, f"{__name__}.{name}")


def __getattr__(name: str) -> Any:
    # vLLM looks a backend up by its name here, when it chooses one.
    if name.startswith("_") or not name.isupper():
        raise AttributeError(name)
    if name == NAME:
        from ..serve import Settings

        found = _backend(Settings.from_environment().backend, NAME)
    elif name in _BACKENDS:
        found = _backend(name, name)
    else:
        # vLLM takes it for a backend that is not installed, and chooses another or does not start.
        message = f"critbeta.vllm has no door to {name}: expected {', '.join(_BACKENDS)}, or unset CRITBETA_*"
        LOG.warning(message)
        raise ImportError(message)
    globals()[name] = found
    return found


def _backend(base: str, name: str) -> Any:
    """Returns a subclass of the backend `base` of vLLM, which is called `name` there."""
    module, prefix = _BACKENDS[base]
    parts = [
        f"{prefix}Backend",
        f"{prefix}MetadataBuilder",
        f"{prefix}{'Backend' if 'CPU' in prefix else ''}Impl",
    ]
    of = VLLM.part(f"v1.attention.backends.{module}", *parts)
    backend, builder, impl = (getattr(of, kind) for kind in parts)
    VLLM.check(builder.__init__, ("kv_cache_spec", "layer_names", "vllm_config", "device"))
    VLLM.check(builder.build, ("common_prefix_len", "common_attn_metadata", "fast_build"))
    VLLM.check(impl.forward, _FORWARD)
    fields = VLLM.part("v1.attention.backend", "CommonAttentionMetadata", "AttentionCGSupport")
    never = fields.AttentionCGSupport.NEVER
    for field in _COMMON:
        if field not in fields.CommonAttentionMetadata.__dataclass_fields__:
            raise VLLM.moved(f"CommonAttentionMetadata.{field}", "it is not there")

    from ._door import Door

    class Builder(builder):  # type: ignore[misc, valid-type]
        # Groups of layers would share what is said of a step, and their pages differ.
        supports_update_block_table = False

        def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)
            self.critbeta_door = Door.of(vllm_config, device)
            self.critbeta_door.check_keys(layer_names)
            self.critbeta_step: Step | None = None
            self.critbeta_page = kv_cache_spec.block_size

        def build(self, common_prefix_len: Any, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            metadata.critbeta = self.critbeta_door.build(self, common_attn_metadata)
            return metadata

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
            # A graph replays kernels and no Python: what that does in each step would be left out.
            if Door.of(vllm_config, vllm_config.device_config.device).needs_host:
                return never
            return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    class Impl(impl):  # type: ignore[misc, valid-type]
        critbeta = True

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
            state: State | None = getattr(attn_metadata, "critbeta", None)
            scaled = query if state is None else state.scaled(layer, query, kv_cache)
            rest = attn_metadata, output, output_scale, output_block_scale
            found = super().forward(layer, scaled, key, value, kv_cache, *rest)
            if state is not None and state.taken is not None:
                state.record(layer, query, kv_cache)
            return found

    methods = {
        "get_name": staticmethod(lambda: name),
        "get_impl_cls": staticmethod(lambda: Impl),
        "get_builder_cls": staticmethod(lambda: Builder),
        "__module__": __name__,
        "__qualname__": name,
    }
    return type(name, (backend,), methods)
