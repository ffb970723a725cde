"""Export the queries and keys of every attention layer of a Hugging Face model for `critbeta diagnose`.

    python export_qk.py MODEL TEXT_FILE OUT.safetensors [ROWS]

Needs torch, transformers >= 4.56, safetensors. Queries and keys are taken where the model's own attention
takes them, after rotary embedding and norms; ROWS (default 256) query positions are kept per head, spaced
evenly in log n, and all keys. Models whose scores are more than scaled dot products under a causal mask
(softcap, a sliding window shorter than the text, sinks as parameters) are refused: their logits would be
other ones. Source: transformers' AttentionInterface and AttentionMaskInterface."""

import sys

import torch
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

tensors, scales = {}, set()


def recording_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """query [batch, heads, n, head_dim], key [batch, kv_heads, n, head_dim]."""
    layer = f"layer{module.layer_idx:02d}"
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        sys.exit(f"error: {layer} has a softcap or a learned sink: its scores are not scale * q k^T")
    if (kwargs.get("sliding_window") or query.shape[2]) < query.shape[2]:
        sys.exit(
            f"error: {layer} has a window of {kwargs['sliding_window']} keys: "
            "use a text of at most that many tokens"
        )
    tensors[f"{layer}.q"] = query[0][:, positions].contiguous().cpu()
    tensors[f"{layer}.k"] = key[0].contiguous().cpu()
    scales.add(scaling if scaling is not None else query.shape[-1] ** -0.5)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register("recording", recording_attention)
AttentionMaskInterface.register("recording", sdpa_mask)  # without it the causal mask is dropped silently

name, text_file, out = sys.argv[1:4]
rows = int(sys.argv[4]) if len(sys.argv) > 4 else 256
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="recording").eval()
tokens = AutoTokenizer.from_pretrained(name)(open(text_file).read(), return_tensors="pt").input_ids
tokens = tokens[:, : model.config.max_position_embeddings]
n = tokens.shape[1]
lengths = torch.logspace(torch.log10(torch.tensor(8.0)), torch.log10(torch.tensor(float(n))), rows)
positions = torch.unique(lengths.round().long().clamp(1, n) - 1)
with torch.no_grad():
    model(tokens)
(scale,) = scales  # one scale for all layers; models that differ need one file per scale
tensors["positions"] = positions
save_file(tensors, out, metadata={"scale": repr(scale), "model": name, "tokens": str(n)})
