"""Models other than decoders of one text (cross-attention, sound, vision), under autocast, and compiled."""

import copy
import inspect
import pickle

import critbeta.hf
import numpy as np
import pytest
import torch
import transformers
from hf_models import tiny, tokens
from reference import reference


def whisper():
    torch.manual_seed(0)
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
    lengths = dict(max_source_positions=50, max_target_positions=64, num_mel_bins=8)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    ids = dict(vocab_size=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    config = transformers.WhisperConfig(**sizes, **lengths, **heads, **ids)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.data.normal_(0, 0.5)
    return model


def t5():
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    config = transformers.T5Config(**sizes, decoder_start_token_id=1, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("kind", ["whisper", "t5"])
@pytest.mark.parametrize("law", ["mistral3:train=4,b=1", "qwen-logn:train=4", "ssmax:s=0.4"])
def test_queries_of_cross_attention_have_positions_in_their_own_text(kind, law):
    decoded = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    if kind == "whisper":
        model, given, mask = whisper(), dict(input_features=torch.randn(2, 8, 100)), {}
    else:
        padding = torch.ones(2, 17, dtype=torch.long)
        padding[1, 9:] = 0
        model, mask = t5(), dict(attention_mask=padding)
        given = dict(mask, input_ids=tokens(2, 17))
    with torch.no_grad(), critbeta.hf.rescale(model, law), critbeta.hf.record(model) as rec:
        whole = model(**given, decoder_input_ids=decoded).logits
        encoded, cache, steps = model.get_encoder()(**given), None, []
        for step in range(12):
            of = decoded[:, step : step + 1]
            name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
            cached = {name: cache, "use_cache": True}
            out = model(encoder_outputs=encoded, decoder_input_ids=of, **cached, **mask)
            cache = out.past_key_values
            steps.append(out.logits)
    assert (whole - torch.cat(steps, 1)).abs().max() < 1e-4 * whole.std()
    cross = np.char.find(rec.rows.layer.astype(str), "encoder_attn" if kind == "whisper" else "EncDec") >= 0
    assert cross.any() and set(rec.rows.position[cross].tolist()) == set(range(12))


def test_masks_of_samples_are_not_those_of_frames():
    torch.manual_seed(0)
    convolutions = dict(conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3))
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    embeddings = dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_feat_extract_layers=3)
    more = dict(feat_extract_norm="layer", do_stable_layer_norm=True, apply_spec_augment=False)
    config = transformers.Wav2Vec2Config(**convolutions, **sizes, **embeddings, **more)
    model = transformers.Wav2Vec2Model(config).eval()
    mask = torch.ones(2, 1600, dtype=torch.long)
    mask[1, 1000:] = 0
    sound = torch.randn(2, 1600)
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        plain = model(input_values=sound, attention_mask=mask).last_hidden_state
    # There are 79 frames; the second mask leaves 49 of them.
    assert len(rec.rows) == 4 * (79 + 49) and set(rec.rows.n.tolist()) == {49, 79}
    assert sorted(set(rec.rows.position.tolist())) == list(range(79))
    with critbeta.hf.rescale(model, "qwen-logn:train=128"), torch.no_grad():
        assert torch.equal(model(input_values=sound, attention_mask=mask).last_hidden_state, plain)


def test_eager_functions_that_ignore_their_scale_are_rescaled():
    from transformers.models.llama4.modeling_llama4 import Llama4VisionConfig, Llama4VisionModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
    more = dict(vision_output_dim=64, projector_input_dim=64, projector_output_dim=64)
    more.update(image_size=32, patch_size=8)
    found = {}
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = Llama4VisionModel(Llama4VisionConfig(**sizes, **more, attn_implementation=attention)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.data.normal_(0, 0.3)
        image = torch.linspace(-1, 1, 3 * 32 * 32).sin().view(1, 3, 32, 32)
        with torch.no_grad():
            plain = model(image).last_hidden_state
            with critbeta.hf.rescale(model, "fixed:3"):
                found[attention] = model(image).last_hidden_state
        assert (found[attention] - plain).abs().max() > 1e-2 * plain.std()
    assert (found["eager"] - found["sdpa"]).abs().max() < 1e-4 * found["sdpa"].std()


@pytest.mark.parametrize("kind", ["mistral", "bert", "llama"])
def test_scores_are_float32_under_autocast(kind):
    model, calls = tiny(kind), []
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with torch.no_grad(), autocast, critbeta.hf.record(model, rows=1000) as rec:
        session = rec._session
        tap = next(iter(session.layers.values())).__dict__["_critbeta"]
        tap.observers.append(("", session.forward, calls.append))
        model(tokens(1, 40))
        tap.observers.pop()
    query, key, mask = calls[0].query.double()[0], calls[0].key.double()[0], calls[0].mask
    scores = (query @ key.repeat_interleave(len(query) // len(key), 0).transpose(1, 2)) * calls[0].scaling
    if mask is not None:
        scores = scores.masked_fill(~mask[0], -torch.inf)
    elif kind == "llama":
        scores = scores.masked_fill(~torch.ones(40, 40, dtype=torch.bool).tril(), -torch.inf)
    first = rec.rows.layer == rec.rows.layer[0]
    columns = [getattr(rec.rows, name)[first] for name in ("head", "position", "max", "ties")]
    for head, position, top, ties in zip(*columns):
        expected = reference(scores[head, position].numpy().astype(np.float32))
        assert top == pytest.approx(expected.max, abs=2e-5) and ties == expected.ties


def test_measured_rules_are_float32_under_autocast():
    model = tiny("llama", num_hidden_layers=1)
    attention, found = next(iter(model.model.layers)).self_attn, {}
    attention.o_proj.register_forward_pre_hook(lambda _, given: found.update(out=given[0]))
    with torch.no_grad(), critbeta.hf.rescale(model, "critical:resolve=1.2,cap=8"):
        x, calls = tokens(1, 40), []
        tap = attention.__dict__["_critbeta"]
        name, forward, replace = tap.replacement
        tap.replacement = name, forward, lambda call: calls.append(call) or replace(call)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x)
        under = found["out"].float()
        call = calls[0]
        value = call.value.float()
        again = replace(type(call)(**{**vars(call), "value": value}))[0]
    assert (under - again.reshape(under.shape)).abs().max() < 1e-5


def test_a_fixed_beta_rounds_no_query():
    model = tiny("llama").to(torch.bfloat16)
    seen = []
    with torch.no_grad(), critbeta.hf.rescale(model, "fixed:1.7"):
        layer = model.model.layers[0].self_attn
        tap = layer.__dict__["_critbeta"]
        name, forward, replace = tap.replacement

        def replaced(call):
            function = call.function

            def recorded(*args, **kwargs):
                seen.append((args[1], call.query, kwargs["scaling"]))
                return function(*args, **kwargs)

            call.function = recorded
            return replace(call)

        tap.replacement = name, forward, replaced
        model(tokens(1, 30))
    given, query, scaling = seen[0]
    assert given is query and scaling == pytest.approx(1.7 * query.shape[-1] ** -0.5)


def test_a_model_and_its_part_have_their_own_names():
    model, x = tiny("llama"), tokens(1, 20)
    plain = model.model(x)[0].detach()
    with critbeta.hf.record(model) as outer, critbeta.hf.rescale(model.model, "ssmax:s=0.43"):
        with critbeta.hf.record(model.model) as inner:
            model(x)
    assert set(outer.rows.layer) == {"model." + name for name in inner.rows.layer}
    assert (outer.rows.critical_beta == inner.rows.critical_beta).all()
    assert torch.equal(model.model(x)[0].detach(), plain)


def test_layers_that_are_compiled_one_by_one_keep_their_names():
    model = tiny("llama")
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    with critbeta.hf.record(model) as rec, torch.no_grad():
        model(tokens(1, 20))
    assert list(dict.fromkeys(rec.rows.layer)) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    model = tiny("llama")
    model.model.layers[0].self_attn = torch.compile(model.model.layers[0].self_attn, backend="eager")
    with critbeta.hf.record(model) as rec, torch.no_grad():
        model(tokens(1, 20))
    assert list(dict.fromkeys(rec.rows.layer)) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


def test_a_model_in_use_cannot_be_pickled():
    model = tiny("llama")
    with critbeta.hf.record(model), pytest.raises(TypeError, match="recorded or rescaled is not pickled"):
        pickle.dumps(model)
    handle = critbeta.hf.rescale(model, "ssmax:s=0.4")
    with pytest.raises(TypeError, match=r"remove\(\) the rescaling"):
        torch.save(model, "/dev/null")
    handle.remove()
    pickle.dumps(model)


def test_a_copy_made_in_a_block_is_a_model_like_any_other():
    model, monitor, x = tiny("llama"), critbeta.hf.Monitor(), tokens(1, 9)
    with critbeta.hf.record(model):
        copied = [copy.deepcopy(model)]
    with monitor.step(model) as scalars:
        copied.append(copy.deepcopy(model))
        copied[-1](x)
        with pytest.raises(TypeError, match="recorded or rescaled is not pickled"):
            pickle.dumps(model)
        model(x)
    assert len(scalars) == 3 * 2 * 6
    for other in copied:
        pickle.dumps(other)
        torch.compile(other, fullgraph=True, backend="eager")(x, use_cache=False)
        with critbeta.hf.record(other) as rec:
            other(x)
        assert rec.recorded == 2 * 6 * 9


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_at_beta_0_all_keys_weigh_the_same(attention):
    model = tiny("llama", attention, num_hidden_layers=1)
    found, attention = {}, model.model.layers[0].self_attn
    attention.o_proj.register_forward_pre_hook(lambda _, given: found.update(out=given[0]))
    attention.v_proj.register_forward_hook(lambda *given: found.update(value=given[2]))
    with critbeta.hf.rescale(model, "fixed:0"), torch.no_grad():
        model(tokens(1, 12))
    mean = found["value"].cumsum(1) / torch.arange(1, 13)[:, None]
    mean = mean.view(1, 12, 2, 1, 8).expand(1, 12, 2, 3, 8).reshape(1, 12, 48)
    assert (found["out"] - mean).abs().max() < 1e-5


def test_a_foreign_function_that_ignores_its_scale_is_rescaled():
    def mine(module, query, key, value, mask, **kwargs):
        sdpa = transformers.integrations.sdpa_attention.sdpa_attention_forward
        return sdpa(module, query, key, value, mask, **{**kwargs, "scaling": None})

    transformers.AttentionInterface.register("mine", mine)
    transformers.masking_utils.AttentionMaskInterface.register("mine", transformers.masking_utils.sdpa_mask)
    model, sdpa, x = tiny("llama", "mine"), tiny("llama"), tokens(1, 20)
    with critbeta.hf.rescale(model, "fixed:2"), critbeta.hf.rescale(sdpa, "fixed:2"), torch.no_grad():
        assert (model(x)[0] - sdpa(x)[0]).abs().max() < 1e-4
