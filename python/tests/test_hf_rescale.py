"""critbeta.hf.rescale against attention computed by hand, and the model after it."""

import json

import critbeta
import critbeta.hf
import numpy as np
import pytest
import torch
from hf_models import by_hand, count_law, log_law, tiny, tokens
from transformers import DynamicCache, StaticCache

DECODERS = ["llama", "qwen2", "mistral", "gpt_neox", "gemma2"]


def off(found, expected):
    """Returns the largest difference, in standard deviations of the expected values."""
    return float((found - expected).abs().max() / expected.std())


EXACT = 1e-9
"""The bound for float64 models whose laws scale queries under sdpa: only the order of sums differs."""
FLOAT32 = 2e-5
"""The bound where float32 is involved: transformers' eager softmax, its rotary tables, and our tiles."""
MEASURED = 2e-3
"""The bound for critical betas: they follow gaps of float32 scores, and the next layer amplifies it."""


# Two nearly equal largest scores make Lambda huge; resolve=1.2 nats ignores three near-ties.
CRITICAL = "critical:resolve=1.2,cap=3"


def allowed(kind, spec):
    if spec.startswith("critical"):
        return MEASURED
    return FLOAT32 if kind == "gemma2" or spec == "velickovic" else EXACT


def logits(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)[0]


@pytest.mark.parametrize("kind", [*DECODERS, "bert"])
def test_identity_changes_no_bit_and_removal_restores(kind):
    model, x = tiny(kind), tokens(2, 40)
    plain, name = logits(model, x), model.config._attn_implementation
    with critbeta.hf.rescale(model, "identity"):
        assert torch.equal(logits(model, x), plain)
    handle = critbeta.hf.rescale(model, "fixed:1.5")
    assert not torch.equal(logits(model, x), plain) and model.config._attn_implementation == name
    handle.remove()
    handle.remove()
    assert torch.equal(logits(model, x), plain)
    assert not any("_critbeta" in vars(module) or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("spec, law", [("qwen-logn:train=8", log_law(8)), ("ssmax:s=0.6", count_law(0.6))])
def test_laws_are_those_computed_by_hand(kind, spec, law):
    x = tokens(2, 40)
    expected = logits(by_hand(tiny(kind).double(), law), x)
    for attention in ("eager",) if kind == "gemma2" else ("eager", "sdpa"):
        model = tiny(kind, attention).double()
        with critbeta.hf.rescale(model, spec):
            assert off(logits(model, x), expected) < (EXACT if attention == "sdpa" else FLOAT32)
        assert off(logits(model, x), expected) > 1e-2


def test_a_fixed_beta_of_one_number_rounds_nothing_but_the_scale():
    model, x = tiny("llama"), tokens(1, 30)
    with critbeta.hf.rescale(model, "fixed:2"):
        found = logits(model, x)
    for layer in model.model.layers:
        layer.self_attn.scaling *= 2
    assert torch.equal(found, logits(model, x))


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("spec", ["qwen-logn:train=8", "ssmax:s=0.6", CRITICAL, "velickovic"])
def test_a_cache_has_the_logits_of_prefill(kind, spec):
    model, x = tiny(kind).double(), tokens(2, 20)
    with critbeta.hf.rescale(model, spec):
        whole = logits(model, x)
        caches = [DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=64)]
        for cache in caches:
            parts = [logits(model, x[:, :11], cache=cache, use_cache=True)]
            parts += [logits(model, x[:, i : i + 1], cache=cache, use_cache=True) for i in range(11, 17)]
            parts += [logits(model, x[:, 17:], cache=cache, use_cache=True)]
            assert off(torch.cat(parts, 1), whole) < allowed(kind, spec)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("spec", ["qwen-logn:train=8", "ssmax:s=0.6", CRITICAL])
@pytest.mark.parametrize("numbered", [True, False])
def test_left_padding_does_not_count(kind, spec, numbered):
    """Tests position_ids without padding, and transformers' own, which count it (rotation is relative)."""
    model, x, pad = tiny(kind).double(), tokens(1, 20), 7
    padded = torch.cat([torch.zeros(1, pad, dtype=torch.long), x], 1)
    mask = torch.ones_like(padded)
    mask[:, :pad] = 0
    ids = (mask.cumsum(-1) - 1).clamp(min=0) if numbered else None
    with critbeta.hf.rescale(model, spec):
        alone = logits(model, x)
        bound = max(allowed(kind, spec), 0 if numbered else FLOAT32)
        found = logits(model, padded, attention_mask=mask, position_ids=ids)
        assert off(found[:, pad:], alone) < bound
        # The same holds with a cache.
        cache = DynamicCache(config=model.config)
        parts = slice(0, -3), slice(-3, None)
        begin, end = (dict(position_ids=ids[:, part]) if numbered else {} for part in parts)
        logits(model, padded[:, :-3], attention_mask=mask[:, :-3], cache=cache, **begin)
        rest = logits(model, padded[:, -3:], attention_mask=mask, cache=cache, **end)
        assert off(rest, alone[:, -3:]) < bound


@pytest.mark.parametrize("spec", ["qwen-logn:train=8", "ssmax:s=0.6", CRITICAL])
def test_packed_texts_have_the_logits_of_single_texts(spec):
    model = tiny("llama").double()
    texts = [tokens(1, 13, seed=1), tokens(1, 21, seed=2)]
    ids = torch.cat([torch.arange(13), torch.arange(21)])[None]
    with critbeta.hf.rescale(model, spec):
        packed = logits(model, torch.cat(texts, 1), position_ids=ids, use_cache=False)
        alone = torch.cat([logits(model, text) for text in texts], 1)
    assert off(packed, alone) < allowed("llama", spec)


def test_generation_under_a_law_is_greedy_decoding_by_hand():
    model, x = tiny("llama"), tokens(1, 12)
    with critbeta.hf.rescale(model, "qwen-logn:train=8"):
        found = model.generate(x, max_new_tokens=8, do_sample=False)
    judge = by_hand(tiny("llama"), log_law(8))
    for _ in range(found.shape[1] - 12):
        x = torch.cat([x, logits(judge, x)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, x)


def test_critical_rows_run_at_their_own_critical_beta():
    model, x, rows = tiny("qwen2"), tokens(1, 50), []
    rule = critbeta.Rescaling.parse("critical:ratio=0.7,resolve=1.2,floor=0.2,cap=3")
    judge = by_hand(tiny("qwen2"), seen=rows)
    logits(judge, x)
    betas = {(layer, head, i): None for layer, _, head, i, _ in rows}
    # The scores of layer 0, and so their Lambda, do not depend on beta. Layer 1 sees the output of layer 0.
    with critbeta.hf.rescale(model, rule):
        found = logits(model, x)

    def beta(layer, head, n, position):
        return betas[layer, head, position]

    for layer in range(2):
        for of, _, head, i, scores in rows:
            if of == layer:
                critical = critbeta.critical_beta(scores.astype(np.float32), resolve=1.2)
                betas[of, head, i] = min(max(0.7 * critical, 0.2), 3.0)
        rows.clear()
        judge = by_hand(tiny("qwen2"), lambda *of: betas.get(of[:2] + of[3:]) or 1.0, seen=rows)
        expected = logits(judge, x)
    assert off(found, expected) < allowed("qwen2", "critical")


def calibration(path, layers, heads=6, **changed):
    law = lambda c: {"c": c, "xi": 0.5, "conclusive": True, "interval": [0.4, 0.6]}
    entries = [
        {"layer": layer, "head": head, "critical": law(1 + 0.1 * head), "resolved": law(2.0)}
        for layer in layers
        for head in range(heads)
    ]
    document = {"critbeta": "0", "resolve": 0.0, "exclude_sink": 0, "heads": entries, **changed}
    path.write_text(json.dumps(document))
    return path


LAYERS = ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_calibration_is_a_law_per_layer_and_head(tmp_path, kind):
    path, x = calibration(tmp_path / "cal.json", LAYERS), tokens(2, 40)
    model = tiny(kind).double()

    def law(layer, head, n, position):
        return (1 + 0.1 * head) * np.log(n) ** 0.5 if n > 1 else 1.0

    expected = logits(by_hand(tiny(kind).double(), law), x)
    with critbeta.hf.rescale(model, f"calibrated:{path}"):
        assert off(logits(model, x), expected) < allowed(kind, "law")


def test_a_calibration_of_other_layers_or_heads_is_refused(tmp_path):
    model = tiny("llama")
    refused = [
        ([*LAYERS, "layer07"], {}, r"has laws of layer07, which the model does not have"),
        (LAYERS, dict(heads=5), r"of model\.layers\.0\.self_attn it does not cover heads 5"),
        (LAYERS, dict(heads=7), r"it has laws of heads 6"),
    ]
    for layers, changed, message in refused:
        path = calibration(tmp_path / "cal.json", layers, **changed)
        with pytest.raises(ValueError, match=message):
            critbeta.hf.rescale(model, f"calibrated:{path}")
    path = calibration(tmp_path / "cal.json", LAYERS[:1])
    message = r"does not cover model\.layers\.1\.self_attn, which runs"
    with critbeta.hf.rescale(model, f"calibrated:{path}"), pytest.raises(ValueError, match=message):
        model(tokens(1, 9))
    with pytest.raises(OSError, match="none.json"):
        critbeta.hf.rescale(model, "calibrated:none.json")
    assert not any("_critbeta" in vars(module) for module in model.modules())


def test_models_that_cannot_be_rescaled_are_refused():
    model = tiny("llama")
    with pytest.raises(ValueError, match="unknown name"):
        critbeta.hf.rescale(model, "nonsense")
    with pytest.raises(TypeError, match="Rescaling or its text"):
        critbeta.hf.rescale(model, 1.5)
    with pytest.raises(TypeError, match="expected a torch.nn.Module"):
        critbeta.hf.rescale("model", "identity")
    message = "Linear: no module calls its attention through transformers' AttentionInterface, it has no att"
    with pytest.raises(ValueError, match=message):
        critbeta.hf.rescale(torch.nn.Linear(2, 2), "identity")
    with pytest.raises(ValueError, match="MultiheadAttention computes attention itself"):
        critbeta.hf.rescale(torch.nn.TransformerEncoderLayer(8, 2), "identity")
    with pytest.raises(ValueError, match="DataParallel"):
        critbeta.hf.rescale(torch.nn.DataParallel(model), "identity")
    with critbeta.hf.rescale(model, "identity"):
        with pytest.raises(ValueError, match=r"rescaled already: model\.layers\.0"):
            critbeta.hf.rescale(model, "identity")


def test_an_exception_leaves_nothing_behind():
    model, x = tiny("llama"), tokens(1, 10)
    plain = logits(model, x)
    with pytest.raises(ZeroDivisionError), critbeta.hf.rescale(model, "ssmax:s=1"):
        logits(model, x)
        raise ZeroDivisionError
    assert torch.equal(logits(model, x), plain)
    assert not any("_critbeta" in vars(module) or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_additive_mask_is_part_of_the_score(attention):
    """beta multiplies the logit, bias included; a bias by distance as in ALiBi."""
    x, at = tokens(1, 24), torch.arange(24)
    mask = torch.where(at <= at[:, None], -0.3 * (at[:, None] - at), -torch.inf)[None, None].double()
    expected = logits(by_hand(tiny("llama").double(), count_law(0.6)), x, attention_mask=mask)
    with critbeta.hf.rescale(tiny("llama", attention).double(), "ssmax:s=0.6") as rescaled:
        assert off(logits(rescaled.model, x, attention_mask=mask), expected) < FLOAT32


def test_the_size_of_tiles_changes_nothing(monkeypatch):
    model, x = tiny("llama"), tokens(2, 50)
    with critbeta.hf.rescale(model, "velickovic"):
        whole = logits(model, x)
        monkeypatch.setattr("critbeta.hf._rescale._TILE_BYTES", 4 * 6 * 50 * 7)
        assert off(logits(model, x), whole) < FLOAT32


def test_sinks_are_refused():
    from transformers import GptOssConfig, GptOssForCausalLM
    from hf_models import SIZES

    sizes = {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    model = GptOssForCausalLM(GptOssConfig(**sizes, attn_implementation="eager")).eval()
    with critbeta.hf.rescale(model, "ssmax:s=1"), pytest.raises(ValueError, match="learned sinks"):
        logits(model, tokens(1, 10))


def test_gradients_flow_through_scaled_queries():
    x = tokens(1, 20)
    gradients = []
    for attention in ("sdpa", "eager"):
        model = tiny("llama", attention).train()
        with critbeta.hf.rescale(model, "ssmax:s=0.6"):
            model(x, labels=x).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_gradients_flow_through_tiles():
    """Compares a measured rule that gives a constant with that constant."""
    x, gradients = tokens(1, 20), []
    for spec in ("fixed:1.5", "critical:floor=1.5,cap=1.5"):
        model = tiny("llama").train()
        with critbeta.hf.rescale(model, spec):
            model(x, labels=x).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_bfloat16_costs_one_rounding_of_a_query():
    x = tokens(1, 40)
    exact = logits(by_hand(tiny("llama").bfloat16(), count_law(0.6)), x).float()
    model = tiny("llama").bfloat16()
    with critbeta.hf.rescale(model, "ssmax:s=0.6"):
        found = logits(model, x).float()
    plain = logits(tiny("llama").bfloat16(), x).float()
    assert (found - exact).abs().mean() < 0.1 * (plain - exact).abs().mean()


def test_the_name_critbeta_is_sdpa():
    x = tokens(2, 20)
    assert torch.equal(logits(tiny("mistral", "critbeta"), x), logits(tiny("mistral", "sdpa"), x))
    with critbeta.hf.rescale(tiny("mistral", "critbeta"), "ssmax:s=0.6") as handle:
        assert "2 layers" in repr(handle)


def test_a_compiled_model_is_rescaled_too():
    model, x = tiny("llama"), tokens(1, 16)
    plain = logits(model, x)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled, x), plain)
    with critbeta.hf.rescale(compiled, "fixed:1.5"):
        found = logits(compiled, x)
    with critbeta.hf.rescale(model, "fixed:1.5"):
        torch.testing.assert_close(found, logits(model, x))
    torch.testing.assert_close(logits(compiled, x), plain)
