"""critbeta.hf at its limits: few rows, betas beyond a dtype, NaN, and handles that are used twice."""

import critbeta.hf
import numpy as np
import pytest
import torch
from critbeta.hf._sample import spread
from hf_models import tiny, tokens


def test_every_count_of_rows_of_every_text_is_spread_within_it():
    for rows in range(1, 13):
        for first in range(1, 15):
            for last in range(first, 40):
                found = spread(first, last, rows)
                assert 0 < len(found) <= max(rows, 1) and (np.diff(found) > 0).all()
                assert found[0] >= 0 and found[-1] == last - first
                assert len(found) == last - first + 1 or last - first + 1 > rows


@pytest.mark.parametrize("rows", range(1, 8))
def test_few_rows_of_short_texts(rows):
    for length in (1, 5, 7, 9):
        with critbeta.hf.record(tiny("llama"), rows=rows) as rec, torch.no_grad():
            rec.model(tokens(1, length))
        assert rec.rows.position.max() == length - 1


HALF = [("float16", "fixed:70000"), ("float16", "ssmax:s=30000"), ("bfloat16", "fixed:4e38")]


@pytest.mark.parametrize("dtype, law", [("float32", "fixed:1e39"), *HALF])
def test_betas_beyond_a_dtype_are_refused(dtype, law):
    model = tiny("llama").to(getattr(torch, dtype))
    message = f"expected at most .*, which torch.{dtype} holds"
    with critbeta.hf.rescale(model, law), pytest.raises(ValueError, match=message):
        model(tokens(1, 9))
    assert model(tokens(1, 9))[0].isfinite().all()


def test_a_rescaling_that_was_removed_is_not_entered():
    handle = critbeta.hf.rescale(tiny("llama"), "ssmax:s=0.4")
    with handle, handle:
        pass
    with pytest.raises(RuntimeError, match="this rescaling was removed"), handle:
        pass


def test_a_key_that_is_nan_stays_in_its_text(tmp_path):
    model, x, cache = tiny("llama"), tokens(1, 30), None
    model.model.embed_tokens.weight.data[5] = float("nan")
    x[0, 3] = 5
    with critbeta.hf.record(model) as rec, torch.no_grad():
        for step in range(30):
            cache = model(x[:, step : step + 1], cache=cache, use_cache=True).past_key_values
    (file,) = rec.save(tmp_path / "qk.safetensors")
    from safetensors.torch import load_file

    assert load_file(file)["model.layers.0.self_attn.k"].shape[1] == 30
    assert rec.rows.poisoned.sum() == 2 * 6 * 27


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("head", [0, 5])
def test_a_monitored_head_with_nan_has_nan_scalars(head):
    model = tiny("llama")
    model.model.layers[0].self_attn.q_proj.weight.data[8 * head : 8 * head + 8] = float("nan")
    monitor = critbeta.hf.Monitor()
    with monitor.step(model), torch.no_grad():
        model(tokens(1, 30))
    assert len(monitor.scalars) == 3 * 2 * 6
    for number in range(6):
        for name in ("operating_ratio", "tied", "entropy"):
            scalar = monitor.scalars[f"critbeta/model.layers.0.self_attn/head{number}/{name}"]
            assert np.isnan(scalar) == (number == head)


@pytest.mark.parametrize("max_bytes", [-1, float("nan")])
def test_a_bad_max_bytes_is_refused(max_bytes):
    with pytest.raises(ValueError, match="max_bytes"):
        critbeta.hf.record(tiny("llama"), max_bytes=max_bytes)
