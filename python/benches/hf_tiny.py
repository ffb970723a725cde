"""Tiny random models of the architectures of transformers, built from their own configurations."""

from __future__ import annotations

import glob
import importlib
import inspect
import itertools
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

MOST_PARAMETERS = 50_000_000
LENGTH, TEXTS = 12, 2
LEVELS = ("narrow", "mrope", "filled", "shallow")
_CALLS = re.compile(r"\.get_interface\(|\bALL_ATTENTION_FUNCTIONS\[")
_QUERY = re.compile(r"(^|[._])(q|k|qkv|query|key|Wqkv|c_attn|query_key_value|in_proj)(_[ab])?(_proj)?[._]")
_ATTENDS = re.compile(r"class \w*Attention\w*\(")

# The first pattern that fits the name of a number decides.
_NARROW: list[tuple[str, Any]] = [
    (r"(max_window_layers|(^|_)(layers|num_layers|n_layers?|depth|num_blocks|layer_depth)$|_layers$)", 2),
    (r"(num_key_value_heads|kv_n_heads|num_kv_heads|num_key_value_attention_heads)$", "kv"),
    (r"(qk_head_dim|mamba_d_head|mamba_head_dim)$", 16),
    (r"(head_dim|d_kv|head_size|d_head|dim_head)$", 8),
    (r"(kv_channels)$", 8),
    (r"(lora_rank)$", 16),
    (r"(heads|n_heads?|_head)$", 4),
    (r"(num_experts_per_tok|num_experts_per_token|moe_topk|moe_top_k|moe_k|top_k_experts|experts_top_k)$", 2),
    (r"(n_routed_experts|num_experts|num_local_experts|moe_num_experts)$", 4),
    (r"(n_group|topk_group|num_expert_group)$", 1),
    (r"(first_k_dense_replace)$", 1),
    (r"(intermediate_size|ffn_dim|d_ff|dff|d_inner|mlp_dim|ffn_hidden_size|linear_units)$", 48),
    (r"(vocab_size)$", 99),
    (r"(hidden_size|d_model|n_embd|embed_dim|hidden_dim|hidden_size_global|embedding_size|emb_dim)$", 32),
    (
        r"(projection_dim|projection_size|output_dim|out_hidden_size|word_embed_proj_dim|output_hidden_size)$",
        32,
    ),
    (r"(query_pre_attn_scalar)$", 8),
    (r"(rotary_dim)$", 8),
]
_SHALLOW: list[tuple[str, Any]] = [
    _NARROW[0],
    _NARROW[7],
    (r"(n_routed_experts|num_experts|num_local_experts|moe_num_experts)$", 4),
    (r"(n_group|topk_group|num_expert_group)$", 1),
    (r"(first_k_dense_replace)$", 1),
    (r"(vocab_size)$", 99),
]
_BOTH: list[tuple[str, Any]] = [
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len)$", 512),
    (r"(sliding_window|sliding_window_size|attention_chunk_size|attention_window_size)$", 5),
    (r"^local_attention$", 6),
    (r"^attn_layer_period$", 2),
    (r"^attn_layer_offset$", 1),
    (r"^num_mel_bins$", 16),
    (r"^max_source_positions$", 40),
    (r"^num_feat_extract_layers$", 99),
]


def architectures(pattern: str = "") -> dict[str, list[type[PreTrainedModel]]]:
    """Returns, by "file/Config", the model classes of every file that has attention, where `pattern` is found
    in that name. Patterns such as "^name/" import no other files."""
    root = os.path.dirname(transformers.__file__)
    found: dict[str, list[type[PreTrainedModel]]] = {}
    for path in sorted(glob.glob(f"{root}/models/*/modeling_*.py")):
        with open(path, encoding="utf-8") as file:
            source = file.read()
        if not (_CALLS.search(source) or _ATTENDS.search(source)):
            continue
        folder, stem = path.split(os.sep)[-2], os.path.basename(path)[:-3]
        first = re.match(r"(\^\w+|\^\([\w|]+\))/", pattern)
        if first and not re.search(first[1] + "$", folder):
            continue
        module = importlib.import_module(f"transformers.models.{folder}.{stem}")
        for kind in vars(module).values():
            if not (inspect.isclass(kind) and issubclass(kind, PreTrainedModel)):
                continue
            if kind.__module__ != module.__name__ or "forward" not in vars(kind):
                continue
            config = kind.config_class
            if inspect.isclass(config) and re.search(pattern, f"{folder}/{config.__name__}"):
                found.setdefault(f"{folder}/{config.__name__}", []).append(kind)
    return {name: sorted(kinds, key=_by_weight) for name, kinds in found.items()}


def _by_weight(kind: type[PreTrainedModel]) -> tuple[int, int]:
    """Sorts the plain model first, then encoders and decoders alone, then models with heads."""
    name = kind.__name__
    return (0 if re.search(r"Model$", name) else 1 if "For" not in name else 2), len(name)


def shrunk(config: type[PretrainedConfig], level: str, **changed: Any) -> PretrainedConfig:
    """Returns a small configuration: level "narrow" cuts widths too, "shallow" only counts."""
    default = config()
    given = default.to_dict()
    _shrink(given, level)
    for name, value in given.items():
        if isinstance(getattr(default, name, None), tuple):
            given[name] = tuple(value)
    given.update(_NEEDED.get(config.__name__, {}))
    given.update(changed)
    return config(**{name: value for name, value in given.items() if name not in _NOT_GIVEN})


_FILLED = dict(
    head_dim=8, num_key_value_heads=2, intermediate_size=48, num_experts_per_tok=2, n_group=1, topk_group=1,
    n_routed_experts=4, num_experts=4, moe_intermediate_size=48, prediction_length=8, vocab_size=99,
    pad_token_id=0,
)  # fmt: skip
# What a default configuration leaves out, though its model needs it.
_NEEDED: dict[str, dict[str, Any]] = {
    "BambaConfig": dict(attn_layer_indices=[1]),
}
_NOT_GIVEN = (
    "transformers_version",
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "id2label",
    "label2id",
)


def _shrink(given: dict[str, Any], level: str) -> None:
    layers = 2
    for name in ("layer_types", "layers_block_type"):
        types = given.get(name)
        if isinstance(types, list) and types and all(isinstance(kind, str) for kind in types):
            kinds = list(dict.fromkeys(types))[:4]
            given[name] = kinds if len(kinds) > 1 else [*kinds, *kinds]
            layers = len(given[name])
    heads = {
        given.get(name) for name in ("num_attention_heads", "n_heads") if isinstance(given.get(name), int)
    }
    before = given.get("num_hidden_layers")
    for name in ("out_features", "out_indices", "stage_names", "per_layer_config"):
        given.pop(name, None)
    ids = itertools.count(90)
    for name, value in list(given.items()):
        if isinstance(value, dict):
            if name in ("rope_parameters", "rope_scaling"):
                _shrink_rope(value, level)
            else:
                _shrink(value, level)
        elif isinstance(value, list) and len(value) == before and name not in ("layer_types",):
            given[name] = value[:layers]
        elif isinstance(value, list) and value and all(type(item) is int for item in value):
            if name in ("depths", "layers", "num_layers"):
                given[name] = [min(item, 2) for item in value]
            elif name == "image_size":
                given[name] = [32] * len(value)
        elif type(value) is int and value > 0:
            given[name] = _number(name, value, level, layers, heads, ids)
        elif value is None and level == "filled" and name in _FILLED:
            given[name] = _FILLED[name]
    for name in ("mlp_layer_types", "indexer_types", "layers_block_type", "attention_types_per_layer"):
        if isinstance(given.get(name), list) and len(given[name]) > layers:
            given[name] = (list(dict.fromkeys(given[name])) + given[name])[:layers]


def _number(name: str, value: int, level: str, layers: int, heads: set[int], ids: Iterator[int]) -> int:
    if name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        return {"p": 0, "b": 1, "e": 2, "d": 1}[name[0]]
    if re.search(r"token_(id|index)$", name):
        return min(next(ids), 98)
    if level != "shallow" and name in ("image_size", "img_size", "input_size") and value > 32:
        return 32
    if level != "shallow" and name == "patch_size" and value >= 8:
        return 8
    for pattern, small in [*_BOTH, *(_SHALLOW if level == "shallow" else _NARROW)]:
        if re.search(pattern, name):
            if small == "kv":
                return 4 if value in heads else 2
            small = layers if small == 2 and "layers" in name and "num_hidden_layers" in name else small
            return min(value, small)
    return value


def _shrink_rope(rope: dict[str, Any], level: str) -> None:
    if level in ("mrope", "filled") and "rope_type" in rope:
        rope["mrope_section"] = [2, 1, 1]
    for value in rope.values():
        if isinstance(value, dict):
            _shrink_rope(value, level)
    if level != "shallow" and "mrope_section" in rope:
        rope["mrope_section"] = [2, 1, 1][: len(rope["mrope_section"])]


def built(kind: type[PreTrainedModel], level: str, attention: str, **changed: Any) -> PreTrainedModel:
    """Returns a float32 model to evaluate, its attention far from uniform. Raises ValueError where it has
    too many parameters."""
    config = shrunk(kind.config_class, level, **changed)
    config._attn_implementation = attention
    with torch.device("meta"):
        try:
            size = sum(parameter.numel() for parameter in kind(config).parameters())
        except NotImplementedError:
            size = 0
    if size > MOST_PARAMETERS:
        raise ValueError(f"it has {size // 1_000_000} million parameters when {level}")
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim < 2:
                if not parameter.isfinite().all():
                    parameter.normal_()
                continue
            gain = 1.4 if _QUERY.search(name) else 1.0
            is_table = "embed" in name or "bias" in name or "position" in name
            parameter.normal_(0, 0.7 if is_table else gain / math.sqrt(math.prod(parameter.shape[1:])))
    return model.float()


def scale_queries(model: PreTrainedModel, factor: float) -> None:
    """Multiplies the weights that make queries and keys."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _QUERY.search(name):
                parameter.mul_(factor)


_SHAPES = ["spatial_shapes", "pixel_attention_mask"]


def inputs(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Yields arguments that the model may take, for its forward to try."""
    taken = inspect.signature(model.forward).parameters
    config, generator = model.config, torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(3, max(4, min(80, vocabulary)), shape, generator=generator)

    width = _first(config, ("hidden_size", "d_model", "n_embd", "embed_dim", "dim"), 32)
    channels = _first(config, ("num_channels", "in_channels", "in_chans"), 3)
    size, patch = _first(config, ("image_size", "img_size"), 32), _first(config, ("patch_size",), 8)
    mels = _first(
        config, ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", "n_mels"), 16
    )
    frames = _first(config, ("temporal_patch_size",), 1)
    flat, vocabulary = channels * patch * patch, _first(config, ("vocab_size",), 80)
    options: dict[str, list[Any]] = {
        "input_ids": [ids(TEXTS, LENGTH)],
        "decoder_input_ids": [ids(TEXTS, 7)],
        "inputs_embeds": [numbers(TEXTS, LENGTH, width)],
        "hidden_states": [numbers(40, flat * frames), numbers(40, flat), numbers(TEXTS, LENGTH, width)],
        "pixel_values": [
            numbers(TEXTS, channels, size, size),
            numbers(40, flat * frames),
            numbers(40, flat),
            numbers(TEXTS, 16, flat),
            numbers(TEXTS, 4, channels, size, size),
            numbers(TEXTS, 1, channels, size, size),
            numbers(TEXTS, 16, flat * frames),
        ],
        "pixel_values_videos": [
            numbers(TEXTS, _first(config, ("num_frames", "frames_per_clip"), 4), channels, size, size)
        ],
        "input_features": [
            numbers(TEXTS, mels, 2 * _first(config, ("max_source_positions",), 50)),
            numbers(TEXTS, 40, mels),
            numbers(TEXTS, mels, 64),
            numbers(TEXTS, 1, 64, mels),
        ],
        "input_values": [
            numbers(TEXTS, 1600),
            numbers(TEXTS, 1, 1600),
            numbers(TEXTS, 64, mels),
            numbers(TEXTS, 1, 64, 64),
        ],
        "grid_thw": [torch.tensor([[1, 4, 4], [1, 4, 6]])],
        "image_grid_thw": [torch.tensor([[1, 4, 4], [1, 4, 6]])],
        "bbox": [torch.randint(0, 40, (TEXTS, LENGTH, 1), generator=generator).repeat(1, 1, 4)],
        "spatial_shapes": [torch.tensor([[4, 4], [4, 4]])],
        "pixel_attention_mask": [torch.ones(TEXTS, 16, dtype=torch.long)],
        "encoder_hidden_states": [numbers(TEXTS, 9, width)],
        "feature_lens": [torch.tensor([40, 24])],
        "input_features_mask": [torch.ones(TEXTS, 40, dtype=torch.bool)],
        "past_values": [numbers(TEXTS, 64), numbers(TEXTS, 64, 1)],
        "position_embeddings": [(numbers(LENGTH, 8), numbers(LENGTH, 8))],
        "cu_seqlens": [torch.tensor([0, 16, 40], dtype=torch.int32)],
    }
    main_input = model.main_input_name
    mains = [
        main_input if isinstance(main_input, str) else main_input[0],
        "input_ids",
        "inputs_embeds",
        "pixel_values",
        "hidden_states",
        "input_features",
    ]
    needed = [
        name for name, of in taken.items() if of.default is of.empty and of.kind == of.POSITIONAL_OR_KEYWORD
    ]
    for main in dict.fromkeys(name for name in mains if name in taken):
        names = dict.fromkeys([main, *needed])
        extra = [name for name in ("decoder_input_ids",) if name in taken]
        for added in ([*extra], [], ["pixel_values"], ["image_grid_thw"], ["bbox"], _SHAPES):
            wanted = [name for name in dict.fromkeys([*names, *added]) if name in taken]
            if all(name in options for name in wanted):
                for values in itertools.islice(itertools.product(*(options[name] for name in wanted)), 8):
                    yield dict(zip(wanted, values))


def _first(config: PretrainedConfig, names: tuple[str, ...], otherwise: int) -> int:
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))):
        for name in names:
            value = getattr(part, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return otherwise
