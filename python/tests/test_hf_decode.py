"""critbeta.hf.rescale(..., decode="critbeta") against the same rescaling in the model's own attention."""

import critbeta
import critbeta.hf
import pytest
import torch
from critbeta.hf import _decode
from hf_models import tiny, tokens
from transformers import DynamicCache, StaticCache

LENGTH, PROMPT = 43, 30


@pytest.fixture
def steps(monkeypatch):
    """Returns the list of calls of critbeta.decode, each as its arguments."""
    calls, function = [], _decode._pages.decode

    def counted(given, out, measured):
        calls.append(given)
        return function(given, out, measured)

    monkeypatch.setattr(_decode._pages, "decode", counted)
    return calls


def model_of(kind, **changed):
    return tiny(kind, **{"head_dim": 64, **changed})


def run(model, x, sizes=(1,) * 6, mask=None, cache=None):
    """Returns the logits of the tokens behind the prompt, fed `sizes` at a time."""
    cache = cache or DynamicCache(config=model.config)
    out, end = [], PROMPT
    with torch.no_grad():
        for size in (0, *sizes):
            start, end = (0, PROMPT) if size == 0 else (end, end + size)
            seen = None if mask is None else mask[:, :end]
            found = model(x[:, start:end], attention_mask=seen, cache=cache, use_cache=True)
            out.append(found.logits)
    return torch.cat(out[1:], dim=1)


def off(found, expected):
    return float((found - expected).abs().max() / expected.std())


SPECS = ["identity", "fixed:1.3", "qwen-logn:train=8", "ssmax:s=0.6", "critical:resolve=1.2,cap=3"]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("sizes", [(1,) * 4, (3, 1, 6)], ids=["one", "several"])
def test_steps_are_those_of_the_model_s_own_attention(kind, spec, sizes, steps):
    model, x = model_of(kind), tokens(2, LENGTH)
    with critbeta.hf.rescale(model, spec):
        expected = run(model, x, sizes)
    assert not steps
    with critbeta.hf.rescale(model, spec, decode="critbeta"):
        found = run(model, x, sizes)
    # A critical beta follows gaps of float32 scores, and the next layer amplifies it.
    assert off(found, expected) < (2e-3 if spec.startswith("critical") else 2e-5)
    # Under a softcap beta multiplies capped scores, which no factor on queries does.
    capped = kind == "gemma2" and spec not in ("identity", SPECS[-1])
    assert len(steps) == (0 if capped else len(sizes) * model.config.num_hidden_layers)
    assert all(given.q.shape[0] == 2 * int(given.q_lens[0]) for given in steps)
    assert torch.equal(run(model, x, sizes), run(model, x, sizes))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("spec", ["identity", "qwen-logn:train=8", "critical:resolve=1.2,cap=3"])
def test_texts_padded_on_the_left_are_sliced_and_not_refused(kind, spec, steps):
    model, x = model_of(kind), tokens(3, LENGTH)
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[0, :7], mask[2, :19] = 0, 0
    for sizes in ((1, 1), (4, 6)):
        with critbeta.hf.rescale(model, spec):
            expected = run(model, x, sizes, mask)
        with critbeta.hf.rescale(model, spec, decode="critbeta"):
            found = run(model, x, sizes, mask)
        assert off(found, expected) < (2e-3 if spec.startswith("critical") else 2e-5)
    # Each text is a call of its own, unless a window has left all padding behind.
    assert steps and all(len(given.lens) == (1 if kind == "llama" else 3) for given in steps)


def test_a_static_cache_is_read_up_to_its_tokens_and_without_a_copy(steps):
    model, x = model_of("llama"), tokens(2, LENGTH)
    expected = run(model, x)
    cache = StaticCache(config=model.config, max_cache_len=300)
    with critbeta.hf.rescale(model, "identity", decode="critbeta"):
        found = run(model, x, cache=cache)
    assert off(found, expected) < 2e-5 and len(steps) == 12
    layer = cache.layers[-1]
    assert steps[-1].k_pages.data_ptr() == layer.keys.data_ptr() and steps[-1].k_pages.shape[2] == PROMPT + 6
    assert steps[-1].v_pages.data_ptr() == layer.values.data_ptr()


def test_a_law_for_each_head(steps, tmp_path):
    model, x = model_of("llama"), tokens(1, 200)
    with torch.no_grad(), critbeta.hf.record(model) as rec:
        model(x)
    rec.rows.to_calibration(tmp_path / "cal.json")
    spec = f"calibrated:{tmp_path / 'cal.json'},anchor=20"
    with pytest.warns(UserWarning, match="inconclusive"):
        plain, decoding = (lambda: critbeta.hf.rescale(model, spec)), None
        with plain():
            expected = run(model, x[:, :LENGTH])
        decoding = critbeta.hf.rescale(model, spec, decode="critbeta")
    with decoding:
        found = run(model, x[:, :LENGTH])
    assert off(found, expected) < 2e-5 and len(steps) == 12
    assert off(expected, run(model, x[:, :LENGTH])) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits(dtype, steps):
    model, x = model_of("llama").to(dtype), tokens(2, LENGTH)
    for spec in ("identity", "qwen-logn:train=8"):
        with critbeta.hf.rescale(model, spec):
            expected = run(model, x, (1, 9, 3))
        with critbeta.hf.rescale(model, spec, decode="critbeta"):
            found = run(model, x, (1, 9, 3))
        assert found.dtype == dtype and off(found.float(), expected.float()) < 0.1
    # Queries with betas of their own stay in float32. Nine tokens at once are no decoding step.
    assert len(steps) == 8 and steps[0].q.dtype == dtype and steps[-1].q.dtype == torch.float32


def test_values_may_stay_unread_within_eps():
    model, x = model_of("llama"), tokens(1, LENGTH)
    exact = run(model, x)
    differences = []
    for eps in (0.0, 0.05, 0.5):
        with critbeta.hf.rescale(model, "identity", decode="critbeta", eps=eps):
            differences.append(off(run(model, x), exact))
    assert differences[0] < 2e-5 < differences[1] < differences[2]


def test_other_calls_run_as_before(steps):
    model, x = model_of("llama"), tokens(2, LENGTH)
    with critbeta.hf.rescale(model, "identity", decode="critbeta"):
        with torch.no_grad():
            plain = model(x).logits
            run(model, x, sizes=(9,))
        assert not steps
        # A step that gradients are wanted of.
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(x[:, :PROMPT], cache=cache)
        model(x[:, PROMPT : PROMPT + 1], cache=cache).logits.sum().backward()
        assert not steps and model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert torch.equal(plain, model(x).logits)


def test_what_cannot_be_decoded_is_an_error_that_names_the_layer():
    x = tokens(1, LENGTH)
    for model, message in [
        (tiny("llama"), "model.layers.0.self_attn: .*a head has 8 elements, expected a multiple of 8 in 64"),
        (model_of("llama").double(), "model.layers.0.self_attn: q is dtype.'float64'. of shape"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            with critbeta.hf.rescale(model, "identity", decode="critbeta"):
                run(model, x)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(eps=0.1), "eps 0.1 is for decode='critbeta'"),
        (dict(eps=1.0, decode="critbeta"), "eps 1.0: expected at least 0 and below 1"),
        (dict(eps=float("nan"), decode="critbeta"), "eps nan"),
        (dict(decode="flash"), "decode 'flash': expected None or 'critbeta'"),
    ],
)
def test_bad_options_are_refused_and_leave_the_model_alone(options, message):
    model = model_of("llama")
    with pytest.raises(ValueError, match=message):
        critbeta.hf.rescale(model, "identity", **options)
    critbeta.hf.rescale(model, "identity").remove()


def test_generate_gives_the_model_s_own_tokens(steps):
    model, x = model_of("llama"), tokens(2, 8)
    options = dict(max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = model.generate(x, attention_mask=torch.ones_like(x), **options)
    with critbeta.hf.rescale(model, "identity", decode="critbeta"):
        found = model.generate(x, attention_mask=torch.ones_like(x), **options)
    assert torch.equal(found, expected) and len(steps) == 2 * 39
