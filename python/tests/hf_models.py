"""Tiny random models of transformers, built offline, and attention by hand: NumPy, float64, row by row."""

from __future__ import annotations

import math

import numpy as np
import torch
import transformers
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.3,
)
KINDS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, dict(sliding_window=9)),
    "gemma2": (
        transformers.Gemma2Config,
        transformers.Gemma2ForCausalLM,
        dict(sliding_window=9, attn_logit_softcapping=3.0, head_dim=8, query_pre_attn_scalar=16),
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM, {}),
    "bert": (transformers.BertConfig, transformers.BertModel, {}),
}


def tiny(kind, attention=None, seed=0, **changed):
    """Returns a float32 model to evaluate, with attention far from uniform: sdpa, or eager (softcap)."""
    attention = attention or ("eager" if kind == "gemma2" else "sdpa")
    config, model, own = KINDS[kind]
    torch.manual_seed(seed)
    return model(config(**{**SIZES, **own, **changed}, attn_implementation=attention)).eval()


def tokens(*shape, seed=0):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def by_hand(model, beta=lambda layer, head, n, position: 1.0, seen=None):
    """Makes `model` compute its attention by hand at beta(layer, head, n, position of the query in its text),
    and appends (layer, text, head, position, scores of the visible keys) of every row to `seen`."""

    def attention(module, query, key, value, mask, scaling=None, softcap=None, **kwargs):
        q, k, v = (tensor.detach().double().numpy() for tensor in (query, key, value))
        out = np.zeros((*q.shape[:3], v.shape[3]))
        for text, head, row in np.ndindex(q.shape[:3]):
            of = head // (q.shape[1] // k.shape[1])
            scores = k[text, of] @ q[text, head, row] * scaling
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            bias = np.zeros(len(scores)) if mask is None else mask[text % len(mask), 0, row].double().numpy()
            visible = bias > -1e30
            if not visible.any():
                continue
            scores = (scores + bias)[visible]
            position = starts(text, row, visible)
            if seen is not None:
                seen.append((module.layer_idx, text, head, position, scores))
            b = beta(module.layer_idx, head, len(scores), position)
            weights = np.exp(b * (scores - scores.max()))
            out[text, head, row] = weights / weights.sum() @ v[text, of][visible]
        return torch.from_numpy(out).to(query.dtype).transpose(1, 2).contiguous(), None

    def starts(text, row, visible):
        ids = model.positions_by_hand
        return int(np.flatnonzero(visible)[-1]) if ids is None else int(ids[text][row])

    model.positions_by_hand = None
    AttentionInterface.register("by_hand", attention)
    AttentionMaskInterface.register("by_hand", eager_mask)
    model.set_attn_implementation("by_hand")
    return model


def log_law(train):
    """Returns Qwen's length law: max(1, ln(i + 1) / ln L)."""
    return lambda layer, head, n, position: max(1.0, math.log(position + 1) / math.log(train))


def count_law(s):
    """Returns the law of SSMax: s ln n."""
    return lambda layer, head, n, position: s * math.log(n) if n > 1 else 1.0
