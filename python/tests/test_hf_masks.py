"""Masks of finite numbers hide keys as -inf does; masks that eager attention would not heed are refused."""

import critbeta.hf
import numpy as np
import pytest
import torch
from hf_models import tiny, tokens

LOW = [-torch.inf, torch.finfo(torch.float32).min, torch.finfo(torch.float16).min, -1e9, -1e4]


def under(model, x, mask, law="ssmax:s=0.43"):
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        model(x, attention_mask=mask)
    with critbeta.hf.rescale(model, law), torch.no_grad():
        return rec.rows, model(x, attention_mask=mask).logits


def causal(low, rows=20, dtype=torch.float32):
    return torch.where(torch.ones(rows, rows).tril().bool(), 0.0, low)[None, None].to(dtype)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_low_number_hides_a_key(attention):
    model, x = tiny("llama", attention), tokens(1, 20)
    rows, logits = under(model, x, causal(-torch.inf))
    assert sorted(set(rows.n.tolist())) == list(range(1, 21))
    for low in LOW:
        found, rescaled = under(model, x, causal(low))
        assert np.array_equal(found.n, rows.n) and np.array_equal(found.critical_beta, rows.critical_beta)
        torch.testing.assert_close(rescaled, logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_numbers_of_16_bits_hide_too(dtype):
    model, x = tiny("llama").to(dtype), tokens(1, 20)
    for low in (torch.finfo(dtype).min, -1e4):
        rows, logits = under(model, x, causal(low, dtype=dtype))
        assert sorted(set(rows.n.tolist())) == list(range(1, 21)) and logits.isfinite().all()


def test_a_mask_hides_what_it_takes_to_a_weight_of_0_and_no_more():
    model, x = tiny("llama", "eager", num_hidden_layers=1), tokens(1, 20)
    mask = causal(-torch.inf)
    mask[..., 10:, 3], mask[..., 10:, 4] = -150.0, -20.0
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        (weights,) = model(x, attention_mask=mask, output_attentions=True).attentions
    seen = (weights[0] > 0).sum(-1).flatten()
    assert seen.tolist() == rec.rows.n.tolist() and int(seen[19]) == 19
    # A law counts the same keys: at beta = 1 for n = 19 alone, the last row stays as it was.
    with torch.no_grad():
        plain = model(x, attention_mask=mask).logits[0, -1]
        with critbeta.hf.rescale(model, f"ssmax:s={1 / np.log(19):.17g}"):
            found = model(x, attention_mask=mask).logits[0, -1]
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use", ["record", "rescale"])
def test_a_boolean_mask_under_eager_attention_is_refused(use):
    model, x, see = tiny("llama", "eager"), tokens(1, 20), torch.ones(20, 20).tril().bool()[None, None]
    opened = critbeta.hf.record(model) if use == "record" else critbeta.hf.rescale(model, "ssmax:s=0.43")
    with pytest.raises(ValueError, match="eager attention adds .* as 0 and 1"), opened, torch.no_grad():
        model(x, attention_mask=see)
    sdpa = tiny("llama")
    with critbeta.hf.record(sdpa, rows=100) as rec, torch.no_grad():
        sdpa(x, attention_mask=see)
    assert sorted(set(rec.rows.n.tolist())) == list(range(1, 21))


@pytest.mark.parametrize("low", [-90.0, -100.0, -103.0])
def test_weights_below_the_normal_numbers_are_0(low):
    # The -100 of Swin leaves weights near 4e-44, which some processors take for 0 and others do not.
    model, x = tiny("llama", "eager", num_hidden_layers=1), tokens(1, 20)
    mask = causal(-torch.inf)
    mask[..., 10:, 3] = low
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        (weights,) = model(x, attention_mask=mask, output_attentions=True).attentions
    seen = (weights[0] >= torch.finfo(torch.float32).tiny).sum(-1).flatten()
    assert seen.tolist() == rec.rows.n.tolist() and int(seen[19]) == 19
